"""The sheet of a picture's dialect as one PNG: the picture, and its codes' words at every scale."""

from __future__ import annotations

import functools

from PIL import Image, ImageDraw, ImageFont

from tarkit.images import resize
from tarkit.report.dialect_facts import Dialect, PictureInCodes
from tarkit.vocab import Scale

CELL_PX = 56
MIN_SIDE_PX = 640
MARGIN_PX, TITLE_PX = 28, 22
INK, SOFT, PAPER = "#1d2125", "#5b6670", "#fbfbf9"
VEIL = 0.72
"""The share of paper over the picture behind words."""
NUM_TELLING = 8


def dialect_sheet(dialect: Dialect, shown: PictureInCodes, *, name: str) -> Image.Image:
    """Two rows of two: the picture with its most telling words, then scales 1, 2 and 3.

    Words are drawn with Pillow's own font; letters that it lacks are shown as `U+4E2D`.
    """
    side_px = max(MIN_SIDE_PX, CELL_PX * max(scale.side(shown.grid) for scale in shown.codes))
    step = side_px + MARGIN_PX
    height = 2 * (step + TITLE_PX) + MARGIN_PX
    sheet = Image.new("RGB", (2 * step + MARGIN_PX, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    telling = [dialect.words.words[code] for code, _ in shown.telling(dialect.usage)[:NUM_TELLING]]
    panels = [(f"{name}: {'  '.join(telling)}", resize(shown.picture, side_px, "squash"))]
    for scale in shown.codes:
        side = scale.side(shown.grid)
        panels.append(
            (f"scale {int(scale)}: {side} x {side} codes", _panel(dialect, shown, scale, side_px))
        )
    font = ImageFont.load_default(15)
    for number, (title, panel) in enumerate(panels):
        left = MARGIN_PX + number % 2 * step
        top = MARGIN_PX + number // 2 * (step + TITLE_PX)
        draw.text((left, top), _cut(drawable(title), font, side_px), fill=SOFT, font=font)
        sheet.paste(panel, (left, top + TITLE_PX))
    return sheet


def _panel(dialect: Dialect, shown: PictureInCodes, scale: Scale, side_px: int) -> Image.Image:
    """The picture under a veil, with the word of every code in its cell."""
    picture = resize(shown.picture, side_px, "squash")
    panel = Image.blend(picture, Image.new("RGB", picture.size, PAPER), VEIL)
    draw = ImageDraw.Draw(panel)
    side = scale.side(shown.grid)
    cell = side_px * shown.covered(scale) / side
    for place, code in enumerate(shown.codes[scale].tolist()):
        row, column = divmod(place, side)
        left, top = column * cell, row * cell
        draw.rectangle((left, top, left + cell, top + cell), outline=PAPER)
        _draw_word(draw, drawable(dialect.words.words[code]), left, top, cell)
    return panel


def _draw_word(draw: ImageDraw.ImageDraw, word: str, left: float, top: float, cell: float) -> None:
    """The word in the middle of its cell, in the largest size in which it fits, else cut."""
    sizes = range(min(20, int(cell / 3)), 8, -1)
    room = cell - 6
    fitting = (size for size in sizes if ImageFont.load_default(size).getlength(word) <= room)
    font = ImageFont.load_default(next(fitting, 9))
    middle = (left + cell / 2, top + cell / 2)
    draw.text(middle, _cut(word, font, room), fill=INK, font=font, anchor="mm")


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room_px: float) -> str:
    """The text, with an ellipsis for what does not fit."""
    if font.getlength(text) <= room_px:
        return text
    while text and font.getlength(text + "...") > room_px:
        text = text[:-1]
    return text + "..."


def drawable(text: str) -> str:
    """The text with `U+XXXX` for every letter that Pillow's own font lacks."""
    return "".join(letter if _is_drawable(letter) else f"U+{ord(letter):04X}" for letter in text)


@functools.cache
def _is_drawable(letter: str) -> bool:
    font = ImageFont.load_default(12)
    # Every letter that a font lacks is drawn as the same box.
    return letter == " " or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010fffe"))
