"""User prompts: cleaned, each once, every row of the source accounted for."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.commands import append_command
from tarkit.curate.prompts import PromptsPlan, clean, same
from tarkit.errors import UserError
from tarkit.scoring.geneval_prompts import geneval_prompts


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ("a cat,  4K --ar 16:9 --v 5", "a cat, 4K"),
        ("a cat —ar 16:9", "a cat"),
        ("**a cat, oil --q 2** - <@123> (fast)", "a cat, oil"),
        ("**a cat** - Upscaled by @someone (relaxed)", "a cat"),
        ("<https://s.mj.run/x> https://a.b/c.png a cat", "a cat"),
        ("a\x00cat\n\ton a  mat", "a cat on a mat"),
        ("a well-known cat -- in truth a dog", "a well-known cat -- in truth a dog"),
        ("a **bold** cat", "a **bold** cat"),
        ("--ar 1:1", ""),
    ],
)
def test_what_stands_around_a_prompt_goes(found: str, wanted: str) -> None:
    assert clean(found) == wanted


def test_case_spaces_width_and_punctuation_make_no_other_prompt() -> None:
    assert same("A red  fox!") == same("a red fox") == same("ａ red, fox")
    assert same("a red fox") != same("a fox red")
    assert same("!!!") != same("???")


def write(path: Path, lines: list[Any]) -> Path:
    if path.suffix == ".txt":
        path.write_text("\n".join(lines))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(line) for line in lines))
    elif path.suffix == ".csv":
        path.write_text("id,prompt\n" + "".join(f'{i},"{t}"\n' for i, t in enumerate(lines)))
    else:
        pq.write_table(pa.table({"caption": lines}), path)
    return path


def rows(artifact: Artifact) -> list[dict[str, Any]]:
    return [row for name in artifact.shards for row in artifact.rows(name)]


TEXTS = ["a red fox", "A red fox!", "two rings --ar 1:1", "x", "a heart", "two  Rings"]


@pytest.mark.parametrize("ending", [".txt", ".csv", ".parquet", ".jsonl"])
def test_duplicates_are_left_out_and_counted_and_failures_stay(
    tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[Any] = TEXTS if ending != ".jsonl" else [{"prompt": text} for text in TEXTS]
    source = write(tmp_path / f"p{ending}", lines)
    more = ["shard_size=3", "licence=CC0"]
    artifact = PromptsPlan(source, out=tmp_path / "out", overrides=more).run()
    # Six rows: the second is the first's, the last the third's; one is too short.
    assert artifact.settings["counts"] == {
        "read": 6,
        "duplicates left out": 2,
        "excluded": 0,
        "cleaned": 1,
        "failed": 1,
    }
    found = rows(artifact)
    assert [row["prompt"] for row in found] == ["a red fox", "two rings", None, "a heart"]
    assert found[2]["error"] == "too short: 1 characters are left"
    assert [row["key"] for row in found] == [
        *(f"00000-{i:06d}" for i in range(3)),
        "00001-000000",
    ]
    assert {row["licence"] for row in found} == {"CC0"}
    first = {".txt": "1", ".jsonl": "1", ".csv": "2", ".parquet": "0"}[ending]
    assert found[0]["source"] == f"p{ending}:{first}"
    assert "2 duplicates left out" in capsys.readouterr().err


def test_a_folder_is_read_in_order_and_a_kill_leaves_the_same_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "b.txt", ["a heart", "a star"])
    write(folder / "a.txt", ["a ring", "a star"])
    (folder / "notes.md").write_text("nothing")
    append_command(folder, ["tarkit", "curate", "prompts"])  # a log and no prompts
    artifact = PromptsPlan(folder, out=tmp_path / "out", overrides=["shard_size=2"]).run()
    assert [row["prompt"] for row in rows(artifact)] == ["a ring", "a star", "a heart"]
    before = artifact.shard_path("00001").read_bytes()
    artifact.shard_path("00001").unlink()
    PromptsPlan(folder, out=tmp_path / "out", overrides=["shard_size=2"]).run()
    assert artifact.shard_path("00001").read_bytes() == before
    (folder / "b.txt").write_text("a heart\na moon\n")
    with pytest.raises(UserError, match="begun with other settings"):
        PromptsPlan(folder, out=tmp_path / "out", overrides=["shard_size=2"]).run()


def test_two_workers_and_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "p.txt", [f"ring number {i}" for i in range(10)])
    more = ["shard_size=3"]
    one = PromptsPlan(source, out=tmp_path / "one", overrides=more).run()
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        two = PromptsPlan(source, out=tmp_path / "two", overrides=more).run()
    names = [f"{name}.parquet" for name in one.shards] + ["manifest.json"]
    assert all((one.path / n).read_bytes() == (two.path / n).read_bytes() for n in names)
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    part = PromptsPlan(source, out=tmp_path / "part", overrides=more, limit=4).run()
    assert rows(part) == rows(one)[:4]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xff\xfe", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "no prompt: list"),
        (b'{"id": 1}', "no prompt: none of"),
        (b'{"prompt": 7}', "no text: int"),
        (b'{"prompt": "\\ud800 ring"}', "half a surrogate"),
        (b'{"prompt": "' + b"x" * 3000 + b'"}', "too long: 3000"),
    ],
)
def test_a_bad_row_is_a_row_with_a_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'"a ring"\n' + line + b'\n"a heart"\n')
    found = rows(PromptsPlan(tmp_path / "p.jsonl", out=tmp_path / "out").run())
    assert [row["prompt"] for row in found] == ["a ring", None, "a heart"]
    assert reason.split(":")[0] in found[1]["error"] or "not UTF-8" in found[1]["error"]


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_any_bytes_are_accounted_for(tmp_path_factory: pytest.TempPathFactory, lines: Any) -> None:
    folder = tmp_path_factory.mktemp("any")
    for ending in (".txt", ".jsonl"):
        path = folder / f"p{ending}"
        path.write_bytes(b"a ring\n" + b"\n".join(lines))
        artifact = PromptsPlan(path, out=folder / f"out{ending}").run()
        counts = artifact.settings["counts"]
        assert len(rows(artifact)) == counts["read"] - counts["duplicates left out"]


def test_what_is_no_source_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        PromptsPlan(tmp_path / "none.txt", out=tmp_path / "out").run()
    (tmp_path / "p.md").write_text("x")
    with pytest.raises(UserError, match=".txt, .jsonl, .csv, .parquet"):
        PromptsPlan(tmp_path / "p.md", out=tmp_path / "out").run()
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read"):
        PromptsPlan(tmp_path / "p.parquet", out=tmp_path / "out").run()


def test_prompts_of_a_benchmark_are_left_out_and_counted(tmp_path: Path) -> None:
    source = write(tmp_path / "prompts.txt", ["a red fox", "A photo of a bench!", "two cups"])
    unseen = write(tmp_path / "bench.jsonl", [{"prompt": "a photo of a bench", "tag": "x"}])
    artifact = PromptsPlan(source, out=tmp_path / "out", exclude=[unseen]).run()
    assert [row["prompt"] for row in artifact.rows("00000")] == ["a red fox", "two cups"]
    assert artifact.settings["counts"]["excluded"] == 1
    assert list(artifact.settings["exclude"]) == ["bench.jsonl"]
    empty = write(tmp_path / "none.jsonl", [{"prompt": 3}])
    with pytest.raises(UserError, match="none.jsonl cannot be excluded"):
        PromptsPlan(source, out=tmp_path / "again", exclude=[empty]).run()


def test_prompts_are_made_in_a_benchmarks_style_and_none_is_its_own(tmp_path: Path) -> None:
    made = PromptsPlan(None, out=tmp_path / "made", style="geneval", overrides=["count=3000"]).run()
    texts = [row["prompt"] for name in made.shards for row in made.rows(name)]
    own = {one["prompt"] for one in geneval_prompts()}
    # 80 lone classes are all GenEval's own, and so is a third of its 240 that count.
    assert 2700 < len(texts) == len(set(texts)) and not own & set(texts)
    assert made.settings["counts"]["excluded"] == 3000 - len(texts) > 80
    again = PromptsPlan(
        None, out=tmp_path / "again", style="geneval", overrides=["count=3000"]
    ).run()
    assert again.rows("00000") == made.rows("00000")
    other = ["count=3000", "seed=1"]
    more = PromptsPlan(None, out=tmp_path / "more", style="geneval", overrides=other).run()
    assert more.rows("00000") != made.rows("00000")


def test_dense_prompts_have_the_length_of_dpgs(tmp_path: Path) -> None:
    made = PromptsPlan(None, out=tmp_path / "made", style="dpg", overrides=["count=400"]).run()
    lengths = [len(row["prompt"].split()) for row in made.rows("00000")]
    # DPG-Bench: 37 to 130 words, 67 in the mean.
    assert min(lengths) >= 25 and max(lengths) <= 130 and 50 < sum(lengths) / len(lengths) < 85
    first = tmp_path / "seen.txt"
    first.write_text(made.rows("00000")[0]["prompt"].upper())
    left = PromptsPlan(
        None, out=tmp_path / "left", style="dpg", overrides=["count=400"], exclude=[first]
    ).run()
    assert left.settings["counts"]["excluded"] == 1


def test_a_source_or_a_style_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="either a SOURCE of prompts or --style"):
        PromptsPlan(None, out=tmp_path / "made").run()
    with pytest.raises(UserError, match="no style 'haiku'"):
        PromptsPlan(None, out=tmp_path / "made", style="haiku").run()
