"""Building blocks of a page that stands alone: each is HTML without a script, and markdown.

Nothing on a page asks for anything: one style sheet and all pictures are inside it, and its
policy (`default-src 'none'`) forbids the rest. All text is a stranger's: it is escaped where it
is put in, and characters that steer a terminal or turn the direction of text become U+FFFD.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from PIL import Image

from tarkit.images import png_bytes

Tone = Literal["", "good", "bad", "dim"]
NO_FIGURE = ("", "–", "below")

# C0 and C1 controls but newline and tab, halves of surrogate pairs, and overrides of direction.
_STEERING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_MARKDOWN = re.compile(r"([\\`*_\[\]!|#~])")
_NUMBER = re.compile(r"^[-+−]?[\d_]*\.?\d+(e[-+]?\d+)?%?$")


def printable(text: str) -> str:
    """The text without characters that would steer what shows it."""
    return _STEERING.sub("\ufffd", text)


def escape(text: str) -> str:
    """Text as HTML that shows it, in an element or an attribute."""
    return html.escape(printable(text), quote=True)


def escape_markdown(text: str) -> str:
    """Text as one line of markdown that shows it, in a paragraph or a table's cell."""
    one_line = " ".join(printable(text).split())
    return _MARKDOWN.sub(r"\\\1", html.escape(one_line, quote=False))


def shorten(text: str, length: int) -> str:
    """At most `length` characters; what was cut is told by how many it was."""
    left_out = len(text) - length
    return text if left_out <= 0 else f"{text[:length]} … ({left_out} more)"


def data_uri(picture: Image.Image, *, side_px: int) -> str:
    """The picture as a PNG inside an address, its longer side at most `side_px`."""
    longer = max(picture.size)
    if longer > side_px:
        width, height = (max(1, round(side * side_px / longer)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return "data:image/png;base64," + base64.b64encode(png_bytes(picture)).decode("ascii")


class Block(Protocol):
    """A piece of a page."""

    def html(self) -> str: ...

    def markdown(self) -> str:
        """Empty where only a browser can show it."""


@dataclass(frozen=True)
class Paragraph:
    text: str
    tone: Literal["", "note", "warning"] = ""

    def html(self) -> str:
        return f"<p{_class(self.tone)}>{escape(self.text)}</p>"

    def markdown(self) -> str:
        text = escape_markdown(self.text)
        return f"> **{text}**" if self.tone == "warning" else text


@dataclass(frozen=True)
class Code:
    """Commands to copy; long lines scroll."""

    text: str

    def html(self) -> str:
        return f"<pre><code>{escape(self.text)}</code></pre>"

    def markdown(self) -> str:
        # Indented and not fenced: no text can close an indentation.
        return "\n".join(f"    {line}" for line in printable(self.text).splitlines())


@dataclass(frozen=True)
class Cell:
    """`aside` stands behind the text, smaller: an interval, a count."""

    text: str
    aside: str = ""
    tone: Tone = ""
    strong: bool = False

    def html(self) -> str:
        text = escape(self.text)
        if self.strong:
            text = f"<strong>{text}</strong>"
        return text + (f' <span class="aside">{escape(self.aside)}</span>' if self.aside else "")

    def markdown(self) -> str:
        text = escape_markdown(self.text)
        if self.strong and text:
            text = f"**{text}**"
        return f"{text} {escape_markdown(self.aside)}".strip()


@dataclass(frozen=True)
class Table:
    """Rows under a header; the first column names its row. Numbers stand to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    title: str = ""
    note: str = ""

    def html(self) -> str:
        cells = [[_cell(cell) for cell in row] for row in self.rows]
        right = [
            column > 0 and _is_numeric([row[column] for row in cells if column < len(row)])
            for column in range(len(self.header))
        ]
        head = "".join(
            f'<th scope="col"{_class("right" if at_right else "")}>{escape(name)}</th>'
            for name, at_right in zip(self.header, right, strict=True)
        )
        body = "".join(f"<tr>{_row(row, right)}</tr>\n" for row in cells)
        caption = f"<caption>{escape(self.title)}</caption>" if self.title else ""
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        return (
            f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{body}</tbody></table></div>{note}"
        )

    def markdown(self) -> str:
        rows = [[_cell(cell).markdown() for cell in row] for row in self.rows]
        lines = [[escape_markdown(name) for name in self.header], ["---"] * len(self.header), *rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        title = f"**{escape_markdown(self.title)}**\n\n" if self.title else ""
        note = f"\n\n{escape_markdown(self.note)}" if self.note else ""
        return f"{title}{body}{note}"


def _cell(cell: Cell | str) -> Cell:
    return cell if isinstance(cell, Cell) else Cell(cell)


def _is_numeric(cells: Sequence[Cell]) -> bool:
    texts = [cell.text for cell in cells if cell.text not in NO_FIGURE]
    return bool(texts) and all(_NUMBER.match(text) for text in texts)


def _row(cells: Sequence[Cell], right: Sequence[bool]) -> str:
    found = []
    for column, cell in enumerate(cells):
        if column == 0:
            found.append(f'<th scope="row"{_class(cell.tone)}>{cell.html()}</th>')
        else:
            place = "right" if right[column] else ""
            found.append(f"<td{_class(place, cell.tone)}>{cell.html()}</td>")
    return "".join(found)


@dataclass(frozen=True)
class Figure:
    """A drawing of `tarkit.report.svg`, which is markup already, under its title."""

    svg: str
    title: str
    note: str = ""

    def html(self) -> str:
        note = f'<span class="note">{escape(self.note)}</span>' if self.note else ""
        title = f"{escape(self.title)}{note}"
        return f"<figure><figcaption>{title}</figcaption>{self.svg}</figure>"

    def markdown(self) -> str:
        return ""


@dataclass(frozen=True)
class Side:
    """Figures beside each other where there is room."""

    figures: Sequence[Figure]

    def html(self) -> str:
        return f'<div class="figures">{"".join(each.html() for each in self.figures)}</div>'

    def markdown(self) -> str:
        return ""


@dataclass(frozen=True)
class Card:
    """One picture of a sheet, `uri` from `data_uri`, or why there is none."""

    uri: str
    prompt: str
    verdict: str
    good: bool
    reason: str = ""
    aside: str = ""
    missing: str = ""

    def html(self) -> str:
        tone = "good" if self.good else "bad"
        if self.uri:
            shown = f'<img src="{escape(self.uri)}" alt="{escape(self.prompt)}">'
        else:
            shown = f'<div class="missing">{escape(self.missing)}</div>'
        reason = f'<p class="note">{escape(self.reason)}</p>' if self.reason else ""
        return (
            f'<li class="card {tone}">{shown}<p class="prompt">{escape(self.prompt)}</p>'
            f'<p><span class="verdict {tone}">{escape(self.verdict)}</span> '
            f'<span class="aside">{escape(self.aside)}</span></p>{reason}</li>'
        )


@dataclass(frozen=True)
class Sheet:
    """Pictures with their prompts, verdicts and reasons."""

    cards: Sequence[Card]

    def html(self) -> str:
        return f'<ul class="sheet">{"".join(card.html() for card in self.cards)}</ul>'

    def markdown(self) -> str:
        rows: list[list[Cell | str]] = [
            [card.prompt, card.aside, Cell(card.verdict), card.reason or card.missing]
            for card in self.cards
        ]
        return Table(["prompt", "task", "verdict", "reason"], rows).markdown()


@dataclass(frozen=True)
class Picture:
    """One picture with a sentence."""

    uri: str
    note: str

    def html(self) -> str:
        alt = escape(self.note)
        return (
            f'<figure class="full"><figcaption>{alt}</figcaption>'
            f'<img src="{escape(self.uri)}" alt="{alt}"></figure>'
        )

    def markdown(self) -> str:
        return ""


@dataclass(frozen=True)
class Folded:
    """What only some readers want: closed until it is opened; in the markdown only if `kept`."""

    summary: str
    blocks: Sequence[Block]
    kept: bool = False

    def html(self) -> str:
        inside = "\n".join(block.html() for block in self.blocks)
        return f"<details><summary>{escape(self.summary)}</summary>\n{inside}</details>"

    def markdown(self) -> str:
        return "\n\n".join(block.markdown() for block in self.blocks) if self.kept else ""


@dataclass(frozen=True)
class Section:
    """A part with a heading; `anchor` is what the contents point to, letters and digits alone."""

    title: str
    blocks: Sequence[Block]
    anchor: str = ""
    level: int = 2
    lead: str = field(default="")

    def html(self) -> str:
        name = f' id="{escape(self.anchor)}"' if self.anchor else ""
        lead = f'<p class="lead">{escape(self.lead)}</p>' if self.lead else ""
        inside = "\n".join(block.html() for block in self.blocks)
        heading = f"<h{self.level}>{escape(self.title)}</h{self.level}>"
        return f"<section{name}>{heading}{lead}\n{inside}</section>"

    def markdown(self) -> str:
        lead = escape_markdown(self.lead)
        parts = [f"{'#' * self.level} {escape_markdown(self.title)}", lead]
        parts += [block.markdown() for block in self.blocks]
        return "\n\n".join(part for part in parts if part)


@dataclass(frozen=True)
class Page:
    """A whole document; its contents list the sections that have an anchor."""

    title: str
    subtitle: str
    sections: Sequence[Section]

    def html(self) -> str:
        links = "".join(
            f'<a href="#{escape(each.anchor)}">{escape(each.title)}</a>'
            for each in self.sections
            if each.anchor
        )
        body = "\n".join(section.html() for section in self.sections)
        return (
            f"{HEAD}<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f'<header><h1>{escape(self.title)}</h1><p class="lead">{escape(self.subtitle)}</p>'
            f"<nav>{links}</nav></header>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
        )

    def markdown(self) -> str:
        head = f"# {escape_markdown(self.title)}\n\n{escape_markdown(self.subtitle)}"
        return "\n\n".join([head, *(each.markdown() for each in self.sections)]) + "\n"


def _class(*names: str) -> str:
    given = " ".join(name for name in names if name)
    return f' class="{given}"' if given else ""


HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
"""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfbf9; --card: #ffffff; --ink: #1d2125; --soft: #5b6670; --line: #e0e2e0;
  --tint: #f1f3f1; --good: #1b7f4b; --bad: #c0392b; --warn: #8a5a00; --warn-tint: #fff4dc;
  --s0: #2563c9; --s1: #d2600f; --s2: #23875a; --s3: #8b46c0; --s4: #b08400; --s5: #51606e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181b; --card: #1c2024; --ink: #e6e8ea; --soft: #9ba6b0; --line: #333a40;
    --tint: #23282d; --good: #55c98d; --bad: #ff8274; --warn: #ffc766; --warn-tint: #33290f;
    --s0: #79a9ff; --s1: #ff9d57; --s2: #5fcf98; --s3: #c79bf2; --s4: #e8c34d; --s5: #a9b6c2;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
header, main { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 40px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 21px; line-height: 1.3; margin: 0 0 4px; letter-spacing: -0.005em; }
h3 { font-size: 16px; margin: 0 0 8px; }
h1, h2, h3, figcaption, .prompt, .lead { overflow-wrap: anywhere; }
p { margin: 0 0 8px; }
.lead { color: var(--soft); margin-bottom: 14px; }
.note { color: var(--soft); font-size: 13px; }
.warning {
  background: var(--warn-tint); color: var(--warn); border-left: 3px solid currentColor;
  padding: 8px 12px; border-radius: 0 4px 4px 0; overflow-wrap: anywhere;
}
nav { display: flex; flex-wrap: wrap; gap: 6px 8px; margin: 14px 0 8px; }
nav a {
  color: var(--s0); text-decoration: none; border: 1px solid var(--line); border-radius: 99px;
  padding: 2px 12px; font-size: 13px; background: var(--card); overflow-wrap: anywhere;
}
nav a:hover { border-color: currentColor; }
main > section { margin: 28px 0 0; padding: 28px 0 0; border-top: 1px solid var(--line); }
section section { margin: 26px 0 0; }
.wide { overflow-x: auto; margin: 0 0 10px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
caption {
  text-align: left; font-weight: 600; padding: 6px 0; color: var(--ink); caption-side: top;
}
th, td {
  text-align: left; padding: 5px 22px 5px 0; vertical-align: top; max-width: 460px;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere;
}
th:last-child, td:last-child { padding-right: 4px; }
thead th { color: var(--soft); font-weight: 500; font-size: 13px; white-space: nowrap; }
tbody th { font-weight: 500; min-width: 90px; }
tbody tr:hover { background: var(--tint); }
.right { text-align: right; }
td.right { white-space: nowrap; }
.aside { color: var(--soft); font-size: 12px; white-space: nowrap; }
td.good, .verdict.good { color: var(--good); }
td.bad, .verdict.bad { color: var(--bad); }
td.good, td.bad { white-space: nowrap; }
td.dim { color: var(--soft); white-space: nowrap; }
pre {
  background: var(--tint); border-radius: 6px; padding: 12px 14px; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
}
details { margin: 10px 0; }
summary { cursor: pointer; color: var(--s0); font-size: 14px; }
details[open] > summary { margin-bottom: 10px; }
.figures { columns: 420px 2; column-gap: 16px; margin: 0 0 8px; }
figure {
  margin: 0; padding: 14px 14px 8px; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; break-inside: avoid;
}
.figures figure { margin-bottom: 16px; }
figure.full { margin: 0 0 14px; }
figure.full img { max-width: 760px; }
figure img { width: 100%; height: auto; }
figcaption { font-weight: 600; font-size: 14px; margin: 0 0 6px; }
figcaption .note { display: block; font-weight: 400; }
svg { display: block; width: 100%; height: auto; max-width: 450px; margin: 0 auto; }
svg text { fill: var(--ink); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .soft { fill: var(--soft); font-size: 11px; }
svg .end { text-anchor: end; }
svg .mid { text-anchor: middle; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .whisker { stroke: var(--ink); stroke-width: 1.3; fill: none; }
svg .track { fill: var(--tint); }
svg .chance { stroke: var(--bad); stroke-width: 2; }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
svg .band { opacity: 0.18; stroke: none; }
svg .bar { opacity: 0.85; }
svg .s0 { stroke: var(--s0); } svg .f0 { fill: var(--s0); }
svg .s1 { stroke: var(--s1); } svg .f1 { fill: var(--s1); }
svg .s2 { stroke: var(--s2); } svg .f2 { fill: var(--s2); }
svg .s3 { stroke: var(--s3); } svg .f3 { fill: var(--s3); }
svg .s4 { stroke: var(--s4); } svg .f4 { fill: var(--s4); }
svg .s5 { stroke: var(--s5); } svg .f5 { fill: var(--s5); }
.sheet {
  list-style: none; margin: 0 0 12px; padding: 0; display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(45%, 160px), 1fr));
}
.card {
  background: var(--card); border: 1px solid var(--line); border-top: 3px solid var(--bad);
  border-radius: 6px; padding: 10px; font-size: 13px; line-height: 1.35; break-inside: avoid;
}
.card.good { border-top-color: var(--good); }
.card img {
  display: block; width: 100%; height: auto; border-radius: 3px; margin: 0 0 8px; background: white;
}
.card p { margin: 0 0 4px; overflow-wrap: anywhere; }
.card .note { font-size: 12px; }
.verdict { font-weight: 600; }
.missing {
  display: grid; place-items: center; aspect-ratio: 1; background: var(--tint); color: var(--soft);
  margin: 0 0 8px; padding: 8px; text-align: center; font-size: 12px; overflow-wrap: anywhere;
}
@media (max-width: 640px) {
  header, main { padding-left: 14px; padding-right: 14px; }
  header { padding-top: 22px; }
  th, td { padding-right: 14px; }
  tbody th { min-width: 116px; }
  figure { padding: 12px 10px 6px; }
}
@media print {
  :root { --paper: #ffffff; --card: #ffffff; }
  body { font-size: 11pt; }
  nav { display: none; }
  .wide { overflow: visible; }
  table, .card { break-inside: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
