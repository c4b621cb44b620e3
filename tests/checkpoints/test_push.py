"""`tarkit models push`: what is sent, the card, and what is refused; no network."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import huggingface_hub
import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import RepositoryNotFoundError
from typer.testing import CliRunner

from tarkit.artifacts.manifest import begin_directory
from tarkit.checkpoints import push
from tarkit.checkpoints.directory import CONFIG
from tarkit.checkpoints.hub import EMBEDDED
from tarkit.cli.app import app
from tarkit.errors import UserError

MINI = EMBEDDED["mini"]
REPO = "me/tar-mini"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A trained TA-Tok with all that a training leaves in its folder, and its inputs."""
    pictures = tmp_path / "secret-place" / "pictures"
    begin_directory(tmp_path / "my_photos", "images", settings={})
    begin_directory(pictures, "images", settings={}, parents={"source": tmp_path / "my_photos"})
    folder = tmp_path / "work" / "ta_tok"
    parents = {"images": pictures, "encoder": MINI / "vqvae"}
    begin_directory(folder, "model", settings={}, parents=parents)
    for path in (MINI / "ta_tok").iterdir():
        shutil.copyfile(path, folder / path.name)
    for name in ("state/weights.safetensors", "steps/0002/model.safetensors", "samples/1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"-")
    for name in ("metrics.jsonl", "commands.jsonl", ".hidden.json"):
        (folder / name).write_text("{}")
    return folder


SENT = {"config.json", "model.safetensors", "run.toml"}


class Hub:
    """A hub of one repository; its API has the signatures of huggingface_hub's."""

    def __init__(self, *, private: bool | None = None, files: dict[str, bytes] | None = None):
        """`private`: of a repository that is there; None: there is none."""
        self.private = private
        self.files = dict(files or {})
        self.api: Any = mock.create_autospec(HfApi, instance=True)
        self.api.repo_info.side_effect = self._info
        self.api.create_repo.side_effect = self._create
        self.api.file_exists.side_effect = lambda repo, name: name in self.files
        self.api.create_commit.side_effect = self._commit

    def _info(self, repo: str) -> Any:
        if self.private is None:
            raise RepositoryNotFoundError("there is none", response=mock.MagicMock())
        return SimpleNamespace(private=self.private)

    def _create(self, repo: str, *, private: bool) -> None:
        assert self.private is None
        self.private = private

    def _commit(self, repo: str, operations: Any, *, commit_message: str) -> Any:
        for operation in operations:
            content = operation.path_or_fileobj
            blob = content if isinstance(content, bytes) else Path(content).read_bytes()
            self.files[operation.path_in_repo] = blob
        return SimpleNamespace(repo_url=f"https://hub.example/{repo}")


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")


def connect(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> Hub:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub.api)
    return hub


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever would open a connection fails the test."""

    def opened(*given: Any, **named: Any) -> Any:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(huggingface_hub, "HfApi", opened)
    monkeypatch.setattr("socket.socket.connect", opened)
    yield


def test_the_model_goes_up_whole_in_one_commit_and_private(
    model: Path, monkeypatch: pytest.MonkeyPatch, credentials: None
) -> None:
    hub = connect(monkeypatch, Hub())
    upload = push.plan(model, REPO, licence="apache-2.0", base_models=["google/siglip2"])
    assert push.run(upload) == f"https://hub.example/{REPO}"
    assert hub.private is True and hub.api.create_commit.call_count == 1
    assert set(hub.files) == {*SENT, "README.md"}
    assert all(hub.files[name] == (model / name).read_bytes() for name in SENT)
    assert not (model / "README.md").exists()  # the folder is as it was

    text = hub.files["README.md"].decode()
    about = ModelCard(text).data.to_dict()
    assert (about["license"], about["base_model"]) == ("apache-2.0", ["google/siglip2"])
    assert "- encoder: `vqvae` (model, sha256 " in text
    assert "- images: `pictures` (images, sha256 " in text
    assert "  - source: `my_photos` (images, sha256 " in text  # an input of the input
    assert "https://arxiv.org/abs/2506.18898" in text and "secret-place" not in text

    # The same command again sends the same files, and leaves a card that was edited there.
    hub.files["README.md"] = b"edited"
    push.run(upload)
    assert hub.files["README.md"] == b"edited"


def test_a_dry_run_prints_files_with_their_sizes_and_opens_no_connection(
    model: Path, no_hub: None
) -> None:
    words = ["models", "push", str(model), REPO, "--licence", "mit", "--trained-on", "my photos"]
    done = CliRunner().invoke(app, [*words, "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    sizes = {name: (model / name).stat().st_size for name in SENT}
    assert facts["files"] == sizes | {"README.md": len(facts["card"].encode())}
    assert facts["private"] is True and "- my photos\n" in facts["card"]
    printed = CliRunner().invoke(app, [*words, "--public", "--dry-run"]).stdout
    total = sum(facts["files"].values())
    assert f"{sizes['model.safetensors']:_}  model.safetensors\n" in printed
    assert f"{total:_}  bytes in all, to {REPO} (public)" in printed


def test_without_credentials_nothing_is_sent(
    model: Path, no_hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    done = CliRunner().invoke(app, ["models", "push", str(model), REPO, "--licence", "mit"])
    assert done.exit_code == 1
    assert "error: no credentials for the hub: nothing was uploaded" in done.stderr
    assert "next: hf auth login" in done.stderr
    done = CliRunner().invoke(app, ["models", "push", str(model), REPO])
    assert done.exit_code == 2 and "--licence" in done.stderr  # it is asked for, not guessed


def test_a_repository_of_the_other_visibility_is_left_alone(
    model: Path, monkeypatch: pytest.MonkeyPatch, credentials: None
) -> None:
    for private, public, complaint in ((False, False, "is public"), (True, True, "is private")):
        hub = connect(monkeypatch, Hub(private=private))
        upload = push.plan(model, REPO, licence="mit", public=public)
        with pytest.raises(UserError, match=complaint):
            push.run(upload)
        assert not hub.files


def test_a_refusal_of_the_hub_is_a_sentence(
    model: Path, monkeypatch: pytest.MonkeyPatch, credentials: None
) -> None:
    for error in (Exception("no route to the hub"), OSError("403 Forbidden: no right to write")):
        hub = connect(monkeypatch, Hub())
        hub.api.create_commit.side_effect = error
        with pytest.raises(UserError, match=f"{REPO} was not uploaded: {error}"):
            push.run(push.plan(model, REPO, licence="mit"))


def test_what_is_no_whole_model_or_has_no_data_is_refused(model: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(MINI / "ta_tok", tmp_path / "copied")  # without its manifest
    with pytest.raises(UserError, match="not say what it was trained on") as error:
        push.plan(copied, REPO, licence="mit")
    assert "--trained-on" in error.value.hint
    with pytest.raises(UserError, match="bad id is no hub id"):
        push.plan(model, "bad id", licence="mit")
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no finished model: it has no weights"):
        push.plan(model, REPO, licence="mit")
    (model / CONFIG).unlink()
    with pytest.raises(UserError, match="is no model directory"):
        push.plan(model, REPO, licence="mit")


def test_a_card_that_is_there_is_kept_and_added_to(model: Path) -> None:
    """As that of a folder from the hub."""
    (model / "README.md").write_text("---\nlibrary_name: transformers\n---\n# The model\n\nIds.\n")
    card = push.plan(model, REPO, licence="cc-by-4.0", named=["drawn shapes"]).card
    about = ModelCard(card).data.to_dict()
    assert (about["license"], about["library_name"]) == ("cc-by-4.0", "transformers")
    assert "# The model\n\nIds.\n\n## Trained on\n\n- drawn shapes\n- encoder" in card


def test_the_card_of_the_folder_becomes_that_of_the_hub_with_one_section_of_data() -> None:
    upload = push.plan(MINI, REPO, licence="mit", named=["more"])
    assert "README.md" in upload.sizes and "card.md" not in upload.sizes
    card = upload.card
    assert card.count("## Trained on") == card.count("## Paper") == card.count("# mini") == 1
    assert "## Figures" in card and "- more\n- pictures: 64 px drawings" in card
    assert ModelCard(card).data.to_dict()["license"] == "mit"


def test_an_assembled_model_goes_up_with_all_its_parts() -> None:
    files = push.plan(MINI, REPO, licence="mit", named=["x"]).files
    assert {"mllm/model.safetensors", "ta_tok/config.json", "config.json"} <= set(files)
