"""The report of a session: text for terminals, Markdown, and HTML for the page of pytest-html.

tables.py         tables of one session, and the map of verdicts and lists of runs of a large session
text.py           sentences, terminal output, Markdown
side_by_side.py   several sessions as text, HTML and CSV
html.py           HTML from templates/*.jinja, and the Python code of the recommended option
page.css, page.js style and script of the HTML page
"""
