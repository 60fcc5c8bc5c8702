"""Print the first table of docs/operating-point.md: the default settings, and one changed at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.sweep import Outcome, Point, foreground_ratio, parse_arguments, sweep
from bvae.records import MeanStd

SEEDS = (0, 1)
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    *({"beta": beta} for beta in (0.001, 0.002, 0.006, 0.01)),
    *({"latent_dim": count} for count in (16, 64)),
    *({"learning_rate": rate} for rate in (5e-4, 2e-3)),
    *({"epochs": count} for count in (2, 10, 20)),
)
CORPORA = ("objects:6000", "objects:12000", "objects:40000", "atomic", "arc")
HEADINGS = (
    "setting",
    "option",
    "verdict",
    "accuracy",
    "predicted / true foreground",
    "object IoU",
    "object recall",
    "recognised",
)


def settings() -> list[list[Point]]:
    """Return the runs of each setting: all options, each with two seeds."""
    changed = [("objects", changes) for changes in CHANGES] + [(corpus, {}) for corpus in CORPORA]
    return [
        [Point(option, seed, corpus, tuple(changes.items())) for option in "ABC" for seed in SEEDS]
        for corpus, changes in changed
    ]


def table(outcomes: Sequence[Sequence[Outcome]]) -> Iterator[str]:
    """Yield a Markdown table with a row per setting and option: means ± standard deviations over seeds."""
    yield f"| {' | '.join(HEADINGS)} |"
    yield f"| {' | '.join(['---'] * len(HEADINGS))} |"
    for setting in outcomes:
        for option in dict.fromkeys(outcome.point.option for outcome in setting):
            runs = [outcome for outcome in setting if outcome.point.option == option]
            verdicts = " / ".join(dict.fromkeys(run.verdict.replace("_", " ") for run in runs))
            accuracy, iou, recall, recognised = (
                MeanStd.of([getattr(run.metrics, name) if run.metrics else None for run in runs])
                for name in ("pixel_accuracy", "object_iou", "object_recall", "objects_recognised")
            )
            ratio = MeanStd.of([foreground_ratio(run.metrics) for run in runs])
            cells = (describe(runs[0].point), option, verdicts, accuracy, ratio, iou, recall, recognised)
            yield f"| {' | '.join(map(str, cells))} |"


def describe(point: Point) -> str:
    """Return the name of a setting: its differences from the defaults."""
    changes = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in point.changes)
    return changes or ("**default**" if point.corpus == "objects" else f"`{point.corpus}`")


def main() -> None:
    """Train the missing runs and print the table."""
    file, processes = parse_arguments("benchmarks.operating_point", __doc__)
    asked = settings()
    found = iter(sweep([point for setting in asked for point in setting], file, processes))
    print(*table([[next(found) for _ in setting] for setting in asked]), sep="\n")


if __name__ == "__main__":
    main()
