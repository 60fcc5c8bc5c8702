"""A comparison in words: the gate's outcome, the table of options, the Markdown report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from bvae.comparison import Comparison, OptionSummary
from bvae.config import AccuracyBand
from bvae.regression import CAPTION, DIFFERENCE_HEADINGS, Difference, difference_rows

HEADINGS = (
    "option",
    "γ",
    "class weights",
    "verdict",
    "accuracy",
    "foreground IoU",
    "(shuffled)",
    "foreground recall",
    "(shuffled)",
)
"""Columns of the table of options; "shuffled" is the control decoded from another grid's latent."""


def table_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """The table of options under `HEADINGS`, a row each, as text."""
    return [
        (
            name,
            f"{option.gamma:g}",
            _weighting(option, comparison.corpus.weight_ratio),
            option.verdict.replace("_", " "),
            str(option.pixel_accuracy),
            str(option.foreground_iou),
            str(option.shuffled_foreground_iou),
            str(option.foreground_recall),
            str(option.shuffled_foreground_recall),
        )
        for name, option in comparison.options.items()
    ]


def _weighting(option: OptionSummary, known: Mapping[str, float]) -> str:
    """An option's class weights; with their ratio where it is not among those known of the corpus."""
    built_in = option.class_weights == "none" or option.class_weights in known
    return option.weighting if built_in else f"{option.weighting} ({option.weight_ratio:,.1f}:1)"


def explain_gate(comparison: Comparison) -> str:
    """The gate's outcome: a sentence, then a line of numbers for each candidate."""
    gate, band = comparison.gate, AccuracyBand(*comparison.band)
    if gate.passed:
        head = f"The gate passed: {' and '.join(gate.passed_by)} trained stably and learned the objects."
    elif not gate.candidates:
        head = (
            "The gate failed: no run of a candidate was selected. Select one, such as --loss-options=A,B,C."
        )
    else:
        head = f"The gate failed: no candidate is healthy (stable, objects learned, accuracy in {band})."
    rate = f"background rate {comparison.corpus.background_rate:.3f}"
    lines = [
        f"  {name}: {option.verdict}: accuracy {option.pixel_accuracy} ({rate}), "
        f"foreground IoU {option.foreground_iou} (shuffled {option.shuffled_foreground_iou}), "
        f"recall {option.foreground_recall} (shuffled {option.shuffled_foreground_recall}). {option.reason}"
        for name, option in comparison.options.items()
        if name in gate.candidates
    ]
    return "\n".join([head, *lines])


def describe_setting(comparison: Comparison) -> str:
    """The corpus and the band against which the options were judged, a sentence."""
    corpus = comparison.corpus
    return (
        f"Corpus {corpus.name}: {corpus.train:,} training and {corpus.val:,} validation grids, "
        f"background rate {corpus.background_rate:.3f}, most to least frequent class "
        f"{corpus.weight_ratio['inverse']:.0f}:1 ({corpus.weight_ratio['sqrt_inverse']:.1f}:1 after the "
        f"square root). Accuracy band {AccuracyBand(*comparison.band)}."
    )


def to_text_table(comparison: Comparison) -> list[str]:
    """The table of options with aligned columns, for a terminal."""
    return _aligned([HEADINGS, *table_rows(comparison)])


def differences_to_text(differences: Sequence[Difference]) -> list[str]:
    """The table of differences to the baseline, for a terminal; nothing where there is none."""
    if not differences:
        return []
    table = _aligned([DIFFERENCE_HEADINGS, *difference_rows(differences)])
    return ["Against the baseline:", "", *table, "", CAPTION, ""]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def to_markdown(
    comparison: Comparison, differences: Sequence[Difference] = (), *, pictures: bool = True
) -> str:
    """The comparison as a Markdown document, which links the pictures beside it unless told not to."""
    lines = [
        "# Comparison of loss options",
        "",
        markdown(explain_gate(comparison).splitlines()[0]),
        "",
        f"**{markdown(comparison.recommendation)}**",
        "",
        markdown(describe_setting(comparison)),
        "",
        _row(HEADINGS),
        _row(["---"] * len(HEADINGS)),
        *(_row(row) for row in table_rows(comparison)),
        "",
        "Mean ± standard deviation over seeds. Shuffled: each grid is decoded from another grid's latent; "
        "what survives, the decoder knew without looking.",
        "",
        "## Verdicts",
        "",
    ]
    for name, option in comparison.options.items():
        lines.append(f"- **{name}** {option.verdict.replace('_', ' ')}: {markdown(option.reason)}")
        lines += [
            f"  - seed {run.seed}: {run.verdict.replace('_', ' ')}: {markdown(run.reason)}"
            for run in option.runs
        ]
    if differences:
        rows = [DIFFERENCE_HEADINGS, ["---"] * len(DIFFERENCE_HEADINGS), *difference_rows(differences)]
        lines += ["", "## Against the baseline", "", *map(_row, rows), "", CAPTION]
    if pictures:
        lines += [
            "",
            "![Curves of loss, accuracy, foreground IoU and KL by epoch](curves.png)",
            "",
            "![The same training grids, and what each option reconstructs](reconstructions.png)",
        ]
    lines.append("")
    return "\n".join(lines)


def markdown(text: str) -> str:
    """Text that Markdown shows as it stands."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&~])", r"\\\1", text)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
