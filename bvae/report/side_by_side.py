"""Several sessions side by side, as text, as an HTML page, and as CSV; all settings may differ."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase

from bvae.config import TrainingConfig
from bvae.judging.baseline import Difference, difference, difference_rows
from bvae.judging.comparison import Comparison, RunSummary, colour_of
from bvae.report.html import Picture, packaged_text, render
from bvae.report.tables import COLUMNS_ACROSS_SESSIONS, Cell, aligned
from bvae.report.text import describe_changes
from bvae.session.continuation import reading
from bvae.session.folder import Session, SessionRecord, compare_outcomes, found_outcomes
from bvae.session_files import LATEST, SESSION
from bvae.storage import brief, by_field, printable, refuse_foreign_entries

TITLE = "Sessions side by side"
DIFFERENCE_HEADINGS = (
    *("sessions", "option", "metric", "first", "other", "difference"),
    *("95 % interval", "in words"),
)
CAPTION = (
    "Difference: the mean over seeds of the other session, minus the mean of the first session. Its 95 % "
    "confidence interval is by Welch's t-test, for unequal variances. Better or worse: the whole interval is "
    "above or below 0. If nothing changed, one comparison in forty is still worse by chance."
)
NOTHING = "The first session shares no option with another session, so there is no difference to show."
COMPARED = ("object_iou", "pixel_accuracy")
"""The metrics whose differences to the first session are shown."""

OPTIONS = "the definitions of their options"
LONGEST = 200
"""Maximum number of characters of a setting that is shown."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One of several sessions: its label, folder and record, and the comparison of its runs."""

    label: str
    folder: str
    record: SessionRecord
    comparison: Comparison

    @property
    def runs(self) -> list[tuple[str, RunSummary]]:
        """For each run that was begun: the name of its option, and the run."""
        return [(name, run) for name, option in self.comparison.options.items() for run in option.runs]


def read_sides(folders: Sequence[str]) -> list[Side]:
    """Read sessions, or single runs of sessions, without changing their folders.

    Raises:
        ValueError: for fewer than 2 or more than 26 folders, for a folder that is given twice, and for a
            folder that cannot be used; the message is one sentence with the folder.
    """
    if not 2 <= len(folders) <= len(ascii_lowercase):
        expected = f"two to {len(ascii_lowercase)} folders, such as runs/latest"
        raise ValueError(f"{len(folders)} given; expected {expected}")
    sides = [_read(label, folder) for label, folder in zip(ascii_lowercase, folders, strict=False)]
    for place, side in enumerate(sides):
        if side.folder in [other.folder for other in sides[:place]]:
            raise ValueError(f"{side.folder} is given twice; expected different sessions")
    return sides


def _read(label: str, given: str) -> Side:
    with reading(given, "compared", "the folder of a session or of one of its runs, such as runs/latest"):
        path = (Path("runs") / LATEST if given == LATEST else Path(given)).resolve()
        is_run = not (path / SESSION).exists() and (path.parent / SESSION).exists()
        session = Session.open(path.parent if is_run else path, invocation="")
        refuse_foreign_entries(session.path)
        outcomes = found_outcomes(session)
        if is_run:
            found = ((option, seed) for option in outcomes for seed in outcomes[option])
            named = [(option, seed) for option, seed in found if f"{option}-seed{seed}" == path.name]
            outcomes = {option: {seed: outcomes[option][seed]} for option, seed in named}
        if not outcomes:
            raise ValueError("it has no run that was begun")
        side = Side(label, printable(str(path)), session.record, compare_outcomes(session, outcomes))
        _check_fractions(side)
    return side


def _check_fractions(side: Side) -> None:
    for option, run in side.runs:
        for metric in COMPARED if run.metrics else ():
            value = getattr(run.metrics, metric)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{metric} of {option}-seed{run.seed} is {value:g}; expected 0 to 1")


def _settings(side: Side) -> dict[str, dict[str, str]]:
    """Return the settings of a session in groups; names and values are in words."""
    record, config, corpus = side.record, side.record.config, side.record.corpus
    options = [option for option in config.options if option.name in side.comparison.options]
    names = {"gamma": "γ", "beta": "β of class weights"}
    groups: dict[str, Mapping[str, object]] = {
        "": {
            "corpus": corpus.name,
            "corpus fingerprint": corpus.fingerprint[:12],
            "training grids": f"{corpus.train:,}",
            "validation grids": f"{corpus.val:,}",
            "background rate": f"{corpus.background_rate:.3f}",
            "grid size": config.size,
            "classes": config.classes,
            "background": config.background,
            "padding value": config.padding_value,
            "accuracy band": config.band,
            "options": [option.name for option in options],
            "seeds": sorted({run.seed for _, run in side.runs}),
            "settings that options set for themselves": describe_changes(side.comparison)
            .partition(": ")[2]
            .rstrip("."),
        },
        "training": _training(config.training),
        OPTIONS: {
            f"{names.get(name, _in_words(name))} of {option.name}": value
            for option in options
            for name, value in dataclasses.asdict(option).items()
            if name not in ("name", "training")  # see "settings that options set for themselves"
        },
        "the versions": {f"version of {name}": version for name, version in record.versions.items()}
        | {"commit": (record.commit or "unknown")[:12]},
        "the machine": {f"machine: {name}": value for name, value in record.hardware.items()},
    }
    return {
        group: {brief(name, LONGEST): _shown(value) for name, value in known.items()}
        for group, known in groups.items()
    }


def _training(config: TrainingConfig) -> dict[str, object]:
    return {"β" if name == "beta" else _in_words(name): value for name, value in vars(config).items()}


def _trained(side: Side, option: str) -> dict[str, str]:
    return {name: _shown(value) for name, value in _training(side.record.config.training_of(option)).items()}


def _in_words(field: str) -> str:
    return {"latent_dim": "latent dimensions"}.get(field, field.replace("_", " "))


def _shown(value: object) -> str:
    if isinstance(value, list | tuple) and value:
        return printable(", ".join(map(str, value)))
    return "none" if value in (None, "", ()) else printable(str(value))


def contrast(sides: Sequence[Side]) -> tuple[str, dict[str, tuple[str, ...]]]:
    """Return a sentence on the shared settings, and for each other setting its value in each session."""
    shared, differing = [], {}
    defaults = {name: _shown(value) for name, value in _training(TrainingConfig()).items()}
    groups = [_settings(side) for side in sides]
    for group in groups[0]:
        fields = by_field(*(each[group] for each in groups))
        # A missing option is not a difference in the definitions of options.
        ignored = {None} if group == OPTIONS else set()
        differs = {name: len(set(values) - ignored) > 1 for name, values in fields.items()}
        for name, values in fields.items():
            if differs[name]:
                differing[name] = tuple(brief(value or "none", LONGEST) for value in values)
            elif group in ("", "training") and values[0] != defaults.get(name, "none"):
                shared.append(f"{name} {brief(values[0], LONGEST)}")
        if group == "training":
            shared.append(f"the defaults of {'other' if any(differs.values()) else 'all other'} settings")
        elif group and not any(differs.values()):
            shared.append(group)
    return f"The sessions share {', '.join(shared[:-1])} and {shared[-1]}.", differing


def _same_grids(side: Side, other: Side) -> bool:
    """Return whether two sessions are measured on the same grids and classes."""
    ours, theirs = (
        (record.corpus.fingerprint, record.config.size, record.config.classes, record.config.background)
        for record in (side.record, other.record)
    )
    return ours == theirs


def remarks(sides: Sequence[Side]) -> list[str]:
    """Return sentences on sessions that are not comparable with the first, and on runs without a result."""
    first, *others = sides
    found = [
        f"Session {side.label} differs from session {first.label} in corpus, grid size, number of classes or "
        "background class, so their numbers are not comparable."
        for side in others
        if not _same_grids(first, side)
    ]
    incomplete = [(side.label, run) for side in sides for _, run in side.runs if run.verdict == "incomplete"]
    return found + [f"{label}: incomplete: {run.reason}." for label, run in incomplete]


def options_table(sides: Sequence[Side]) -> list[list[Cell]]:
    """Return the table of options: the headings, then a row for each option of each session."""
    rows = [[Cell("option"), Cell("seeds"), *(column.heading for column in COLUMNS_ACROSS_SESSIONS)]]
    for side in sides:
        for name, option in side.comparison.options.items():
            ended, begun = sum(run.metrics is not None for run in option.runs), len(option.runs)
            seeds = str(begun) if ended == begun else f"{ended} of {begun}"
            cells = [column.of_option(side.comparison, option) for column in COLUMNS_ACROSS_SESSIONS]
            rows.append([Cell(f"{side.label} {name}"), Cell(seeds), *cells])
    return rows


def differences_table(sides: Sequence[Side]) -> list[tuple[str, ...]]:
    """Return rows for the options that the first session shares with others; see `DIFFERENCE_HEADINGS`."""
    first, *others = sides
    rows = []
    for other in others:
        for name in first.comparison.options:
            if name in other.comparison.options:
                for metric in COMPARED:
                    then, now = (_values(side, name, metric) for side in (first, other))
                    found = difference(name, metric, then, now)
                    (row,) = difference_rows([found])
                    judged = _judgement(found) if _same_grids(first, other) else "not comparable"
                    rows.append((f"{other.label} − {first.label}", *row[:-1], judged))
    return rows


def _values(side: Side, option: str, metric: str) -> list[float | None]:
    runs = side.comparison.options[option].runs
    return [getattr(run.metrics, metric) if run.metrics else None for run in runs]


def _judgement(found: Difference) -> str:
    if found.interval is not None:
        return found.judgement
    reason = "a number is undefined" if found.mean is None else "a session has one seed"
    return f"{found.judgement}: {reason}"


def to_text(sides: Sequence[Side]) -> list[str]:
    """Return the lines for a terminal."""
    shared, differing = contrast(sides)
    lines = [shared, "", *aligned([(side.label, side.folder, side.record.created) for side in sides]), ""]
    for name, values in differing.items():
        each = "; ".join(f"{side.label} {value}" for side, value in zip(sides, values, strict=True))
        lines.append(f"{name}: {each}")
    lines += ["", *aligned([[str(cell) for cell in row] for row in options_table(sides)]), ""]
    lines += [*remarks(sides), "", f"Against session {sides[0].label}:", ""]
    if rows := differences_table(sides):
        return [*lines, *aligned([DIFFERENCE_HEADINGS, *rows]), "", CAPTION]
    return [*lines, NOTHING]


def to_page(sides: Sequence[Side], chart: bytes) -> str:
    """Return the content of `to_text` as an HTML page that also shows the chart, a PNG."""
    shared, differing = contrast(sides)
    head, *rows = options_table(sides)
    colours = _colours(sides)
    labels = [Cell(side.label) for side in sides]
    return render(
        "side_by_side.jinja",
        title=TITLE,
        style=packaged_text("page.css"),
        shared=shared,
        sessions={
            "head": [Cell("session"), Cell("folder"), Cell("created")],
            "rows": [[*map(Cell, (side.label, side.folder, side.record.created))] for side in sides],
        },
        settings={
            "head": [Cell("setting"), *labels],
            "rows": [[*map(Cell, (name, *values))] for name, values in differing.items()],
        },
        options={
            "head": head,
            "rows": rows,
            "colours": [colour_of(colours[name]) for side in sides for name in side.comparison.options],
        },
        remarks=remarks(sides),
        chart=Picture.of(chart, "Small: runs. Large: means over seeds"),
        first=sides[0].label,
        differences={
            "head": [*map(Cell, DIFFERENCE_HEADINGS)],
            "rows": [[*map(Cell, row)] for row in differences_table(sides)],
        },
        caption=CAPTION,
        nothing=NOTHING,
    )


def _colours(sides: Sequence[Side]) -> dict[str, int]:
    """Return the index of the colour of each option name, the same in all sessions."""
    names = dict.fromkeys(name for side in sides for name in side.comparison.options)
    return {name: place for place, name in enumerate(names)}


def chart_points(
    sides: Sequence[Side],
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, tuple[int, int]]]:
    """Return the arguments `points` and `looks` of `bvae.visualization.latents.plot_rate_distortion`."""
    colours = _colours(sides)
    points: dict[str, list[tuple[float, float]]] = {}
    looks = {}
    for marker, side in enumerate(sides):
        for name, run in side.runs:
            if run.metrics is not None and run.metrics.object_iou is not None:
                label = f"{side.label} {name}"
                points.setdefault(label, []).append((run.metrics.kl, run.metrics.object_iou))
                looks[label] = (colours[name], marker)
    return points, looks


def to_csv(sides: Sequence[Side]) -> str:
    """Return CSV with a row for each run: session, settings that differ, verdict, and all numbers.

    An apostrophe precedes text that a spreadsheet would take for a formula.
    """
    _, differing = contrast(sides)
    rows: list[dict[str, object]] = []
    trained = [_trained(side, name) for side in sides for name, _ in side.runs]
    varying = [name for name in trained[0] if len({each[name] for each in trained}) > 1] if trained else []
    for place, side in enumerate(sides):
        session = {"session": side.label, "folder": side.folder, "created": side.record.created}
        settings = {name: values[place] for name, values in differing.items()}
        for name, run in side.runs:
            judged = {"option": name, "seed": run.seed, "verdict": run.verdict, "reason": run.reason}
            own, numbers = _trained(side, name), run.metrics.numbers() if run.metrics else {}
            rows.append(settings | {key: own[key] for key in varying} | session | judged | numbers)
    first = ["session", "folder", "created", "option", "seed", "verdict", "reason"]
    names = dict.fromkeys([*first, *differing, *varying, *(name for row in rows for name in row)])
    file = io.StringIO(newline="")
    table = csv.writer(file, lineterminator="\n")
    table.writerow(map(_harmless, names))
    table.writerows([_harmless(row.get(name, "")) for name in names] for row in rows)
    return file.getvalue()


def _harmless(cell: object) -> object:
    """Return a cell that a spreadsheet does not take for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
