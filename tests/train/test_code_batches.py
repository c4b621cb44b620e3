"""Codes from tokens artifacts: which rows are used, and which artifacts are refused."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tarkit.artifacts.artifact import Artifact, begin_artifact
from tarkit.checkpoints.load import load_vqvae
from tarkit.errors import UserError
from tarkit.train.batch_workers import without_networks
from tarkit.train.code_batches import StoredCodes, require_codes
from tarkit.vocab import Scale
from tests import parts

SETTINGS: dict[str, Any] = {
    "tokenizer_sha256": "a" * 64,
    "codebook_size": 16,
    "sides": {"1": 2, "2": 1},
    "resize": "pil-bicubic, 16 px",
    "dtype": "float32",
    "vqvae_sha256": "b" * 64,
    "vq_codebook_size": 12,
    "vq_side": 2,
    "vq_size_px": 16,
}
FITTING: dict[str, Any] = {
    "scales": [Scale.FULL, Scale.HALF],
    "num_codes": 4,
    "tokenizer_sha256": "a" * 64,
    "vqvae_sha256": "b" * 64,
}


def write_tokens(out: Path, shards: list[list[str | None]], **changes: Any) -> Artifact:
    """One row for each split: the codes of row r of shard s are r, and s mod 12.

    "failed" is a failed row.
    """
    settings = {k: v for k, v in (SETTINGS | changes).items() if v is not None}
    names = [f"{i:05d}" for i in range(len(shards))]
    artifact = begin_artifact(out, "tokens", settings=settings, shards=names)
    for number, (name, splits) in enumerate(zip(names, shards, strict=True)):
        rows: list[dict[str, Any]] = []
        for place, split in enumerate(splits):
            key = f"{number}-{place}"
            if split == "failed":
                rows.append(artifact.failed_row(key, "torn"))
                continue
            blank = dict.fromkeys(artifact.schema.names)
            codes = {
                "codes_1": [place] * 4,
                "codes_2": [place],
                "vq_codes": [number % 12, place, 0, 1],
            }
            known = {n: c for n, c in codes.items() if n in blank}
            about = {"key": key, "split": split, "role": "target", "status": "ok"}
            rows.append(blank | about | known)
        artifact.write(name, rows)
    return artifact


@pytest.fixture(scope="module")
def vqvae(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_vqvae(parts.save_vqvae(tmp_path_factory.mktemp("vqvae")))


def test_failed_rows_and_other_splits_are_left_out_and_failures_counted(
    tmp_path: Path, vqvae: Any
) -> None:
    first = write_tokens(tmp_path / "a", [["train", "failed", "test", None], ["failed", "train"]])
    second = write_tokens(tmp_path / "b", [["train"]])
    source = StoredCodes([first, second], [Scale.FULL, Scale.HALF], vqvae, seed=0)
    rows = [source.stream[i] for i in range(source.stream.total)]
    # Of a: rows 0 and 3 of shard 0, row 1 of shard 1; of b: its one row.
    assert sorted(row.key for row in rows) == ["0-0", "0-0", "0-3", "1-1"]
    a, b = str(first.path), str(second.path)
    assert sorted(row.name for row in rows) == [(a, "0-0"), (a, "0-3"), (a, "1-1"), (b, "0-0")]
    assert source.num_failed == {first.path: 2, second.path: 0}
    for row in rows:
        shard, place = map(int, row.key.split("-"))
        assert row.codes[Scale.FULL].tolist() == [place] * 4
        assert row.codes[Scale.HALF].tolist() == [place]
        assert row.codes[None].tolist() == [shard, place, 0, 1]
    codes = source.read(rows)
    assert codes[None].shape == (4, 4) and codes[Scale.HALF].shape == (4, 1)
    assert {numbers.dtype for numbers in codes.values()} == {torch.int64}


def test_a_late_step_reads_the_shards_of_its_own_rows_alone(
    tmp_path: Path, vqvae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = write_tokens(tmp_path / "a", [["train"] * 4] * 40)
    source = StoredCodes([artifact], [Scale.FULL], vqvae, seed=0)
    read: list[str] = []
    real = Artifact.read

    def spy(self: Artifact, name: str, columns: Any = None) -> pa.Table:
        read.append(name)
        return real(self, name, columns)

    monkeypatch.setattr(Artifact, "read", spy)
    # An epoch has 160 rows, so the million rows before this step are 6,250 epochs.
    rows = source.stream.batch(250_000, 4)
    assert len(rows) == 4 and len(read) == len(set(read)) <= 4
    again = StoredCodes([artifact], [Scale.FULL], vqvae, seed=0).stream.batch(250_000, 4)
    assert [row.key for row in again] == [row.key for row in rows]


def test_a_worker_process_reads_the_same_codes(tmp_path: Path, vqvae: Any) -> None:
    artifact = write_tokens(tmp_path / "a", [["train"] * 4] * 3)
    source = StoredCodes([artifact], [Scale.FULL], vqvae, seed=0)
    copy = pickle.loads(without_networks(source))
    expected, read = (one.read(one.stream.batch(5, 4)) for one in (source, copy))
    assert expected.keys() == read.keys()
    assert all(torch.equal(expected[part], read[part]) for part in expected)


def test_tokens_that_add_nothing_to_others_are_named(
    tmp_path: Path, vqvae: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = write_tokens(tmp_path / "a", [["train", "failed"]])
    second = write_tokens(tmp_path / "b", [["test"]])
    StoredCodes([first, second], [Scale.FULL], vqvae, seed=0)
    assert caplog.messages == [
        f"{first.path}: 1 failed rows are left out",
        f"{second.path} adds nothing: no row is usable (status ok, split 'train' or none)",
    ]


def test_tokens_without_a_usable_row_or_with_a_missing_shard_are_refused(
    tmp_path: Path, vqvae: Any
) -> None:
    empty = write_tokens(tmp_path / "a", [["test", "failed"]])
    with pytest.raises(UserError, match=r"no row is usable \(status ok, split 'train' or none\)"):
        StoredCodes([empty], [Scale.FULL], vqvae, seed=0)
    torn = write_tokens(tmp_path / "b", [["train"], ["train"]])
    torn.shard_path("00001").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of its 2 shards \(00001\)"):
        StoredCodes([torn], [Scale.FULL], vqvae, seed=0)


def test_pictures_of_a_sheet_are_drawn_by_the_image_vq(tmp_path: Path, vqvae: Any) -> None:
    artifact = write_tokens(tmp_path / "a", [["train"] * 3])
    source = StoredCodes([artifact], [Scale.FULL], vqvae, seed=0)
    examples = source.examples(2, torch.device("cpu"))
    codes = torch.from_numpy(source.stream[1].codes[None].astype(np.int64))[None]
    expected = (vqvae.decode(codes)[0] * 255).to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(examples.pictures[1]), expected)
    assert examples.caption == "image VQ" and len(examples.pictures) == 2


VQ_KEYS = ("vqvae_sha256", "vq_codebook_size", "vq_side", "vq_size_px")


@pytest.mark.parametrize(
    ("stored", "wanted", "message", "hint"),
    [
        (
            dict.fromkeys(VQ_KEYS),
            {},
            r"has no codes of an image VQ \(column vq_codes\)",
            "tarkit encode IMAGES --tokenizer T --vqvae V",
        ),
        (
            {},
            {"tokenizer_sha256": "c" * 64},
            "was encoded with --tokenizer aaaaaaaaaaaa, the --tokenizer given is cccccccccccc",
            "name the --tokenizer",
        ),
        (
            {},
            {"vqvae_sha256": "c" * 64},
            "was encoded with --vqvae bbbbbbbbbbbb, the --vqvae given is cccccccccccc",
            "name the --vqvae",
        ),
        (
            {},
            {"num_codes": 16},
            r"has 4 image-VQ codes a picture \(16 px\), arch.num_codes is 16",
            "--set arch.num_codes=4",
        ),
        ({}, {"scales": list(Scale)}, "has no codes of scale 3", "odds of scale 3 to 0"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(
    tmp_path: Path, stored: dict[str, Any], wanted: dict[str, Any], message: str, hint: str
) -> None:
    require_codes(write_tokens(tmp_path / "fits", [["train"]]), **FITTING)
    artifact = write_tokens(tmp_path / "a", [["train"]], **stored)
    with pytest.raises(UserError, match=message) as error:
        require_codes(artifact, **FITTING | wanted)
    assert hint in str(error.value.hint)
