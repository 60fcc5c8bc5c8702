"""The report of a session: text for terminals, Markdown, and HTML for the page of pytest-html.

text.py           columns of the table of options, sentences, terminal table, Markdown
tables.py         tables of the HTML report, and the lines on many runs
html.py           HTML by templates/*.jinja, and the code of the recommended loss
page.css, page.js style and script of the page
"""

from bvae.report.html import (
    report_head,
    report_page,
    show_briefly,
    show_differences,
    show_gate,
    show_run,
)

__all__ = [
    "report_head",
    "report_page",
    "show_briefly",
    "show_differences",
    "show_gate",
    "show_run",
]
