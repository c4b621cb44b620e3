"""Pictures to codes: a row in, a row out, the same bytes however often it is stopped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tarkit import encode
from tarkit.artifacts.artifact import Artifact, begin_artifact
from tarkit.checkpoints.load import Resize, load_ta_tok
from tarkit.encode import EncodePlan
from tarkit.errors import UserError
from tarkit.images import decode, png_bytes, to_uint8
from tarkit.vocab import Scale
from tests import parts

ROWS = 6
FAILED_ROW, TORN_ROW = 2, 4


class GreyTokenizer:
    """A grid of 4 on 8 px: the code of a cell is its mean grey, 0 to 255."""

    sha256, size_px, grid, num_codes = "c0de", 8, 4, 256

    def __init__(self) -> None:
        self.model = torch.nn.Identity()
        self.shapes: list[tuple[int, ...]] = []

    def encode_scales(self, images: Tensor, scales: Sequence[Scale]) -> dict[Scale, Tensor]:
        assert images.dtype == torch.float32 and 0 <= images.min() <= images.max() <= 1
        self.shapes.append(tuple(images.shape))
        grey = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 2)
        pooled = {s: torch.nn.functional.avg_pool2d(grey, int(s)).flatten(1) for s in scales}
        return {s: (cells * 255).round().long() for s, cells in pooled.items()}


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> GreyTokenizer:
    fake = GreyTokenizer()
    monkeypatch.setattr(encode, "load_ta_tok", lambda path: fake)
    return fake


def picture(grey: int) -> bytes:
    return png_bytes(np.full((16, 24, 3), grey, np.uint8))


@pytest.fixture
def pictures(tmp_path: Path) -> Artifact:
    """Two shards of six pictures; picture r of shard s is all grey 10 s + r, two are unusable."""
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok/config.json").write_text("{}")
    artifact = begin_artifact(
        tmp_path / "pictures", "images", settings={}, shards=["00000", "00001"]
    )
    for shard, name in enumerate(artifact.shards):
        write_pictures(artifact, name, shard)
    return artifact


def write_pictures(artifact: Artifact, name: str, shard: int, *, mended: bool = False) -> None:
    rows: list[dict[str, Any]] = []
    blobs: list[tuple[str, bytes] | None] = []
    for number in range(ROWS):
        key = f"{name}-{number:06d}"
        if number == FAILED_ROW and not mended:
            rows.append(artifact.failed_row(key, "not a picture", prompt="a ring"))
            blobs.append(None)
            continue
        known = {"key": key, "prompt": f"ring {number}", "captions": ["x"], "split": "train"}
        row = dict.fromkeys(artifact.schema.names) | known | {"role": "target", "status": "ok"}
        blob = picture(10 * shard + number)
        rows.append(row | {"qa": [{"question": "q?", "answer": "a"}], "group": "1"})
        blobs.append(("png", blob[:60] if number == TORN_ROW and not mended else blob))
    artifact.write_pictures(name, zip(rows, blobs, strict=True))


def run(pictures: Artifact, out: str = "tokens", **known: Any) -> Artifact:
    folder = pictures.path.parent
    plan = EncodePlan(pictures.path, tokenizer=folder / "tok", out=folder / out, **known)
    return plan.run()


def all_bytes(artifact: Artifact) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(artifact.path.iterdir())}


def test_codes_of_every_scale_come_from_one_pass(
    pictures: Artifact, tokenizer: GreyTokenizer
) -> None:
    artifact = run(pictures)
    rows = artifact.rows("00001")
    # Picture 3 of shard 1 is grey 13 everywhere; 4x4, 2x2 and 1x1 cells.
    assert rows[3]["codes_1"] == [13] * 16
    assert rows[3]["codes_2"] == [13] * 4
    assert rows[3]["codes_3"] == [13]
    assert len(tokenizer.shapes) == 2, "one pass a shard: its four sound pictures fit one batch"


def test_words_travel_with_the_codes(pictures: Artifact, tokenizer: GreyTokenizer) -> None:
    row = run(pictures).rows("00000")[1]
    assert (row["key"], row["prompt"], row["split"]) == ("00000-000001", "ring 1", "train")
    assert row["captions"] == ["x"] and row["group"] == "1" and row["role"] == "target"
    assert row["qa"] == [{"question": "q?", "answer": "a"}]


def test_a_picture_that_cannot_be_read_is_a_failed_row_with_its_reason(
    pictures: Artifact, tokenizer: GreyTokenizer
) -> None:
    rows = run(pictures).rows("00000")
    assert len(rows) == ROWS
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "ok", "failed", "ok"]
    assert rows[FAILED_ROW]["error"] == "its images row failed: not a picture"
    assert rows[FAILED_ROW]["prompt"] == "a ring"
    assert "picture" in rows[TORN_ROW]["error"] and rows[TORN_ROW]["codes_1"] is None


def test_what_decides_the_codes_is_in_the_manifest(
    pictures: Artifact, tokenizer: GreyTokenizer
) -> None:
    settings = run(pictures, overrides=["scales=[3, 2]"]).settings
    assert settings["tokenizer_sha256"] == "c0de"
    assert settings["codebook_size"] == 256
    assert settings["sides"] == {"2": 2, "3": 1}
    assert settings["resize"] == "pil-bicubic, 8 px"
    assert settings["dtype"] == "float32"


def test_every_batch_has_the_same_shape_so_neighbours_do_not_matter(
    pictures: Artifact, tokenizer: GreyTokenizer
) -> None:
    artifact = run(pictures, overrides=["batch_size=3"])
    # Four sound pictures a shard are batches of 3 and 1, and the 1 is filled up.
    assert tokenizer.shapes == [(3, 3, 8, 8)] * 4
    assert artifact.read("00000") == run(pictures, out="whole").read("00000")


def test_other_settings_are_refused_with_both_values(
    pictures: Artifact, tokenizer: GreyTokenizer
) -> None:
    run(pictures)
    with pytest.raises(UserError, match=r"was begun with other settings .*batch_size: 32 there, 3"):
        run(pictures, overrides=["batch_size=3"])


def test_another_codebook_is_refused(pictures: Artifact, tokenizer: GreyTokenizer) -> None:
    run(pictures)
    tokenizer.sha256 = "0ther"
    with pytest.raises(UserError, match="tokenizer_sha256: c0de there, 0ther now"):
        run(pictures)


@pytest.mark.parametrize("calls_before_the_kill", [0, 1, 2, 3])
def test_killed_and_run_again_the_bytes_are_the_same(
    pictures: Artifact,
    tokenizer: GreyTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    calls_before_the_kill: int,
) -> None:
    whole = run(pictures, out="whole", overrides=["batch_size=2"])
    tokenizer.shapes.clear()
    sound = GreyTokenizer.encode_scales

    def killed(self: GreyTokenizer, images: Tensor, scales: Sequence[Scale]) -> dict[Scale, Tensor]:
        if len(self.shapes) == calls_before_the_kill:
            raise KeyboardInterrupt
        return sound(self, images, scales)

    monkeypatch.setattr(GreyTokenizer, "encode_scales", killed)
    with pytest.raises(KeyboardInterrupt):
        run(pictures, overrides=["batch_size=2"])
    # Four sound pictures in batches of two: shard 0 is written after the second call.
    written = sorted(path.name for path in (whole.path.parent / "tokens").glob("0*"))
    assert written == (["00000.parquet"] if calls_before_the_kill >= 2 else [])
    monkeypatch.setattr(GreyTokenizer, "encode_scales", sound)
    assert all_bytes(run(pictures, overrides=["batch_size=2"])) == all_bytes(whole)


def test_only_the_shard_whose_pictures_changed_is_encoded_again(
    pictures: Artifact, tokenizer: GreyTokenizer
) -> None:
    before = all_bytes(run(pictures))
    write_pictures(pictures, "00001", 1, mended=True)
    tokenizer.shapes.clear()
    artifact = run(pictures)
    after = all_bytes(artifact)
    assert {name for name in after if after[name] != before[name]} == {"00001.parquet"}
    assert {row["status"] for row in artifact.rows("00001")} == {"ok"}
    assert len(tokenizer.shapes) == 1


def test_retry_failed_encodes_the_failed_rows_alone(
    pictures: Artifact, tokenizer: GreyTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(pictures)
    tokenizer.shapes.clear()
    monkeypatch.setattr(encode, "decode", lambda blob: Image.new("RGB", (8, 8), (99, 99, 99)))
    untouched = run(pictures)
    assert untouched.rows("00000")[TORN_ROW]["status"] == "failed" and not tokenizer.shapes
    rows = run(pictures, retry_failed=True).rows("00000")
    assert rows[TORN_ROW]["codes_3"] == [99], "the torn picture could be read this time"
    assert rows[0]["codes_3"] == [0], "codes that were there are kept, not encoded again"
    assert rows[FAILED_ROW]["status"] == "failed", "its images row has no picture to this day"
    assert tokenizer.shapes == [(32, 3, 8, 8)] * 2


def test_retry_failed_changes_no_byte_where_nothing_can_be_mended(
    pictures: Artifact, tokenizer: GreyTokenizer
) -> None:
    before = all_bytes(run(pictures))
    assert all_bytes(run(pictures, retry_failed=True)) == before


def test_the_limit_is_a_prefix_of_the_whole(pictures: Artifact, tokenizer: GreyTokenizer) -> None:
    whole = run(pictures, out="whole")
    part = run(pictures, limit=8)
    # 8 rows are the 6 of shard 0 and the first 2 of shard 1.
    assert part.rows("00000") == whole.rows("00000")
    assert part.rows("00001") == whole.rows("00001")[:2]
    assert run(pictures, out="one", limit=3).shards == ("00000",)


def test_a_dry_run_counts_and_writes_nothing(
    pictures: Artifact, tokenizer: GreyTokenizer, tmp_path: Path
) -> None:
    plan = EncodePlan(pictures.path, tokenizer=tmp_path / "t", out=tmp_path / "tokens", limit=7)
    assert plan.preview() == {"rows": 7, "shards": 2, "shards_to_make": 2}
    assert not (tmp_path / "tokens").exists()


def test_tokens_are_no_pictures(pictures: Artifact, tokenizer: GreyTokenizer) -> None:
    artifact = run(pictures)
    with pytest.raises(UserError, match="holds tokens, where images are wanted"):
        EncodePlan(artifact.path, tokenizer=pictures.path, out=artifact.path.parent / "x").run()


def test_a_missing_shard_is_named(pictures: Artifact, tokenizer: GreyTokenizer) -> None:
    pictures.shard_path("00001").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of its 2 shards \(00001\)"):
        run(pictures)
    assert run(pictures, limit=ROWS).rows("00000"), "a limit that does not reach it does not mind"


@pytest.mark.parametrize("way", ["pil-bicubic", "bilinear", "bilinear-noaa"])
def test_pictures_are_resized_as_asked(tmp_path: Path, way: Resize) -> None:
    source = parts.write_pictures(tmp_path / "pictures", [["train", "train"]], size_px=20)
    tokenizer = parts.save_ta_tok(tmp_path / "ta_tok")
    out, overrides = tmp_path / "tokens", [f"resize={way}"]
    done = EncodePlan(source.path, tokenizer=tokenizer, out=out, overrides=overrides).run()
    pixels = [to_uint8(decode(blob or b"")) for _, blob in source.read_images("00000")]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    ta_tok = load_ta_tok(tokenizer)
    expected = ta_tok.encode_scales(ta_tok.sized(images, way), [Scale.FULL])[Scale.FULL]
    assert done.read("00000")["codes_1"].to_pylist() == expected.tolist()
    assert done.settings["resize"] == f"{way}, 16 px"
