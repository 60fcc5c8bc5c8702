"""The results of a benchmark as text and as a chart."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

OURS = "bvae"
COLORS = {True: "#0072B2", False: "#999999"}  # labels distinguish the bars without colour


def _row(label: str, cells: Sequence[str]) -> str:
    return f"{label:<42}" + "".join(f"{cell:>20}" for cell in cells)


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return median, lowest and highest ratio of epochs of the same round."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return statistics.median(ratios), ratios[0], ratios[-1]


def throughput_table(
    rates: Mapping[str, Sequence[float]], default: str, flops: float, limits: Mapping[str, float]
) -> list[str]:
    """Return lines with the speed of every contender, its share of the matrix product rate, and the speedup.

    Args:
        rates: images per second by label; a label begins with the name and the precision of a contender.
        default: the precision that bvae chooses on this machine.
        flops: operations of a training step per image.
        limits: operations per second of matrix products, by precision.
    """
    ours = next(label for label in rates if label.startswith(f"{OURS} {default}"))
    lines = [
        f"A training step takes {flops / 1e6:.1f} MFLOP per image; matrix products here reach "
        + ", ".join(f"{limit / 1e9:,.0f} GFLOP/s in {name}" for name, limit in limits.items())
    ]
    for precision, heading in (
        ("fp32", "peers with their defaults"),
        ("bf16", "peers in bf16 and channels_last"),
    ):
        labels = [label for label in rates if f" {precision}, " in label and label != ours]
        lines += ["", _row(heading, ("images/s", "lowest to highest", "share of matmul", f"{ours} is"))]
        for label in (ours, *labels):
            own = rates[label]
            limit = limits[default if label == ours else precision]
            ratio, lowest, highest = paired_ratio(rates[ours], own)
            cells = (
                f"{statistics.median(own):,.0f}",
                f"{min(own):,.0f} to {max(own):,.0f}",
                f"{statistics.median(own) * flops / limit:.1%}",
                "" if label == ours else f"{ratio:.2f}× ({lowest:.2f}–{highest:.2f})",
            )
            lines.append(_row(label, cells))
        # A peer trains in one process. Two processes at once are not one of its features.
        theirs = [label for label in labels if not label.startswith(OURS)]
        alone = [label for label in theirs if "1×" in label]
        for choice, kind in ((alone, "in one process"), (theirs, "with any number of processes")):
            fastest = max(choice, key=lambda label: statistics.median(rates[label]))
            ratio, lowest, highest = paired_ratio(rates[ours], rates[fastest])
            speedup = f"{ratio:.2f}× ({lowest:.2f}–{highest:.2f})"
            lines.append(f"{speedup} as fast as the fastest peer {kind}: {fastest}")
    return lines


def parts_table(seconds: Mapping[str, Sequence[float]]) -> list[str]:
    """Return lines with the median time and range of each part."""
    lines = ["", _row("part", ("median", "lowest to highest"))]
    for name, times in seconds.items():
        scale, unit = (1, "s") if statistics.median(times) >= 1 else (1000, "ms")
        median, lowest, highest = (scale * f(times) for f in (statistics.median, min, max))
        lines.append(f"{name:<60}{median:>10.4g} {unit} {lowest:>10.4g} to {highest:.4g}")
    return lines


def draw(rates: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw a bar for each contender's median speed, with a line from the lowest to the highest speed."""
    figure = Figure(figsize=(9, 0.5 + 0.32 * len(rates)), dpi=100, layout="constrained")
    axes = figure.subplots()
    for row, (label, own) in enumerate(rates.items()):
        middle = statistics.median(own)
        axes.barh(row, middle, color=COLORS[label.startswith(OURS)], height=0.7)
        axes.plot([min(own), max(own)], [row, row], color="black", linewidth=1.5)
        axes.annotate(f" {middle:,.0f}", (max(own), row), va="center", fontsize=9)
    axes.set_yticks(range(len(rates)), rates)
    axes.invert_yaxis()
    axes.set_xlabel("training images per second on two cores (line: lowest to highest of the repeats)")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
