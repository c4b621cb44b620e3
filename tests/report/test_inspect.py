import json
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tarkit.artifacts.artifact import Artifact, begin_artifact, shard_names
from tarkit.artifacts.commands import append_command
from tarkit.artifacts.manifest import begin_directory
from tarkit.errors import UserError
from tarkit.images import png_bytes
from tarkit.report import inspect


def row(key: str, **changes: Any) -> dict[str, Any]:
    names = ["parent_key", "template", "scene", "seed", "licence", "error"]
    known: dict[str, Any] = {
        "key": key,
        "group": key,
        "role": "target",
        "split": "train",
        "source": f"{key}.png",
        "width": 8,
        "height": 8,
        "prompt": "a red square",
        "captions": ["one", "two"],
        "qa": [],
        "status": "ok",
    }
    return dict.fromkeys(names) | known | changes


@pytest.fixture
def pictures(tmp_path: Path) -> Artifact:
    """Shard 0 has two good pictures and two that failed for one reason; shard 1 is to be made."""
    artifact = begin_artifact(
        tmp_path / "in", "images", settings={"seed": 7}, shards=shard_names(2)
    )
    blob = ("png", png_bytes(Image.new("RGB", (8, 8), "red")))
    reason = "truncated picture: image file is truncated ({} bytes not processed)"
    rows = [
        row("0"),
        row("1", split="test", role="similar", prompt=None, captions=[]),
        artifact.failed_row("2", reason.format(12), split="train"),
        artifact.failed_row("3", reason.format(7), split="train"),
    ]
    artifact.write_pictures("00000", zip(rows, [blob, blob, None, None], strict=True))
    return artifact


def tokens(out: Path, images: Artifact) -> Artifact:
    settings = {
        "tokenizer_sha256": "00",
        "codebook_size": 8,
        "sides": {"1": 2, "3": 1},
        "resize": "squash",
        "dtype": "float32",
    }
    artifact = begin_artifact(
        out, "tokens", settings=settings, shards=["00000"], parents={"images": images}
    )
    about = ["parent_key", "group", "split", "prompt", "captions", "qa", "template", "scene"]
    common = dict.fromkeys(about) | {"role": "target", "status": "ok", "error": None}
    rows = [
        common | {"key": "0", "codes_1": [0, 1, 2, 3], "codes_3": [5]},
        common | {"key": "1", "codes_1": [0, 1, 2, 3], "codes_3": [5]},
        artifact.failed_row("2", "damaged", role="target"),
    ]
    artifact.write("00000", rows)
    return artifact


def test_counts_failures_and_texts_of_pictures(pictures: Artifact) -> None:
    facts = inspect.describe(pictures.path)
    assert facts["kind"] == "images"
    assert facts["shards"] == {"planned": 2, "made": 1, "missing": ["00001"]}
    assert facts["rows"] == 4
    assert facts["counts"]["status"] == {"failed": 2, "ok": 2}
    assert facts["counts"]["split"] == {"test": 1, "train": 3}
    # The two reasons differ by a number only, and count as one.
    assert list(facts["failures"].values()) == [2]
    reason = "truncated picture: image file is truncated (12 bytes not processed)"
    assert facts["failed"][0] == f"2: {reason}" and len(facts["failed"]) == 2
    assert facts["sizes"] == {"8 x 8": 2}
    assert facts["texts"] == {"prompt": 1, "captions": 2, "questions": 0, "template": 0}
    assert facts["settings"] == {"seed": 7}


def test_the_contact_sheet_shows_the_good_pictures_and_is_next_to_the_folder(
    pictures: Artifact, tmp_path: Path
) -> None:
    before = sorted(pictures.path.iterdir())
    facts = inspect.run(pictures.path)
    assert facts["contact_sheet"] == str(tmp_path / "in.png")
    assert sorted(pictures.path.iterdir()) == before
    with Image.open(tmp_path / "in.png") as sheet:
        # Two cells of 160 px with margins of 6: 6 + 166 + 166 = 338.
        assert sheet.width == 338
        assert sheet.getpixel((80, 80)) == (255, 0, 0)
    assert inspect.run(pictures.path, out=tmp_path / "x.png")["contact_sheet"].endswith("x.png")
    with pytest.raises(UserError, match="cannot be written"):
        inspect.run(pictures.path, out=tmp_path / "x.png" / "y.png")


def test_codes_of_an_image_vq_are_counted_against_its_own_codebook(tmp_path: Path) -> None:
    settings = {
        "tokenizer_sha256": "00",
        "codebook_size": 8,
        "sides": {"1": 1},
        "resize": "squash",
        "dtype": "float32",
        "vqvae_sha256": "11",
        "vq_codebook_size": 16,
        "vq_side": 2,
        "vq_size_px": 32,
    }
    artifact = begin_artifact(tmp_path / "tokens", "tokens", settings=settings, shards=["00000"])
    blank = dict.fromkeys(artifact.schema.names) | {"role": "target", "status": "ok"}
    artifact.write("00000", [blank | {"key": "0", "codes_1": [7], "vq_codes": [15, 0, 15, 0]}])
    # Two of 16 codes, alike: usage 1/8, perplexity exp(log 2) = 2.
    assert inspect.describe(artifact.path)["codes"]["vq_codes"] == {
        "per_picture": 4,
        "num_used": 2,
        "usage": 0.125,
        "perplexity": pytest.approx(2.0),
    }


def test_usage_and_perplexity_of_codes_per_scale(pictures: Artifact, tmp_path: Path) -> None:
    facts = inspect.describe(tokens(tmp_path / "tokens", pictures).path)
    # Scale 1 uses 4 of 8 codes alike: usage 1/2, perplexity exp(log 4) = 4. Scale 3 uses one.
    assert facts["codes"]["codes_1"] == {
        "per_picture": 4,
        "num_used": 4,
        "usage": 0.5,
        "perplexity": pytest.approx(4.0),
    }
    assert facts["codes"]["codes_3"] == {
        "per_picture": 1,
        "num_used": 1,
        "usage": 0.125,
        "perplexity": pytest.approx(1.0),
    }
    assert facts["counts"]["status"] == {"failed": 1, "ok": 2}


def test_lineage_goes_back_to_the_beginning_and_says_what_changed(
    pictures: Artifact, tmp_path: Path
) -> None:
    made = tokens(tmp_path / "tokens", pictures)
    begin_directory(tmp_path / "model", "model", settings={}, parents={"tokens": made.path})
    lineage = inspect.describe(tmp_path / "model")["lineage"]
    assert [(step["of"], step["name"], step["state"]) for step in lineage] == [
        ("model", "tokens", "unchanged"),
        ("tokens", "images", "unchanged"),
    ]
    assert lineage[1]["path"] == str(pictures.path)
    manifest = pictures.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"seed": 7', '"seed": 8'))
    assert inspect.describe(made.path)["lineage"][0]["state"] == "changed since"
    pictures.path.rename(tmp_path / "elsewhere")
    assert inspect.describe(made.path)["lineage"][0]["state"] == "gone"


def weights(path: Path, shapes: dict[str, list[int]]) -> None:
    """A safetensors file of zeros, written by hand: header length, JSON header, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def test_a_model_shows_its_parameters_last_figures_and_parts(tmp_path: Path) -> None:
    model = tmp_path / "tar"
    (model / "mllm").mkdir(parents=True)
    (model / "config.json").write_text('{"kind": "tar"}')
    (model / "mllm" / "config.json").write_text('{"kind": "mllm"}')
    weights(model / "mllm" / "model.safetensors", {"a": [3, 4], "b": [5], "scalar": []})
    (model / "mllm" / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 3}\n{"step": 2, "loss": 1}\n'
    )
    facts = inspect.describe(model)
    assert facts["kind"] == "model" and facts["config"] == {"kind": "tar"}
    part = facts["parts"]["mllm"]
    assert part["num_parameters"] == 3 * 4 + 5 + 1 == facts["num_parameters"]
    assert part["dtypes"] == {"F16": 3}
    assert part["last_metrics"] == {"step": 2, "loss": 1}
    (model / "mllm" / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(UserError, match="not a safetensors file: a header of 1152921504606846976"):
        inspect.describe(model)


def test_a_model_in_training_is_called_unfinished(tmp_path: Path) -> None:
    begin_directory(tmp_path / "m", "model", settings={"steps": 9})
    facts = inspect.describe(tmp_path / "m")
    assert facts["kind"] == "model" and facts["unfinished"] is True


def test_results_and_scores_show_their_figures(tmp_path: Path) -> None:
    begin_directory(tmp_path / "r", "results", settings={})
    (tmp_path / "r" / "results.json").write_text('{"overall": 0.65}')
    assert inspect.describe(tmp_path / "r")["results"] == {"overall": 0.65}
    scores = begin_artifact(
        tmp_path / "s", "scores", settings={"columns": ["beauty"]}, shards=["00000"]
    )
    ok = {"status": "ok", "error": None}
    rows = [{"key": str(n), "beauty": value} | ok for n, value in enumerate((0.0, 0.5, 1.0))]
    scores.write("00000", [*rows, scores.failed_row("9", "damaged")])
    assert inspect.describe(scores.path)["scores"] == {"beauty": {"min": 0, "mean": 0.5, "max": 1}}


def test_json_and_text_go_to_stdout_with_the_same_facts(
    pictures: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = inspect.run(pictures.path, as_json=True)
    assert json.loads(capsys.readouterr().out) == facts
    inspect.run(pictures.path)
    text = capsys.readouterr().out
    assert str(pictures.path) in text and "failed 2, ok 2" in text and "00001" in text


def test_a_hostile_name_cannot_move_the_cursor_or_colour_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"licence": "\x1b[2J [bold]x[/bold]", "\x1b[31mname": 1}
    artifact = begin_artifact(tmp_path / "x", "prompts", settings=settings, shards=["00000"])
    inspect.run(artifact.path)
    text = capsys.readouterr().out
    assert "\x1b" not in text and "[bold]x[/bold]" in text


def test_a_long_list_of_numbers_is_a_line_and_whole_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"kind": "vqvae", "figures": {"rows": list(range(5000)), "few": [1, 2]}})
    )
    inspect.run(tmp_path)
    text = " ".join(capsys.readouterr().out.split())
    assert "10, 11, ...] (5_000 in all, see --json)" in text
    assert "[1, 2]" in text
    inspect.run(tmp_path, as_json=True)
    assert list(range(5000)) in json.loads(capsys.readouterr().out)["config"]["figures"].values()


def test_recorded_commands_are_shown_oldest_first(
    pictures: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect.describe(pictures.path)["commands"] == []
    # A byte that is not UTF-8 is a lone surrogate in argv, and an escape would move the cursor.
    commands = [["tarkit", "curate", "ingest", "my pictures"], ["tarkit", "\udcff", "\x1b[2J"]]
    for argv in commands:
        append_command(pictures.path, argv)
    inspect.run(pictures.path)
    text = capsys.readouterr().out
    assert "commands" in text and "tarkit curate ingest 'my pictures'" in text
    assert "\x1b" not in text
    inspect.run(pictures.path, as_json=True)
    out = capsys.readouterr().out
    out.encode()  # Python would refuse to print what is not UTF-8
    assert json.loads(out)["commands"] == commands


def test_a_damaged_line_of_a_log_is_counted(tmp_path: Path) -> None:
    begin_directory(tmp_path / "m", "model", settings={})
    (tmp_path / "m" / "metrics.jsonl").write_text('{"step": 1, "loss": 3}\n{"step": 2, "lo')
    facts = inspect.describe(tmp_path / "m")
    assert facts["last_metrics"] == {"step": 1, "loss": 3}
    assert facts["damaged_metrics_lines"] == 1
    assert "bad_rows" not in facts
    (tmp_path / "m" / "bad_rows.jsonl").write_text(3 * '{"step": 2, "key": "0"}\n')
    assert inspect.describe(tmp_path / "m")["bad_rows"] == 3


def test_what_tarkit_did_not_make_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        inspect.run(tmp_path / "none")
    with pytest.raises(UserError, match="is no folder that tarkit made: it has no manifest"):
        inspect.run(tmp_path)
    begin_directory(tmp_path / "m", "model", settings={})
    with pytest.raises(UserError, match="only images have a contact sheet"):
        inspect.run(tmp_path / "m", out=tmp_path / "x.png")


def test_a_file_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"picture\.png is no folder .*: it is a file"):
        inspect.describe(tmp_path / "picture.png")
