from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from bvae.beta_vae import BetaVAE
from bvae.config import DEFAULT_MODEL
from bvae.experiment import Experiment, SetupError
from bvae.models import ModelError, build_model, check_model
from bvae.options import parse_experiment
from bvae.session import Session

pytestmark = pytest.mark.unit

DOCUMENT = Path(__file__).parents[1] / "docs/own-model.md"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the documented example as a module into the current folder."""
    source = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert source is not None
    (tmp_path / "linear_vae.py").write_text(source.group(1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "linear_vae", raising=False)
    return tmp_path


def test_the_default_is_the_built_in_model() -> None:
    assert isinstance(build_model(DEFAULT_MODEL, grid_size=8, latent_dim=2), BetaVAE)
    check_model(DEFAULT_MODEL, grid_size=8, latent_dim=2)


def test_the_documented_model_is_accepted(module: Path) -> None:
    for classes in (3, 10):
        check_model("linear_vae:make", grid_size=8, latent_dim=3, classes=classes, has_outside=True)
        model = build_model("linear_vae:make", grid_size=8, latent_dim=3, classes=classes)
        assert model.decode(torch.zeros(5, 3)).shape == (5, classes, 8, 8)


def test_checking_a_model_leaves_the_random_state_unchanged() -> None:
    state = torch.get_rng_state()
    check_model(DEFAULT_MODEL, grid_size=8, latent_dim=2)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("linear_vae", "expected package.module:factory"),
        (":make", "expected package.module:factory"),
        ("nowhere_to_be_found:make", "cannot be imported"),
        ("linear_vae:nothing", "cannot be imported"),
        ("linear_vae:nn", "failed on two grids"),
        ("wrong:dictionary", "returns a dict without encode and decode; expected an nn.Module"),
        ("wrong:Narrow", r"encode returns posterior mean \[2, 1\]; expected \[2, 3\]"),
        ("wrong:Raising", "failed on two grids: KeyError"),
        ("wrong:Squeezing", r"decode returns logits \[10, 8, 8\]; expected \[1, 10, 8, 8\]"),
        ("wrong:Mixing", "decode does not return the same logits when the rest of the batch changes"),
        (
            "wrong:Sampling",
            "encode does not return the same posterior mean when it is called again in evaluation mode",
        ),
        ("wrong:Dropping", "decode does not return the same logits when it is called again"),
        ("wrong:Beginning", "decode does not return the same logits when it is called again"),
        (
            "wrong:Centering",
            "encode does not return the same posterior mean when the rest of the batch changes",
        ),
        ("wrong:Leaving", "failed on two grids: SystemExit: 3"),
        ("ending:make", "cannot be imported from .*: SystemExit: 2"),
        ("unreadable:make", "cannot be imported from .*: SyntaxError"),
    ],
)
def test_an_invalid_model_is_refused_in_one_sentence(module: Path, name: str, complaint: str) -> None:
    (module / "wrong.py").write_text(
        "import torch, linear_vae\n"
        "def dictionary(grid_size, latent_dim): return {}\n"
        "class Narrow(linear_vae.LinearVAE):\n"
        "    def encode(self, grids): return [part[:, :1] for part in super().encode(grids)]\n"
        "    def decode(self, latent): return super().decode(latent.expand(-1, 3))\n"
        "class Raising(linear_vae.LinearVAE):\n"
        "    def decode(self, latent): raise KeyError('nothing there')\n"
        "class Squeezing(linear_vae.LinearVAE):\n"
        "    def decode(self, latent): return super().decode(latent).squeeze(0)\n"
        "class Mixing(linear_vae.LinearVAE):\n"
        "    def decode(self, latent): return super().decode(latent - latent.mean(0))\n"
        "class Sampling(linear_vae.LinearVAE):\n"
        "    def encode(self, grids):\n"
        "        mean, log_variance = super().encode(grids)\n"
        "        return mean + torch.randn_like(mean), log_variance\n"
        "class Centering(linear_vae.LinearVAE):\n"
        "    def encode(self, grids):\n"
        "        mean, log_variance = super().encode(grids)\n"
        "        return mean - mean.mean(0), log_variance\n"
        "class Leaving(linear_vae.LinearVAE):\n"
        "    def encode(self, grids): raise SystemExit(3)\n"
        "class Dropping(linear_vae.LinearVAE):\n"
        "    def decode(self, latent): return super().decode(torch.nn.functional.dropout(latent + 1))\n"
        "class Beginning(Dropping):  # all logits are 0 before the first step\n"
        "    def __init__(self, **sizes):\n"
        "        super().__init__(**sizes)\n"
        "        torch.nn.init.zeros_(self.to_logits.weight), torch.nn.init.zeros_(self.to_logits.bias)\n"
    )
    (module / "ending.py").write_text("raise SystemExit(2)")
    (module / "unreadable.py").write_text("def make(:")
    sys.modules.pop("wrong", None)
    with pytest.raises(ModelError, match=complaint) as caught:
        check_model(name, grid_size=8, latent_dim=3)
    assert "\n" not in str(caught.value)


ENCODINGS = (
    "import torch.nn.functional as F\n"
    "from bvae.beta_vae import BetaVAE, Output, one_hot\n"
    "class Plain(BetaVAE):\n"
    "    def cells(self, grids): return F.one_hot(grids.long(), 10).permute(0, 3, 1, 2).float()\n"
    "    def encode(self, grids): return self.encoder(self.cells(grids)).chunk(2, dim=1)\n"
    "class Careful(Plain):\n"
    "    def cells(self, grids): return one_hot(grids)\n"
)
"""Two models whose encodings differ only in cells outside."""


@pytest.mark.parametrize("has_outside", [False, True])
def test_a_model_is_checked_with_cells_outside_if_the_corpus_has_any(module: Path, has_outside: bool) -> None:
    (module / "cell_encodings.py").write_text(ENCODINGS)
    sys.modules.pop("cell_encodings", None)
    for name in (DEFAULT_MODEL, "cell_encodings:Careful"):
        check_model(name, grid_size=8, latent_dim=3, has_outside=has_outside)
    if not has_outside:
        check_model("cell_encodings:Plain", grid_size=8, latent_dim=3)
        return
    with pytest.raises(
        ModelError, match=r"255 marks cells outside a grid; see bvae\.beta_vae\.one_hot"
    ) as caught:
        check_model("cell_encodings:Plain", grid_size=8, latent_dim=3, has_outside=True)
    assert "\n" not in str(caught.value)


FILE = "[L]\nbase = 'B'\ntraining = {model = 'linear_vae:make'}"


def test_the_model_of_every_option_is_checked_before_training(module: Path) -> None:
    (module / "models.toml").write_text(f"{FILE}\n[X]\nbase = 'L'\ntraining = {{model = 'linear_vae:none'}}")
    given = {"corpus": "atomic:40", "loss_options_file": "models.toml"}
    Experiment.prepare(parse_experiment(given | {"loss_options": "B,L"}), module, [])
    with pytest.raises(SetupError, match="model 'linear_vae:none' cannot be imported"):
        Experiment.prepare(parse_experiment(given), module, [])


@pytest.mark.parametrize("named", [{"model": "linear_vae:make"}, {"loss_options_file": "models.toml"}])
def test_a_file_does_not_decide_which_model_is_imported(module: Path, named: dict[str, str]) -> None:
    (module / "models.toml").write_text(FILE)
    given = {"corpus": "atomic:40"} | named
    laboratory = Experiment.prepare(parse_experiment(given), module, [])
    laboratory.open_session()
    session = laboratory.session.path
    (session / "A-seed0").mkdir()  # a session in which no run began is removed
    laboratory.close_session(interrupted=True)

    sys.modules.pop("linear_vae")
    with pytest.raises(SetupError, match="trains the model 'linear_vae:make'; add --model"):
        Experiment.resume({}, module, [], str(session))
    assert "linear_vae" not in sys.modules
    resumed = Experiment.resume({"model": "linear_vae:make"}, module, [], str(session))
    (line,) = resumed.how_to_resume("pytest experiments/", interrupted=True)
    assert shlex.split(line)[-2:] == [f"--resume={session}", "--model=linear_vae:make"]


def test_the_record_of_a_new_session_equals_its_file(tmp_path: Path) -> None:
    given = {"corpus": "atomic:40"}
    laboratory = Experiment.prepare(parse_experiment(given), tmp_path, ["a", "b"])
    laboratory.open_session()
    made = laboratory.session
    assert Session.open(made.path, made.invocation).record == made.record
    laboratory.close_session(interrupted=False)
