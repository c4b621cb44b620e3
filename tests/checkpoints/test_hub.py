"""Names of published models: the hub's cache as it is, what is missing, what belongs together."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from typer.testing import CliRunner

from tarkit import Tar
from tarkit.artifacts.artifact import open_artifact
from tarkit.checkpoints import hub
from tarkit.checkpoints.hub import (
    AR_DTOK,
    TA_TOK,
    VQVAE,
    HubFile,
    find,
    find_language_model,
    find_part,
)
from tarkit.cli.app import app
from tarkit.errors import UserError
from tests import parts
from tests.checkpoints.test_language_model import publish

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and no network: whatever would open one fails the test."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def offline(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr("socket.socket.connect", offline)
    return tmp_path / "hub"


def snapshot(empty_cache: Path, repo: str) -> Path:
    root = empty_cache / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text("0123abc")
    folder = root / "snapshots" / "0123abc"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fill(empty_cache: Path, *, without: str = "") -> None:
    """The small published files in the places of the real ones."""
    shutil.copytree(GOLDENS / "siglip_tiny", snapshot(empty_cache, TA_TOK.repo) / "siglip_tiny")
    copies = {"ta_tok_tiny.pth": TA_TOK, "ar_dtok_tiny.pth": AR_DTOK[256], "vq_tiny.pt": VQVAE}
    for name, place in copies.items():
        if place.file != without:
            shutil.copyfile(GOLDENS / name, snapshot(empty_cache, place.repo) / place.file)
    if without != "mllm":
        publish(snapshot(empty_cache, "csuhan/Tar-1.5B"), num_codes=128)


def test_a_named_model_draws_and_reads_from_the_cache_alone(
    empty_cache: Path, tmp_path: Path
) -> None:
    fill(empty_cache)
    for name in ("tar-1.5b", "Tar-1.5B", "csuhan/Tar-1.5B"):
        assert find(name).mllm == snapshot(empty_cache, "csuhan/Tar-1.5B")
    tar = Tar.load("tar-1.5b")
    picture = tar.imagine("A photo of a macaw", seed=3)
    assert picture.size == (64, 64)
    assert tar.imagine("A photo of a macaw", seed=3).tobytes() == picture.tobytes()
    assert isinstance(tar.describe(picture, max_tokens=4), str)
    assert tar.sampling.top_k == 1200 and tar.sampling.guidance == 4.0
    assert len(set(tar.identities())) == 4
    out = tmp_path / "macaw.png"
    words = ["generate", "make <image> new", "--model", "tar-1.5b", "--out", str(out)]
    drawn = CliRunner().invoke(app, words[:1] + ["a macaw"] + words[2:])
    assert drawn.exit_code == 0, drawn.output
    words[-1] = str(tmp_path / "new.png")
    again = CliRunner().invoke(app, [*words, "--image", str(out), "--size", "256"])
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize("lacking", ["mllm", TA_TOK.file, AR_DTOK[256].file, VQVAE.file])
def test_what_is_missing_is_named_with_how_to_get_it(empty_cache: Path, lacking: str) -> None:
    fill(empty_cache, without=lacking)
    with pytest.raises(UserError) as error:
        find("tar-1.5b")
    told = "csuhan/Tar-1.5B" if lacking == "mllm" else lacking
    assert told in error.value.message and str(empty_cache) in error.value.message
    assert "tarkit models fetch tar-1.5b" in (error.value.hint or "")
    present = {TA_TOK.file, AR_DTOK[256].file, VQVAE.file} - {lacking}
    assert not any(name in error.value.message for name in present)
    with pytest.raises(UserError, match="ar_dtok_lp_512px"):
        find("tar-1.5b", size_px=512)


def test_the_smallest_ar_dtok_that_is_here_is_the_default(empty_cache: Path) -> None:
    fill(empty_cache, without=AR_DTOK[256].file)
    for px in (1024, 512):
        larger = snapshot(empty_cache, TA_TOK.repo) / AR_DTOK[px].file
        shutil.copyfile(GOLDENS / "ar_dtok_tiny.pth", larger)
        assert find("tar-1.5b").ar_dtok == larger


def test_a_language_model_lacking_a_shard_is_not_there(empty_cache: Path) -> None:
    fill(empty_cache)
    folder = snapshot(empty_cache, "csuhan/Tar-1.5B")
    next(folder.glob("model-00002*")).unlink()
    assert hub.cached(HubFile("csuhan/Tar-1.5B")) is None
    (folder / "model.safetensors.index.json").write_text("{")
    assert hub.cached(HubFile("csuhan/Tar-1.5B")) is None


def test_a_published_folder_takes_what_lies_beside_it(empty_cache: Path, tmp_path: Path) -> None:
    folder = publish(tmp_path / "mine", num_codes=128)
    with pytest.raises(UserError, match="put the files into") as error:
        find(folder)
    assert "ta_tok.pth" in error.value.message
    shutil.copytree(GOLDENS / "siglip_tiny", folder / "siglip_tiny")
    shutil.copyfile(GOLDENS / "ta_tok_tiny.pth", folder / TA_TOK.file)
    shutil.copyfile(GOLDENS / "ar_dtok_tiny.pth", folder / AR_DTOK[256].file)
    shutil.copyfile(GOLDENS / "vq_tiny.pt", folder / VQVAE.file)
    found = find(folder)
    assert found.mllm == folder and found.dif_dtok is None
    assert {path.parent for name, path in found.parts.items() if name != "mllm"} == {folder}
    assert Tar.load(folder).imagine("a macaw").size == (64, 64)


def test_parts_that_do_not_belong_together_are_refused(empty_cache: Path) -> None:
    fill(empty_cache, without="mllm")
    publish(snapshot(empty_cache, "csuhan/Tar-1.5B"), num_codes=12)
    with pytest.raises(UserError, match="has codes 12, but the other parts need 128"):
        Tar.load("tar-1.5b")


@pytest.mark.parametrize(
    ("model", "size_px", "words"),
    [
        ("minni", None, "neither a folder nor one of mini, tar-1.5b, tar-7b"),
        ("../../etc/passwd/x", None, "neither a folder"),
        ("work/misspelt", None, "there is no folder work/misspelt, and no language model of that"),
        ("tar-1.5b", 300, "no published AR-DTok draws 300 px"),
        ("mini", 256, "draws pictures of its own size"),
    ],
)
def test_what_names_no_model_is_said(
    empty_cache: Path, model: str, size_px: int | None, words: str
) -> None:
    with pytest.raises(UserError, match=words) as error:
        find(model, size_px=size_px)
    assert error.value.hint
    with pytest.raises(UserError, match="is a file"):
        find(GOLDENS / "vq_tiny.pt")


def test_the_list_says_what_is_here_and_under_which_licence(empty_cache: Path) -> None:
    fill(empty_cache)
    card = "---\nlicense: apache-2.0\n---\n# Tar\n"
    (snapshot(empty_cache, "csuhan/Tar-1.5B") / "README.md").write_text(card)
    (snapshot(empty_cache, TA_TOK.repo) / "README.md").write_text("---\nlicense: [\n---\n")
    told = CliRunner().invoke(app, ["models", "--json"])
    assert told.exit_code == 0, told.output
    rows = {row["part"]: row for row in json.loads(told.stdout)["published"]}
    assert rows["tar-1.5b"]["licence"] == "apache-2.0"
    assert rows["tar-1.5b"]["bytes"] > 1000 and rows["tar-7b"]["path"] is None
    assert rows["ta_tok"]["licence"] is None
    assert rows["ta_tok"]["bytes"] == (GOLDENS / "ta_tok_tiny.pth").stat().st_size
    text = CliRunner().invoke(app, ["models"]).stdout
    assert "mini" in text and "not here" in text and str(empty_cache) in text


def test_fetch_asks_for_what_a_model_needs_and_says_what_failed(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def snapshot_download(repo: str, **kwargs: Any) -> None:
        assert "*.pth" not in kwargs["allow_patterns"] and "*.bin" not in kwargs["allow_patterns"]
        asked.append(repo)
        fill(empty_cache)

    def hf_hub_download(repo: str, file: str, **kwargs: Any) -> None:
        asked.append(f"{repo}/{file}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    done = CliRunner().invoke(app, ["models", "fetch", "tar-1.5b", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["ta_tok"].endswith("ta_tok.pth")
    assert asked[0] == "csuhan/Tar-1.5B"
    assert {str(TA_TOK), str(AR_DTOK[256]), str(VQVAE)} <= set(asked)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=r"the hub cannot be reached \(no connection\)") as error:
        hub.fetch("tar-7b", size_px=512)
    assert "csuhan/Tar-7B-v0.1" in (error.value.hint or "")
    assert "ar_dtok_lp_512px.pth" in (error.value.hint or "")


def test_a_hub_id_stands_for_its_cached_folder_and_nothing_is_fetched(
    empty_cache: Path, tmp_path: Path
) -> None:
    repo = "google/siglip2-tiny"
    with pytest.raises(UserError, match=f"no folder {repo}, and no whole model of that hub") as e:
        hub.find_folder(Path(repo))
    assert str(empty_cache) in e.value.message and f"hf download {repo}" in (e.value.hint or "")
    folder = snapshot(empty_cache, repo)
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no whole model"):
        hub.find_folder(Path(repo))
    (folder / "model.safetensors").write_bytes(b"")
    assert hub.find_folder(Path(repo)) == folder
    # A path that exists is itself, also where it looks like an id.
    assert hub.find_folder(tmp_path) == tmp_path
    with pytest.raises(UserError, match="and it is not a hub id"):
        hub.find_folder(tmp_path / "missing")


def test_one_part_is_found_by_a_models_name_or_its_own(empty_cache: Path, tmp_path: Path) -> None:
    assert find_part(tmp_path, "ta_tok") == tmp_path
    assert find_part(Path("mini"), "vqvae") == hub.EMBEDDED["mini"] / "vqvae"
    assert find_part(Path("gone/away"), "ta_tok") == Path("gone/away")
    for part, name in (("ta_tok", TA_TOK.file), ("ar_dtok", AR_DTOK[256].file)):
        with pytest.raises(UserError, match=name) as error:
            find_part(Path("tar-1.5b"), part)
        assert "tarkit models fetch" in (error.value.hint or "")
    fill(empty_cache)
    for named in ("tar-7b", "csuhan/TA-Tok"):
        assert find_part(Path(named), "ta_tok").name == TA_TOK.file
        assert find_part(Path(named), "ar_dtok").name == AR_DTOK[256].file
    assert find_part(Path("peizesun/llamagen_t2i"), "vqvae").name == VQVAE.file


def test_pictures_are_encoded_with_a_named_models_tokenizer(
    empty_cache: Path, tmp_path: Path
) -> None:
    fill(empty_cache)
    pictures = parts.write_pictures(tmp_path / "pictures", [["train", "train"]])
    for name, codes in (("mini", 144), ("csuhan/TA-Tok", 81)):
        out = tmp_path / name.split("/")[-1]
        words = ["encode", str(pictures.path), "--tokenizer", name, "--out", str(out)]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        assert len(open_artifact(out, "tokens").read("00000")["codes_1"][0]) == codes


def test_a_language_model_is_found_by_a_path_a_name_or_a_hub_id(
    empty_cache: Path, tmp_path: Path
) -> None:
    assert find_language_model(tmp_path) == tmp_path
    assert find_language_model(Path("mini")) == hub.EMBEDDED["mini"] / "mllm"
    assert find_language_model(hub.EMBEDDED["mini"]) == hub.EMBEDDED["mini"] / "mllm"
    with pytest.raises(UserError, match="tar-7b is not complete on this machine") as error:
        find_language_model(Path("tar-7b"))
    assert error.value.hint == "tarkit models fetch tar-7b"
    with pytest.raises(UserError, match="there is no folder Qwen/Qwen2.5-0.5B, and no whole"):
        find_language_model(Path("Qwen/Qwen2.5-0.5B"))
    assert find_language_model(Path("gone")) == Path("gone")  # whose reader raises the error
    fill(empty_cache)
    for name in ("Tar-1.5B", "csuhan/Tar-1.5B"):
        assert find_language_model(Path(name)) == snapshot(empty_cache, "csuhan/Tar-1.5B")


def test_a_published_model_is_finetuned_and_assembled_by_its_name(
    empty_cache: Path, tmp_path: Path
) -> None:
    fill(empty_cache)
    pictures, tokens, chats = (tmp_path / name for name in ("pictures", "tokens", "chats"))
    parts.write_pictures(pictures, [["train"] * 4])
    settings = "steps=2 batch_size=2 learning_rate=0.01 ratio.t2i=1 ratio.i2t=1 ratio.text=0"
    numbers = [word for pair in settings.split() for word in ("--set", pair)]
    three = [
        word for part in ("tokenizer", "ar-dtok", "vqvae") for word in (f"--{part}", "tar-1.5b")
    ]
    mllm, tar, picture = (str(tmp_path / name) for name in ("mllm", "tar", "drawn.png"))
    (tmp_path / "mllm.toml").write_text("[lora]\nrank = 2\n")
    for words in (
        ["encode", str(pictures), "--tokenizer", "tar-1.5b", "--out", str(tokens)],
        ["curate", "chats", str(tokens), "--out", str(chats)],
        ["train", "mllm", str(tmp_path / "mllm.toml"), *numbers, "--chats", str(chats)]
        + ["--lm", "tar-1.5b", *three, "--out", mllm],
        ["assemble", "--mllm", mllm, *three, "--out", tar],
        ["generate", "a macaw", "--model", tar, "--out", picture],
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"{words}: {done.output}"
    before, after = Tar.load("tar-1.5b"), Tar.load(tar)
    # The published parts are unpacked, and only the language model has changed.
    assert after.sha256 == before.sha256
    assert after.identities()[1:] == before.identities()[1:]
    assert after.identities()[0] != before.identities()[0]
    assert after.sampling == before.sampling
