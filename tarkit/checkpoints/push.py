"""`tarkit models push`: uploads a model directory to the hub, with a model card.

All files are one commit, so that the repository never holds half a model. What is large and is
there already is not sent again, so that the same command goes on after a lost connection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tarkit.artifacts.card import CARD, own_text, trained_on, write_card
from tarkit.artifacts.manifest import MANIFEST
from tarkit.checkpoints.directory import read_config
from tarkit.checkpoints.hub import HUB_ID
from tarkit.errors import UserError

SUFFIXES = (".json", ".safetensors", ".toml", ".jinja", ".pth")
"""Endings of a model's files. Everything else (logs, sample sheets) stays here."""
TRAINING = ("state", "steps")
"""Folders that only the training itself needs."""
HUB_CARD = "README.md"
"""The name of the card in a repository of the hub."""


@dataclass(frozen=True)
class Upload:
    """What a push would send: `files` of `folder` by their names in the repository, and the card.

    `files` does not have the card.
    """

    folder: Path
    repo: str
    private: bool
    licence: str
    files: Mapping[str, Path]
    card: str

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of every file, the card among them."""
        sizes = {name: path.stat().st_size for name, path in self.files.items()}
        return sizes | {HUB_CARD: len(self.card.encode())}


def plan(
    folder: Path,
    repo: str,
    *,
    licence: str,
    named: Sequence[str] = (),
    base_models: Sequence[str] = (),
    public: bool = False,
) -> Upload:
    """The files and the card of a push; opens no connection.

    The card names the data as `named` does, and as the model's own card or its manifest. Raises
    UserError when there is neither, for a folder without a whole model, and for a `repo` that is no
    hub id.
    """
    if not HUB_ID.fullmatch(repo):
        raise UserError(f"{repo} is no hub id", hint="an id is OWNER/NAME, as in my-name/tar-1.5b")
    config = read_config(folder)
    files = _files(folder)
    if not any(name.endswith(".safetensors") for name in files):
        raise UserError(
            f"{folder} holds no finished model: it has no weights",
            hint=f"tarkit inspect {folder}",
        )
    data = [*named, *trained_on(folder)]
    if not data:
        raise UserError(
            f"{folder} does not say what it was trained on, and its card must",
            hint='--trained-on "NAME OF THE DATA", once for each',
        )
    card = _card(folder, repo, config, licence, data, base_models)
    return Upload(folder, repo, not public, licence, files, card)


def run(upload: Upload) -> str:
    """Send an upload to the hub; returns the address of the repository.

    A new repository is private unless the upload is public. A card that the repository has already
    is kept. Raises UserError without credentials, where the repository has the other visibility,
    and where the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise UserError(
            "no credentials for the hub: nothing was uploaded",
            hint="hf auth login, or set HF_TOKEN to a token that may write",
        )
    api = HfApi()
    try:
        has_card = _open_repository(api, upload)
        contents: dict[str, Any] = {} if has_card else {HUB_CARD: upload.card.encode()}
        contents |= upload.files
        commit = api.create_commit(
            upload.repo,
            [CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message="Upload a model of tarkit",
        )
    except UserError:
        raise
    except Exception as error:  # of the hub, of HTTP, of the connection: of several libraries
        raise UserError(
            f"{upload.repo} was not uploaded: {' '.join(str(error).split())[:300]}",
            hint="the same command goes on: files that are there are not sent again",
        ) from None
    return str(commit.repo_url)


def _open_repository(api: Any, upload: Upload) -> bool:
    """Make the repository unless it is there; returns whether it has a card.

    Raises UserError where it has the other visibility: it is not changed in silence.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(upload.repo)
    except RepositoryNotFoundError:
        api.create_repo(upload.repo, private=upload.private)
        return False
    if upload.private and not info.private:
        raise UserError(
            f"{upload.repo} is there already, and is public: everybody could read the model",
            hint="--public, where that is meant, or another name",
        )
    if not upload.private and info.private:
        raise UserError(
            f"{upload.repo} is there already, and is private",
            hint="leave --public out, or make it public in its settings on the hub",
        )
    return bool(api.file_exists(upload.repo, HUB_CARD))


def _files(folder: Path) -> dict[str, Path]:
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.suffix in SUFFIXES and path.is_file() and path.name != MANIFEST
    }
    return {
        name: path
        for name, path in files.items()
        if name.split("/")[0] not in TRAINING and not any(p[0] == "." for p in name.split("/"))
    }


def _card(
    folder: Path,
    repo: str,
    config: Mapping[str, Any],
    licence: str,
    data: Sequence[str],
    base_models: Sequence[str],
) -> str:
    """The text of the card; one that `folder` has already gets the licence, data and paper."""
    from huggingface_hub import ModelCard, ModelCardData

    own = next((file for name in (CARD, HUB_CARD) if (file := folder / name).is_file()), None)
    if own is not None:
        card = ModelCard.load(own)
        about, text = card.data, own_text(card.text)
    else:
        about = ModelCardData(library_name="tarkit", tags=["tar"])
        kind = config.get("kind") or config.get("model_type")
        text = (
            f"# {repo.split('/')[1]}\n\nA model of tarkit, of the kind `{kind}`. After "
            f"`hf download {repo} --local-dir DIR`:\n\n```\n{_usage(str(kind))}\n```"
        )
    about.license = licence
    if base_models:
        about.base_model = list(base_models)
    return write_card(about, text, data)


def _usage(kind: str) -> str:
    """A command that uses a model of this kind."""
    commands = {
        "tar": "tarkit generate 'a photo of a bench' --model DIR --out bench.png",
        "ta_tok": "tarkit encode IMAGES --tokenizer DIR --out TOKENS",
    }
    return commands.get(kind, "tarkit inspect DIR")
