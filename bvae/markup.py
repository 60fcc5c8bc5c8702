"""HTML of small things: paragraphs, tables, pictures. Every text is escaped here."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

Cell = tuple[str, str]


def paragraph(text: str, style: str = "") -> str:
    """A paragraph, with a class of style where one is named."""
    return f'<p class="{escape(style)}">{escape(text)}</p>' if style else f"<p>{escape(text)}</p>"


def heading(level: int, text: str) -> str:
    """A heading below those of pytest-html, which end at level 2."""
    return f"<h{level}>{escape(text)}</h{level}>"


def listing(sentences: Sequence[str], *, ordered: bool = False) -> str:
    """A list, empty where there is nothing to list."""
    kind = "ol" if ordered else "ul"
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<{kind}>{items}</{kind}>" if items else ""


def section(label: str, content: str) -> str:
    """A part of the page with a name for those who cannot see it."""
    return f'<section class="bvae" aria-label="{escape(label)}">{content}</section>'


def disclosure(summary: str, content: str) -> str:
    """Content that is shown on demand, by mouse or keyboard."""
    return f'<details class="bvae-more"><summary>{escape(summary)}</summary>{content}</details>'


def code(text: str, label: str) -> str:
    """Code that scrolls by itself where it is wider than the page; a click selects all of it."""
    return (
        f'<pre class="bvae-code" role="region" tabindex="0" aria-label="{escape(label)}">{escape(text)}</pre>'
    )


def table(
    label: str,
    head: Sequence[Cell],
    rows: Sequence[Sequence[Cell]],
    chosen: int | None = None,
    colours: Sequence[str] = (),
) -> str:
    """A table with a heading to each column and row, the chosen row marked; it scrolls by itself.

    A cell is a text and, in small letters under it, another. The first rows carry a mark in their colour.
    """
    columns = "".join(f'<th scope="col">{_cell(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr{" class=bvae-chosen" if number == chosen else ""}><th scope="row">'
        f"{''.join(map(_mark, colours[number : number + 1]))}{_cell(first)}</th>"
        + "".join(f"<td>{_cell(cell)}</td>" for cell in rest)
        + "</tr>"
        for number, (first, *rest) in enumerate(rows)
    )
    return (
        f'<div class="bvae-scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
        f'<table class="bvae-table"><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def picture(png: bytes, *, name: str, style: str = "") -> str:
    """The whole picture as a thumbnail, full size on demand, with a caption and a text alternative.

    The alternative is what the PNG's text chunk `Description` says.
    """
    with Image.open(io.BytesIO(png)) as image:  # which decodes no pixel
        alternative = str(image.info.get("Description", name))
        width, height = image.size
    data = base64.b64encode(png).decode()
    return (
        f'<details class="bvae-picture {escape(style)}"><summary>'
        f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{escape(alternative)}">'
        f'<span class="bvae-caption">{escape(name)} (select for full size)</span></summary></details>'
    )


def picture_file(path: Path, name: str, style: str = "") -> str:
    """The picture in a PNG file; a word about it where there is none."""
    if not path.exists():
        return paragraph(f"{name}: not drawn.")
    return picture(path.read_bytes(), name=name, style=style)


def _mark(colour: str) -> str:
    return f'<span class="bvae-mark" style="background: {escape(colour)}"></span>'


def _cell(cell: Cell) -> str:
    text, below = cell
    return escape(text) + (f"<br><small>{escape(below)}</small>" if below else "")
