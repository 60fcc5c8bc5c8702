"""Pictures of reconstructions: of one model, of options side by side, or of a run's checkpoints (filmstrip).

Every picture has a single axes, and a description in words as its text alternative.

Grids are `[B, H, W]`, arrays or tensors of whole numbers: the classes 0–63, and `bvae.corpus.OUTSIDE` outside
a grid. There may be 1–40 grids, with sides of 1–64 cells. Every function raises ValueError for other grids.
Positions outside a grid are neither drawn nor counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from bvae.config import OUTSIDE
from bvae.evaluation.measure import evaluating
from bvae.evaluation.metrics import grid_object_iou
from bvae.visualization.canvas import Destination
from bvae.visualization.grid_image import (
    BLANK,
    COLOURS,
    DOTTED,
    RIGHT_BACKGROUND,
    RIGHT_OBJECT,
    WRONG,
    draw_columns,
    draw_grid_image,
)

Grids = npt.NDArray[np.integer[Any]] | Tensor
Classes = npt.NDArray[np.int64]
Item = TypeVar("Item")

MAX_GRIDS, MAX_SIDE = 40, 64
MAX_CHECKPOINTS = 12
NOTE = "A dot in a cell: the predicted class is wrong."


def plot_reconstructions(
    model: Callable[[Tensor], Any],
    grids: Grids,
    *,
    path: Destination | None = None,
    title: str | None = None,
    loss: Callable[[Any, Tensor], Tensor] | None = None,
    background: int = 0,
) -> Figure:
    """Draw grids, their reconstructions and wrong cells, with accuracy, object IoU and loss of each grid.

    The model runs in evaluation mode; its mode and the states of the random generators are restored
    afterwards.

    Args:
        model: is called with grids, int64 `[B, H, W]` on the device of the model. It returns logits
            `[B, C, H, W]` for at most 64 classes, or an object with `.logits`, or a tuple that begins with
            logits.
        loss: is called with the model's output and the grids, and returns the loss of each grid, `[B]`; by
            default the cross-entropy in nats per cell.
        background: the background class; its right cells are paler than those of other classes.

    Raises:
        ValueError: for grids, logits or losses with a wrong shape or type.
    """
    originals = checked_grids("grids", grids)
    target = torch.from_numpy(originals).to(_device(model, grids))
    with evaluating(model), torch.inference_mode():
        output = model(target.clone())  # the model may modify its input
        logits = _logits(output, target)
        losses = loss(output, target) if loss else _cross_entropy(logits, target)
        predicted, each = logits.argmax(1).cpu().numpy(), torch.as_tensor(losses).float().cpu().numpy()
    return draw_reconstructions(originals, predicted, each, path=path, title=title, background=background)


def draw_reconstructions(
    originals: Grids,
    reconstructions: Grids,
    losses: Sequence[float] | npt.NDArray[np.floating[Any]],
    *,
    path: Destination | None = None,
    title: str | None = None,
    background: int = 0,
) -> Figure:
    """Draw originals, reconstructions and wrong cells in three rows; `losses` are `[B]`, in nats."""
    target, predicted = _pair("reconstructions", originals, reconstructions)
    if np.shape(losses) != (len(target),):
        raise ValueError(f"losses has shape {np.shape(losses)}; expected one for each grid: ({len(target)},)")
    right = np.where(target == background, RIGHT_BACKGROUND, RIGHT_OBJECT)
    wrong = np.where(target == predicted, right, WRONG)
    each = zip(_shares(target, predicted), _object_iou(target, predicted), losses, strict=True)
    numbers = [f"{share}\n{_fraction(iou)}\n{_number(loss)}" for share, iou, loss in each]
    return draw_columns(
        np.stack([_symbols(target, each) for each in (target, predicted, wrong)]),
        labels=["Original", "Reconstruction", "Wrong cells"],
        captions={2: ("Accuracy\nObject IoU\nLoss (nats)", numbers)},
        path=path,
        title=title,
        description=describe_reconstructions(target, predicted),
    )


def plot_comparison(
    originals: Grids,
    reconstructions: Mapping[str, Grids],
    *,
    path: Destination | None = None,
    title: str | None = None,
) -> Figure:
    """Draw a row of originals, and a row of reconstructions for each option; dots mark wrong cells."""
    target, options = _series("reconstructions of", originals, reconstructions.items())
    return draw_columns(
        np.stack([_symbols(target, target), *(dotted(target, predicted) for _, predicted in options)]),
        labels=["Original", *(name for name, _ in options)],
        captions={row: ("Accuracy", _shares(target, each)) for row, (_, each) in enumerate(options, 1)},
        note=NOTE if options else "",
        path=path,
        title=title,
        description=f"Reconstructions of {_count(target)} under each option: {_accuracies(target, options)}.",
    )


def plot_filmstrip(
    originals: Grids,
    checkpoints: Sequence[tuple[str, Grids]],
    *,
    path: Destination | None = None,
    title: str | None = None,
) -> Figure:
    """Draw a row for each original, with its reconstruction by each checkpoint; dots mark wrong cells.

    `checkpoints` are labels and reconstructions in chronological order. At most `MAX_CHECKPOINTS` of them are
    drawn, see `spread`.
    """
    target, strip = _series("reconstructions at", originals, spread(checkpoints))
    rows = zip([""] * len(target), *(_shares(target, predicted) for _, predicted in strip), strict=True)
    return draw_grid_image(
        np.stack([_symbols(target, target), *(dotted(target, predicted) for _, predicted in strip)], axis=1),
        labels=[f"Grid {number}" for number in range(1, len(target) + 1)],
        captions={row: ("Accuracy", shares) for row, shares in enumerate(rows)} if strip else {},
        headers=["Original", *(label for label, _ in strip)],
        note=NOTE if strip else "",
        path=path,
        title=title,
        description=f"Reconstructions of {_count(target)} at each checkpoint: {_accuracies(target, strip)}.",
    )


def plot_examples(
    examples: Mapping[str, Sequence[tuple[str, Grids, Grids]]],
    *,
    path: Destination | None = None,
    title: str | None = None,
) -> Figure:
    """Draw a row for each option: some grids, each beside its reconstruction; dots mark wrong cells.

    Args:
        examples: for each option, the label, original `[H, W]` and reconstruction `[H, W]` of each grid.
            There is at least one option, and all options have the same labels.
    """
    headers = [label for label, _, _ in next(iter(examples.values()), ())]
    rows, captions, said = [], {}, []
    for number, (name, chosen) in enumerate(examples.items()):
        originals, predicted = (np.stack([each[part] for each in chosen]) for part in (1, 2))
        target, drawn = _pair(f"reconstructions of {name!r}", originals, predicted)
        pairs = zip(_symbols(target, target), dotted(target, drawn), strict=True)
        rows.append([grid for pair in pairs for grid in pair])
        ious = [*map(_fraction, _object_iou(target, drawn))]
        texts = map("\n".join, zip(ious, _shares(target, drawn), strict=True))
        captions[number] = ("Object IoU\nAccuracy", [text for each in texts for text in ("", each)])
        numbers = zip(headers, ious, strict=True)
        said.append(f"{name}: {', '.join(f'{label.lower()} {iou}' for label, iou in numbers)}")
    return draw_grid_image(
        np.array(rows),
        labels=list(examples),
        captions=captions,
        headers=[header for label in headers for header in (label, "")],
        note=NOTE,
        path=path,
        title=title,
        description=f"Object IoU of validation grids under each option: {'; '.join(said)}.",
    )


def describe_reconstructions(originals: Grids, reconstructions: Grids) -> str:
    """Return a sentence on the accuracy: of all grids, of the worst grid and of the best grid."""
    target, predicted = _pair("reconstructions", originals, reconstructions)
    counts = _right_and_all(target, predicted)
    right, cells = counts.sum(1)
    order = sorted(counts.T.tolist(), key=lambda grid: grid[0] / grid[1])
    return (
        f"Reconstructions of {_count(target)}: accuracy {_percent(right, cells)} (worst grid "
        f"{_percent(*order[0])}, best {_percent(*order[-1])}), {cells - right:,} of {cells:,} cells wrong."
    )


def _device(model: object, grids: Grids) -> torch.device:
    """Return the device of the model's tensors, or of the grids if the model has none."""
    own = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    here = own[0] if own else grids
    return here.device if isinstance(here, Tensor) else torch.device("cpu")


def _logits(output: Any, grids: Tensor) -> Tensor:
    """Return the logits in a model's output; raise ValueError if they do not fit the grids `[B, H, W]`."""
    found = output.logits if hasattr(output, "logits") else output[0] if isinstance(output, tuple) else output
    batch, height, width = grids.shape
    fewest = _count_classes(grids.cpu().numpy())
    shape = tuple(found.shape) if isinstance(found, Tensor) else ()
    if len(shape) != 4 or not fewest <= shape[1] <= COLOURS or shape != (batch, shape[1], height, width):
        given = shape or type(found).__name__
        expected = f"[{batch}, C, {height}, {width}] with C of {fewest}–{COLOURS} classes"
        raise ValueError(f"the model returned {given}; expected logits [B, C, H, W] = {expected}")
    return torch.as_tensor(found).float()


def checked_grids(name: str, grids: Grids) -> Classes:
    """Return grids as int64 on the CPU; raise ValueError if they cannot be drawn."""
    given = np.asarray(grids.tolist() if isinstance(grids, Tensor) else grids)
    count, *sides = given.shape or (0,)
    if len(sides) != 2 or not 1 <= count <= MAX_GRIDS or not 1 <= min(sides) <= max(sides) <= MAX_SIDE:
        expected = f"[B, H, W] with B of 1–{MAX_GRIDS} and H, W of 1–{MAX_SIDE}"
        todo = "select the grids to draw, or write grid[None] for a single grid"
        raise ValueError(f"{name}: shape {given.shape}; expected {expected}: {todo}")
    expected = f"the classes 0–{COLOURS - 1} as whole numbers"
    if given.dtype.kind not in "iu":
        raise ValueError(f"{name}: {given.dtype} values; expected {expected}: cast or round them")
    inside = given[given != OUTSIDE]
    if not inside.size or inside.min() < 0 or inside.max() >= COLOURS:
        values = f"values {inside.min()} to {inside.max()}" if inside.size else "no cell"
        raise ValueError(f"{name}: {values}; expected {expected}, {OUTSIDE} outside a grid: map them first")
    if (empty := (given == OUTSIDE).all((1, 2))).any():
        raise ValueError(f"{name}: grid {int(empty.argmax())} has no cell; expected grids with cells")
    return given.astype(np.int64)


def _pair(name: str, originals: Grids, predicted: Grids) -> tuple[Classes, Classes]:
    """Return originals and predicted grids; predicted grids have OUTSIDE where the originals have it."""
    target, other = checked_grids("originals", originals), checked_grids(name, predicted)
    if other.shape != target.shape:
        raise ValueError(f"{name}: shape {other.shape}; expected that of the originals, {target.shape}")
    if ((other == OUTSIDE) & (target != OUTSIDE)).any():
        raise ValueError(f"{name}: OUTSIDE in a cell of the originals; expected a class in every cell")
    return target, np.where(target == OUTSIDE, OUTSIDE, other)


def _series(
    kind: str, originals: Grids, named: Iterable[tuple[str, Grids]]
) -> tuple[Classes, list[tuple[str, Classes]]]:
    """Return the originals, and the predicted grids by name."""
    others = [(name, _pair(f"{kind} {name!r}", originals, predicted)[1]) for name, predicted in named]
    return checked_grids("originals", originals), others


def spread(checkpoints: Sequence[Item]) -> list[Item]:
    """Return at most `MAX_CHECKPOINTS` items: the first, the last, and evenly spaced items between them."""
    places = np.linspace(0, len(checkpoints) - 1, min(len(checkpoints), MAX_CHECKPOINTS))
    return [checkpoints[round(place)] for place in places]


def _symbols(target: Classes, symbols: Classes) -> Classes:
    """Return symbols for a picture, BLANK outside the grids."""
    return np.where(target == OUTSIDE, BLANK, symbols)


def dotted(target: Classes, predicted: Classes) -> Classes:
    """Return symbols for a picture in which a dot marks each cell that differs from the target."""
    return _symbols(target, np.where(predicted == target, predicted, DOTTED + predicted))


def _right_and_all(target: Classes, predicted: Classes) -> Classes:
    """Count the right cells and all cells of each grid, `[2, B]`."""
    inside = target != OUTSIDE
    return np.stack([((target == predicted) & inside).sum((1, 2)), inside.sum((1, 2))])


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of each grid in nats per cell, `[B]`."""
    cells = F.cross_entropy(logits, target, reduction="none", ignore_index=OUTSIDE)
    return cells.sum((1, 2)) / (target != OUTSIDE).sum((1, 2))


def _object_iou(target: Classes, predicted: Classes) -> npt.NDArray[np.float64]:
    return grid_object_iou(target.astype(np.uint8), predicted.astype(np.uint8), _count_classes(target))


def _count_classes(grids: Classes) -> int:
    return int(grids[grids != OUTSIDE].max()) + 1


def _fraction(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "–"


def _percent(right: int, cells: int) -> str:
    # Rounded down, so that only grids without a wrong cell have 100.0%.
    return f"{1000 * int(right) // int(cells) / 10}%"


def _shares(target: Classes, predicted: Classes) -> list[str]:
    return [_percent(right, cells) for right, cells in _right_and_all(target, predicted).T]


def _accuracies(target: Classes, named: Iterable[tuple[str, Classes]]) -> str:
    totals = [(name, _right_and_all(target, predicted).sum(1)) for name, predicted in named]
    return ", ".join(f"{name} {_percent(*total)} accurate" for name, total in totals) or "none yet"


def _number(loss: float) -> str:
    return f"{loss:.3f}" if abs(loss) < 10 else f"{loss:.1f}" if abs(loss) < 1e4 else f"{loss:.0e}"


def _count(grids: Classes) -> str:
    return "1 grid" if len(grids) == 1 else f"{len(grids)} grids"
