"""A run in HTML: its verdict, its story in words, its filmstrip, its curves and its checkpoints."""

from __future__ import annotations

from html import escape
from pathlib import Path

from bvae.markup import listing, paragraph, picture, picture_file, section
from bvae.results import FILMSTRIP, RunResult, checkpoints, picture_of, read_history
from bvae.session import Session
from bvae.story import tell_learning

MAX_PICTURES = 12
"""Of the checkpoints of a run; the filmstrip comes on top of them."""


def show_run(session: Session, result: RunResult) -> str:
    """One run: its verdict, its story, the filmstrip, its curves and the pictures of its checkpoints."""
    from bvae.gallery import draw_run_curves  # as slow to import as it says there

    directory = session.path / f"{result.option}-seed{result.seed}"
    shown, remarks = _choose_pictures(directory)
    gallery = [
        picture_file(directory / FILMSTRIP, "Filmstrip: the same grids, epoch by epoch", "bvae-tall"),
        picture(draw_run_curves(session, result), name="Curves"),
        *(picture_file(picture_of(path), _moment(path)) for path in shown),
    ]
    parts = [
        f"<p><strong>{escape(result.verdict.replace('_', ' '))}</strong>: {escape(result.reason)}</p>",
        paragraph(tell_learning(read_history(directory))),
        listing([f"Picture not drawn: {text}" for text in result.failed_pictures]),
        f'<div class="bvae-gallery">{"".join(gallery)}</div>',
        *map(paragraph, remarks),
    ]
    return section(f"Run {directory.name}", "".join(parts))


def _choose_pictures(directory: Path) -> tuple[list[Path], list[str]]:
    """The checkpoints whose pictures are shown, in order of time, and what is to be said of the others."""
    drawn = [path for path in reversed(checkpoints(directory)) if picture_of(path).exists()]
    best = [path for path in drawn if path.stem == "best"]
    timed = [path for path in drawn if path.stem != "best"]
    remarks = []
    for path in best[:1]:
        image = picture_of(path).read_bytes()
        if same := [other for other in timed if picture_of(other).read_bytes() == image]:
            best = []
            moment = _moment(same[-1]).lower()
            remarks.append(f"The best checkpoint, of least validation loss, is that of {moment}.")
    room = MAX_PICTURES - len(best)
    if len(timed) > room:
        remarks.append(
            f"{room} of {len(timed)} checkpoints are shown; "
            f"the pictures of all are in {directory}/checkpoints."
        )
        timed = [timed[round(place * (len(timed) - 1) / (room - 1))] for place in range(room)]
    return [*timed, *best], remarks


def _moment(checkpoint: Path) -> str:
    """When a checkpoint was saved, from its name such as `epoch_002_step_000123`."""
    if checkpoint.stem == "best":
        return "Least validation loss"
    _, epoch, *step = checkpoint.stem.split("_")
    return f"Epoch {int(epoch)}" + (f", step {int(step[1]):,}" if step else "")
