"""`tarkit dialect`: which word stands where, what the page may hold, what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markupsafe import escape
from PIL import Image
from typer.testing import CliRunner

from tarkit.artifacts.artifact import begin_artifact, open_artifact
from tarkit.checkpoints.code_words import CodeWords
from tarkit.checkpoints.load import LoadedTaTok
from tarkit.cli.app import app
from tarkit.errors import UserError
from tarkit.images import png_bytes, read_picture
from tarkit.inference.tar_model import Tar
from tarkit.models.ta_tok import TaTok
from tarkit.report.code_usage import CodeUsage, read_usage
from tarkit.report.dialect import run
from tarkit.report.dialect_facts import Dialect, PictureInCodes
from tarkit.report.dialect_page import codebook_page, listed_codes, picture_page, usage_map
from tarkit.report.dialect_sheet import dialect_sheet, drawable
from tarkit.report.html import render
from tarkit.vocab import Scale
from tests import parts
from tests.report.browser import find_browser, open_browser
from tests.report.sample_runs import Reader

HOSTILE = ["<script>alert(1)</script>", "\"' onfocus=x>", "</style><img src=http://a.b/c>"]
NUMBERS = re.compile(r"(span|div) style=(--(side|covered|shade): [\d.]+%?(; )?)+")
WORDS = [*HOSTILE, *(f"word{n}" for n in range(3, parts.K))]


def made_up(usage: CodeUsage | None = None) -> Dialect:
    torch.manual_seed(0)
    ta_tok = LoadedTaTok(TaTok(parts.TA_TOK).eval(), "0" * 64)
    return Dialect(ta_tok, CodeWords(range(100, 116), WORDS, True, None), usage)


def shown() -> PictureInCodes:
    codes = {
        Scale.FULL: np.arange(16)[::-1],
        Scale.HALF: np.array([4, 5, 4, 4]),
        Scale.THIRD: np.array([4]),
    }
    picture = Image.fromarray(np.full((16, 16, 3), 120, np.uint8))
    return PictureInCodes(picture, codes, parts.GRID)


def grids(page: str) -> list[list[str]]:
    """The words of each grid of a page, row by row."""
    return [
        re.findall(r'<span class="cell" tabindex="0"><span class="word">(.*?)</span>', part)
        for part in page.split('<div class="cells">')[1:]
    ]


def test_each_cell_has_the_word_of_its_code() -> None:
    first, second, third = grids(render(picture_page(made_up(), shown(), name="a", model="m")))
    assert first[:13] == [f"word{n}" for n in range(15, 2, -1)]
    assert second == ["word4", "word5", "word4", "word4"]
    assert third == ["word4"]


def test_hostile_words_are_text_and_nothing_is_loaded() -> None:
    usage = CodeUsage(np.arange(16), np.arange(16), 20)
    dialect = made_up(usage)
    pages = [
        render(picture_page(dialect, shown(), name=HOSTILE[0], model=HOSTILE[1])),
        render(codebook_page(dialect, model=HOSTILE[2])),
    ]
    for page in pages:
        assert "&lt;script&gt;alert(1)" in page
        assert page.count("</style>") == 1 and "@import" not in page
        assert not re.findall(r"url\((?!data:)", page)
        # Handlers, scripts and addresses are faults; so are styles, but for these numbers.
        faults = [fault for fault in Reader(page).faults if not NUMBERS.fullmatch(fault)]
        assert faults == []


def test_telling_words_by_hand() -> None:
    # Code 4: 1/16, 3/4 and 1/1 of the cells; code 5: 1/16, 1/4 and none; others 1/16.
    weights = dict(shown().telling(None))
    assert weights[4] == pytest.approx((1 / 16 + 3 / 4 + 1) / 3)
    assert weights[5] == pytest.approx((1 / 16 + 1 / 4) / 3)
    assert sum(weights.values()) == pytest.approx(1)
    # Of 9 pictures all have code 4, and 4 have code 5: ln(10 / 10) = 0, ln(10 / 5) = ln 2.
    pictures = np.full(16, 9)
    pictures[5] = 4
    by_rarity = shown().telling(CodeUsage(np.ones(16), pictures, 9))
    assert by_rarity[0] == (5, pytest.approx((1 / 16 + 1 / 4) / 3 * np.log(2)))
    assert dict(by_rarity)[4] == 0


def test_codes_cover_what_pooling_reads() -> None:
    # 27 x 27 patches pooled by 2 are 13 x 13, which read 26 of 27.
    codes = {Scale.HALF: np.zeros(169, np.int64)}
    picture = Image.new("RGB", (27, 27))
    assert PictureInCodes(picture, codes, 27).covered(Scale.HALF) == pytest.approx(26 / 27)
    assert shown().covered(Scale.FULL) == 1


def save_tokens(out: Path, *, sha256: str) -> Path:
    settings = {"tokenizer_sha256": sha256, "codebook_size": 16, "sides": {"2": 2, "3": 1}}
    settings |= {"resize": "pil-bicubic", "dtype": "float32"}
    artifact = begin_artifact(out, "tokens", settings=settings, shards=["00000"])
    blank = dict.fromkeys(artifact.schema.names)
    ok = {"status": "ok", "group": "g", "role": "target"}
    rows = [
        blank | ok | {"key": "0", "codes_2": [1, 1, 1, 2], "codes_3": [2]},
        artifact.failed_row("1", "damaged"),
        blank | ok | {"key": "2", "codes_2": [2, 2, 2, 2], "codes_3": [9]},
    ]
    artifact.write("00000", rows)
    return out


def test_usage_by_hand(tmp_path: Path) -> None:
    tokens = open_artifact(save_tokens(tmp_path / "tokens", sha256="a" * 64))
    usage = read_usage(tokens, num_codes=16, tokenizer_sha256="a" * 64)
    assert usage.num_pictures == 2
    assert {n: int(c) for n, c in enumerate(usage.counts) if c} == {1: 3, 2: 6, 9: 1}
    assert {n: int(c) for n, c in enumerate(usage.pictures) if c} == {1: 1, 2: 2, 9: 1}
    with pytest.raises(UserError, match="codes of TA-Tok aaaaaaaaaaaa, but this one is bbb"):
        read_usage(tokens, num_codes=16, tokenizer_sha256="b" * 64)


def test_the_map_shows_dead_codes_and_leaves_the_rest_of_its_square_empty() -> None:
    square = usage_map(np.array([5, 0, 1]))  # 2 x 2 squares, the last of no code
    half = square.width // 2
    at = [square.getpixel((x * half, y * half)) for y in (0, 1) for x in (0, 1)]
    most, dead, least, none = (tuple(each) for each in at if isinstance(each, tuple))
    assert most[2] > most[0] and most[3] == 255 and 30 < least[3] < 255
    assert dead[0] > dead[2] and dead[3] > 0 and none[3] == 0


def test_a_page_lists_the_most_used_of_many_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tarkit.report.dialect_page.MAX_WORDS", 4)
    assert listed_codes(made_up()) == [0, 4, 8, 12]
    counts = np.zeros(16, np.int64)
    counts[[15, 3, 7, 2]] = [9, 8, 7, 6]
    dialect = made_up(CodeUsage(counts, counts, 9))
    assert listed_codes(dialect) == [2, 3, 7, 15]
    assert "The 4 of 16 words that are used most" in render(codebook_page(dialect, model="m"))


def test_the_sheet_has_four_panels_and_names_letters_it_cannot_draw() -> None:
    sheet = dialect_sheet(made_up(), shown(), name="国.png")
    assert sheet.width > 2 * 640 and sheet.height > 2 * 640
    assert drawable("a国·") == "aU+56FD·"


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    file.write_bytes(png_bytes(pixels))
    return file


def test_mini_works_at_once_and_the_same_command_writes_the_same_page(
    picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    asked = ["dialect", str(picture), "--out", str(out), "--json"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        **{"path": str(out), "codes": 1929, "equal_rows": None, "tokens_recorded": True}
    }
    before = out.read_bytes()
    assert CliRunner().invoke(app, asked).exit_code == 0
    assert out.read_bytes() == before
    tar = Tar.load("mini", dtok=None)
    codes = tar.encode([read_picture(picture)], [Scale.THIRD])[Scale.THIRD][0].tolist()
    assert tar.places.ta_tok is not None
    ids = json.loads((tar.places.ta_tok / "config.json").read_text())["codebook_rows"]
    tokens = [tar.mllm.vocabulary.text.decode([ids[code]]).replace(" ", "·") for code in codes]
    assert grids(before.decode())[2] == [str(escape(token)) for token in tokens]


def test_another_file_at_out_is_kept(picture: Path, tmp_path: Path) -> None:
    for name in ("page.html", "page.png"):
        out = tmp_path / name
        out.write_text("mine")
        with pytest.raises(UserError, match="exists and is another"):
            run(picture, out=out)
        assert out.read_text() == "mine"


def test_misuse_is_a_sentence_with_the_next_command(picture: Path, tmp_path: Path) -> None:
    ta_tok = parts.save_ta_tok(tmp_path / "ta_tok")
    cases = [
        ({"image": picture, "out": tmp_path / "a.txt"}, "must end in .html or .png"),
        ({"image": picture, "out": tmp_path}, "is a folder"),
        ({"image": picture, "out": Path(".")}, "is a folder"),
        ({"image": None, "out": tmp_path / "a.png"}, ".png is for a picture"),
        ({"image": tmp_path / "none.png", "out": tmp_path / "a.html"}, "there is no picture"),
        ({"image": None, "out": tmp_path / "a.html", "model": str(ta_tok)}, "a TA-Tok alone"),
        ({"image": None, "out": tmp_path / "a.html", "model": "nonesuch"}, "no model 'nonesuch'"),
        ({"image": None, "out": tmp_path / "a.html", "lm": tmp_path / "lm"}, "lm"),
        ({"image": None, "out": tmp_path / "a.html", "tokens": tmp_path}, "manifest"),
    ]
    for options, sentence in cases:
        with pytest.raises(UserError) as error:
            run(**options)  # type: ignore[arg-type]
        assert sentence in error.value.message and error.value.hint
    assert not (tmp_path / "a.html").exists()


# ---- a browser ----------------------------------------------------------------------------------

PLACE = (
    "(() => { const cell = document.querySelector('.cells .cell:nth-child(6)');"
    " cell.scrollIntoView({block: 'center', behavior: 'instant'});"
    " const box = cell.getBoundingClientRect(); return [box.x + 8, box.y + 8]; })()"
)
SHOWN = (
    "[...document.querySelectorAll('.info')]"
    ".filter(each => getComputedStyle(each).display != 'none').map(each => each.innerText)"
)


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="no Chromium on the path and no CHROME_BIN")
def test_pointing_at_a_cell_shows_its_word_and_the_page_requests_nothing(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render(picture_page(made_up(), shown(), name="a", model="m")))
    with open_browser(str(find_browser()), tmp_path / "profile") as browser:

        def value(expression: str) -> Any:
            answer = browser.call("Runtime.evaluate", expression=expression, returnByValue=True)
            return answer["result"]["value"]

        for width_px, dark in ((1280, False), (390, True)):
            seen = browser.show(page, width_px=width_px, dark=dark)
            assert seen.requests == [] and seen.width_px == width_px
            assert value(SHOWN) == []
            x, y = value(PLACE)
            browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
            # The sixth cell of scale 1 has code 15 - 5 = 10.
            (text,) = value(SHOWN)
            assert "word10" in text and "code 10, token 110" in text
            assert "before projection" in text and "after projection" in text
            browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=0, y=0)
            browser.call(
                "Runtime.evaluate",
                expression="document.querySelector('.cells .cell:nth-child(7)').focus()",
            )
            (text,) = value(SHOWN)
            assert "code 9, token 109" in text
