"""The building blocks of a page, as data: `html` renders them, and each can write its markdown.

`kind` names the macro of `page.html.j2` that renders a block. All texts are plain: they are escaped
where they are written, in the template and in `markdown`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from markupsafe import Markup
from PIL import Image

from tarkit.images import png_bytes
from tarkit.report.escaping import escape_markdown, printable

Tone = Literal["", "good", "bad", "dim"]
# Texts of cells without a figure: they stand in columns of numbers too.
NO_FIGURE = ("", "–", "below")

_NUMBER = re.compile(r"^[-+−]?[\d_]*\.?\d+(e[-+]?\d+)?%?$")


class PageBlock(Protocol):
    """A piece of a page."""

    kind: ClassVar[str]

    def markdown(self) -> str:
        """The block as markdown; empty for what only a browser can show."""


@dataclass(frozen=True)
class Paragraph:
    text: str
    tone: Literal["", "note", "warning"] = ""
    kind: ClassVar[str] = "paragraph"

    def markdown(self) -> str:
        text = escape_markdown(self.text)
        return f"> **{text}**" if self.tone == "warning" else text


@dataclass(frozen=True)
class CommandLines:
    """Commands to copy; long lines wrap."""

    text: str
    kind: ClassVar[str] = "command_lines"

    def markdown(self) -> str:
        # Indented and not fenced: no text can close an indentation.
        return "\n".join(f"    {line}" for line in printable(self.text).splitlines())


@dataclass(frozen=True)
class Cell:
    """Text of a table's cell; `aside` follows it in smaller print, such as an interval."""

    text: str
    aside: str = ""
    tone: Tone = ""
    strong: bool = False

    def markdown(self) -> str:
        text = escape_markdown(self.text)
        if self.strong and text:
            text = f"**{text}**"
        return f"{text} {escape_markdown(self.aside)}".strip()


TableRow = list[Cell | str]


@dataclass(frozen=True)
class PageTable:
    """Rows under a header; the first column names the row. Columns of numbers align right."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    title: str = ""
    note: str = ""
    kind: ClassVar[str] = "table"

    @property
    def cells(self) -> list[list[Cell]]:
        return [
            [cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows
        ]

    @property
    def align_right(self) -> list[bool]:
        """For each column, whether its cells are numbers."""
        cells = self.cells
        return [
            column > 0 and _is_numeric([row[column] for row in cells if column < len(row)])
            for column in range(len(self.header))
        ]

    def markdown(self) -> str:
        rows = [[cell.markdown() for cell in row] for row in self.cells]
        lines = [[escape_markdown(name) for name in self.header], ["---"] * len(self.header), *rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        title = f"**{escape_markdown(self.title)}**\n\n" if self.title else ""
        note = f"\n\n{escape_markdown(self.note)}" if self.note else ""
        return f"{title}{body}{note}"


def _is_numeric(cells: Sequence[Cell]) -> bool:
    """Whether all cells are numbers or hold none; a column of dashes counts as numbers."""
    texts = [cell.text for cell in cells]
    return any(texts) and all(text in NO_FIGURE or _NUMBER.match(text) for text in texts)


@dataclass(frozen=True)
class Figure:
    """A drawing of `tarkit.report.svg` under its title."""

    svg: Markup
    title: str
    note: str = ""
    kind: ClassVar[str] = "figure"

    def markdown(self) -> str:
        return ""


@dataclass(frozen=True)
class FigureGrid:
    """Figures in columns, as many as the page is wide enough for."""

    figures: Sequence[Figure]
    kind: ClassVar[str] = "figure_grid"

    def markdown(self) -> str:
        return ""


@dataclass(frozen=True)
class Card:
    """One judged picture: `uri` is from `data_uri`, or empty with the reason in `missing`."""

    uri: str
    prompt: str
    verdict: str
    good: bool
    reason: str = ""
    aside: str = ""
    missing: str = ""


@dataclass(frozen=True)
class CardGrid:
    """Pictures with their prompts, verdicts and reasons."""

    cards: Sequence[Card]
    kind: ClassVar[str] = "card_grid"

    def markdown(self) -> str:
        rows: list[TableRow] = [
            [card.prompt, card.aside, Cell(card.verdict), card.reason or card.missing]
            for card in self.cards
        ]
        return PageTable(["prompt", "task", "verdict", "reason"], rows).markdown()


@dataclass(frozen=True)
class CaptionedImage:
    """One picture at the width of the page; `uri` is from `data_uri`."""

    uri: str
    caption: str
    kind: ClassVar[str] = "captioned_image"

    def markdown(self) -> str:
        return ""


@dataclass(frozen=True)
class PictureAndFigure:
    """A picture beside a drawing, or above it on a narrow page."""

    picture: CaptionedImage
    figure: Figure
    kind: ClassVar[str] = "picture_and_figure"

    def markdown(self) -> str:
        return ""


@dataclass(frozen=True)
class CodeCell:
    """One code of a codebook: its word, and what is shown when a reader points at it."""

    word: str
    about: str
    """Code, token and, where it is known, usage."""
    before: str
    """The nearest words before projection, with their cosines."""
    after: str
    """The nearest words after projection."""
    shade: float = 0.0
    """The strength of the cell's colour, in [0, 1]."""
    dead: bool = False


@dataclass(frozen=True)
class CodeGrid:
    """The codes of a picture in their places, over the picture (`uri` is from `data_uri`)."""

    title: str
    note: str
    uri: str
    side: int
    """Codes in a row; `cells` has side x side of them, row by row."""
    covered: float
    """The share of the picture's side that the grid covers, in (0, 1]."""
    cells: Sequence[CodeCell]
    kind: ClassVar[str] = "code_grid"

    def markdown(self) -> str:
        return ""


@dataclass(frozen=True)
class CodeList:
    """Words of codes in a flow; a stronger colour is used more, a dashed one is dead."""

    cells: Sequence[CodeCell]
    kind: ClassVar[str] = "code_list"

    def markdown(self) -> str:
        return " ".join(escape_markdown(cell.word) for cell in self.cells)


@dataclass(frozen=True)
class Folded:
    """Blocks that are closed until a reader opens them; the markdown has them if `in_markdown`."""

    summary: str
    blocks: Sequence[PageBlock]
    in_markdown: bool = False
    kind: ClassVar[str] = "folded"

    def markdown(self) -> str:
        return "\n\n".join(block.markdown() for block in self.blocks) if self.in_markdown else ""


@dataclass(frozen=True)
class Section:
    """Blocks under a heading; the page's contents list a section that has an `anchor`."""

    title: str
    blocks: Sequence[PageBlock]
    anchor: str = ""
    level: int = 2
    lead: str = ""
    kind: ClassVar[str] = "section"

    def markdown(self) -> str:
        lead = escape_markdown(self.lead)
        parts = [f"{'#' * self.level} {escape_markdown(self.title)}", lead]
        parts += [block.markdown() for block in self.blocks]
        return "\n\n".join(part for part in parts if part)


@dataclass(frozen=True)
class Page:
    """A whole document."""

    title: str
    subtitle: str
    sections: Sequence[Section]

    def markdown(self) -> str:
        head = f"# {escape_markdown(self.title)}\n\n{escape_markdown(self.subtitle)}"
        return "\n\n".join([head, *(each.markdown() for each in self.sections)]) + "\n"


def data_uri(image: Image.Image, *, side_px: int) -> str:
    """A `data:` address that holds the image as PNG, its longer side at most `side_px`."""
    longer = max(image.size)
    if longer > side_px:
        width, height = (max(1, round(side * side_px / longer)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode("ascii")
