"""URLs on the command line: which options take them, and results equal to those of local data."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from PIL import Image
from typer.testing import CliRunner, Result

from tarkit.artifacts import remote
from tarkit.artifacts.artifact import Artifact, open_artifact
from tarkit.artifacts.commands import COMMANDS
from tarkit.cli.app import app
from tarkit.cli.command import naming_paths
from tests import parts
from tests.bucket import Uses, new_bucket
from tests.curate.sources.shards import tar_bytes

QUESTIONS = {"model", "data", "images"}
# What may be a URL. What is written (--out, the RUN of some commands) and --config may not.
TAKE_URLS: dict[str, set[str]] = {
    "assemble": {"mllm", "tokenizer", "ar_dtok", "vqvae", "dif_dtok", "encoder"},
    "bench": set(),
    "cat": set(),
    "cp": set(),
    "compare": {"before", "after", "images", "features_of"},
    "curate caption": {"images", "llm", "examples"},
    "curate chats": {"tokens", "text", "captions", "judgements", "keep"},
    "curate download": {"urls"},
    "curate ingest": {"captions", "questions"},  # and its source, which is a pattern too
    "curate judge": {"images", "llm"},
    "curate prompts": {"source", "exclude"},
    "curate render": set(),
    "curate score": {"images", "model"},
    "curate split": {"prompts", "llm"},
    "curate synthesize": {"prompts", "generator"},
    "demo": {"model"},
    "describe": {"image", "model"},
    "doctor": set(),
    "dialect": {"image", "model", "lm", "tokens"},
    "encode": {"images", "tokenizer", "vqvae", "sana"},
    "eval answer": {"model"},
    "eval collect": {"file"},
    "eval dpg": {"model", "data", "scorer_model", "file"},
    "eval export": {"run"},
    "eval generate": {"model"},
    "eval geneval": {"model", "data", "scorer_model", "clip", "file"},
    "eval geneval2": {"model", "data", "scorer_model"},
    "eval gfid": {"samples", "reference", "model"},
    **{f"eval {name}": QUESTIONS for name in "pope mme mmbench seed gqa mmmu mmvp".split()},
    "eval lmms": {"model", "include"},
    "eval prepare": {"data", "images"},
    "eval reflect": {"model", "scorer_model"},
    "eval rfid": {"samples", "originals", "model"},
    "eval score": {"scorer_model", "clip", "file"},
    "eval selftest": {"data"},
    "eval shapes": {"model"},
    "export hf": {"model"},
    "finetune": {"model", "images", "captions"},
    "generate": {"prompts", "image", "model", "draft", "c2pa"},
    "inspect": {"path"},
    "ls": set(),
    "models convert": {"file"},
    "models fetch": set(),
    "models push": {"folder"},
    "plan": {"lm", "tokenizer", "encoder", "vqvae", "ar_dtok", "sana"},
    "reconstruct": {"images", "model", "draft"},
    "report": {"runs", "findings"},
    "train ar-dtok": {"tokenizer", "vqvae", "tokens", "images", "start"},
    "train dif-dtok": {"tokenizer", "sana", "tokens", "images"},
    "train encoder": {"images"},
    "train grpo": {"prompts", "model", "scorer_model", "chats"},
    "train mllm": {"chats", "tokenizer", "lm", "ar_dtok", "vqvae", "encoder", "images"},
    "train tokenizer": {"images", "encoder", "lm"},
    "train vqvae": {"images", "start", "lpips"},
    "verify": {"path"},
    "version": set(),
}
WRITTEN = {f"eval {name}": {"out", "run"} for name in ("answer", "collect", "generate", "score")}


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for name, each in command.commands.items():
            yield from commands(each, (*words, name))
    else:
        yield " ".join(words), command


def test_every_option_that_names_a_path_takes_urls_or_is_in_this_table() -> None:
    found = {
        name: set(naming_paths(inspect.unwrap(each.callback, stop=lambda f: not _is_outer(f))))
        for name, each in commands(typer.main.get_command(app))
    }
    taken = {
        name: options - WRITTEN.get(name, {"out"}) - {"config"} for name, options in found.items()
    }
    assert taken == TAKE_URLS


def _is_outer(function: Any) -> bool:
    return "context" in inspect.signature(function, follow_wrapped=False).parameters


def tarkit(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Uses:
    monkeypatch.setattr(remote, "PAUSE_S", 0.0)
    return new_bucket(tmp_path, monkeypatch)


@pytest.fixture
def pictures(tmp_path: Path) -> Artifact:
    return parts.write_pictures(tmp_path / "pictures", [["train"] * 3, ["train"] * 2])


def assert_equal_shards(first: Path, second: Path) -> None:
    one, two = open_artifact(first), open_artifact(second)
    assert one.shards == two.shards and one.shards
    for name in one.shards:
        for file, other in zip(one.files(name), two.files(name), strict=True):
            assert file.read_bytes() == other.read_bytes()


def test_encode_of_urls_is_that_of_folders(
    bucket: Uses, pictures: Artifact, tmp_path: Path
) -> None:
    model = parts.save_ta_tok(tmp_path / "ta_tok")
    urls = bucket.put(pictures.path, "data/pictures"), bucket.put(model, "models/ta_tok")
    local, made = tmp_path / "local", tmp_path / "made"
    assert not tarkit("encode", pictures.path, "--tokenizer", model, "--out", local).exit_code
    done = tarkit("encode", urls[0], "--tokenizer", urls[1], "--out", made, "--limit", "2")
    assert done.exit_code == 0, done.stderr
    assert not [name for name in bucket.requests("fetch") if "00001" in name]  # not needed
    whole = tmp_path / "whole"
    assert not tarkit("encode", urls[0], "--tokenizer", urls[1], "--out", whole).exit_code
    assert_equal_shards(local, whole)
    parents = json.loads((whole / "manifest.json").read_text())["parents"]
    assert [parents[name]["path"] for name in ("images", "tokenizer")] == list(urls)
    assert urls[0] in (whole / COMMANDS).read_text()
    checked = tarkit("verify", whole)
    assert checked.exit_code == 0, checked.stdout
    assert f"{urls[0]} is at a URL and was not compared: tarkit verify" in checked.stdout
    assert urls[0] in tarkit("inspect", whole, "--json").stdout


@pytest.mark.parametrize("source", ["tars", "tars/{00..01}.tar", "tars/00.tar", "folder"])
def test_ingest_of_a_url_is_that_of_a_folder(source: str, bucket: Uses, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("tars", "folder"):
        (data / name).mkdir(parents=True)
    for number in range(4):
        file = data / "folder" / f"{number}.png"
        Image.new("RGB", (20, 20), (60 * number, 9, 9)).save(file)
    blobs = [(f"{n}.png", (data / "folder" / f"{n}.png").read_bytes()) for n in range(4)]
    for number in range(2):
        members = blobs[2 * number : 2 * number + 2]
        (data / "tars" / f"{number:02d}.tar").write_bytes(tar_bytes(*members))
    url = f"{bucket.put(data, 'data')}/{source}"
    local, made = tmp_path / "local", tmp_path / "made"
    assert not tarkit("curate", "ingest", f"{data}/{source}", "--out", local).exit_code
    done = tarkit("curate", "ingest", url, "--out", made)
    assert done.exit_code == 0, done.stderr
    assert_equal_shards(local, made)
    assert json.loads((made / "manifest.json").read_text())["settings"]["source"] == url
    bucket.forget()
    assert tarkit("curate", "ingest", url, "--out", made).exit_code == 0  # there is nothing to do
    assert bucket.requests("fetch") == []


def test_ingest_stops_where_a_url_cannot_be_read(
    bucket: Uses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.tar").write_bytes(tar_bytes(("a.png", b"x")))
    url = bucket.put(tmp_path / "data", "data")

    def get_file(*_: Any, **__: Any) -> None:
        raise ConnectionError("the network is gone")

    monkeypatch.setattr("tests.bucket.Bucket.get_file", get_file)
    done = tarkit("curate", "ingest", url, "--out", tmp_path / "out")
    assert done.exit_code == 1 and f"{url}/x.tar cannot be read: the network is gone" in done.stderr
    several = tarkit("curate", "ingest", f"{url}/{{0..1}}.tar", "--out", tmp_path / "out")
    assert f"the shard {url}/0.tar does not exist (2 of 2 do not)" in several.stderr


def test_inspect_and_verify_of_a_url(bucket: Uses, pictures: Artifact, tmp_path: Path) -> None:
    url = bucket.put(pictures.path, "pictures")
    told = tarkit("inspect", url, "--json")
    facts = json.loads(told.stdout)
    assert facts["path"] == url and facts["rows"] == 5
    assert not [name for name in bucket.requests("fetch") if name.endswith(".tar")]
    assert "contact_sheet" not in facts
    assert tarkit("inspect", url, "--out", tmp_path / "sheet.png").exit_code == 0
    assert Image.open(tmp_path / "sheet.png").width > 16
    held = tarkit("verify", url)
    assert held.exit_code == 0 and f"{url}: 1 directories" in held.stdout
    file = bucket.root / "pictures" / "00001.tar"
    damaged = bytearray(file.read_bytes())
    damaged[600] ^= 1
    file.write_bytes(damaged)
    found = tarkit("verify", url)
    assert found.exit_code == 1
    assert f"{url}/00001.parquet: 00001.tar is not the tar that it describes" in found.stdout
    refused = tarkit("verify", url, "--repair")
    assert "where nothing is written" in refused.stderr


def test_prompts_by_url(bucket: Uses, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red ring\na blue heart\n")
    url = bucket.put(tmp_path / "prompts.txt", "prompts.txt")
    made = tmp_path / "made"
    assert tarkit("curate", "prompts", url, "--out", made).exit_code == 0
    assert url in (made / "manifest.json").read_text()
    again = tarkit("curate", "prompts", tmp_path / "prompts.txt", "--out", made)
    assert again.exit_code == 0  # the same bytes from another place


def test_a_result_at_a_url_is_refused(pictures: Artifact) -> None:
    done = tarkit("curate", "render", "--out", "s3://bucket/made")
    assert done.exit_code == 1 and "not to s3://bucket/made" in done.stderr
    assert "next: name a folder here, as --out made" in done.stderr
    assert not Path("s3:").exists()


@pytest.mark.parametrize("words", [("inspect",), ("curate", "prompts", "--out", "x")])
def test_a_key_in_a_url_is_not_repeated(words: tuple[str, ...]) -> None:
    done = tarkit(*words, "s3://KEY:SECRET@bucket/data")
    assert done.exit_code == 1 and "has a password" in done.stderr
    assert "SECRET" not in done.output
