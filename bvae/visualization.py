"""Pictures of grids: what a model reconstructs, options side by side, a run's checkpoints as a film strip.

Every picture is one axes and has a companion that says the same in a sentence, for those who cannot see it.
Grids are `[B, H, W]`, arrays or tensors of the classes 0–9: 1–40 grids with sides of 1–64 cells. For others
every function raises ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from bvae.canvas import Destination
from bvae.mosaic import CLASSES, DOTTED, RIGHT_BACKGROUND, RIGHT_OBJECT, WRONG, draw_columns, draw_mosaic

Grids = npt.NDArray[np.integer[Any]] | Tensor
Classes = npt.NDArray[np.int64]

MAX_GRIDS, MAX_SIDE = 40, 64
MAX_CHECKPOINTS = 12
NOTE = "A dot in the middle of a cell: its class is wrong."


def plot_reconstructions(
    model: Callable[[Tensor], Any],
    grids: Grids,
    *,
    path: Destination | None = None,
    title: str | None = None,
    loss: Callable[[Any, Tensor], Tensor] | None = None,
) -> Figure:
    """Draw what a model makes of grids: original, reconstruction, wrong cells, accuracy and loss of each.

    The model's mode is evaluation meanwhile and its own again afterwards. No random number is drawn.

    Args:
        model: gets int64 `[B, H, W]` on its device and returns logits `[B, 10, H, W]`, an object with
            `.logits`, or a tuple that begins with logits.
        loss: from what the model returned and the grids to each grid's loss `[B]`; by default the
            cross-entropy, in nats a cell.

    Raises:
        ValueError: for grids, logits or losses of another kind.
    """
    originals = _classes("grids", grids)
    target = torch.from_numpy(originals).to(_device(model, grids))
    with evaluating(model), torch.inference_mode():
        output = model(target)
        logits = _logits(output, originals.shape)
        losses = (
            loss(output, target) if loss else F.cross_entropy(logits, target, reduction="none").mean((1, 2))
        )
        painted, each = logits.argmax(1).cpu().numpy(), torch.as_tensor(losses).float().cpu().numpy()
    return draw_reconstructions(originals, painted, each, path=path, title=title)


def draw_reconstructions(
    originals: Grids,
    reconstructions: Grids,
    losses: Sequence[float] | npt.NDArray[np.floating[Any]],
    *,
    path: Destination | None = None,
    title: str | None = None,
) -> Figure:
    """Draw originals, reconstructions and under them the wrong cells; `losses` `[B]` in nats."""
    target, painted = _pair("reconstructions", originals, reconstructions)
    if np.shape(losses) != (len(target),):
        raise ValueError(f"losses has shape {np.shape(losses)}; expected one for each grid: ({len(target)},)")
    right = np.where(target == 0, RIGHT_BACKGROUND, RIGHT_OBJECT)
    numbers = [
        f"{share}\n{_number(loss)}" for share, loss in zip(_shares(target, painted), losses, strict=True)
    ]
    return draw_columns(
        np.stack([target, painted, np.where(target == painted, right, WRONG)]),
        labels=["Original", "Reconstruction", "Wrong cells"],
        captions={2: ("Accuracy\nLoss (nats)", numbers)},
        path=path,
        title=title,
        description=describe_reconstructions(target, painted),
    )


def plot_comparison(
    originals: Grids,
    reconstructions: Mapping[str, Grids],
    *,
    path: Destination | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the originals and, in a row for each option, its reconstructions; a dot marks a wrong cell."""
    target, options = _series("reconstructions of", originals, reconstructions.items())
    return draw_columns(
        np.stack([target, *(_dotted(target, painted) for _, painted in options)]),
        labels=["Original", *(name for name, _ in options)],
        captions={row: ("Accuracy", _shares(target, painted)) for row, (_, painted) in enumerate(options, 1)},
        note=NOTE if options else "",
        path=path,
        title=title,
        description=describe_comparison(target, dict(options)),
    )


def plot_filmstrip(
    originals: Grids,
    checkpoints: Sequence[tuple[str, Grids]],
    *,
    path: Destination | None = None,
    title: str | None = None,
) -> Figure:
    """Draw each original and, to its right, what each checkpoint made of it; a dot marks a wrong cell.

    `checkpoints` are labels and reconstructions, in the order of time. Of more than `MAX_CHECKPOINTS` the
    first, the last and evenly spread ones between them are drawn.
    """
    target, strip = _series("reconstructions at", originals, _spread(checkpoints))
    rows = zip([""] * len(target), *(_shares(target, painted) for _, painted in strip), strict=True)
    return draw_mosaic(
        np.stack([target, *(_dotted(target, painted) for _, painted in strip)], axis=1),
        labels=[f"Grid {number}" for number in range(1, len(target) + 1)],
        captions={row: ("Accuracy", shares) for row, shares in enumerate(rows)} if strip else {},
        headers=["Original", *(label for label, _ in strip)],
        note=NOTE if strip else "",
        path=path,
        title=title,
        description=describe_filmstrip(target, strip),
    )


def describe_reconstructions(originals: Grids, reconstructions: Grids) -> str:
    """Say in a sentence how many cells are right: overall, in the worst and in the best grid."""
    target, painted = _pair("reconstructions", originals, reconstructions)
    right = (target == painted).sum((1, 2))
    worst, best = (_percent(int(count), target[0].size) for count in (right.min(), right.max()))
    return (
        f"Reconstructions of {_count(target)}: accuracy {_share(target, painted)} (worst grid {worst}, "
        f"best {best}), {target.size - int(right.sum()):,} of {target.size:,} cells wrong."
    )


def describe_comparison(originals: Grids, reconstructions: Mapping[str, Grids]) -> str:
    """Say in a sentence how accurate each option's reconstructions are."""
    target, options = _series("reconstructions of", originals, reconstructions.items())
    return f"Reconstructions of {_count(target)} under each option: {_accuracies(target, options)}."


def describe_filmstrip(originals: Grids, checkpoints: Sequence[tuple[str, Grids]]) -> str:
    """Say in a sentence how accurate the reconstructions are at each checkpoint that is drawn."""
    target, strip = _series("reconstructions at", originals, _spread(checkpoints))
    return f"Reconstructions of {_count(target)} at each checkpoint: {_accuracies(target, strip)}."


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Evaluation mode for a module; afterwards each of its parts has its own mode back."""
    modes = [(part, part.training) for part in model.modules()] if isinstance(model, nn.Module) else []
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, training in modes:
            part.training = training


def _device(model: object, grids: Grids) -> torch.device:
    """Where the model's tensors are; for a model without any, where the grids are."""
    own = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    here = own[0] if own else grids
    return here.device if isinstance(here, Tensor) else torch.device("cpu")


def _logits(output: Any, shape: tuple[int, ...]) -> Tensor:
    """The logits in what a model returned for grids of `shape` `[B, H, W]`."""
    found = output.logits if hasattr(output, "logits") else output[0] if isinstance(output, tuple) else output
    expected = (shape[0], CLASSES, *shape[1:])
    if not isinstance(found, Tensor) or found.shape != expected:
        given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"the model returned {given}; expected logits [B, {CLASSES}, H, W] = {expected}")
    return found.float()


def _classes(name: str, grids: Grids) -> Classes:
    """Grids as int64 on the CPU, or a ValueError that says what is wrong with them."""
    given = np.asarray(grids.tolist() if isinstance(grids, Tensor) else grids)
    count, *sides = given.shape or (0,)
    if len(sides) != 2 or not 1 <= count <= MAX_GRIDS or not 1 <= min(sides) <= max(sides) <= MAX_SIDE:
        expected = f"[B, H, W] with B of 1–{MAX_GRIDS} and H, W of 1–{MAX_SIDE}"
        todo = "select the grids to draw, and write grid[None] for a single one"
        raise ValueError(f"{name}: shape {given.shape}; expected {expected}: {todo}")
    expected = f"the classes 0–{CLASSES - 1} as whole numbers"
    if given.dtype.kind not in "iu":
        raise ValueError(f"{name}: {given.dtype} values; expected {expected}: cast or round them")
    if given.min() < 0 or given.max() >= CLASSES:
        raise ValueError(
            f"{name}: values {given.min()} to {given.max()}; expected {expected}: map them first"
        )
    return given.astype(np.int64)


def _pair(name: str, originals: Grids, painted: Grids) -> tuple[Classes, Classes]:
    """The originals and other grids of the same shape."""
    target, other = _classes("originals", originals), _classes(name, painted)
    if other.shape != target.shape:
        raise ValueError(f"{name}: shape {other.shape}; expected that of the originals, {target.shape}")
    return target, other


def _series(
    kind: str, originals: Grids, named: Iterable[tuple[str, Grids]]
) -> tuple[Classes, list[tuple[str, Classes]]]:
    """The originals and, with their names, other grids of the same shape."""
    others = [(name, _pair(f"{kind} {name!r}", originals, painted)[1]) for name, painted in named]
    return _classes("originals", originals), others


def _spread(checkpoints: Sequence[tuple[str, Grids]]) -> list[tuple[str, Grids]]:
    places = np.linspace(0, len(checkpoints) - 1, min(len(checkpoints), MAX_CHECKPOINTS))
    return [checkpoints[round(place)] for place in places]


def _dotted(target: Classes, painted: Classes) -> Classes:
    return np.where(painted == target, painted, DOTTED + painted)


def _percent(right: int, cells: int) -> str:
    # Rounded down, so that 100.0% means that no cell is wrong.
    return f"{1000 * right // cells / 10}%"


def _share(target: Classes, painted: Classes) -> str:
    return _percent(int((target == painted).sum()), target.size)


def _shares(target: Classes, painted: Classes) -> list[str]:
    return [_share(*grids) for grids in zip(target, painted, strict=True)]


def _accuracies(target: Classes, named: list[tuple[str, Classes]]) -> str:
    return ", ".join(f"{name} {_share(target, painted)} accurate" for name, painted in named) or "none yet"


def _number(loss: float) -> str:
    return f"{loss:.3f}" if abs(loss) < 10 else f"{loss:.1f}" if abs(loss) < 1e4 else f"{loss:.0e}"


def _count(grids: Classes) -> str:
    return "1 grid" if len(grids) == 1 else f"{len(grids)} grids"
