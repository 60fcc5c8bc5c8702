"""The report of a session: `text` for terminals and Markdown, `html` for the page of pytest-html.

html.py           values → HTML, by templates/*.jinja
text.py           the columns of the table of options, sentences, terminal table, Markdown
page.css, page.js style and script of the page
"""

from bvae.report.html import report_head, show_differences, show_gate, show_run

__all__ = ["report_head", "show_differences", "show_gate", "show_run"]
