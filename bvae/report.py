"""Pieces of HTML for the report: pictures that are whole, verdicts, the table of options.

Every text that comes from outside is escaped here, since pytest-html inserts these pieces as they are.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from bvae.comparison import Comparison
from bvae.run import RunResult
from bvae.summary import HEADINGS, describe_setting, explain_gate, table_rows

STYLE = """<style>
.bvae-picture { margin: 8px 0; }
.bvae-picture summary { cursor: zoom-in; list-style: none; display: inline-block; max-width: 100%; }
.bvae-picture summary::-webkit-details-marker { display: none; }
.bvae-picture summary:focus-visible { outline: 3px solid #0072b2; }
.bvae-picture img { display: block; max-width: min(100%, 620px); height: auto; border: 1px solid #999; }
.bvae-picture[open] { overflow-x: auto; }
.bvae-picture[open] summary { cursor: zoom-out; max-width: none; }
.bvae-picture[open] img { max-width: none; }
.bvae-picture .bvae-caption { font-size: 12px; color: #333; }
.bvae-table { border-collapse: collapse; }
.bvae-table th, .bvae-table td { border: 1px solid #999; padding: 4px 8px; text-align: left; }
</style>"""
"""Goes into the report once; a picture is a thumbnail until it is opened, by mouse or keyboard."""


def picture(png: bytes, *, name: str, alt: str) -> str:
    """The whole picture as a thumbnail, full size on demand, with a caption and a text alternative."""
    data = base64.b64encode(png).decode()
    return (
        '<details class="bvae-picture"><summary>'
        f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}">'
        f'<span class="bvae-caption">{escape(name)} (select for full size)</span>'
        "</summary></details>"
    )


def picture_text(path: Path) -> str:
    """The text alternative that a picture of ours carries within, empty where there is none."""
    with Image.open(path) as image:
        return str(image.info.get("Description", ""))


def run_verdict(result: RunResult) -> str:
    """The verdict on a run, its reason, and what could not be drawn."""
    failures = "".join(f"<li>Picture not drawn: {escape(text)}</li>" for text in result.failed_pictures)
    return f"<p><strong>{escape(result.verdict.replace('_', ' '))}</strong>: {escape(result.reason)}</p>" + (
        f"<ul>{failures}</ul>" if failures else ""
    )


def comparison_summary(comparison: Comparison) -> str:
    """The gate's outcome, the recommendation and the table of options."""
    gate = explain_gate(comparison).splitlines()[0]
    return (
        f"<p><strong>{escape(gate)}</strong> {escape(comparison.recommendation)}</p>"
        f"<p>{escape(describe_setting(comparison))}</p>" + _table(HEADINGS, table_rows(comparison))
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in headings)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return f'<table class="bvae-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
