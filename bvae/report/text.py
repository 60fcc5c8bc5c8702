"""A comparison in words: setting, outcome of the gate, terminal output, and the Markdown report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from bvae.config import AccuracyBand, Setting, TrainingConfig
from bvae.judging.baseline import CAPTION, DIFFERENCE_HEADINGS, Difference, difference_rows
from bvae.judging.comparison import LISTED, Comparison, listed
from bvae.judging.explanation import count_verdicts, in_epochs
from bvae.report.tables import COLUMNS, TABLE_CAPTION, aligned, table_head, table_rows, to_text_table
from bvae.storage import printable
from bvae.verdict import words

PICTURES = {
    "verdicts.png": "The verdict on each run by epoch, as listed above",
    "curves.png": "Curves of loss, accuracy, object IoU, object recall and KL by epoch",
    "tradeoff.png": "Object IoU against KL in bits per grid, for each run",
    "reconstructions.png": "Training grids, and their reconstructions under each option",
    "examples.png": "Validation grids under each option: the worst, the median and the best",
}
"""Pictures of the Markdown report, with their text alternatives."""


def explain_gate(comparison: Comparison, *, ran: bool = True) -> str:
    """Return the gate's outcome: a sentence, then a line with verdict and metrics of each candidate.

    Args:
        ran: whether the gate's test was run. If not, the sentence says what the outcome would be.
    """
    gate, band = comparison.gate, AccuracyBand(*comparison.band)
    passed, failed = "The gate passed", "The gate failed"
    if not ran:
        given = "The gate was not run. With the existing results, it would"
        passed, failed = f"{given} pass", f"{given} fail"
    if gate.passed:
        learned = [
            f"{name} trained stably and {what_was_learned(comparison, name)}" for name in gate.passed_by
        ]
        head = f"{passed}: {'; '.join(listed(learned))}."
    elif not gate.candidates:
        head = f"{failed}: no run of a candidate was selected. Select one, such as --loss-options=A,B,C."
    else:
        head = f"{failed}: no candidate is healthy (stable, no rule broken, accuracy in {band})."
    rate = f"background rate {comparison.corpus.background_rate:.3f}"
    lines = [
        f"{name}: {words(option.verdict)}: object IoU {option.object_iou} (shuffled "
        f"{option.shuffled_object_iou}), object recall {option.object_recall} (shuffled "
        f"{option.shuffled_object_recall}), accuracy {option.pixel_accuracy} ({rate}). "
        f"Reason: {option.reason}."
        for name, option in comparison.options.items()
        if name in gate.candidates
    ]
    return "\n  ".join([head, *listed(lines)])


def explain_own_gates(passed: Mapping[str, bool]) -> str:
    """Return a sentence on the gates that a project added; empty if there are none.

    Args:
        passed: whether each gate passed, by name.
    """
    if not passed:
        return ""
    failed = [printable(name) for name, is_passed in passed.items() if not is_passed]
    outcome = "failed" if failed else "passed"
    return f"The session's own gates {outcome}: {', '.join(listed(failed or [*map(printable, passed)]))}."


def explain_outcome(
    comparison: Comparison, own_gates: Mapping[str, bool], *, gate_ran: bool
) -> tuple[bool, str]:
    """Return whether the gates passed, and sentences on them; a failed gate comes first.

    Gates that were not run do not count. If none was run, the packaged gate is judged by existing results.
    """
    own, own_passed = explain_own_gates(own_gates), all(own_gates.values())
    packaged = explain_gate(comparison, ran=gate_ran).splitlines()[0]
    if own and not gate_ran:
        return own_passed, own
    sentences = [packaged, own] if own_passed else [own, packaged]
    return own_passed and comparison.gate.passed, " ".join(filter(None, sentences))


def what_was_learned(comparison: Comparison, option: str) -> str:
    """Return a phrase on what an option that breaks no rule has learned, beginning with "learned".

    It learned shapes if it has more recognised objects than the references "nearest training grid".
    """
    share = comparison.options[option].objects_recognised.mean
    copied = [
        found.objects_recognised
        for name, found in comparison.corpus.references.items()
        if name.startswith("nearest training grid") and found.objects_recognised is not None
    ]
    if share is None or not copied:
        return "learned colours and places of objects; shapes were not measured"
    numbers = f"{share:.1%} of the objects recognised; nearest training grid: {max(copied):.1%}"
    if share > max(copied):
        return f"learned colours, places and shapes of objects ({numbers})"
    return f"learned colours and places of objects, not shapes ({numbers})"


def describe_setting(comparison: Comparison) -> str:
    """Return sentences on the corpus, the training settings and the accuracy band of a comparison."""
    corpus, band, beta = comparison.corpus, AccuracyBand(*comparison.band), comparison.training.beta
    cells = sum(corpus.class_counts) / corpus.train
    sentences = [
        f"Corpus {corpus.name}: {corpus.train:,} training and {corpus.val:,} validation grids, "
        f"background rate {corpus.background_rate:.3f}. The ratio of the most frequent class to the least "
        f"frequent class is {corpus.weight_ratio['inverse']:.0f}:1; its square root is "
        f"{corpus.weight_ratio['sqrt_inverse']:.1f}:1.",
        *corpus.remarks(),
        # Papers give β for a loss that is a sum over cells.
        f"β = {beta:g} for a loss per cell, or {beta * cells:.3g} for a loss summed over {cells:.0f} cells.",
        *filter(None, [describe_beta(comparison.training), describe_length(comparison.training)]),
        *filter(None, [describe_stages(comparison.training), describe_changes(comparison)]),
        f"Accuracy band {band}.",
    ]
    batches = [comparison.training_of(name).batch_size for name in comparison.options]
    if max(batches, default=0) > corpus.train:
        sentences.append(f"A batch of {max(batches)} has all training grids: an epoch is then one step.")
    if band.hi < corpus.background_rate:
        sentences.append(
            f"The band is below the background rate {corpus.background_rate:.3f}: a model in the band has "
            "fewer right cells than a model that predicts only background. This is the cost of predicting "
            "objects."
        )
    return " ".join(sentences)


def describe_beta(training: TrainingConfig) -> str:
    """Return a sentence on the schedule of β and on free bits; empty for a constant β without free bits."""
    parts = {
        "constant": [],
        "linear": [f"β rises from 0 over {training.beta_warmup:g} epochs"],
        "cyclical": ["β rises from 0 in four cycles"],
    }[training.beta_schedule]
    if training.free_bits:
        parts = [
            *parts,
            f"the first {training.free_bits:g} nats of KL in each latent dimension have no cost (free bits)",
        ]
    shown = "the losses shown use the full β and no free bits"
    return f"In training, {' and '.join(parts)}; {shown}." if parts else ""


def describe_length(training: TrainingConfig) -> str:
    """Return sentences on how long runs are trained; empty without `--until-plateau`."""
    if not training.until_plateau:
        return ""
    return (
        f"A run ends after {in_epochs(training.until_plateau)} without a new low of its validation loss, or "
        f"after {in_epochs(training.epochs)} in all. The learning rate is constant after the warm-up."
    )


def describe_changes(comparison: Comparison) -> str:
    """Return a sentence on training settings that options change; empty if no option changes any."""
    common, options = vars(comparison.training), []
    for name, option in comparison.options.items():
        changes = [
            f"{setting} {_setting(value)} instead of {_setting(common[setting])}"
            for setting, value in option.training.items()
            if value != common[setting]
        ]
        if changes:
            options.append(f"{name}: {', '.join(changes)}")
    return f"Options with other settings: {'; '.join(options)}." if options else ""


def _setting(value: Setting) -> str:
    return f"{value:g}" if isinstance(value, float) else printable(str(value))


def describe_epochs(comparison: Comparison) -> str:
    """Return when the options are measured, such as "5 to 10 epochs" or "the last epoch of each run"."""
    settings = [comparison.training_of(name) for name in comparison.options]
    if any(training.until_plateau for training in settings):
        return "the last epoch of each run"
    least, most = (end(training.epochs for training in settings) for end in (min, max))
    return in_epochs(most) if least == most else f"{least} to {most} epochs"


def describe_stages(training: TrainingConfig) -> str:
    """Return sentences on the epochs of an extended session; empty if the session was not extended."""
    if not training.extended_from:
        return ""
    first, *later = training.stages
    return (
        f"The runs were trained for {first} epochs and extended to {', then to '.join(map(str, later))}. "
        "Runs on a plateau, and options with own epochs, were not extended. Before each extension, the "
        "schedules that depend on the number of epochs had reached their end; results may differ from "
        f"{later[-1]} epochs trained at once."
    )


def to_terminal(
    comparison: Comparison,
    differences: Sequence[Difference],
    own_gates: Mapping[str, bool],
    *,
    gate_ran: bool,
) -> list[str]:
    """Return the lines that a terminal shows on a comparison."""
    _, outcome = explain_outcome(comparison, own_gates, gate_ran=gate_ran)
    lines = [describe_setting(comparison), "", *to_text_table(comparison), TABLE_CAPTION, ""]
    lines += [outcome, *explain_gate(comparison).splitlines()[1:], comparison.recommendation]
    return [*lines, *(["", *table] if (table := differences_to_text(differences)) else [])]


def differences_to_text(differences: Sequence[Difference]) -> list[str]:
    """Return the table of differences to the baseline as aligned lines; empty if there are no differences."""
    if not differences:
        return []
    table = aligned([DIFFERENCE_HEADINGS, *difference_rows(differences)])
    return ["Against the baseline:", "", *table, "", CAPTION, ""]


def to_markdown(
    comparison: Comparison,
    differences: Sequence[Difference] = (),
    by_epoch: Sequence[str] = (),
    *,
    pictures: bool = True,
) -> str:
    """Return the comparison as a Markdown document that shows the pictures in its folder.

    Args:
        by_epoch: sentences on the verdicts by epoch, see `bvae.judging.explanation.describe_strips`.
    """
    lines = [
        "# Comparison of loss options",
        "",
        markdown(explain_gate(comparison).splitlines()[0]),
        "",
        f"**{markdown(comparison.recommendation)}**",
        "",
        markdown(describe_setting(comparison)),
        "",
        _row([str(cell) for cell in table_head(comparison)]),
        _row(["---"] * (1 + len(COLUMNS))),
        *(_row([str(cell) for cell in row]) for row in table_rows(comparison)),
        "",
        TABLE_CAPTION,
        "",
        "## Verdicts",
        "",
    ]
    for name, option in comparison.options.items():
        lines.append(f"- **{name}** {words(option.verdict)}: {markdown(option.reason)}")
        first, others = option.runs[:LISTED], option.runs[LISTED:]
        lines += [f"  - seed {run.seed}: {words(run.verdict)}: {markdown(run.reason)}" for run in first]
        lines += [f"  - and {len(others)} more: {count_verdicts(others)}"] * bool(others)
    if by_epoch:
        lines += ["", "## Verdicts by epoch", "", *(f"- {markdown(sentence)}" for sentence in by_epoch)]
    if differences:
        rows = [DIFFERENCE_HEADINGS, ["---"] * len(DIFFERENCE_HEADINGS), *difference_rows(differences)]
        lines += ["", "## Against the baseline", "", *map(_row, rows), "", CAPTION]
    if pictures:
        for name, description in PICTURES.items():
            lines += ["", f"![{description}]({name})"]
    return "\n".join([*lines, ""])


def markdown(text: str) -> str:
    """Escape the special characters of Markdown in a text."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&~])", r"\\\1", text)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
