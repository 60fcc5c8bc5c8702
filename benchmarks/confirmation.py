"""Test the claims about the defaults on 20 triples of seeds that were not used to choose the defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from benchmarks.sweep import Outcome, Point, foreground_ratio, parse_arguments, sweep
from bvae.config import AccuracyBand, ExperimentConfig, TrainingConfig
from bvae.corpus import load_corpus
from bvae.evaluation.measure import references
from bvae.records import ControlledMetrics
from bvae.verdict import Verdict, judge_option

TRIPLES = tuple((seed, seed + 1, seed + 2) for seed in range(1_000, 1_060, 3))
LEAST_CLASSES, LEAST_OBJECT_RECALL = 7, 0.40


def broken_claims(a: Mapping[int, Outcome], b: Mapping[int, Outcome], least_iou: float) -> list[str]:
    """Return a text for each claim about A and B that does not hold, with the seed and the number."""
    broken = [f"A-seed{seed} is {run.verdict}" for seed, run in a.items() if run.verdict != "mode_collapse"]
    accuracies = [run.metrics.pixel_accuracy if run.metrics else None for run in b.values()]
    verdict = judge_option(
        [Verdict(run.verdict, run.reason) for run in b.values()], accuracies, AccuracyBand()
    )
    if not verdict.healthy:
        broken.append(f"B is {verdict.name}")
    for seed, run in b.items():
        found = run.metrics
        if found is None or found.object_iou is None or found.object_recall is None:
            broken.append(f"B-seed{seed} has no metrics")
            continue
        if found.classes_learned < LEAST_CLASSES:
            broken.append(f"B-seed{seed} learned {found.classes_learned} classes")
        if found.object_recall < LEAST_OBJECT_RECALL:
            broken.append(f"B-seed{seed} has object recall {found.object_recall:.3f}")
        if found.object_iou <= least_iou:
            broken.append(f"B-seed{seed} has object IoU {found.object_iou:.3f}")
    return broken


def report(outcomes: Mapping[Point, Outcome], known: Mapping[str, ControlledMetrics]) -> Iterator[str]:
    """Yield lines: the references, a row for each triple, and how many triples meet all claims."""
    rivals = {name: found.object_iou or 0.0 for name, found in known.items()}
    yield "references, object IoU: " + ", ".join(f"{name} {iou:.3f}" for name, iou in rivals.items())
    held = 0
    for triple in TRIPLES:
        a, b = ({seed: outcomes[Point(option, seed)] for seed in triple} for option in "AB")
        broken = broken_claims(a, b, max(rivals.values()))
        held += not broken
        numbers = "; ".join(
            f"{name.replace('_', ' ')} "
            + " ".join(f"{getattr(run.metrics, name):.3f}" for run in b.values() if run.metrics)
            for name in ("pixel_accuracy", "object_iou", "object_recall", "objects_recognised")
        )
        classes = " ".join(str(run.metrics.classes_learned) for run in b.values() if run.metrics)
        ratios = " ".join(f"{foreground_ratio(run.metrics) or 0.0:.3f}" for run in a.values())
        yield (
            f"seeds {triple[0]}-{triple[-1]}: B {numbers}; classes {classes}; A predicted / true foreground "
            f"{ratios}: {'; '.join(broken) or 'all claims hold'}"
        )
    yield f"all claims hold in {held} of {len(TRIPLES)} triples"


def main() -> None:
    """Train the missing runs and print the report."""
    file, processes = parse_arguments("benchmarks.confirmation", __doc__)
    points = [Point(option, seed) for triple in TRIPLES for seed in triple for option in "BA"]
    outcomes = dict(zip(points, sweep(points, file, processes), strict=True))
    corpus = load_corpus(ExperimentConfig().corpus)
    print(*report(outcomes, references(corpus, TrainingConfig().latent_dim)), sep="\n")


if __name__ == "__main__":
    main()
