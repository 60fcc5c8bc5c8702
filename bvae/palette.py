"""Colours that mean something: one for each option, the same in every picture and table."""

from __future__ import annotations

OPTION_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito, Color Universal Design; without its yellow, which is lost on white."""


def colour_of(option: int) -> str:
    """Return the colour of an option by its place in the experiment."""
    return OPTION_COLOURS[option % len(OPTION_COLOURS)]
