"""Text on figures that are measured in pixels: set as it stands, fast, and without ever failing."""

from __future__ import annotations

import functools
import math
import unicodedata
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from PIL import Image, ImageDraw, ImageFont

FONT = "DejaVu Sans"  # ships with matplotlib
INK = "#1A1A1A"
ASCENT, DESCENT, LINE_PITCH = 0.89, 0.35, 1.25
"""In sizes of the font: what a line takes above and below its baseline, and from there to the next."""
LEVELS = 16
"""Shades at the edges of letters; few, so that a picture keeps to a palette."""

_PLACES = {"left": (0.0, "ls"), "center": (0.5, "ms"), "right": (1.0, "rs")}
"""Which part of a block's width lies left of its anchor, and the anchor's name in Pillow."""


def write(axes: Axes, x: float, y: float, text: str, *, size: float, width: float, **style: Any) -> None:
    """Write text as it stands, no mathtext, no TeX; smaller where it would be wider than `width` pixels.

    Its style is what `Text` takes of color, fontweight, ha and va (by default, its top is at `y`).
    """
    plain: dict[str, Any] = {"parse_math": False, "usetex": False, "clip_on": False}
    font: dict[str, Any] = {"fontsize": size, "fontfamily": FONT, "linespacing": LINE_PITCH}
    letters = _Letters(x, y, printable(text), **{"color": INK, "va": "top"} | style, **plain, **font)
    axes.add_artist(letters)
    while (drawn := letters.width()) > width and size > 1:  # sizes are hinted, so once may not be enough
        size *= 0.97 * width / drawn
        letters.set_fontsize(size)


def printable(text: str) -> str:
    """The text with every character that a face of the font cannot draw, or that controls, as U+FFFD."""
    faces = [get_font(findfont(FontProperties(family=FONT, weight=weight))) for weight in ("normal", "bold")]

    def drawn(character: str) -> str:
        if character.isspace():
            return " "
        known = character.isprintable() and all(face.get_char_index(ord(character)) for face in faces)
        return character if known else "\N{REPLACEMENT CHARACTER}"

    return "\n".join("".join(map(drawn, line)) for line in text.splitlines())


class _Letters(Text):
    """Text whose pixels Pillow sets, in a twentieth of the time that matplotlib takes.

    Matplotlib sets what is not drawn as pixels, and scripts whose letters change with their neighbours.
    """

    def width(self) -> float:
        """Pixels of the longest line."""
        if not self._is_plain():
            return self.get_window_extent().width
        font = self._font(float(self.get_fontsize()))
        return max(map(font.getlength, self.get_text().split("\n")))

    def draw(self, renderer: RendererBase) -> None:
        if not isinstance(renderer, RendererAgg) or not self._is_plain():
            super().draw(renderer)
            return
        size = float(self.get_fontsize()) * renderer.dpi / 72
        font, lines, pitch = self._font(size), self.get_text().split("\n"), LINE_PITCH * size
        wide = max(map(font.getlength, lines))
        high = (ASCENT + DESCENT) * size + (len(lines) - 1) * pitch
        part, anchor = _PLACES[self.get_horizontalalignment()]
        to_baseline = high - DESCENT * size
        above = {"top": 0.0, "center": high / 2, "center_baseline": to_baseline / 2, "bottom": high}
        margin = math.ceil(size)  # letters may reach over the ends of a line
        mask = Image.new("L", (math.ceil(wide) + 2 * margin, math.ceil(high) + 2 * margin))
        brush = ImageDraw.Draw(mask)
        for number, line in enumerate(lines):
            baseline = round(margin + ASCENT * size + number * pitch)
            brush.text((margin + round(part * wide), baseline), line, 255, font, anchor)
        x, y = self.get_transform().transform(self.get_position())
        left = round(x) - round(part * wide) - margin
        bottom = round(y + above[self.get_verticalalignment()]) + margin - mask.height
        context = renderer.new_gc()
        renderer.draw_image(context, left, bottom, self._coloured(np.asarray(mask)))
        context.restore()

    def _is_plain(self) -> bool:
        """Whether it is only to be set, and each character drawn alike whatever stands beside it."""
        changed = not self.get_visible() or self.get_alpha() is not None or self.get_rotation() != 0
        return not changed and not any(
            unicodedata.combining(character) or unicodedata.bidirectional(character) in ("R", "AL", "AN")
            for character in self.get_text()
        )

    def _font(self, size: float) -> ImageFont.FreeTypeFont:
        return _font(str(self.get_fontweight()), size)

    def _coloured(self, mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The letters of a mask as `[H, W, RGBA]`, lowest row first, as Agg counts."""
        pixels = np.empty((*mask.shape, 4), np.uint8)
        pixels[..., :3] = np.round(255 * np.array(to_rgb(self.get_color())))
        pixels[..., 3] = mask // (256 // LEVELS) * (255 // (LEVELS - 1))
        return np.ascontiguousarray(pixels[::-1])


@functools.lru_cache
def _font(weight: str, size: float) -> ImageFont.FreeTypeFont:
    file = findfont(FontProperties(family=FONT, weight=weight))
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)
