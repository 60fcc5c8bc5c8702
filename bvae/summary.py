"""Re-export `bvae.report.text`."""

# moved; to be removed
from bvae.report.text import (
    COLUMNS,
    TERMINAL_COLUMNS,
    Cell,
    Column,
    describe_setting,
    differences_to_text,
    explain_gate,
    markdown,
    table_head,
    table_rows,
    to_markdown,
    to_text_table,
    what_was_learned,
)

__all__ = [
    "COLUMNS",
    "TERMINAL_COLUMNS",
    "Cell",
    "Column",
    "describe_setting",
    "differences_to_text",
    "explain_gate",
    "markdown",
    "table_head",
    "table_rows",
    "to_markdown",
    "to_text_table",
    "what_was_learned",
]
