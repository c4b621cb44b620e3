import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tarkit.artifacts.artifact import Artifact, open_artifact
from tarkit.artifacts.prompt_files import read_prompts
from tarkit.curate.ingest import IngestPlan
from tarkit.curate.prompts import PromptsPlan
from tarkit.curate.score import ScorePlan
from tarkit.errors import UserError
from tarkit.images import ImageError, decode, plain_bytes, png_bytes
from tests import parts
from tests.curate.sources.shards import tar_bytes

ROOT = Path(__file__).resolve().parents[2]


def encoded(
    kind: str, size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: Any
) -> bytes:
    rng = np.random.default_rng([len(kind), *size])
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def sixteen_bit_png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((30, 40), 32_896, dtype=np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def rotated_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("JPEG", exif=exif)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """The folder of every kind of file that a user's folder has."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    jpeg = encoded("JPEG")
    files = {
        "a.jpg": jpeg,
        "a.txt": b"a photo of snow",
        "b.png": encoded("PNG"),
        "c.webp": encoded("WEBP"),
        "d_cmyk.jpg": encoded("JPEG", mode="CMYK"),
        "e_16bit.png": sixteen_bit_png(),
        "f_rotated.jpg": rotated_jpeg(),
        "g_truncated.jpg": jpeg[: len(jpeg) // 2],
        "h_text.png": b"this is no picture",
        "i.bmp": encoded("BMP"),
        "j_small.png": encoded("PNG", size=(15, 40)),
        "k_named_wrongly.jpg": encoded("PNG", size=(20, 20)),
        "l_large.png": encoded("PNG", size=(60, 60)),
    }
    for name, blob in files.items():
        (folder / name).write_bytes(blob)
    return folder


def ingested(source: Path, out: Path, *settings: str, limit: int | None = None) -> Artifact:
    """In this process: starting others takes a second."""
    return IngestPlan(source, out=out, overrides=[*settings, "num_workers=1"], limit=limit).run()


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    return [row for name in artifact.shards for row in artifact.rows(name)]


def fingerprints(path: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.iterdir())
    }


def test_ordinary_photographs_go_in_and_bad_ones_stay_as_rows_with_reasons(
    photographs: Path, tmp_path: Path
) -> None:
    settings = ("shard_size=5", "max_pixels=3599", "licence=CC0")
    artifact = ingested(photographs, tmp_path / "out", *settings)
    rows = {row["source"]: row for row in rows_of(artifact)}
    # 12 pictures in shards of 5: 5 + 5 + 2.
    assert artifact.counts == {"00000": 5, "00001": 5, "00002": 2}
    failed = {name: row["error"] for name, row in rows.items() if row["status"] == "failed"}
    assert failed.keys() == {"g_truncated.jpg", "h_text.png", "j_small.png", "l_large.png"}
    assert failed["g_truncated.jpg"].startswith("truncated picture")
    assert failed["h_text.png"].startswith("not a picture")
    assert failed["j_small.png"] == "a side is below 16 px: 15 x 40"
    assert failed["l_large.png"] == "60 x 60 = 3600 pixels, more than 3599"
    assert parts.status_counts(artifact) == {"ok": 8, "failed": 4}
    assert (rows["a.jpg"]["width"], rows["a.jpg"]["height"]) == (40, 30)
    assert (rows["f_rotated.jpg"]["width"], rows["f_rotated.jpg"]["height"]) == (30, 40)
    assert (rows["a.jpg"]["prompt"], rows["b.png"]["prompt"]) == ("a photo of snow", None)
    assert {row["licence"] for row in rows.values()} == {"CC0"}
    assert rows["a.jpg"]["key"] == "00000-000000" and rows["h_text.png"]["key"] == "00001-000002"


def test_safe_formats_keep_their_bytes_and_others_become_png(
    photographs: Path, tmp_path: Path
) -> None:
    artifact = IngestPlan(photographs, out=tmp_path / "out").run()
    for name in artifact.shards:
        for row, blob in artifact.read_images(name):
            if blob is None:
                continue
            original = (photographs / row["source"]).read_bytes()
            assert (blob == original) == (row["source"] != "i.bmp")
            pixels = np.asarray(decode(blob))
            assert pixels.shape == (row["height"], row["width"], 3)
            assert (pixels == np.asarray(decode(original))).all()
        with tarfile.open(artifact.tar_path(name)) as tar:
            suffixes = [Path(member.name).suffix for member in tar][::2]
    # a b c d e f, i as png, k by its bytes and not by its name, l.
    assert suffixes == ".jpg .png .webp .jpg .png .jpg .png .png .png".split()


def test_captions_and_questions_reach_their_rows(photographs: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions.csv"
    captions.write_text("image,caption\na.jpg,more snow\nb.png,noise\ngone.png,nothing\n")
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"image": "a.jpg", "question": "Is it snow?", "answer": "yes"}\n')
    artifact = IngestPlan(
        photographs, out=tmp_path / "out", captions=captions, questions=questions
    ).run()
    rows = {row["source"]: row for row in rows_of(artifact)}
    assert rows["a.jpg"]["prompt"] == "a photo of snow"
    assert rows["a.jpg"]["captions"] == ["more snow"]
    assert rows["a.jpg"]["qa"] == [{"question": "Is it snow?", "answer": "yes"}]
    assert (rows["b.png"]["prompt"], rows["b.png"]["captions"]) == ("noise", [])
    assert rows["gone.png"]["error"] == "named in captions.csv line 4, but it is not in the source"


def test_a_run_that_was_cut_short_goes_on_to_the_same_bytes(
    photographs: Path, tmp_path: Path
) -> None:
    whole = ingested(photographs, tmp_path / "whole", "shard_size=3")
    part = ingested(photographs, tmp_path / "part", "shard_size=3")
    part.shard_path("00002").unlink()
    kept = part.shard_path("00001").stat().st_mtime_ns
    ingested(photographs, tmp_path / "part", "shard_size=3")
    assert fingerprints(part.path) == fingerprints(whole.path)
    assert part.shard_path("00001").stat().st_mtime_ns == kept  # what was there is left alone


def test_two_processes_or_two_ranks_make_the_whole_together(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ingested(photographs, tmp_path / "whole", "shard_size=3")
    overrides = ["shard_size=3", "num_workers=2"]
    two = IngestPlan(photographs, out=tmp_path / "two", overrides=overrides).run()
    assert fingerprints(two.path) == fingerprints(whole.path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, missing in (("1", ["00000", "00002"]), ("0", [])):
        monkeypatch.setenv("RANK", rank)
        part = ingested(photographs, tmp_path / "part", "shard_size=3")
        assert part.missing() == missing
    assert fingerprints(part.path) == fingerprints(whole.path)


def test_a_changed_source_is_refused_instead_of_mixed_in(photographs: Path, tmp_path: Path) -> None:
    IngestPlan(photographs, out=tmp_path / "out").run()
    (photographs / "a2.png").write_bytes(encoded("PNG"))
    with pytest.raises(UserError, match=r"listing_sha256: .*num_pictures: 12 there, 13 now"):
        IngestPlan(photographs, out=tmp_path / "out").run()


def test_a_limited_run_is_the_beginning_of_the_whole_one(photographs: Path, tmp_path: Path) -> None:
    whole = ingested(photographs, tmp_path / "whole", "shard_size=4")
    part = ingested(photographs, tmp_path / "part", "shard_size=4", limit=6)
    assert rows_of(part) == rows_of(whole)[:6]
    assert fingerprints(part.path)["00000.tar"] == fingerprints(whole.path)["00000.tar"]


def test_a_preview_counts_and_writes_nothing(photographs: Path, tmp_path: Path) -> None:
    (photographs / "link.png").symlink_to("/etc/passwd")
    counts = IngestPlan(photographs, out=tmp_path / "out", overrides=["shard_size=6"]).preview()
    assert counts == {
        "pictures": 13,
        "with_captions": 1,
        "with_questions": 0,
        "known_unusable": 1,
        "shards": 3,
        "shards_to_make": 3,
    }
    assert not (tmp_path / "out").exists()


def test_an_artifact_of_tars_can_be_taken_in_again(photographs: Path, tmp_path: Path) -> None:
    first = IngestPlan(photographs, out=tmp_path / "first", limit=3).run()
    again = IngestPlan(first.tar_path("00000"), out=tmp_path / "again").run()
    pictures = [blob for _, blob in first.read_images("00000")]
    assert [blob for _, blob in again.read_images("00000")] == pictures
    assert rows_of(again)[0]["prompt"] == "a photo of snow"  # from KEY.json


def img2dataset_folder(folder: Path, num_pictures: int = 3) -> Path:
    """A folder as img2dataset 1.47 leaves it: one tar, the list of its URLs, its statistics."""
    folder.mkdir()
    members = []
    rows = []
    for number in range(num_pictures):
        key = f"{number:09d}"
        caption = f"number {number}"
        facts: dict[str, Any] = {"url": f"https://a.example/{number}.jpg", "caption": caption}
        facts |= {"key": key, "status": "success", "error_message": None}
        facts |= {"width": 40, "height": 30, "original_width": 4000, "original_height": 3000}
        rows.append(facts)
        members += [(f"{key}.jpg", encoded("JPEG")), (f"{key}.json", json.dumps(facts).encode())]
        members.append((f"{key}.txt", caption.encode()))
    (folder / "00000.tar").write_bytes(tar_bytes(*members))
    lost = rows[0] | {"url": "https://a.example/lost.jpg", "status": "failed_to_download"}
    pq.write_table(pa.Table.from_pylist([*rows, lost]), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    return folder


def test_a_folder_of_img2dataset_keeps_urls_and_original_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = img2dataset_folder(tmp_path / "web")
    artifact = ingested(source, tmp_path / "out", "shard_size=2")
    assert artifact.settings["origin"] is True
    rows = rows_of(artifact)
    columns = ("source", "url", "width", "original_width", "original_height", "prompt", "captions")
    assert [tuple(row[column] for column in columns) for row in rows] == [
        (f"00000.tar/{n:09d}.jpg", f"https://a.example/{n}.jpg", 40, 4000, 3000, f"number {n}", [])
        for n in range(3)
    ]
    assert "1 .parquet files are lists of the URLs of the tars" in capsys.readouterr().err
    # Its tar holds the same rows, and an artifact made from it keeps them.
    again = ingested(artifact.tar_path("00000"), tmp_path / "again")
    assert [row["url"] for row in rows_of(again)] == [row["url"] for row in rows[:2]]
    # The rows pass through another verb as those of any images.
    scores = ScorePlan(artifact.path, scorer="pixels", out=tmp_path / "scores").run()
    assert parts.status_counts(scores) == {"ok": 3, "failed": 0}


def test_a_source_without_origins_has_the_columns_it_always_had(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    odd = json.dumps({"url": ["a", "list"], "original_width": "4000", "original_height": 2**40})
    members = [("1.png", encoded("PNG")), ("1.json", odd.encode())]
    (tmp_path / "in" / "x.tar").write_bytes(tar_bytes(*members))
    artifact = ingested(tmp_path / "in", tmp_path / "out")
    (row,) = rows_of(artifact)
    assert row["status"] == "ok" and "url" not in row and "origin" not in artifact.settings


def test_a_source_of_any_length_is_listed_in_the_same_memory(tmp_path: Path) -> None:
    peaks = []
    for num_pictures in (300, 2000):
        members = [(f"{n:09d}.jpg", b"any") for n in range(num_pictures)]
        (tmp_path / "x.tar").write_bytes(tar_bytes(*members))
        plan = IngestPlan(tmp_path / "x.tar", out=tmp_path / "out")
        tracemalloc.start()
        assert plan.preview()["pictures"] == num_pictures
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        items = plan.listing.items
        assert [item.name for item in items[num_pictures - 1 :]] == [
            f"x.tar/{num_pictures - 1:09d}.jpg"
        ]
        assert [items[number].name for number in (0, 255, 256, -1)] == [
            f"x.tar/{number:09d}.jpg" for number in (0, 255, 256, num_pictures - 1)
        ]
    # An item takes 800 bytes and more (a tar keeps 130 of its key): 1700 more would be 1.4 MB more.
    assert peaks[1] - peaks[0] < 700_000, peaks


def test_the_listing_leaves_no_file_behind(photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    script = (
        "import sys; from pathlib import Path; from tarkit.curate.ingest import IngestPlan\n"
        "import os\n"
        "plan = IngestPlan(Path(sys.argv[1]), out=Path(sys.argv[2])); plan.preview()\n"
        "print(len(os.listdir(os.environ['TMPDIR'])))"
    )
    words = [sys.executable, "-c", script, str(photographs), str(tmp_path / "out")]
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1" and list(folder.iterdir()) == []


def test_hostile_sources_end_in_failed_rows(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "out.png").symlink_to("/etc/passwd")
    (folder / "good.png").write_bytes(encoded("PNG"))
    artifact = IngestPlan(folder, out=tmp_path / "out").run()
    assert {row["source"]: row["error"] for row in rows_of(artifact)} == {
        "good.png": None,
        "out.png": "a link that leaves the folder is not followed",
        "pipe.png": "pipe.png is not a regular file",
    }
    assert open_artifact(artifact.path, "images") == artifact


def test_pairs_and_triples_of_ones_own_say_group_role_and_template(
    photographs: Path, tmp_path: Path
) -> None:
    lines = [
        "image,caption,group,role,template",
        "a.jpg,snow at night,winter,,<image> at night",
        "b.png,snow,winter,reference,",
        "c.webp,snow,winter,brother,",
    ]
    (tmp_path / "words.csv").write_text("\n".join(lines))
    artifact = IngestPlan(
        photographs,
        out=tmp_path / "out",
        captions=tmp_path / "words.csv",
        overrides=["num_workers=1"],
    ).run()
    rows = {row["source"]: row for row in rows_of(artifact)}
    named = ("group", "role", "template")
    assert [rows["a.jpg"][name] for name in named] == ["winter", "target", "<image> at night"]
    assert [rows["b.png"][name] for name in named] == ["winter", "reference", None]
    assert rows["i.bmp"]["group"] == rows["i.bmp"]["key"], "the others are groups of their own"
    assert rows["c.webp"]["status"] == "failed"
    assert "role 'brother': expected one of target, similar, reference" in rows["c.webp"]["error"]


def test_every_reader_keeps_the_limit_of_pixels_with_which_a_picture_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    Image.new("RGB", (40, 20)).save(source / "a.png")
    artifact = ingested(source, tmp_path / "out", "max_pixels=800")
    # In place of a picture of more than 64 Mpx.
    monkeypatch.setattr(decode, "__kwdefaults__", {"max_pixels": 799, "min_side_px": 1})
    ((row, blob),) = artifact.read_images("00000")
    assert row["status"] == "ok" and blob is not None
    with pytest.raises(ImageError, match="40 x 20 = 800 pixels, more than 799"):
        decode(blob)
    scores = ScorePlan(artifact.path, out=tmp_path / "scores", scorer="pixels").run()
    assert [row["error"] for row in scores.rows("00000")] == [None]
    assert plain_bytes(blob, max_pixels=artifact.max_pixels) == ("png", blob)


def test_a_text_of_parquet_that_is_not_utf8_fails_its_row_alone(tmp_path: Path) -> None:
    blob = png_bytes(np.zeros((16, 16, 3), np.uint8))
    text = pa.array([b"a ring", b"\xf2\xff", b"a heart"]).cast(pa.binary())
    bad = pa.Array.from_buffers(pa.string(), 3, text.buffers())
    pq.write_table(pa.table({"image": [blob] * 3, "text": bad}), tmp_path / "a.parquet")
    artifact = IngestPlan(tmp_path / "a.parquet", out=tmp_path / "out").run()
    rows = artifact.rows("00000")
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert "utf-8" in rows[1]["error"] and rows[2]["prompt"] == "a heart"
    pq.write_table(pa.table({"prompt": bad}), tmp_path / "p.parquet")
    prompts = PromptsPlan(tmp_path / "p.parquet", out=tmp_path / "prompts").run()
    assert [row["status"] for row in prompts.rows("00000")] == ["ok", "failed", "ok"]


def test_a_caption_in_utf16_with_its_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for name, encoding in (("a", "utf-16"), ("b", "cp1252")):
        (tmp_path / f"raw/{name}.png").write_bytes(png_bytes(np.zeros((16, 16, 3), np.uint8)))
        (tmp_path / f"raw/{name}.txt").write_bytes("ein Käfer".encode(encoding))
    one, other = IngestPlan(tmp_path / "raw", out=tmp_path / "out").run().rows("00000")
    assert one["prompt"] == "ein Käfer"
    assert other["error"] == "b.txt is not UTF-8 text: invalid continuation byte"


def test_the_source_is_no_place_for_the_result(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.png").write_bytes(png_bytes(np.zeros((16, 16, 3), np.uint8)))
    with pytest.raises(UserError, match="is the source"):
        IngestPlan(tmp_path / "raw", out=tmp_path / "raw").run()
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["a.png"]
    os.mkfifo(tmp_path / "pipe")
    for plan in (IngestPlan, PromptsPlan):
        with pytest.raises(UserError, match="it is a pipe or a device"):
            plan(tmp_path / "pipe", out=tmp_path / "out").run()


def test_a_source_without_rows_is_refused_before_anything_is_begun(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="there is nothing to make .* of: the input has no rows"):
        ingested(tmp_path / "x.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_third_picture_is_held_out_of_trainings(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(7):
        (folder / f"{number}.png").write_bytes(encoded("PNG"))
        (folder / f"{number}.txt").write_text(f"picture {number}")
    overrides = ["held_out_every=3", "shard_size=2"]
    made = IngestPlan(folder, out=tmp_path / "out", overrides=overrides).run()
    rows = [row["split"] for name in made.shards for row in made.rows(name)]
    assert rows == ["train", "train", "test", "train", "train", "test", "train"]
    assert read_prompts(made.path, split="test") == ["picture 2", "picture 5"]
    assert len(read_prompts(made.path)) == 7
    with pytest.raises(UserError, match="holds no picture of the split 'valid' with a caption"):
        read_prompts(made.path, split="valid")
    (tmp_path / "prompts.txt").write_text("a ring\n")
    with pytest.raises(UserError, match="have a split, and .*prompts.txt holds none"):
        read_prompts(tmp_path / "prompts.txt", split="test")
    whole = IngestPlan(folder, out=tmp_path / "whole").run()
    assert [row["split"] for name in whole.shards for row in whole.rows(name)] == [None] * 7
    assert "held_out_every" not in whole.settings
