"""Pictures to codes: a row in, a row out, the same bytes however often it is stopped."""

import functools
import hashlib
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from tarkit import encode
from tarkit.artifacts import picture_reader
from tarkit.artifacts.artifact import Artifact, begin_artifact
from tarkit.checkpoints.load import Resize, load_ta_tok, load_vqvae
from tarkit.encode import EncodePlan
from tarkit.errors import UserError
from tarkit.images import decode, png_bytes, squashed, to_uint8
from tarkit.vocab import Scale
from tests import parts

ROWS = 6
FAILED_ROW, TORN_ROW = 2, 4


def check_range(images: Tensor, least: int) -> None:
    """From `least` to 1, as far as they have values: on the meta device they have none."""
    assert images.dtype == torch.float32
    assert images.is_meta or least <= images.min() <= images.max() <= 1


class GreyVq(torch.nn.Module):
    """Squares of 4 px: the code of a square is its mean red, 0 to 255, and 256 for one of 255."""

    def __init__(self, num_codes: int = 257) -> None:
        super().__init__()
        self.arch = SimpleNamespace(num_codes=num_codes, downsampling=4)
        self.shapes: list[tuple[int, ...]] = []

    def encode(self, images: Tensor) -> Tensor:
        check_range(images, 0)
        self.shapes.append(tuple(images.shape))
        red = torch.nn.functional.avg_pool2d(images[:, :1], 4).flatten(1)
        levels = (red * 255).round().long()
        return torch.where((levels == 255) & (self.arch.num_codes > 256), 256, levels)


class GreyVae(torch.nn.Module):
    """Squares of 4 px: 2 latents of each, the mean red in [-1, 1] and its half, then times 10."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            encoder_block_out_channels=(8, 8, 8), latent_channels=2, scaling_factor=10.0
        )
        self.shapes: list[tuple[int, ...]] = []

    def encode(self, images: Tensor) -> SimpleNamespace:
        check_range(images, -1)
        self.shapes.append(tuple(images.shape))
        red = torch.nn.functional.avg_pool2d(images[:, :1], 4)
        return SimpleNamespace(latent=torch.cat([red, red / 2], 1))


class GreyTokenizer:
    """A grid of 4 on 8 px: the code of a cell is its mean grey, 0 to 255."""

    sha256, size_px, grid, num_codes = "c0de", 8, 4, 256

    def __init__(self) -> None:
        self.model = torch.nn.Identity()
        self.shapes: list[tuple[int, ...]] = []

    def encode_scales(self, images: Tensor, scales: Sequence[Scale]) -> dict[Scale, Tensor]:
        check_range(images, 0)
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
    grey = Image.new("RGB", (8, 8), (99, 99, 99))
    monkeypatch.setattr(picture_reader, "decode", lambda blob, max_pixels: grey)
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


# ---- codes of an image VQ


@pytest.fixture
def image_vq(monkeypatch: pytest.MonkeyPatch) -> GreyVq:
    fake = GreyVq()
    monkeypatch.setattr(encode, "load_vqvae", lambda path: fake)
    monkeypatch.setattr(encode, "model_sha256", lambda path, kind: "beef")
    return fake


def run_vq(pictures: Artifact, out: str = "tokens", size_px: int = 12, **known: Any) -> Artifact:
    overrides = [f"vq_size_px={size_px}", *known.pop("overrides", ())]
    return run(pictures, out, vqvae=pictures.path.parent / "tok", overrides=overrides, **known)


def test_codes_of_the_image_vq_stand_beside_those_of_every_scale(
    pictures: Artifact, tokenizer: GreyTokenizer, image_vq: GreyVq
) -> None:
    plain, artifact = run(pictures, out="plain"), run_vq(pictures)
    rows = artifact.rows("00001")
    # Picture 3 of shard 1 is grey 13; 12 px are 3 x 3 squares of 4 px.
    assert rows[3]["vq_codes"] == [13] * 9
    assert rows[FAILED_ROW]["vq_codes"] is None and rows[TORN_ROW]["vq_codes"] is None
    assert image_vq.shapes == [(32, 3, 12, 12)] * 2, "one pass a shard, as the tokenizer's"
    for name in artifact.shards:
        assert artifact.read(name).drop(["vq_codes"]).equals(plain.read(name))


def test_what_decides_the_image_vqs_codes_is_in_manifest_and_shards(
    pictures: Artifact, tokenizer: GreyTokenizer, image_vq: GreyVq
) -> None:
    artifact = run_vq(pictures)
    expected = {
        "vqvae_sha256": "beef",
        "vq_codebook_size": 257,
        "vq_side": 3,
        "vq_size_px": 12,
    }
    assert {key: artifact.settings[key] for key in expected} == expected
    assert set(artifact.parents) == {"images", "tokenizer", "vqvae"}
    metadata = artifact.read("00000").schema.metadata
    shown = {key: metadata[f"tarkit.{key}".encode()].decode() for key in expected}
    assert shown == {key: str(value) for key, value in expected.items()}


@pytest.mark.parametrize(
    ("num_codes", "width"), [(256, pa.uint8()), (257, pa.uint16()), (65_537, pa.uint32())]
)
def test_image_vq_codes_are_as_wide_as_the_codebook_needs(
    pictures: Artifact,
    tokenizer: GreyTokenizer,
    image_vq: GreyVq,
    num_codes: int,
    width: pa.DataType,
) -> None:
    image_vq.arch.num_codes = num_codes
    table = run_vq(pictures).read("00000")
    assert table.schema.field("vq_codes").type == pa.list_(width, 9)
    image_vq.arch.num_codes = 2  # fewer than the greys
    with pytest.raises(ValueError, match="vq_codes has the code 5 of a codebook of 2"):
        run_vq(pictures, out="other")


def test_pictures_that_are_enlarged_for_the_image_vq_are_counted(
    pictures: Artifact,
    tokenizer: GreyTokenizer,
    image_vq: GreyVq,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Pictures are 24 x 16, and four of each of two shards can be read.
    run_vq(pictures, out="small", size_px=16)
    assert "enlarged" not in capsys.readouterr().err
    run_vq(pictures, out="large", size_px=20)
    said = "8 pictures are smaller than vq_size_px = 20 and were enlarged"
    assert said in capsys.readouterr().err


def test_without_an_image_vq_the_artifact_names_none(
    pictures: Artifact, tokenizer: GreyTokenizer
) -> None:
    artifact = run(pictures)
    text = (artifact.path / "manifest.json").read_text()
    assert "vq" not in text and "square" not in text
    names = [key.decode() for key in artifact.read("00000").schema.metadata]
    assert not [name for name in names if "vq" in name]


def test_one_square_of_the_picture_feeds_both_models(
    tmp_path: Path, tokenizer: GreyTokenizer, image_vq: GreyVq
) -> None:
    # 24 x 8: black left and right of a white square in the middle.
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 255
    source = begin_artifact(tmp_path / "pictures", "images", settings={}, shards=["00000"])
    row = dict.fromkeys(source.schema.names) | {"key": "0", "role": "target", "status": "ok"}
    source.write_pictures("00000", [(row, ("png", png_bytes(pixels)))])
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok/config.json").write_text("{}")
    cropped = run_vq(source, out="cropped", overrides=["square=crop"])
    squashed = run_vq(source, out="squashed")
    white = cropped.rows("00000")[0]
    assert set(white["codes_1"]) == {255} and set(white["vq_codes"]) == {256}
    whole = squashed.rows("00000")[0]
    assert min(whole["codes_1"]) == 0 and min(whole["vq_codes"]) < 10
    assert cropped.settings["resize"] == "pil-bicubic, 8 px, the middle square"


def test_shards_and_rows_that_are_made_again_have_the_same_codes_of_the_image_vq(
    pictures: Artifact,
    tokenizer: GreyTokenizer,
    image_vq: GreyVq,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = all_bytes(run_vq(pictures, out="whole"))
    tokens = run_vq(pictures)
    tokens.shard_path("00001").unlink()
    assert all_bytes(run_vq(pictures)) == whole
    grey = Image.new("RGB", (8, 8), (99, 99, 99))
    monkeypatch.setattr(picture_reader, "decode", lambda blob, max_pixels: grey)
    rows = run_vq(pictures, retry_failed=True).rows("00000")
    assert rows[TORN_ROW]["vq_codes"] == [99] * 9 and rows[5]["vq_codes"] == [5] * 9


@pytest.mark.parametrize(
    ("overrides", "named", "message", "hint"),
    [
        (["vq_size_px=12"], False, "and there is no --vqvae", "name the image VQ with --vqvae"),
        ([], True, "needs vq_size_px", "--set vq_size_px=256"),
        (["vq_size_px=14"], True, "vq_size_px = 14 does not divide by 4", "--set vq_size_px=16"),
    ],
)
def test_a_size_without_an_image_vq_and_the_reverse_are_refused(
    pictures: Artifact,
    tokenizer: GreyTokenizer,
    image_vq: GreyVq,
    overrides: list[str],
    named: bool,
    message: str,
    hint: str,
) -> None:
    vqvae = pictures.path.parent / "tok" if named else None
    with pytest.raises(UserError, match=message) as error:
        run(pictures, vqvae=vqvae, overrides=overrides)
    assert hint in str(error.value.hint)
    assert not (pictures.path.parent / "tokens").exists()


def test_the_published_image_vq_is_named_by_the_sha256_of_its_file(tmp_path: Path) -> None:
    source = parts.write_pictures(tmp_path / "pictures", [["train"]])
    file = Path(__file__).parent / "goldens/vq_tiny.pt"
    plan = EncodePlan(
        source.path,
        tokenizer=parts.save_ta_tok(tmp_path / "ta_tok"),
        vqvae=file,
        out=tmp_path / "tokens",
        overrides=["vq_size_px=32"],
    )
    done = plan.run()
    assert done.settings["vqvae_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    (blob,) = [blob for _, blob in source.read_images("00000")]
    resized = decode(blob or b"").resize((32, 32), Image.Resampling.BICUBIC)
    images = torch.from_numpy(to_uint8(resized)).permute(2, 0, 1)[None].float() / 255
    assert done.read("00000")["vq_codes"].to_pylist() == load_vqvae(file).encode(images).tolist()


# ---- latents of a SANA


@pytest.fixture
def vae(monkeypatch: pytest.MonkeyPatch) -> GreyVae:
    fake = GreyVae()
    monkeypatch.setattr(encode, "find_sana", lambda named: Path(named))
    monkeypatch.setattr(encode, "load_vae", lambda folder, hint: fake)
    monkeypatch.setattr(encode, "vae_sha256", lambda folder: "feed")
    return fake


def run_vae(pictures: Artifact, out: str = "tokens", **known: Any) -> Artifact:
    overrides = ["latent_size_px=12", *known.pop("overrides", ())]
    return run(pictures, out, sana=str(pictures.path.parent / "tok"), overrides=overrides, **known)


def test_latents_stand_beside_the_codes_in_sanas_scale(
    pictures: Artifact, tokenizer: GreyTokenizer, vae: GreyVae
) -> None:
    plain, artifact = run(pictures, out="plain"), run_vae(pictures)
    rows = artifact.rows("00001")
    # Picture 3 of shard 1 is grey 13; 12 px are 3 x 3 squares of 4 px, two latents each.
    red = np.float32(10) * (np.float32(13) / np.float32(127.5) - 1)
    np.testing.assert_allclose(rows[3]["latents"], [red] * 9 + [red / 2] * 9, rtol=1e-6)
    assert rows[FAILED_ROW]["latents"] is None and rows[TORN_ROW]["latents"] is None
    assert vae.shapes == [(32, 3, 12, 12)] * 2, "one pass a shard, as the tokenizer's"
    for name in artifact.shards:
        assert artifact.read(name).drop(["latents"]).equals(plain.read(name))
    expected = {"vae_sha256": "feed", "latent_channels": 2, "latent_side": 3, "latent_size_px": 12}
    assert {key: artifact.settings[key] for key in expected} == expected
    assert not plain.settings.keys() & expected.keys()
    assert set(artifact.parents) == {"images", "tokenizer", "sana"}
    # The same command again makes nothing new.
    before = all_bytes(artifact)
    assert all_bytes(run_vae(pictures)) == before and len(vae.shapes) == 2


def test_codes_of_an_image_vq_and_latents_can_both_be_stored(
    pictures: Artifact, tokenizer: GreyTokenizer, image_vq: GreyVq, vae: GreyVae
) -> None:
    folder = pictures.path.parent / "tok"
    both = ["vq_size_px=8", "latent_size_px=12"]
    rows = run(pictures, vqvae=folder, sana=str(folder), overrides=both).rows("00001")
    assert rows[3]["vq_codes"] == [13] * 4 and len(rows[3]["latents"]) == 18


@pytest.mark.parametrize(
    ("overrides", "named", "message", "hint"),
    [
        (["latent_size_px=12"], False, "and there is no --sana", "name the SANA with --sana"),
        ([], True, "needs latent_size_px", "--set latent_size_px=512"),
        (["latent_size_px=14"], True, "= 14 does not divide by 4", "--set latent_size_px=16"),
    ],
)
def test_a_size_without_a_sana_and_the_reverse_are_refused(
    pictures: Artifact,
    tokenizer: GreyTokenizer,
    vae: GreyVae,
    overrides: list[str],
    named: bool,
    message: str,
    hint: str,
) -> None:
    sana = str(pictures.path.parent / "tok") if named else None
    with pytest.raises(UserError, match=message) as error:
        run(pictures, sana=sana, overrides=overrides)
    assert hint in error.value.hint


# ---- reading ahead, memory, precision


@pytest.fixture
def real(tmp_path: Path) -> EncodePlan:
    """A plan over two shards of pictures with a real tokenizer; some pictures cannot be read."""
    (tmp_path / "tok").mkdir()
    source = begin_artifact(tmp_path / "pictures", "images", settings={}, shards=["00000", "00001"])
    for shard, name in enumerate(source.shards):
        write_pictures(source, name, shard)
    tokenizer = parts.save_ta_tok(tmp_path / "ta_tok")
    return EncodePlan(source.path, tokenizer=tokenizer, out=tmp_path / "tokens")


def made_by(plan: EncodePlan, out: str, *overrides: str) -> Artifact:
    return replace(plan, out=plan.out.with_name(out), overrides=overrides).run()


@pytest.mark.parametrize("way", ["pil-bicubic", "bilinear"])
def test_workers_and_threads_give_the_same_bytes(real: EncodePlan, way: str) -> None:
    settings = [f"resize={way}", "batch_size=3"]
    here = made_by(real, "here", *settings, "num_workers=0")
    for num_workers in (1, 2):
        there = made_by(real, f"by_{num_workers}", *settings, f"num_workers={num_workers}")
        assert all_bytes(there) == all_bytes(here)
    errors = {row["error"] for row in here.rows("00000") if row["error"]}
    assert len(errors) == 2 and any("truncated picture" in error for error in errors)
    assert not multiprocessing.active_children()


def test_a_tar_that_becomes_shorter_is_an_error_of_the_command(real: EncodePlan) -> None:
    places = real.source.picture_places("00000")
    last = next(place for place in reversed(places) if place)
    os.truncate(last.tar, last.offset + 5)
    sizing = functools.partial(squashed, [8])
    with (
        picture_reader.picture_reader(sizing, max_pixels=10**6, num_workers=1) as read,
        pytest.raises(UserError, match="has become shorter: it ends within the picture at byte"),
    ):
        list(read([last]))


def test_a_batch_is_halved_until_it_fits_into_the_memory(real: EncodePlan) -> None:
    def size_of(gigabytes: float) -> int:
        settings = ["batch_size=24", f"memory_gb={gigabytes}"]
        return replace(real, overrides=settings).batch_size

    assert size_of(1) == 24
    sizes, gigabytes = [24], 1.0
    while sizes[-1] > 1:
        gigabytes /= 1.25
        sizes.append(size_of(gigabytes))
    # 24, then its halves rounded down, as the memory gets less.
    assert sizes == sorted(sizes, reverse=True) and set(sizes) == {24, 12, 6, 3, 1}
    with pytest.raises(UserError, match="to encode one picture takes [0-9.e-]+ GB of memory"):
        size_of(1e-6)
    few = made_by(real, "few", "batch_size=24", f"memory_gb={gigabytes}")
    assert few.settings["batch_size"] == 1


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_recorded_and_changes_few_codes(real: EncodePlan, precision: str) -> None:
    exact = made_by(real, "exact")
    assert exact.settings["dtype"] == "float32" and "compile" not in exact.settings
    half = made_by(real, precision, f"precision={precision}")
    assert half.settings["dtype"] == precision
    codes = [np.array(a.read("00001")["codes_1"].drop_null().to_pylist()) for a in (exact, half)]
    assert codes[0].shape == codes[1].shape and (codes[0] == codes[1]).mean() > 0.5


def test_features_that_are_not_finite_give_no_codes(real: EncodePlan) -> None:
    real.ta_tok.model.encoder.embeddings.patch_embedding.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="features that are not finite") as error:
        real.run()
    assert "precision" in error.value.hint
    assert not list(real.out.glob("*.parquet"))


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_same_codes_but_for_few(real: EncodePlan) -> None:
    plain, compiled = made_by(real, "plain"), made_by(real, "compiled", "compile=true")
    assert compiled.settings["compile"] is True
    codes = [
        np.array(a.read("00001")["codes_1"].drop_null().to_pylist()) for a in (plain, compiled)
    ]
    assert (codes[0] == codes[1]).mean() > 0.95
