"""The handwritten step equals the step of autograd, and both store their weights in the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bvae.beta_vae import BetaVAE, GridModel
from bvae.config import LOSS_OPTIONS, OUTSIDE, ExperimentConfig, TrainingConfig
from bvae.corpus import load_corpus
from bvae.losses import BetaVAELoss
from bvae.records import Event, Stepped
from bvae.trainer import Trainer
from bvae.training.cpu_bf16 import HandwrittenStep
from bvae.training.cpu_layers import Place, ReLU
from bvae.training.step import AutogradStep, TrainStep, make_step

pytestmark = pytest.mark.unit


def make(grid_size: int, latent_dim: int, seed: int = 0) -> BetaVAE:
    torch.manual_seed(seed)
    return BetaVAE(grid_size=grid_size, latent_dim=latent_dim)


def grids(batch: int, grid_size: int, seed: int, *, outside: bool = False) -> Tensor:
    """Return random grids, of different sizes if `outside`."""
    shape, generator = (batch, grid_size, grid_size), torch.Generator().manual_seed(seed)
    made = torch.randint(0, 10, shape, generator=generator, dtype=torch.uint8)
    if outside:
        sizes = torch.randint(1, grid_size + 1, (batch, 2), generator=generator)
        for grid, (height, width) in zip(made, sizes.tolist(), strict=True):
            grid[height:] = OUTSIDE
            grid[:, width:] = OUTSIDE
    return made


def train(updates: TrainStep, target: Tensor, rates: list[float]) -> list[Tensor]:
    """Train one step per learning rate; return terms of the loss and gradient norm, `[5]`, of each step."""
    noise = torch.Generator().manual_seed(0)
    found = []
    for rate in rates:
        terms, norm = updates.forward_backward(target, noise)
        found.append(torch.stack([term.double() for term in (*terms, norm)]))
        updates.step(rate)
    updates.sync_model()
    return found


def test_relu_by_bits_is_right_for_every_bfloat16_value() -> None:
    numbers = torch.arange(-(2**15), 2**15).short().view(torch.bfloat16)
    expected, relu = numbers.relu(), ReLU(nn.ReLU(), Place())
    found = relu.forward(numbers.clone())
    assert torch.equal(found.isnan(), numbers.isnan())
    is_number = ~numbers.isnan()
    assert torch.equal(found[is_number], expected[is_number])
    passed = relu.backward(torch.ones_like(numbers))
    assert torch.equal(passed[is_number], (numbers > 0).bfloat16()[is_number])


options = st.builds(
    BetaVAELoss,
    gamma=st.sampled_from([0.0, 1.0, 2.0]),
    weight=st.none() | st.just(torch.linspace(0.1, 5, 10)),
    beta=st.sampled_from([0.0, 0.012, 1.0]),
    free_bits=st.sampled_from([0.0, 0.05, 1e6]),
)


@settings(max_examples=20)
@given(
    loss=options,
    # With 512 latents and 8×8 grids, the first layer of the decoder has the shape of a layer of the encoder.
    size=st.sampled_from([(4, 1), (8, 3), (8, 512), (12, 2), (16, 16)]),
    batch=st.integers(1, 5),
    seed=st.integers(0, 99),
    max_norm=st.sampled_from([1e-3, 1.0, 1e6]),
    outside=st.booleans(),
)
def test_in_float64_every_weight_is_updated_as_by_autograd(
    loss: BetaVAELoss, size: tuple[int, int], batch: int, seed: int, max_norm: float, outside: bool
) -> None:
    ours, reference = (make(*size, seed).double() for _ in range(2))
    by_hand = HandwrittenStep(ours, loss, max_norm=max_norm, dtype=torch.float64)
    by_autograd = AutogradStep(reference, loss, max_norm=max_norm, bf16=False)
    target, rates = grids(batch, size[0], seed, outside=outside), [1e-3, 2e-3, 0.0]
    torch.testing.assert_close(train(by_hand, target, rates), train(by_autograd, target, rates))
    torch.testing.assert_close(ours.state_dict(), reference.state_dict())
    torch.testing.assert_close(by_hand.tensors(), by_autograd.tensors())


def exact_gradient(model: BetaVAE, loss: BetaVAELoss, target: Tensor) -> dict[str, Any]:
    """Compute the gradient of the loss by its definition over cells inside, by autograd in float64."""
    exact, labels, inside = copy.deepcopy(model).double(), target.long(), target != OUTSIDE
    cells = torch.stack([target == label for label in range(10)], 1).double()
    mean, log_variance = exact.encoder(cells).chunk(2, 1)
    noise = torch.randn(
        mean.shape, generator=torch.Generator().manual_seed(0), dtype=next(model.parameters()).dtype
    )
    logits = exact.decoder(mean + (log_variance / 2).exp() * noise)
    weight = torch.ones(10).double() if loss.weight is None else loss.weight.double()
    if loss.gamma == 0:
        total = F.cross_entropy(logits, labels, weight, ignore_index=OUTSIDE, reduction="sum") / inside.sum()
    else:
        y = labels[inside]
        own = logits.permute(0, 2, 3, 1)[inside].log_softmax(1).gather(1, y[:, None])[:, 0]
        total = (weight[y] * (1 - own.exp()) ** loss.gamma * -own).mean()
    kl = (mean**2 + log_variance.exp() - 1 - log_variance).mean(0) / 2
    (total + loss.beta * kl.clamp(min=loss.free_bits).sum()).backward()
    return {
        name: parameter.grad for name, parameter in exact.named_parameters() if parameter.grad is not None
    }


@settings(max_examples=15)
@given(
    loss=options,
    size=st.sampled_from([(4, 1), (8, 3), (16, 16)]),
    batch=st.integers(1, 5),
    seed=st.integers(0, 99),
    by=st.sampled_from([partial(HandwrittenStep), partial(AutogradStep, bf16=False)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_step_follows_the_gradient_of_the_mean_over_cells_inside(
    loss: BetaVAELoss, size: tuple[int, int], batch: int, seed: int, by: Any, dtype: torch.dtype
) -> None:
    model, target = make(*size, seed).to(dtype), grids(batch, size[0], seed, outside=True)
    updates = by(model, loss, max_norm=1e6, **({"dtype": dtype} if by.func is HandwrittenStep else {}))
    expected = exact_gradient(model, loss, target)
    (found,) = train(updates, target, [0.0])
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    accuracy = 1e-4 if dtype == torch.float32 else 1e-9
    assert found[-1].item() == pytest.approx(norm.item(), rel=accuracy)
    for name, gradient in expected.items():
        moment = updates.tensors()[f"{name}.exp_avg"].double()  # after one step, 0.1 × gradient
        assert (10 * moment - gradient).norm() < accuracy * norm, name


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize(("grid_size", "latent_dim", "batch"), [(16, 16, 64), (4, 1, 1), (8, 3, 5)])
def test_in_bfloat16_the_handwritten_gradient_is_as_accurate_as_autocast(
    grid_size: int, latent_dim: int, batch: int, outside: bool
) -> None:
    loss = BetaVAELoss(gamma=2.0, weight=torch.linspace(0.1, 5, 10), beta=0.012)
    found = {}
    for name, update in {
        "by hand": partial(HandwrittenStep),
        "autocast": partial(AutogradStep, bf16=True),
        "exact": partial(AutogradStep, bf16=False),
    }.items():
        model = make(grid_size, latent_dim)
        with torch.no_grad():
            model.encoder[-1].bias[latent_dim:] = -20  # makes the noise, which differs, negligible
        updates = update(model, loss, max_norm=1e6)
        train(updates, grids(batch, grid_size, 0, outside=outside), [0.0])
        found[name] = updates.tensors()
    for name, exact in found["exact"].items():
        if name.endswith(".exp_avg"):  # after one step, 0.1 × gradient
            ours, theirs = (
                ((found[who][name] - exact).norm() / exact.norm()) for who in ("by hand", "autocast")
            )
            assert ours < 1.5 * theirs + 0.005, name


@pytest.mark.parametrize("size", [(4, 1), (8, 512), (16, 16)])
def test_sync_model_stores_unchanged_state_bit_for_bit(size: tuple[int, int]) -> None:
    model, target, noise = make(*size), grids(1, size[0], 0), torch.Generator()
    updates = HandwrittenStep(model, BetaVAELoss(gamma=1.0, weight=None, beta=1.0), max_norm=1.0)
    tensors = model.state_dict() | updates.tensors()
    for tensor in tensors.values():
        tensor.copy_(torch.randn_like(tensor) if tensor.ndim else torch.tensor(7.0))
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    updates.forward_backward(target, noise)
    for tensor in tensors.values():
        tensor.zero_()
    updates.sync_model()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[name]), name


def test_training_continues_from_the_state_stored_by_another_step() -> None:
    loss = BetaVAELoss(gamma=1.0, weight=None, beta=0.1)
    target, rates = grids(8, 8, 1), [1e-3] * 4
    at_once = make(8, 4)
    noise = torch.Generator().manual_seed(0)
    updates = HandwrittenStep(at_once, loss, max_norm=1.0)
    for rate in rates:
        updates.forward_backward(target, noise)
        updates.step(rate)
    updates.sync_model()

    in_pieces, noise = make(8, 4), torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for rate in rates:
        piece = HandwrittenStep(in_pieces, loss, max_norm=1.0)
        for name, tensor in piece.tensors().items():
            tensor.copy_(state.get(name, tensor))
        piece.forward_backward(target, noise)
        piece.step(rate)
        piece.sync_model()
        state = piece.tensors()
    for name, tensor in in_pieces.state_dict().items():
        assert torch.equal(tensor, at_once.state_dict()[name]), name


def test_changes_to_the_stored_model_are_used_in_training() -> None:
    model, target, noise = make(8, 4), grids(8, 8, 1), torch.Generator()
    updates = HandwrittenStep(model, BetaVAELoss(gamma=1.0, weight=None, beta=0.1), max_norm=1.0)
    updates.forward_backward(target, noise)
    updates.step(1e-3)
    updates.sync_model()
    state = model.state_dict() | updates.tensors()
    for tensor in state.values():
        tensor.mul_(2)
    changed = {name: tensor.clone() for name, tensor in state.items()}
    updates.forward_backward(target, noise)
    updates.sync_model()
    for name, tensor in state.items():
        assert torch.equal(tensor, changed[name]), name


def test_a_parameter_that_is_frozen_later_is_refused_and_not_trained() -> None:
    model = make(4, 1)
    step = HandwrittenStep(model, BetaVAELoss(gamma=1.0, weight=None, beta=0.1), max_norm=1.0)
    model.encoder.requires_grad_(False)
    with pytest.raises(ValueError, match=r"encoder\.0\.weight is frozen; use --precision=fp32"):
        step.forward_backward(grids(1, 4, 0), torch.Generator())


class FixedVariance(GridModel):
    """A model with a fixed posterior variance and only one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def encode(self, grids: Tensor) -> tuple[Tensor, Tensor]:
        mean = grids.float().mean((1, 2))[:, None] * self.scale
        return mean, torch.zeros_like(mean).detach()

    def decode(self, latent: Tensor) -> Tensor:
        return latent[:, :, None, None] * torch.linspace(-1, 1, 10)[:, None, None].expand(10, 4, 4)


def test_a_model_may_learn_only_part_of_its_posterior() -> None:
    model = FixedVariance()
    updates = AutogradStep(model, BetaVAELoss(gamma=1.0, weight=None, beta=0.1), max_norm=1.0, bf16=False)
    train(updates, grids(8, 4, 0), [0.1])
    assert model.scale.item() != 1.0


def test_a_model_that_learns_nothing_is_refused() -> None:
    model = FixedVariance().requires_grad_(False)
    updates = AutogradStep(model, BetaVAELoss(gamma=1.0, weight=None, beta=0.1), max_norm=1.0, bf16=False)
    with pytest.raises(ValueError, match="no output of the model depends on a parameter"):
        updates.forward_backward(grids(8, 4, 0), torch.Generator())


@pytest.fixture(params=["fp32", "bf16"])
def new_trainer(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Trainer]:
    """Return a function that makes trainers of the same run, with listeners."""
    corpus = load_corpus("atomic:100")
    training = TrainingConfig(epochs=1, batch_size=16, precision=request.param)
    run = ExperimentConfig(training=training).run(LOSS_OPTIONS["B"], 0, corpus.fingerprint)
    return lambda *listeners: Trainer(run, corpus, tmp_path, listeners=listeners)


def test_an_interruption_leaves_the_model_in_its_current_state(
    new_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 3:
            raise KeyboardInterrupt

    interrupted = new_trainer(interrupt)
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit()
    stopped = new_trainer()
    stopped.fit(3)
    for name, tensor in stopped.model.state_dict().items():
        assert torch.equal(interrupted.model.state_dict()[name], tensor), name
    for trainer, name in ((interrupted, "interrupted"), (stopped, "stopped")):
        trainer.progress.epoch_seconds = 0.0
        trainer.write(tmp_path / name)
    assert (tmp_path / "interrupted").read_bytes() == (tmp_path / "stopped").read_bytes()


def test_a_listener_may_write_a_checkpoint_after_any_step(
    new_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    def write(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 3:
            trainer.write(tmp_path / "third")

    trainer = new_trainer(write)
    trainer.fit()
    resumed = new_trainer()
    resumed.restore(tmp_path / "third")
    resumed.fit()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("training", "model", "kind"),
    [
        ({"precision": "bf16"}, make(4, 1), HandwrittenStep),
        ({"precision": "bf16", "model": "somebody:elses"}, make(4, 1), HandwrittenStep),
        ({"precision": "bf16"}, FixedVariance(), AutogradStep),
        ({"precision": "fp32"}, make(4, 1), AutogradStep),
        ({"precision": "bf16", "device": "cuda"}, make(4, 1), AutogradStep),
    ],
    ids=["bf16", "own factory", "own model", "fp32", "cuda"],
)
def test_only_a_betavae_in_bfloat16_on_a_cpu_has_a_handwritten_step(
    training: dict[str, Any], model: GridModel, kind: type[TrainStep]
) -> None:
    loss = BetaVAELoss(gamma=1.0, weight=None, beta=0.1)
    assert type(make_step(model, loss, TrainingConfig(**training), grids(2, 4, 0))) is kind
