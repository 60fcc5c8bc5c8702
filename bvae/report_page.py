"""Mends the page that pytest-html writes, so that it reads on a narrow screen, by keyboard and by ear.

The page has no language, no viewport, a least width of 800 pixels, grey text on white, boxes without labels
and rows that only a mouse opens. Text of its template is replaced, and a style and a script are added; where
pytest-html's template changes, a replacement finds nothing and the rest still holds.
"""

from __future__ import annotations

import re
from pathlib import Path

from bvae.files import write_whole

STYLE = """
body { min-width: 0; margin: 0 auto; max-width: 1400px; padding: 0 16px; font-size: 14px; line-height: 1.45;
  color: #222; }
a, #results-table, .filters button, .collapse button { color: #222; }
h3 { font-size: 17px; margin: 28px 0 8px; color: #000; }
h4 { font-size: 15px; margin: 24px 0 4px; color: #000; }
small { color: #444; }
:focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; }
span.passed, .passed .col-result { color: #1a661a; }
span.skipped, span.xfailed, span.rerun, .skipped .col-result, .xfailed .col-result, .rerun .col-result {
  color: #7a4a00; }
span.error, span.failed, span.xpassed, .error .col-result, .failed .col-result, .xpassed .col-result {
  color: #b00020; }
.summary__data, .summary__spacer { flex: none; }
.controls { flex-wrap: wrap; gap: 4px 16px; }
.filters { flex-wrap: wrap; gap: 2px 10px; }
label:has(:disabled) { display: none; }
.filters button:hover, .collapse button:hover { color: #000; }
#results-table { table-layout: fixed; font-size: 14px; }
#results-table td, #results-table th { overflow-wrap: anywhere; }
#results-table-head th:nth-child(1) { width: 24%; }
#results-table-head th:nth-child(3) { width: 18%; }
.page-no-links .col-links, .page-no-links #results-table-head th:nth-child(4) { display: none; }
.page-button { all: unset; cursor: pointer; text-decoration: underline dotted; }
.page-button:focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; }
.col-result:hover::after, #environment-header h2:hover::after { content: "" !important; }
.logwrapper, .logwrapper .logexpander { background-color: #f4f4f4; }
.logwrapper .logexpander { margin: 10px 10px 10px auto; }
.logwrapper .log { padding-right: 5px; overflow-wrap: anywhere; top: 0; height: auto; }
#environment { display: block; overflow-x: auto; }
#environment.hidden { display: none; }
.bvae { max-width: 1200px; }
.bvae-outcome { font-size: 20px; font-weight: bold; margin: 8px 0; padding: 10px 14px;
  border-left: 8px solid; }
.bvae-passed { border-color: #1a661a; background: #eef7ee; color: #123f12; }
.bvae-failed { border-color: #b00020; background: #fdf0f1; color: #6d0014; }
.bvae-advice { font-size: 17px; margin: 8px 0; }
.bvae-mark { display: inline-block; width: 10px; height: 10px; margin-right: 6px; }
.bvae-scroll { overflow-x: auto; }
.bvae-table { border-collapse: collapse; margin: 8px 0; }
.bvae-table th, .bvae-table td { border: 1px solid #bbb; padding: 5px 9px; text-align: left; color: #111;
  vertical-align: top; white-space: nowrap; }
.bvae-table thead th { background: #f4f4f4; }
.bvae-chosen th, .bvae-chosen td { background: #eef7ee; font-weight: bold; }
.bvae-chosen small { font-weight: normal; }
.bvae-code { overflow-x: auto; background: #f4f4f4; border: 1px solid #ccc; color: #111; padding: 12px;
  user-select: all; }
.bvae ol { color: #111; margin: 4px 0; padding-left: 22px; }
.bvae-gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 260px), 1fr));
  gap: 12px; align-items: start; }
.bvae-picture { margin: 6px 0; min-width: 0; }
.bvae-picture summary { cursor: zoom-in; list-style: none; display: inline-block; max-width: 100%; }
.bvae-picture summary::-webkit-details-marker { display: none; }
.bvae-picture img { display: block; max-width: 100%; max-height: 420px; width: auto; height: auto;
  border: 1px solid #999; }
.bvae-wide img { max-height: none; }
.bvae-tall { grid-row: span 3; }
.bvae-tall img { max-height: 640px; }
.bvae-more { margin: 8px 0; color: #111; }
.bvae-more summary { cursor: pointer; }
.bvae-more li { overflow-wrap: anywhere; }
.bvae-picture[open] { overflow-x: auto; grid-column: 1 / -1; }
.bvae-picture[open] summary { cursor: zoom-out; max-width: none; }
.bvae-picture[open] img { max-width: none; max-height: none; }
.bvae-caption { font-size: 13px; color: #333; }
@media (max-width: 600px) {
  #results-table-head th:nth-child(3) { width: 25%; }
  .bvae-table th, .bvae-table td { padding: 3px 5px; font-size: 13px; white-space: normal; }
  .bvae-table td { min-width: 76px; }
}
@media print { .controls, .filter, .collapse { display: none; } }
"""
"""What the report needs of its own stands here too, since a style belongs into the head of a page."""

SCRIPT = """
(() => {
  const button = (cell, act) => {
    const made = document.createElement('button');
    made.type = 'button';
    made.className = 'page-button';
    made.append(...cell.childNodes);
    made.addEventListener('click', (event) => { event.stopPropagation(); act(); });
    cell.append(made);
    return made;
  };
  let focused = null;  // The table is made anew at every click, and what had the focus is gone with it.
  const mendHead = () => document.querySelectorAll('#results-table-head .sortable').forEach((cell) => {
    const name = 'sort ' + cell.dataset.columnType;
    const made = cell.querySelector('button') || button(cell, () => { focused = name; cell.click(); });
    const order = ['asc', 'desc'].find((kind) => cell.classList.contains(kind));
    cell.setAttribute('aria-sort', order ? order + 'ending' : 'none');
    if (focused === name) made.focus();
  });
  const mendRows = () => document.querySelectorAll('#results-table .collapsible').forEach((row) => {
    const cell = row.querySelector('.col-result');
    const made = button(cell, () => { focused = row.dataset.id; cell.click(); });
    made.setAttribute('aria-expanded', String(!cell.classList.contains('collapsed')));
    if (focused === row.dataset.id) made.focus();
  });
  const mendLogs = () => document.querySelectorAll('.logwrapper').forEach((log) => {
    log.tabIndex = 0;
    log.setAttribute('role', 'region');
    log.setAttribute('aria-label', 'Log of ' + log.closest('tbody').id);
    const expander = log.querySelector('.logexpander');
    expander.tabIndex = 0;
    expander.setAttribute('role', 'button');
    expander.setAttribute('aria-label', 'expand or collapse the log');
    expander.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); expander.click(); }
    });
  });
  const mend = () => {
    document.querySelectorAll('.media.hidden').forEach((unused) => unused.remove());
    const links = main.querySelector('.col-links__extra') !== null;
    main.classList.toggle('page-no-links', !links);
    document.querySelectorAll('td.extra').forEach((cell) => { cell.colSpan = links ? 4 : 3; });
    mendHead();
    mendRows();
    mendLogs();
    focused = null;
  };
  const main = document.querySelector('main');
  const header = document.getElementById('environment-header');
  const environment = document.getElementById('environment');
  main.append(header, environment);  // What was run on matters less than what came out.
  const heading = header.querySelector('h2');
  const toggle = button(heading, () => heading.click());
  header.addEventListener('click', () => tell());
  const tell = () => toggle.setAttribute('aria-expanded', String(!header.classList.contains('collapsed')));
  heading.click();
  new MutationObserver(mend).observe(main, { childList: true });
  mend();
})();
"""

_LABELLED = re.compile(r'(<input [^>]*class="filter"[^>]*>)\s*(<span class="\w+">[^<]*</span>)')


def mend_page(html: str) -> str:
    """The page of pytest-html with a language, labels, lists that end, and our style and script."""
    for old, new in (
        ("<html>", '<html lang="en">'),
        (
            "</head>",
            f'<meta name="viewport" content="width=device-width, initial-scale=1"/>'
            f"<style>{STYLE}</style></head>",
        ),
        ("<body>", "<body><main>"),
        ("<footer>", "</main><footer>"),
        ("<h2>Summary</h2>", '<h2 class="page-summary">Summary</h2>'),
        (".join('')}<ul>`", ".join('')}</ul>`"),
        ('<img src="" />', '<img src="" alt="attached picture" />'),
    ):
        html = html.replace(old, new, 1)
    html = _LABELLED.sub(r"<label>\1 \2</label>", html)
    before, end, after = html.rpartition("</body>")
    return f"{before}<script>{SCRIPT}</script>{end}{after}" if end else html


def mend_file(path: Path) -> None:
    """Mend the page in a file. Raises OSError."""
    write_whole(path, mend_page(path.read_text(encoding="utf-8")).encode())
