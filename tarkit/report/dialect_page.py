"""The pages of a dialect, as blocks: one of a picture, one of a codebook."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image

from tarkit.models.codebook import usage_of_counts
from tarkit.report.blocks import (
    CaptionedImage,
    CodeGrid,
    CodeList,
    Figure,
    Page,
    PageBlock,
    PageTable,
    Paragraph,
    PictureAndFigure,
    Section,
    TableRow,
    data_uri,
)
from tarkit.report.code_usage import CodeUsage
from tarkit.report.dialect_facts import NUM_NEIGHBOURS, Dialect, PictureInCodes
from tarkit.report.svg import Bar, bars
from tarkit.vocab import Scale

NUM_TELLING = 12
NUM_ROWS = 20
MAX_WORDS = 2048
"""The most words of a codebook that a page lists."""
PICTURE_PX = 720
USED, DEAD = (37, 99, 201), (192, 57, 43)
SPACES = "A dot · is a space; \\x is a byte that is no text by itself."


def picture_page(dialect: Dialect, shown: PictureInCodes, *, name: str, model: str) -> Page:
    """The page of one picture: its most telling words, and its codes at every scale."""
    telling = shown.telling(dialect.usage)[:NUM_TELLING]
    words = dialect.words.words
    group = [Bar(words[code], weight) for code, weight in telling]
    drawn = bars(group, top=max(1e-9, telling[0][1]))
    first: list[PageBlock] = [
        PictureAndFigure(
            CaptionedImage(data_uri(shown.picture, side_px=PICTURE_PX), name),
            Figure(drawn, "The most telling words", how_told(dialect)),
        ),
        _neighbour_table(dialect, [code for code, _ in telling]),
    ]
    size = dialect.ta_tok.size_px
    square = data_uri(shown.picture.resize((size, size), Image.Resampling.BICUBIC), side_px=size)
    grids = [_grid(dialect, shown, scale, square) for scale in shown.codes]
    sections = [
        Section("The picture in words", first, "words"),
        Section("Its codes", grids, "codes", lead=f"The word behind every code. {SPACES}"),
        Section("The codebook", _facts(dialect), "codebook"),
    ]
    subtitle = f"How {model} writes this picture. Every code is the projection of one word."
    return Page(f"The dialect of {name}", subtitle, sections)


def how_told(dialect: Dialect) -> str:
    """How the most telling words are computed, in a sentence."""
    if dialect.usage is None:
        return "Share of the picture's cells that have the code, averaged over the scales."
    return (
        "Share of the cells, averaged over the scales, times ln((1 + P) / (1 + p)), where p of "
        f"P = {dialect.usage.num_pictures:,} pictures have the code (tf-idf)."
    )


def _grid(dialect: Dialect, shown: PictureInCodes, scale: Scale, square: str) -> CodeGrid:
    codes = shown.codes[scale].tolist()
    distinct = sorted(set(codes))
    cells = dict(zip(distinct, dialect.cells(distinct), strict=True))
    side, covered = scale.side(shown.grid), shown.covered(scale)
    note = f"{len(distinct)} different words in {len(codes)} cells."
    if covered < 1:
        cut = shown.grid - side * int(scale)
        note += f" The last {cut} of {shown.grid} rows and columns of patches fill no cell."
    return CodeGrid(
        f"Scale {int(scale)}: {side} x {side} codes",
        note,
        square,
        side,
        covered,
        [cells[code] for code in codes],
    )


def codebook_page(dialect: Dialect, *, model: str) -> Page:
    """The page of a codebook: its words, how often each is used, and its neighbourhoods."""
    usage = dialect.usage
    sections = [Section("The codebook", _facts(dialect), "codebook")]
    if usage is not None:
        sections.append(Section("Usage", _usage_blocks(dialect, usage), "usage"))
    listed = listed_codes(dialect)
    if usage is not None:
        by_use = sorted(range(dialect.num_codes), key=lambda code: -int(usage.counts[code]))
        examples = by_use[:NUM_ROWS]
    else:
        examples = [listed[n * len(listed) // NUM_ROWS] for n in range(min(NUM_ROWS, len(listed)))]
    sections += [
        Section("Neighbours before and after projection", _near(dialect, examples, listed), "near"),
        Section(
            "The words", [CodeList(dialect.cells(listed))], "words", lead=_lead(dialect, listed)
        ),
    ]
    return Page(f"The dialect of {model}", "Every code is the projection of one word.", sections)


def listed_codes(dialect: Dialect) -> list[int]:
    """The codes that a page lists, ascending: all, or the most used, or some at equal distances."""
    count = dialect.num_codes
    if count <= MAX_WORDS:
        return list(range(count))
    if dialect.usage is None:
        return [n * count // MAX_WORDS for n in range(MAX_WORDS)]
    order = np.argsort(-dialect.usage.counts, kind="stable")
    return sorted(order[:MAX_WORDS].tolist())


def _lead(dialect: Dialect, listed: list[int]) -> str:
    count = dialect.num_codes
    which = f"All {count:,} words"
    if len(listed) < count:
        chosen = "at equal distances" if dialect.usage is None else "that are used most"
        which = f"The {len(listed):,} of {count:,} words {chosen}"
    shades = (
        "" if dialect.usage is None else " A stronger blue is used more; a dashed word is dead."
    )
    return f"{which}, in the order of their tokens.{shades} {SPACES}"


def _facts(dialect: Dialect) -> list[PageBlock]:
    words, count = dialect.words, dialect.num_codes
    arch = dialect.ta_tok.model.arch
    rows: list[TableRow] = [
        ["codes", f"{count:,}"],
        ["embedding E", f"{arch.embedding_width:,} wide, frozen"],
        ["code C = E W" + (" + b" if arch.projection_bias else ""), f"{arch.code_width:,} wide"],
        ["tokens", "recorded by the training" if words.are_kept else "found by equal rows"],
    ]
    if words.num_equal is not None:
        rows.append(["rows equal to the language model's", f"{words.num_equal:,} of {count:,}"])
    blocks: list[PageBlock] = [PageTable(["codebook", ""], rows)]
    if words.num_equal is not None and words.num_equal < count:
        missing = count - words.num_equal
        told = (
            "Its words may be those of another language model, or its embeddings were trained too."
            if words.are_kept
            else "Their words are not known."
        )
        text = f"{missing:,} of {count:,} rows are no rows of this language model. {told}"
        blocks.append(Paragraph(text, "warning"))
    return blocks


def _usage_blocks(dialect: Dialect, usage: CodeUsage) -> list[PageBlock]:
    health = usage_of_counts(torch.from_numpy(usage.counts))
    rows: list[TableRow] = [
        ["pictures", f"{usage.num_pictures:,}"],
        ["codes in them, all scales", f"{int(usage.counts.sum()):,}"],
        ["words that are used", f"{health.used:,}"],
        ["dead words", f"{health.dead:,}"],
        ["perplexity", f"{health.perplexity:,.1f}"],
    ]
    order = np.argsort(-usage.counts, kind="stable")
    most = [Bar(dialect.words.words[code], float(usage.counts[code])) for code in order[:12]]
    return [
        PageTable(["usage", ""], rows),
        PictureAndFigure(
            CaptionedImage(
                data_uri(usage_map(usage.counts), side_px=2048),
                "Every code, in the order of its token: a stronger blue is used more, red is dead",
            ),
            Figure(bars(most), "The most frequent words", "Times that the code is used."),
        ),
    ]


def usage_map(counts: np.ndarray) -> Image.Image:
    """One square for each of K codes, row by row: blue as strong as log usage, pale red for dead.

    RGBA, so that it stands on a light and a dark page.
    """
    side = math.ceil(math.sqrt(len(counts)))
    cell_px = max(1, PICTURE_PX // side)
    pixels = np.zeros((side * side, 4), np.uint8)
    shade = np.log1p(counts) / max(1e-9, float(np.log1p(counts.max())))
    pixels[: len(counts), :3] = USED
    pixels[: len(counts), 3] = np.round(30 + 225 * shade)
    pixels[: len(counts)][counts == 0] = (*DEAD, 90)
    square = pixels.reshape(side, side, 4).repeat(cell_px, 0).repeat(cell_px, 1)
    return Image.fromarray(square)


def _near(dialect: Dialect, examples: list[int], listed: list[int]) -> list[PageBlock]:
    before, after = dialect.neighbours(listed)
    pairs = zip(before.rows.tolist(), after.rows.tolist(), strict=True)
    stay = [len(set(old) & set(new)) for old, new in pairs]
    mean = sum(stay) / len(stay)
    text = (
        f"Of the {before.rows.shape[1]} nearest words of a word, {mean:.2f} are still among its "
        f"nearest after projection (mean of {len(listed):,} words, by cosine)."
    )
    return [Paragraph(text), _neighbour_table(dialect, examples)]


def _neighbour_table(dialect: Dialect, codes: list[int]) -> PageTable:
    rows: list[TableRow] = [[cell.word, cell.before, cell.after] for cell in dialect.cells(codes)]
    header = ["word", "nearest before projection (E)", "nearest after projection (C)"]
    note = f"The {NUM_NEIGHBOURS} nearest words, each with its cosine."
    return PageTable(header, rows, note=note)
