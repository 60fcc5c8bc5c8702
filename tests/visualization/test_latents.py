from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from bvae import __main__ as command_line
from bvae.beta_vae import BetaVAE, GridModel
from bvae.config import LOSS_OPTIONS, OUTSIDE, RunConfig, TrainingConfig
from bvae.models import encode, reconstruct
from bvae.records import Progress
from bvae.training.checkpoint import Checkpoint, save_checkpoint
from bvae.visualization import plot_samples, plot_traversals
from bvae.visualization.latents import describe_traversals, plot_rate_distortion, sample_prior, traverse

pytestmark = pytest.mark.unit

GRID = np.random.default_rng(0).integers(0, 10, (4, 5), dtype=np.uint8)


class Painter(GridModel):
    """Decodes dimensions 0 and 1 to the classes of the first and second row, and ignores dimension 2."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def encode(self, grids: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.tensor([[1.0, 2.0, 9.0]]).expand(len(grids), 3)
        return mean, torch.zeros_like(mean)

    def decode(self, latent: Tensor) -> Tensor:
        logits = torch.zeros(len(latent), 10, 4, 5)
        for row in (0, 1):
            logits[torch.arange(len(latent)), latent[:, row].round().long().clamp(0, 9), row] = 1
        return logits


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts if text.get_text()]


def description(png: io.BytesIO) -> str:
    with Image.open(png) as image:
        return str(image.info["Description"])


def test_rows_are_the_dimensions_with_the_largest_kl_divergence() -> None:
    png = io.BytesIO()
    drawn = texts(plot_traversals(Painter(), GRID, values=(0, 1.5, -3), path=png))
    assert drawn[:5] == ["Original", "Reconstruction", "0", "1.5", "−3"]
    assert drawn[5:8] == [
        "Dimension 2\nKL 40.50 nats",
        "Dimension 1\nKL 2.00 nats",
        "Dimension 0\nKL 0.50 nats",
    ]
    assert description(png) == (
        "A grid decoded with 3 values of one latent dimension at a time, from −3 to 1.5. Of 20 cells, "
        "dimension 2 changes 0, dimension 1 changes 5, dimension 0 changes 5."
    )


def test_at_most_eight_dimensions_are_drawn_by_default_and_any_on_request() -> None:
    model = BetaVAE(grid_size=8)
    grid = np.zeros((8, 8), np.uint8)
    assert sum("Dimension" in text for text in texts(plot_traversals(model, torch.from_numpy(grid)))) == 8
    drawn = texts(plot_traversals(model, grid, [3, 31]))
    assert [text.split("\n")[0] for text in drawn if "Dim" in text] == ["Dimension 3", "Dimension 31"]


def test_a_dimension_at_its_posterior_mean_gives_the_reconstruction() -> None:
    torch.manual_seed(0)
    model = BetaVAE(grid_size=8, latent_dim=4)
    grids = np.random.default_rng(1).integers(0, 10, (1, 8, 8), dtype=np.uint8)
    mean, log_variance = encode(model, grids)
    assert mean.shape == log_variance.shape == (1, 4)
    (decoded,) = traverse(model, mean[0], 2, [mean[0, 2]])
    assert np.array_equal(decoded, reconstruct(model, grids)[0])


def test_cells_outside_the_grid_are_neither_drawn_nor_counted() -> None:
    grid = GRID.copy()
    grid[:, 3:] = OUTSIDE
    png = io.BytesIO()
    plot_traversals(Painter(), grid, [0], path=png)
    assert "Of 12 cells, dimension 0 changes 3." in description(png)


def test_samples_depend_on_the_seed_alone_and_leave_the_random_state() -> None:
    model = BetaVAE(grid_size=8)
    torch.manual_seed(5)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    pictures = {seed: [io.BytesIO(), io.BytesIO()] for seed in (0, 1)}
    for seed, files in pictures.items():
        for file in files:
            plot_samples(model, 12, seed=seed, path=file)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpy_state  # type: ignore[index]
    first, second = ([file.getvalue() for file in files] for files in pictures.values())
    assert first[0] == first[1] != second[0] == second[1]
    assert sample_prior(model, 12, 32, 1).shape == (12, 8, 8)


def test_samples_are_described_by_background_and_classes() -> None:
    png = io.BytesIO()
    drawn = texts(plot_samples(Painter(), 3, latent_dim=3, path=png))
    assert drawn[:2] == ["Samples", "Background"]
    shares = (sample_prior(Painter(), 3, 3) == 0).mean((1, 2))  # two of four rows may be foreground
    assert sorted(shares.tolist()) == [0.5, 1.0, 1.0]
    assert drawn[2:] == [f"{share:.0%}" for share in shares]
    assert description(png).startswith(
        "Grids decoded from 3 samples of the prior: 83% of their cells are background (50% to 100%); their "
        "classes are 0, "
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"grid": GRID[None]}, r"grid: shape \(1, 1, 4, 5\); expected \[B, H, W\]"),
        ({"grid": GRID[:3]}, r"grid: shape \(3, 5\); expected that of the decoded grids, \(4, 5\)"),
        ({"grid": GRID / 2}, "grid: float64 values; expected the classes 0–63"),
        ({"dimensions": [3]}, "dimension is 3; expected a whole number from 0 to 2"),
        ({"dimensions": [-1]}, "dimension is -1; expected"),
        ({"dimensions": []}, "dimensions has 0 items; expected 1 to 40"),
        ({"values": [0.0] * 13}, "values has 13 items; expected 1 to 12"),
        ({"values": [np.nan]}, "values is .*nan.*; expected a list of one or more finite numbers"),
    ],
)
def test_invalid_arguments_of_traversals_are_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        plot_traversals(Painter(), **{"grid": GRID, **arguments})


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"count": 0}, "count is 0; expected a whole number from 1 to 40"),
        ({"count": 41}, "count is 41"),
        ({"seed": -1}, "seed is -1; expected a whole number of at least 0"),
        ({"latent_dim": None}, "a Painter has no attribute latent_dim; pass latent_dim"),
    ],
)
def test_invalid_arguments_of_samples_are_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        plot_samples(Painter(), **{"count": 1, "latent_dim": 3, **arguments})


def test_a_description_counts_each_changed_cell_once() -> None:
    base = np.zeros((2, 2), int)
    rows = {7: np.array([base, [[1, 0], [0, 0]], [[2, 0], [0, 3]]])}
    assert "Of 4 cells, dimension 7 changes 2." in describe_traversals(base, rows, (-1, 0, 1))


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint of an untrained model, in the current folder."""
    monkeypatch.chdir(tmp_path)
    run = RunConfig(
        option=LOSS_OPTIONS["B"],
        seed=0,
        corpus="atomic:60",
        corpus_fingerprint="0",
        grid_size=16,
        padding_value=None,
        training=TrainingConfig(latent_dim=4, precision="fp32"),
    )
    weights = {f"model.{name}": t for name, t in BetaVAE(latent_dim=4).state_dict().items()}
    save_checkpoint(Checkpoint(weights, Progress(config=run)), tmp_path / "best.safetensors")
    return "best.safetensors"


@pytest.mark.parametrize(
    ("arguments", "picture", "words"),
    [
        ([], "reconstructions.png", "Reconstructions of 10 grids"),
        (["--traversals"], "traversals.png", "with 7 values of one latent dimension"),
        (["--samples", "3"], "samples.png", "decoded from 3 samples of the prior"),
        (["--samples", "3", "--output", "new/mine.png"], "new/mine.png", "3 samples"),
    ],
)
def test_the_command_draws_one_picture(
    checkpoint: str, arguments: list[str], picture: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["show", checkpoint, *arguments]) == 0
    assert capsys.readouterr().out == f"Wrote {picture}\n"
    assert words in description(io.BytesIO(Path(picture).read_bytes()))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--samples", "x"], "--samples is 'x'; expected a whole number from 1 to 40"),
        (["--samples", ""], "--samples is ''; expected"),
        (["--samples", "41"], "--samples is '41'; expected a whole number from 1 to 40"),
        (["--samples", "0"], "--samples is '0'; expected"),
        (["--samples", "1", "--traversals"], "--samples draws no grids"),
        (["grids.npy", "--samples", "1"], "remove --traversals and GRIDS"),
    ],
)
def test_the_command_refuses_what_it_cannot_draw(
    checkpoint: str, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["show", checkpoint, *arguments, "--output=new/picture.png"]) == 4
    assert complaint in capsys.readouterr().err
    assert not Path("new").exists()


def test_the_legend_of_the_scatter_names_every_mark_within_the_picture() -> None:
    marks = {f"B-{number}-long": [(20 + number, 0.2 + 1e-3 * number)] for number in range(30)}
    figure = plot_rate_distortion(marks, path=io.BytesIO())
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [*marks]
    box = legend.get_window_extent()
    assert figure.bbox.x0 < box.x0 < box.x1 < figure.bbox.x1
    assert figure.bbox.y0 < box.y0 < box.y1 < figure.bbox.y1


@pytest.mark.parametrize("place", [(0.0, 0.0), (1.0, 0.0), (50.0, 0.2)])
def test_the_scatter_has_no_room_for_negative_numbers(place: tuple[float, float]) -> None:
    axes = plot_rate_distortion({"A": [place]}).axes[0]
    bits = (place[0] / math.log(2), place[1])
    for (low, high), value in zip((axes.get_xlim(), axes.get_ylim()), bits, strict=True):
        assert -0.04 * high <= low < value < high


def test_the_scatter_describes_its_means_or_says_that_there_is_none() -> None:
    for points, said in (
        ({"A": [(math.log(2), 0.01), (3 * math.log(2), 0.03)]}, "A 2 bits and 2.0%."),
        ({"A": [(math.nan, 0.1)]}, "No run has finished an epoch yet."),
    ):
        png = io.BytesIO()
        plot_rate_distortion(points, path=png)
        with Image.open(png) as picture:
            assert picture.info["Description"].endswith(said)
