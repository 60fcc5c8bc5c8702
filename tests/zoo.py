"""Constructed models whose right verdict is known, because their predictions are computed from the grids.

A kind of model counts as learned if a person would see the objects in its predictions, at least their colours
and places. Kinds on which people may disagree are left out:

- bounding boxes of objects in the right colours, and dots or eroded cores in place of objects
- blocks of 4×4 cells
- half of the grids exact, or half of the objects exact
- on `atomic`, one exact object per grid, except the kind "only the largest object", which is in the zoo
- all objects shifted by one to three cells
- PCA with hundreds of components
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from evidence_factory import history
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from bvae.beta_vae import GridModel
from bvae.config import DEFAULT_CLASSES as CLASSES
from bvae.config import OUTSIDE, AccuracyBand
from bvae.corpus import load_corpus
from bvae.evaluation import Evaluator
from bvae.evaluation.metrics import class_counts, find_objects
from bvae.losses import BetaVAELoss
from bvae.records import Evaluation
from bvae.verdict import RULES, Rule, Verdict, judge_run

Grids = NDArray[np.uint8]
Predict = Callable[["Habitat", float, np.random.Generator], Grids]

OBJECTS, ATOMIC, ARC = "objects", "atomic", "arc"
EVERYWHERE = (OBJECTS, ATOMIC, ARC)
CORPORA = {OBJECTS: "objects:5000", ATOMIC: "atomic:5000", ARC: "arc"}


@dataclasses.dataclass(eq=False)
class Habitat:
    """Some validation grids of a corpus, their objects, and some of its training grids, `[N, S, S]`."""

    name: str
    grids: Grids
    train: Grids

    @cached_property
    def majority(self) -> Grids:
        """Each grid filled with its most frequent class, the grid's background."""
        filled = np.broadcast_to(class_counts(self.grids).argmax(1)[:, None, None], self.grids.shape)
        return filled.astype(np.uint8)

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """Number of the object of each cell, from 1, `[N, S, S]`; 0 for cells of no object."""
        objects = find_objects(self.grids)
        numbers = np.zeros(len(objects.sets.cells), np.int64)
        numbers[objects.number] = np.arange(1, len(objects.number) + 1)
        return numbers[objects.sets.label]

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Number of cells of each object, by object number; 0 for number 0."""
        sizes = np.bincount(self.owner.ravel())
        sizes[0] = 0
        return sizes

    @cached_property
    def object_class(self) -> Grids:
        """Each grid filled with the most frequent class among its cells in `mask`."""
        counts = class_counts(self.grids)
        counts[np.arange(len(counts)), counts.argmax(1)] = 0
        filled = np.broadcast_to(counts.argmax(1)[:, None, None], self.grids.shape)
        return filled.astype(np.uint8)

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Cells of other classes than `majority`."""
        return (self.grids != self.majority) & (self.grids != OUTSIDE)

    @cached_property
    def frequent(self) -> list[int]:
        """The foreground classes, the most frequent first."""
        counts = class_counts(self.grids).sum(0)
        return [int(label) for label in np.argsort(-counts) if label]

    def keep(self, chosen: NDArray[np.bool_]) -> Grids:
        """Return `majority` with the chosen objects: object n if `chosen[n]`. `chosen[0]` is not used."""
        return np.where(chosen[self.owner] & (self.owner > 0), self.grids, self.majority)


class Constructed(GridModel):
    """A model with given predictions, whose latent is the index of the grid."""

    def __init__(self, grids: Grids, predicted: Grids) -> None:
        super().__init__()
        self.device_of = nn.Parameter(torch.zeros(()))
        self.place = {grid.tobytes(): number for number, grid in enumerate(grids)}
        self.predicted = torch.from_numpy(np.where(predicted == OUTSIDE, 0, predicted)).long()

    def encode(self, grids: Tensor) -> tuple[Tensor, Tensor]:
        places = [[float(self.place[grid.numpy().tobytes()])] for grid in grids]
        return torch.tensor(places), torch.zeros(len(places), 1)

    def decode(self, latent: Tensor) -> Tensor:
        chosen = self.predicted[latent[:, 0].long()]
        return 10.0 * nn.functional.one_hot(chosen, CLASSES).permute(0, 3, 1, 2).float()


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of model.

    Attributes:
        learned: whether these models learned the objects.
        predict: returns the predictions for a habitat, a strength and a random generator.
        strengths: at most five numbers, each of which gives one model.
        habitats: names of the corpora on which `learned` is certain.
        last: whether the kind was written after the bounds of the rules were fixed.
    """

    name: str
    learned: bool
    predict: Predict
    strengths: tuple[float, ...] = (0.0,)
    habitats: tuple[str, ...] = EVERYWHERE
    last: bool = False


KINDS: list[Kind] = []


def kind(
    name: str,
    *strengths: float,
    learned: bool = False,
    habitats: tuple[str, ...] = EVERYWHERE,
    last: bool = False,
) -> Callable[[Predict], Predict]:
    """Return a decorator that registers a kind with its function `predict`."""

    def register(predict: Predict) -> Predict:
        KINDS.append(Kind(name, learned, predict, strengths or (0.0,), habitats, last))
        return predict

    return register


def inhabitants(habitat: Habitat) -> Iterator[tuple[Kind, float, Grids]]:
    """Yield every model of a habitat: its kind, its strength and its predictions."""
    for number, each in enumerate(KINDS):
        if habitat.name in each.habitats:
            for strength in each.strengths:
                rng = np.random.default_rng([number, round(1000 * strength)])
                yield each, strength, each.predict(habitat, strength, rng)


class Judged(NamedTuple):
    """A model, its evaluation and its verdict."""

    habitat: str
    kind: Kind
    strength: float
    evaluation: Evaluation
    verdict: Verdict

    @property
    def is_right(self) -> bool:
        """Whether the verdict agrees with `learned`."""
        return self.verdict.learned == self.kind.learned


def judged_models() -> Iterator[Judged]:
    """Judge every model with bvae's evaluation and verdict."""
    for name, spec in CORPORA.items():
        corpus = load_corpus(spec)
        habitat = Habitat(name, corpus.val[:500], corpus.train[:3000])
        evaluator = Evaluator(habitat.grids, BetaVAELoss(gamma=2.0, weight=None, beta=0.0))
        for each, strength, predicted in inhabitants(habitat):
            evaluation = evaluator.measure(Constructed(habitat.grids, predicted))
            verdict = judge_run(history(2.0, 1.0, last=evaluation), None, AccuracyBand())
            yield Judged(name, each, strength, evaluation, verdict)


def print_census() -> None:
    """Print how many models of each kind are judged correctly, and the margins of the rules."""
    models = list(judged_models())
    for each in KINDS:
        mine = [model for model in models if model.kind is each]
        right = sum(model.is_right for model in mine)
        truth = f"{'' if each.learned else 'not '}learned{', written last' * each.last}"
        verdicts = " ".join(sorted({model.verdict.name for model in mine}))
        print(f"{each.name}: {truth}; {right} of {len(mine)} right: {verdicts}")
    print(f"{len(models)} models, {len(KINDS)} kinds, {sum(not model.is_right for model in models)} misses")
    for rule in RULES:
        print_margins(rule, models)


def print_margins(rule: Rule, models: list[Judged]) -> None:
    """Print two models near the bound: one that learned the objects, and one that only this rule catches."""

    def distance(model: Judged) -> float:
        value = rule.measure(model.evaluation)
        return np.nan if value is None else (rule.bound - value if rule.is_limit else value - rule.bound)

    def text(model: Judged) -> str:
        value = rule.measure(model.evaluation)
        return f"{value:.3f} ({model.kind.name}, {model.strength:g}, on {model.habitat})"

    kept = [model for model in models if model.kind.learned]
    caught = [
        model
        for model in models
        if not model.kind.learned and [r for r in RULES if r.is_broken(model.evaluation)] == [rule]
    ]
    print(f"{rule.verdict}: {rule.quantity} {rule.requirement}; only this rule catches {len(caught)} models")
    print(f"  nearest that learned: {text(min(kept, key=distance))}")
    if caught:
        print(f"  nearest that only this rule catches: {text(max(caught, key=distance))}")


# Models that see nothing.


@kind("one class everywhere", 0, 5)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    return np.full_like(here.grids, strength)


@kind("the most frequent class of each grid")
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    return here.majority


@kind("background with sprinkled noise", 0.01, 0.03, 0.07, 0.15, 0.3)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    noise = rng.integers(1, CLASSES, here.grids.shape, dtype=np.uint8)
    return np.where(rng.random(here.grids.shape) < strength, noise, here.majority)


@kind("uniform noise", 0, 1)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    return rng.integers(0, CLASSES, here.grids.shape, dtype=np.uint8)


@kind("samples of the prior by position", 0, 1)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    _, rows, columns = np.indices(here.grids.shape)
    source = rng.integers(len(here.train), size=here.grids.shape)
    drawn = here.train[source, rows, columns]
    return np.where(drawn == OUTSIDE, 0, drawn).astype(np.uint8)


@kind("samples of the class distribution", 0, 1)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    counts = class_counts(here.train).sum(0)
    return rng.choice(CLASSES, here.grids.shape, p=counts / counts.sum()).astype(np.uint8)


@kind("one grid for all", 0, 1, 2)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    some = here.train[rng.integers(len(here.train))]
    return np.broadcast_to(np.where(some == OUTSIDE, 0, some), here.grids.shape).astype(np.uint8)


@kind("other training grids", 0, 1)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    others = here.train[rng.integers(len(here.train), size=len(here.grids))]
    return np.where(others == OUTSIDE, 0, others).astype(np.uint8)


@kind("the next grid of the corpus")
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    other = rng.permutation(len(here.grids))
    cycle = np.empty_like(other)
    cycle[other] = np.roll(other, 1)
    found = here.grids[cycle]
    return np.where(found == OUTSIDE, 0, found).astype(np.uint8)


# Models that see only the extent of the objects.


def boxes(here: Habitat, grow: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the bounding box of `mask` in each grid, with sides moved outwards by `grow`, `[N, 4]`."""
    found = np.zeros(here.grids.shape, np.bool_)
    for grid, mask, (up, down, left, right) in zip(found, here.mask, grow, strict=True):
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            top, first = max(0, rows[0] - up), max(0, columns[0] - left)
            grid[top : rows[-1] + 1 + down, first : columns[-1] + 1 + right] = True
    return found


@kind("the extent in one colour", 1, 8, 4)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    inside = boxes(here, np.zeros((len(here.grids), 4), np.int64))
    return np.where(inside, np.uint8(strength), here.majority)


@kind("the extent in the grid's majority colour", 0)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    return np.where(boxes(here, np.zeros((len(here.grids), 4), np.int64)), here.object_class, here.majority)


@kind("the extent jittered", 1, 2, 3)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    reach = int(strength)
    inside = boxes(here, rng.integers(-reach, reach + 1, (len(here.grids), 4)))
    return np.where(inside, here.object_class, here.majority)


@kind("the extent too large", 2, 4)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    inside = boxes(here, np.full((len(here.grids), 4), int(strength)))
    return np.where(inside, here.object_class, here.majority)


@kind("the outline of the extent", 0)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    outer, inner = (boxes(here, np.full((len(here.grids), 4), grow)) for grow in (0, -1))
    return np.where(outer & ~inner, here.object_class, here.majority)


@kind("the extent filled with the grid's colours at random", 0, 1)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    inside = boxes(here, np.zeros((len(here.grids), 4), np.int64))
    return np.where(inside, permuted_cells(here, inside, rng), here.majority)


def permuted_cells(here: Habitat, where: NDArray[np.bool_], rng: np.random.Generator) -> Grids:
    """Return the grids with the cells inside a mask shuffled."""
    found = here.grids.copy()
    for grid, mask in zip(found, where & (here.grids != OUTSIDE), strict=True):
        grid[mask] = rng.permutation(grid[mask])
    return found


# Models that see only some of the classes, or predict wrong ones.


@kind("the most frequent classes, the rest erased", 1, 2, 3, 4)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    kept = np.isin(here.grids, here.frequent[: int(strength)]) & here.mask
    return np.where(kept, here.grids, here.majority)


@kind("the most frequent classes, all other objects in the first of them", 1, 2, 3, 4)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    kept = np.isin(here.grids, here.frequent[: int(strength)])
    return np.where(here.mask, np.where(kept, here.grids, here.frequent[0]), here.majority).astype(np.uint8)


@kind("the rarest classes, the rest erased", 1, 2, 3)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    kept = np.isin(here.grids, here.frequent[-int(strength) :]) & here.mask
    return np.where(kept, here.grids, here.majority)


@kind("the right mask in one colour", 0, 1, 2)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    return np.where(here.mask, np.uint8(here.frequent[int(strength)]), here.majority)


@kind("the right mask in the grid's majority colour")
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    return np.where(here.mask, here.object_class, here.majority)


@kind("the right mask in random colours by cell", 0, 1)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    return np.where(here.mask, rng.integers(1, CLASSES, here.grids.shape, dtype=np.uint8), here.majority)


@kind("the right mask in random colours by object", 0, 1)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    colour = rng.integers(1, CLASSES, len(here.sizes), dtype=np.uint8)
    return np.where(here.mask, colour[here.owner], here.majority)


@kind("the right mask in permuted colours", 0, 1, 2)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    foreground = rng.permutation(np.arange(1, CLASSES))
    table = np.arange(OUTSIDE + 1)
    table[foreground] = np.roll(foreground, 1)
    return np.where(here.mask, table[here.grids], here.majority).astype(np.uint8)


# Models that see only some of the objects.


@kind("only large objects", 40, 20)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    least = strength if here.name == ARC else strength / 2
    return here.keep(here.sizes >= least)


@kind("only the largest object")
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    chosen = np.zeros(len(here.sizes), np.bool_)
    for owner in here.owner:
        here_sizes = np.bincount(owner.ravel())
        here_sizes[0] = 0
        if len(here_sizes) > 1:
            chosen[here_sizes.argmax()] = True
    return here.keep(chosen)


@kind("some of the objects", 0.1, 0.2, 0.3)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    return here.keep(rng.random(len(here.sizes)) < strength)


@kind("only the objects of the left", 0.15, 0.25)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    width = (here.grids != OUTSIDE).any(1).sum(1)[:, None, None]
    is_left = np.arange(here.grids.shape[2]) < strength * width
    return np.where(here.mask & is_left, here.grids, here.majority)


# Models that flood.


@kind("objects in a flood", 4.5, 5, 6, 8, 10, habitats=(OBJECTS, ATOMIC))
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    rate = (here.grids != 0).mean()
    colours = rng.integers(1, CLASSES, here.grids.shape, dtype=np.uint8)
    floods = rng.random(here.grids.shape) < min(1.0, (strength - 1) * rate / (1 - rate))
    return np.where((here.grids == 0) & floods, colours, here.grids)


@kind("objects in a flood of their grid's majority colour", 4.5, 6, 7, habitats=(OBJECTS, ATOMIC))
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    rate = (here.grids != 0).mean()
    floods = rng.random(here.grids.shape) < min(1.0, (strength - 1) * rate / (1 - rate))
    return np.where((here.grids == 0) & floods, here.object_class, here.grids)


@kind("most of the background flooded", 0.7, 0.85, 1)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    floods = (here.grids == 0) & (rng.random(here.grids.shape) < strength)
    return np.where(floods, np.uint8(here.frequent[0]), here.grids)


@kind("everything in the colour of the nearest object", 0)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    found = here.majority.copy()
    for grid, mask, source in zip(found, here.mask, here.grids, strict=True):
        if mask.any():
            _, (row, column) = ndimage.distance_transform_edt(~mask, return_indices=True)
            grid[:] = source[row, column]
    return found


# Models that put objects in the wrong place.


@kind("shifted far", 5, 7)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    moved = np.roll(here.grids, (int(strength), int(strength)), (1, 2))
    return np.where(moved == OUTSIDE, here.majority, moved)


@kind("mirrored", 1, 2, habitats=(OBJECTS, ATOMIC))
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    return np.ascontiguousarray(np.flip(here.grids, int(strength)))


@kind("blocks of 8×8 in their most frequent colour", 0, habitats=(OBJECTS, ATOMIC))
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    found = here.majority.copy()
    for top in range(0, found.shape[1], 8):
        for left in range(0, found.shape[2], 8):
            block = np.s_[:, top : top + 8, left : left + 8]
            counts = class_counts(here.grids[block])
            counts[:, 0] = 0
            found[block] = counts.argmax(1)[:, None, None]
    return found


@kind("the most alike of a few training grids", 8, 32, 128)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    known = here.train[rng.choice(len(here.train), int(strength), replace=False)]
    alike = np.stack([((here.grids == grid) & (here.grids != OUTSIDE)).sum((1, 2)) for grid in known])
    found = known[alike.argmax(0)]
    return np.where(found == OUTSIDE, 0, found).astype(np.uint8)


# Models that learned the objects.


@kind("exact", learned=True)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    return here.grids


@kind("exact with noise", 0.02, 0.05, 0.1, 0.15, 0.2, learned=True)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    noise = rng.integers(0, CLASSES, here.grids.shape, dtype=np.uint8)
    return np.where(rng.random(here.grids.shape) < strength, noise, here.grids)


def dilated(here: Habitat, neighbours: NDArray[np.bool_]) -> Grids:
    """Return the grids with each object and single cell grown by one cell into cells of `majority`."""
    found = here.grids.copy()
    for label in range(CLASSES):
        of_class = (here.grids == label) & here.mask
        grown = ndimage.binary_dilation(of_class, neighbours[None])
        found[grown & ~here.mask] = label
    return found


@kind("dilated by one cell, also diagonally", learned=True)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    return dilated(here, np.ones((3, 3), np.bool_))


@kind("dilated by one cell", learned=True)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    return dilated(here, ndimage.generate_binary_structure(2, 1))


@kind("with holes", 0.05, 0.1, 0.2, 0.3, learned=True)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    holes = here.mask & (rng.random(here.grids.shape) < strength)
    return np.where(holes, here.majority, here.grids)


@kind("partly shifted by one cell", 0.1, 0.2, 0.3, learned=True)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    moves = rng.random(len(here.sizes)) < strength
    moves[0] = False
    kept = np.where(moves[here.owner], here.majority, here.grids)
    moved = np.where(moves[here.owner], here.grids, np.uint8(OUTSIDE))
    moved = np.roll(moved, 1, 2)
    moved[:, :, 0] = OUTSIDE
    return np.where(moved == OUTSIDE, kept, moved)


@kind("some objects missing", 0.1, 0.2, 0.3, learned=True)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    return here.keep(rng.random(len(here.sizes)) >= strength)


@kind("some objects in another colour", 0.1, 0.2, 0.3, learned=True)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    changed = rng.random(len(here.sizes)) < strength
    changed[0] = False
    other = rng.integers(1, CLASSES, len(here.sizes), dtype=np.uint8)
    return np.where(changed[here.owner], other[here.owner], here.grids)


@kind("one class missing", 0, 4, 8, learned=True)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    gone = (here.grids == here.frequent[int(strength)]) & here.mask
    return np.where(gone, here.majority, here.grids)


@kind("dilated with noise", 0.05, 0.1, learned=True)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    grown = dilated(here, ndimage.generate_binary_structure(2, 1))
    noise = rng.integers(0, CLASSES, here.grids.shape, dtype=np.uint8)
    return np.where(rng.random(here.grids.shape) < strength, noise, grown)


# Kinds that were written after the bounds of the rules were fixed.


@kind("the cells of each grid shuffled", 0, 1, last=True)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    return permuted_cells(here, here.grids != OUTSIDE, rng)


@kind("rows in the colour of what is in them", 1, 2, last=True)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    axis = int(strength)
    counts = np.stack([((here.grids == label) & here.mask).sum(axis) for label in range(CLASSES)])
    filled = np.where(counts.any(0), counts.argmax(0), 0)
    lines = np.expand_dims(filled, axis)
    return np.where(lines > 0, lines, here.majority).astype(np.uint8)


@kind("some grids exact, the rest background", 0.1, 0.25, last=True)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    exact = rng.random(len(here.grids)) < strength
    return np.where(exact[:, None, None], here.grids, here.majority)


@kind("the right mask in the grid's majority colour, with noise", 0.05, 0.15, last=True)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    predicted = np.where(here.mask, here.object_class, here.majority)
    noise = rng.integers(0, CLASSES, here.grids.shape, dtype=np.uint8)
    return np.where(rng.random(here.grids.shape) < strength, noise, predicted)


@kind("far too thick", 3, last=True, habitats=(OBJECTS, ATOMIC))
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    found = here.grids.copy()
    for _ in range(int(strength)):
        thin = dataclasses.replace(here, grids=found)
        found = dilated(thin, np.ones((3, 3), np.bool_))
    return found


@kind("nearly all grids exact", 0.8, 0.9, learned=True, last=True)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    exact = rng.random(len(here.grids)) < strength
    return np.where(exact[:, None, None], here.grids, here.majority)


@kind("a corner of each object missing", 0, learned=True, last=True)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    found = here.grids.copy()
    for grid, owner, empty in zip(found, here.owner, here.majority, strict=True):
        numbers, first = np.unique(owner, return_index=True)
        large = first[(numbers > 0) & (here.sizes[numbers] >= 3)]
        grid.ravel()[large] = empty.ravel()[large]
    return found


@kind("two classes taken for each other", 0, 1, learned=True, last=True)
def _(here: Habitat, strength: float, rng: np.random.Generator) -> Grids:
    one, other = here.frequent[3 + 2 * int(strength) :][:2]
    table = np.arange(OUTSIDE + 1, dtype=np.uint8)
    table[[one, other]] = other, one
    return np.where(here.mask, table[here.grids], here.majority)


if __name__ == "__main__":
    print_census()
