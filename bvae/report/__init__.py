"""The report of a session: text for terminals, Markdown, and HTML for the page of pytest-html.

tables.py         columns and rows of every table, and the lines on many runs
text.py           sentences, the lines of a terminal, Markdown
side_by_side.py   several sessions, as text, HTML and CSV
html.py           HTML by templates/*.jinja, and the code of the recommended loss
page.css, page.js style and script of the page
"""
