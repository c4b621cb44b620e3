"""Blocks of a page: what is escaped, what stands where, and what a page may hold."""

import base64
import io

import pytest
from PIL import Image

from tarkit.report.html import (
    Block,
    Card,
    Cell,
    Code,
    Figure,
    Folded,
    Page,
    Paragraph,
    Section,
    Sheet,
    Side,
    Table,
    data_uri,
    escape,
    escape_markdown,
    printable,
    shorten,
)
from tests.report.sample_runs import Reader


def html_of(*blocks: Block) -> str:
    return Page("title", "subtitle", [Section("part", blocks, "part")]).html()


def markdown_of(*blocks: Block) -> str:
    return Page("title", "subtitle", [Section("part", blocks, "part")]).markdown()


def test_text_is_escaped_for_elements_and_attributes() -> None:
    assert escape("<b a=\"1\" c='2'>&") == "&lt;b a=&quot;1&quot; c=&#x27;2&#x27;&gt;&amp;"


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
    shown = Table(["", "one", "two", "three"], rows).html()
    assert '<th scope="col" class="right">one</th><th scope="col" class="right">two</th>' in shown
    assert '<th scope="col">three</th>' in shown  # x is no number
    assert '<td class="right">−1.25 <span class="aside">[−2, 0]</span></td>' in shown


def test_a_row_that_does_not_fit_its_header_is_still_sound() -> None:
    page = html_of(Table(["a", "b"], [["1"], []]), Table(["a"], []))
    assert not Reader(page).faults


def test_cells_and_cards_in_markdown() -> None:
    table = Table(["task", "score"], [[Cell("all", strong=True), Cell("0.5", "[0, 1]")]], "of it")
    assert markdown_of(table) == (
        "# title\n\nsubtitle\n\n## part\n\n**of it**\n\n| task | score |\n| --- | --- |\n"
        "| **all** | 0.5 \\[0, 1\\] |\n"
    )
    card = Card("", prompt="a | b", verdict="wrong", good=False, missing="torn", aside="colors")
    assert r"| a \| b | colors | wrong | torn |" in markdown_of(Sheet([card]))


def test_only_what_is_kept_of_the_folded_is_in_the_markdown() -> None:
    inside = [Paragraph("inside")]
    assert "inside" not in markdown_of(Folded("more", inside))
    assert "inside" in markdown_of(Folded("more", inside, kept=True))
    assert "inside" in html_of(Folded("more", inside))


def test_code_cannot_leave_its_block_in_markdown() -> None:
    text = markdown_of(Code("one\n```\n<b>"))
    assert text.endswith("\n    one\n    ```\n    <b>\n")


def test_every_block_with_hostile_text_is_sound() -> None:
    bad = "</style></script><script>x()</script>\" onload='x()' <img src=x>"
    card = Card("", prompt=bad, verdict=bad, good=True, reason=bad, aside=bad, missing=bad)
    blocks: list[Block] = [
        Paragraph(bad, "warning"),
        Code(bad),
        Table([bad, bad], [[bad, Cell(bad, bad)]], bad, bad),
        Side([Figure("<svg></svg>", bad, bad)]),
        Sheet([card]),
        Folded(bad, [Paragraph(bad)]),
        Section(bad, [], level=3, lead=bad),
    ]
    page = Page(bad, bad, [Section(bad, blocks, bad)]).html()
    reader = Reader(page)
    assert not reader.faults
    assert reader.words.count(bad) >= 16
    assert "<script" not in page


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
