"""Two models' pictures of the same captions: distances that can be worked out by hand, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tarkit.artifacts.manifest import begin_directory
from tarkit.curate.ingest import IngestPlan
from tarkit.errors import UserError
from tarkit.finetune import compare
from tests import parts

RED, BLUE, GREY = (200, 10, 10), (10, 10, 200), (100, 100, 100)


def plain(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (24, 24), colour)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Ten pictures that alternate between red and blue; the last one of five is held out."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(10):
        plain(RED if number % 2 else BLUE).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}")
    overrides = ["held_out_every=5"]
    return IngestPlan(folder, out=tmp_path / "images", overrides=overrides).run().path


def drawn(out: Path, prompts: list[str], pictures: list[Image.Image]) -> Path:
    """A folder as `tarkit generate --prompts` leaves it."""
    begin_directory(out, "samples", settings={})
    lines = []
    for row, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
        (out / f"{row:05d}").mkdir()
        picture.save(out / f"{row:05d}" / "0000.png")
        lines.append(json.dumps({"prompt": prompt, "sample": 0, "prompt_row": row}) + "\n")
    (out / "samples.jsonl").write_text("".join(lines))
    return out


def test_the_same_pictures_have_no_distance_and_others_all_of_it(
    images: Path, tmp_path: Path
) -> None:
    prompts = ["picture 4", "picture 9"]  # blue, red
    before = drawn(tmp_path / "before", prompts, [plain(RED), plain(GREY)])
    after = drawn(tmp_path / "after", prompts, [plain(BLUE), plain(RED)])
    model = parts.save_ta_tok(tmp_path / "ta_tok")
    page, facts = compare.run(
        before, after, images=images, split="test", features_of=str(model), out=tmp_path / "page"
    )
    assert facts["num_pictures"] == 2
    assert facts["colours"]["before"] == 1.0 and facts["colours"]["after"] == 0.0
    assert facts["colours"]["difference"]["delta"] == -1.0
    assert facts["features"]["after"] == pytest.approx(0.0, abs=1e-6)
    assert facts["features"]["before"] > 1e-4
    assert json.loads((page.parent / "results.json").read_text()) == facts
    assert "picture 9" in page.read_text() and "nearer after" in page.read_text()
    assert "1.000 before, 0.000 after (-1.000 [-1.000, -1.000])" in compare.in_words(facts)


def test_folders_of_other_captions_are_refused(images: Path, tmp_path: Path) -> None:
    one = drawn(tmp_path / "one", ["picture 4", "picture 9"], [plain(RED)] * 2)
    other = drawn(tmp_path / "other", ["picture 4", "picture 3"], [plain(RED)] * 2)
    with pytest.raises(UserError, match="other was drawn from other captions"):
        compare.run(one, other, images=images, split="test", out=tmp_path / "page")
    with pytest.raises(UserError, match="is no finished folder of `tarkit generate"):
        compare.run(one, tmp_path, images=images, split="test", out=tmp_path / "page")
    with pytest.raises(UserError, match="has no picture of the split 'valid' with a caption"):
        compare.run(one, one, images=images, split="valid", out=tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_damaged_records_are_refused(images: Path, tmp_path: Path) -> None:
    one = drawn(tmp_path / "one", ["picture 4", "picture 9"], [plain(RED)] * 2)
    for line in ("{", "[" * 100_000, "7", "null"):
        (one / "samples.jsonl").write_text(f"{line}\n")
        with pytest.raises(UserError, match=r"samples\.jsonl line 1"):
            compare.run(one, one, images=images, split="test", out=tmp_path / "page")
    (one / "samples.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="was drawn from other captions"):
        compare.run(one, one, images=images, split="test", out=tmp_path / "page")


def test_shares_of_colours_sum_to_one_and_know_no_place() -> None:
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[:32] = RED
    shares = compare.colour_shares(Image.fromarray(halves))
    assert shares.sum() == pytest.approx(1.0)
    flipped = compare.colour_shares(Image.fromarray(halves[::-1].copy()))
    assert np.abs(shares - flipped).sum() < 0.02
