"""Blocks of a page: what is escaped, what stands where, and what a page may hold."""

import base64
import io

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup
from PIL import Image

from tarkit.report.blocks import (
    Card,
    CardGrid,
    Cell,
    CommandLines,
    Figure,
    FigureGrid,
    Folded,
    Page,
    PageBlock,
    PageTable,
    Paragraph,
    Section,
    data_uri,
)
from tarkit.report.escaping import escape, escape_markdown, printable, shorten
from tarkit.report.html import render
from tests.report.sample_runs import Reader


def html_of(*blocks: PageBlock) -> str:
    return render(Page("title", "subtitle", [Section("part", blocks, "part")]))


def markdown_of(*blocks: PageBlock) -> str:
    return Page("title", "subtitle", [Section("part", blocks, "part")]).markdown()


def test_text_is_escaped_for_elements_and_attributes() -> None:
    assert escape("<b a=\"1\" c='2'>&") == "&lt;b a=&#34;1&#34; c=&#39;2&#39;&gt;&amp;"


def test_characters_that_steer_are_replaced() -> None:
    # escape, right-to-left override, half a surrogate pair, a line separator, carriage return
    assert printable("a\x1b[2Jb\u202ec\ud800d\u2028e\rf\n") == "a�[2Jb�c�d�e�f\n"
    assert printable("ünï ⚬ 漢字 😀\t") == "ünï ⚬ 漢字 😀\t"


def test_markdown_shows_text_as_it_is() -> None:
    assert escape_markdown("a | b\n*c* `d` [e](f) <g> #h") == (
        r"a \| b \*c\* \`d\` \[e\](f) &lt;g&gt; \#h"
    )
    assert escape_markdown("![x](y)") == r"\!\[x\](y)"


def test_long_text_says_how_much_is_left_out() -> None:
    assert shorten("abcdefgh", 5) == "abcde … (3 more)"
    assert shorten("abcde", 5) == "abcde"


@pytest.mark.parametrize(
    ("size", "expected"),
    # 400 x 100 at most 200: halved; 3 x 1000 at most 200: .6 wide, and no side is nothing
    [((400, 100), (200, 50)), ((3, 1000), (1, 200)), ((64, 32), (64, 32))],
)
def test_pictures_are_capped_at_their_longer_side(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    head, blob = data_uri(Image.new("RGB", size, "red"), side_px=200).split(",", 1)
    assert head == "data:image/png;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(blob)))
    assert (picture.size, picture.getpixel((0, 0))) == (expected, (255, 0, 0))


def test_a_picture_loses_what_was_written_into_its_file() -> None:
    picture = Image.new("RGB", (4, 4))
    picture.info["comment"] = "where it was taken"
    blob = base64.b64decode(data_uri(picture, side_px=8).split(",")[1])
    assert b"taken" not in blob


def test_columns_of_numbers_stand_to_the_right() -> None:
    rows: list[list[Cell | str]] = [
        ["a", "0.5", "1", "x"],
        ["b", Cell("−1.25", "[−2, 0]"), "–", "2"],
    ]
    shown = html_of(PageTable(["", "one", "two", "three"], rows))
    assert '<th scope="col" class="right">one</th><th scope="col" class="right">two</th>' in shown
    assert '<th scope="col">three</th>' in shown  # x is no number
    assert '<td class="right">−1.25 <span class="aside">[−2, 0]</span></td>' in shown


def test_a_row_that_does_not_fit_its_header_is_still_sound() -> None:
    page = html_of(PageTable(["a", "b"], [["1"], []]), PageTable(["a"], []))
    assert not Reader(page).faults


def test_cells_and_cards_in_markdown() -> None:
    row: list[Cell | str] = [Cell("all", strong=True), Cell("0.5", "[0, 1]")]
    table = PageTable(["task", "score"], [row], "of it")
    assert markdown_of(table) == (
        "# title\n\nsubtitle\n\n## part\n\n**of it**\n\n| task | score |\n| --- | --- |\n"
        "| **all** | 0.5 \\[0, 1\\] |\n"
    )
    card = Card("", prompt="a | b", verdict="wrong", good=False, missing="torn", aside="colors")
    assert r"| a \| b | colors | wrong | torn |" in markdown_of(CardGrid([card]))


def test_only_what_is_kept_of_the_folded_is_in_the_markdown() -> None:
    inside = [Paragraph("inside")]
    assert "inside" not in markdown_of(Folded("more", inside))
    assert "inside" in markdown_of(Folded("more", inside, in_markdown=True))
    assert "inside" in html_of(Folded("more", inside))


def test_code_cannot_leave_its_block_in_markdown() -> None:
    text = markdown_of(CommandLines("one\n```\n<b>"))
    assert text.endswith("\n    one\n    ```\n    <b>\n")


def test_every_block_with_hostile_text_is_sound() -> None:
    bad = "</style></script><script>x()</script>\" onload='x()' <img src=x>"
    card = Card("", prompt=bad, verdict=bad, good=True, reason=bad, aside=bad, missing=bad)
    blocks: list[PageBlock] = [
        Paragraph(bad, "warning"),
        CommandLines(bad),
        PageTable([bad, bad], [[bad, Cell(bad, bad)]], bad, bad),
        FigureGrid([Figure(Markup("<svg></svg>"), bad, bad)]),
        CardGrid([card]),
        Folded(bad, [Paragraph(bad)]),
        Section(bad, [], level=3, lead=bad),
    ]
    page = render(Page(bad, bad, [Section(bad, blocks, bad)]))
    reader = Reader(page)
    assert not reader.faults
    assert reader.words.count(bad) >= 16
    assert "<script" not in page


@pytest.mark.parametrize(
    "text",
    ["{{ 7*7 }}", "{% include '/etc/passwd' %}", "{# gone #}", "${7*7}", "javascript:alert(1)"],
)
def test_template_syntax_and_addresses_in_data_stay_text(text: str) -> None:
    blocks: list[PageBlock] = [Paragraph(text), PageTable([text], [[Cell(text, text)]], text, text)]
    page = render(Page(text, text, [Section(text, blocks, text)]))
    reader = Reader(page)
    assert not reader.faults  # no link leads anywhere but to a part of the page
    # Title, heading, lead, contents and the part's heading; a paragraph; title, header, two of the
    # cell and note of a table.
    assert reader.text.count(text) == 5 + 1 + 5
    assert "49" not in "".join(reader.words)


def test_a_drawing_that_is_no_markup_is_shown_as_text() -> None:
    page = html_of(Figure("<script>x()</script>", "title"))  # type: ignore[arg-type]
    assert "&lt;script&gt;" in page and "<script" not in page


def test_a_block_that_the_template_does_not_know_is_an_error() -> None:
    class Unknown(Paragraph):
        kind = "unknown"

    with pytest.raises(UndefinedError, match="unknown"):
        html_of(Unknown("text"))


def test_the_reader_of_these_tests_finds_faults() -> None:
    for page in (
        "<p><b></p></b>",
        "<div>",
        "<img src='http://x.test/a.png'>",
        "<img src='data:image/svg+xml,x'>",
        "<a href='javascript:x()'></a>",
        "<p onclick='x()'></p>",
        "<script></script>",
        "<svg><use href='#a'/></svg>",
        "<style>p { background: url(x) }</style>",
    ):
        assert Reader(page).faults, page


def test_the_page_forbids_what_it_does_not_hold() -> None:
    page = html_of()
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\"" in page
    assert page.startswith("<!DOCTYPE html>")
    assert "://" not in page
