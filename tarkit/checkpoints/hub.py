"""Finds a model's parts: in the package, in a folder, or in the hub's cache by its name.

Only `fetch` opens a connection. All other functions read the cache as it is and need no network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from tarkit.artifacts.files import read_object
from tarkit.checkpoints.representation import PARTS, TEXT_ALIGNED, representation_of
from tarkit.errors import UserError

EMBEDDED: Mapping[str, Path] = {"mini": Path(__file__).parent / "mini"}
"""Models that ship inside the package."""

DtokName = Literal["ar", "dif"]
"""A de-tokenizer: AR-DTok with its image VQ, or Dif-DTok, the diffusion one."""


@dataclass(frozen=True)
class HubFile:
    """A file in a repository of the hub; with an empty `file` all files of a language model."""

    repo: str
    file: str = ""

    def __str__(self) -> str:
        return f"{self.repo}/{self.file or '*.json, *.safetensors'}"


LANGUAGE_MODELS: Mapping[str, str] = {
    "tar-1.5b": "csuhan/Tar-1.5B",
    "tar-7b": "csuhan/Tar-7B-v0.1",
}
TA_TOK = HubFile("csuhan/TA-Tok", "ta_tok.pth")
AR_DTOK: Mapping[int, HubFile] = {
    px: HubFile("csuhan/TA-Tok", f"ar_dtok_lp_{px}px.pth") for px in (256, 512, 1024)
}
VQVAE = HubFile("peizesun/llamagen_t2i", "vq_ds16_t2i.pt")
# Folders of diffusers' SanaPipeline. The file named here is Tar's, and identifies them.
DIF_DTOK: Mapping[int, HubFile] = {
    px: HubFile(f"csuhan/Tar-SANA-600M-{px}px", "negative_prompt_embeds.pth") for px in (512, 1024)
}
DIF_FILES = ("transformer/*", "vae/*", "scheduler/*", "*.pth", "README.md")

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PUBLISHED_LMS = (
    "qwen2",
    "llava_qwen",
)  # model_type; the second is a Qwen2 too, named by its training program
LM_FILES = ("*.json", "*.safetensors", "README.md")


@dataclass(frozen=True)
class ModelPaths:
    """The folder or file of each part of a model, None for a part that is not used.

    A text-aligned model draws with AR-DTok and its image VQ, with Dif-DTok, or not at all; one of
    another representation has no TA-Tok and draws with its image VQ alone. `folder` is that of an
    assembled model.
    """

    mllm: Path
    ta_tok: Path | None = None
    ar_dtok: Path | None = None
    vqvae: Path | None = None
    dif_dtok: Path | None = None
    folder: Path | None = None
    encoder: Path | None = None
    """The vision encoder that reads pictures, of a model with separate encoders."""

    @property
    def parts(self) -> dict[str, Path]:
        """The parts that are used, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: path for name, path in named.items() if path and name != "folder"}


def find(
    model: str | Path, *, size_px: int | None = None, dtok: DtokName | None = "ar"
) -> ModelPaths:
    """The parts of an embedded model, a folder, a known name or a hub id.

    A folder is an assembled model or a published language model. A published one may hold TA-Tok,
    AR-DTok and image VQ under their published names; the other parts are taken from the hub's
    cache. `size_px` chooses the published de-tokenizer, by default the smallest that is on this
    machine; with `dtok=None` there is none. Raises UserError that names every missing file and the
    command that fetches it.
    """
    folder = EMBEDDED.get(str(model), Path(model))
    if folder.is_dir():
        kind = _config(folder)
        if kind.get("model_type") not in PUBLISHED_LMS:
            if size_px is not None:
                raise UserError(
                    f"{model} draws pictures of its own size; only published models have several",
                    hint="leave --size out",
                )
            return _assembled(folder, dtok)
        return _published(str(model), folder, size_px, dtok)
    if folder.exists():
        raise UserError(
            f"{model} is a file: a model is a folder or a name",
            hint=f"tarkit models convert {model} --out DIR",
        )
    repo = LANGUAGE_MODELS.get(str(model).lower(), str(model))
    if not HUB_ID.fullmatch(repo):
        raise UserError(
            f"no model {str(model)!r}: neither a folder nor one of "
            f"{', '.join([*EMBEDDED, *LANGUAGE_MODELS])}",
            hint="tarkit models",
        )
    return _published(str(model), HubFile(repo), size_px, dtok)


# The parts that a de-tokenizer needs.
DRAWING: Mapping[DtokName | None, tuple[str, ...]] = {
    "ar": ("ar_dtok", "vqvae"),
    "dif": ("dif_dtok",),
    None: (),
}


def _assembled(folder: Path, dtok: DtokName | None) -> ModelPaths:
    representation = representation_of(_config(folder / "mllm"), folder / "mllm")
    if representation != TEXT_ALIGNED:
        if dtok == "dif":
            raise UserError(
                f"{folder} draws with its image VQ (representation {representation}): it has no "
                "de-tokenizer",
                hint="leave --dtok out",
            )
        parts = ("mllm", *PARTS[representation])
        return ModelPaths(**{part: folder / part for part in parts}, folder=folder)
    if dtok == "dif" and not (folder / "dif_dtok").is_dir():
        raise UserError(
            f"{folder} has no diffusion de-tokenizer (no dif_dtok in it)",
            hint="leave --dtok out: its AR-DTok draws",
        )
    parts = ("mllm", "ta_tok", *DRAWING[dtok])
    return ModelPaths(**{part: folder / part for part in parts}, folder=folder)


def _published(
    name: str, mllm: Path | HubFile, size_px: int | None, dtok: DtokName | None
) -> ModelPaths:
    wanted: dict[str, Path | HubFile] = {"mllm": mllm, "ta_tok": TA_TOK}
    options = ""
    if dtok is not None:
        sizes = AR_DTOK if dtok == "ar" else DIF_DTOK
        if size_px is None:
            available = (
                px for px, place in sizes.items() if _in_folder(mllm, place) or cached(place)
            )
            size_px = next(available, min(sizes))
        if size_px not in sizes:
            raise UserError(
                f"no published {'AR' if dtok == 'ar' else 'Dif'}-DTok draws {size_px} px",
                hint=f"--size {', '.join(map(str, sizes))}",
            )
        wanted |= dict(zip(DRAWING[dtok], (sizes[size_px], VQVAE), strict=False))
        options = f" --size {size_px}" + (" --dtok dif" if dtok == "dif" else "")
    paths: dict[str, Path] = {}
    missing = []
    for part, place in wanted.items():
        path = place if isinstance(place, Path) else _in_folder(mllm, place) or cached(place)
        if path is None:
            missing.append(str(place))
        else:
            paths[part] = path
    if isinstance(mllm, HubFile) and str(mllm) in missing and mllm.repo == name:
        # The user may have meant a path.
        raise UserError(
            f"there is no folder {name}, and no language model of that hub id in {cache_dir()}",
            hint=f"name a folder that exists, or: tarkit models fetch {name}",
        )
    if missing:
        alternative = f", or put the files into {mllm}" if isinstance(mllm, Path) else ""
        raise UserError(
            f"{name} is not complete on this machine; missing: {'; '.join(missing)} "
            f"(looked for in {cache_dir()})",
            hint=f"tarkit models fetch {name}{options}{alternative}",
        )
    if "dif_dtok" in paths:
        paths["dif_dtok"] = paths["dif_dtok"].parent
    return ModelPaths(**paths)


PUBLISHED: Mapping[str, tuple[HubFile, ...]] = {
    "ta_tok": (TA_TOK,),
    "ar_dtok": tuple(AR_DTOK.values()),
    "vqvae": (VQVAE,),
}


def find_part(named: Path, part: str) -> Path:
    """The path of one part (ta_tok, ar_dtok, vqvae, mllm) by a path, a model's name or its hub id.

    Of an assembled model it is that part of it. A path that does not exist is returned as it is,
    because its reader raises the error. Raises UserError when the file of a name is not in the
    hub's cache.
    """
    name = str(named)
    if named.exists():
        return named / part if (named / part / "config.json").exists() else named
    if name in EMBEDDED:
        return EMBEDDED[name] / part
    places = PUBLISHED[part]
    if name.lower() not in LANGUAGE_MODELS and name not in {place.repo for place in places}:
        return named
    path = next(filter(None, map(cached, places)), None)
    if path is None:
        raise UserError(
            f"{name} has no {part} on this machine; missing: {places[0]} (looked for in "
            f"{cache_dir()})",
            hint="tarkit models fetch tar-1.5b",
        )
    return path


def find_folder(named: Path) -> Path:
    """A file or folder of transformers' layout, or the cached folder of a hub id.

    Nothing is fetched. Raises UserError for neither, and for a hub id whose config.json or weights
    are not all in the cache.
    """
    folder = find_snapshot(named)
    if folder != named and not all((folder / name).exists() for name in _shards(folder)):
        raise _not_cached(named)
    return folder


def find_snapshot(named: str | Path, *, file: str = "config.json") -> Path:
    """A path that exists, or the cached folder of a hub id, which has `file`.

    Nothing is fetched. Raises UserError for neither.
    """
    if Path(named).exists():
        return Path(named)
    if not HUB_ID.fullmatch(str(named)):
        raise UserError(
            f"there is no folder {named}, and it is not a hub id",
            hint="name a folder that exists, or an id such as Qwen/Qwen2.5-1.5B-Instruct",
        )
    found = _cached(str(named), file)
    if found is None:
        raise _not_cached(named)
    return found.parent


def _not_cached(repo: str | Path) -> UserError:
    return UserError(
        f"there is no folder {repo}, and no whole model of that hub id in {cache_dir()}",
        hint=f"name a folder that exists, or: hf download {repo}",
    )


def find_language_model(named: Path) -> Path:
    """The folder of a language model by a path, a model's name, or the hub id of any causal LM.

    Of an assembled model it is the language model's part. A path that does not exist is returned as
    it is, because its reader raises the error. Nothing is fetched. Raises UserError for a name or
    id that is not whole in the hub's cache.
    """
    folder = EMBEDDED.get(str(named), named)
    if folder.exists():
        return folder / "mllm" if (folder / "mllm" / "config.json").exists() else folder
    repo = LANGUAGE_MODELS.get(str(named).lower())
    if repo is None:
        return find_folder(named) if HUB_ID.fullmatch(str(named)) else named
    path = cached(HubFile(repo))
    if path is None:
        raise UserError(
            f"{named} is not complete on this machine; missing: {HubFile(repo)} (looked for in "
            f"{cache_dir()})",
            hint=f"tarkit models fetch {named}",
        )
    return path


def _in_folder(mllm: Path | HubFile, place: HubFile) -> Path | None:
    """A published file in the language model's folder; Dif-DTok's is in a subfolder of it."""
    if not isinstance(mllm, Path):
        return None
    folder = mllm / place.repo.split("/")[1] if place in DIF_DTOK.values() else mllm
    file = folder / place.file
    return file if file.is_file() else None


def _config(folder: Path) -> Mapping[str, object]:
    """The config.json of a folder; empty where there is none or it cannot be read."""
    try:
        return read_object(folder / "config.json")
    except UserError:
        return {}


# - the hub's cache -


def cache_dir() -> Path:
    """The folder where the hub's client keeps fetched files (HF_HUB_CACHE, HF_HOME)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached(place: HubFile) -> Path | None:
    """The file in the cache, or the folder of a language model; None if a file is missing."""
    if place.file:
        return _cached(place.repo, place.file)
    config = _cached(place.repo, "config.json")
    if config is None:
        return None
    folder = config.parent
    complete = (folder / "tokenizer.json").exists() and all(
        (folder / name).exists() for name in _shards(folder)
    )
    return folder if complete else None


def _shards(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return ["model.safetensors"]
    try:
        return sorted(set(read_object(index)["weight_map"].values()))
    except (UserError, KeyError, AttributeError, TypeError):
        return [index.name + " (damaged)"]


def _cached(repo: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, file, cache_dir=cache_dir())
    return Path(path) if isinstance(path, str) else None


@dataclass(frozen=True)
class KnownPart:
    """One published part, and the files of it that are on this machine."""

    part: str
    place: HubFile
    path: Path | None
    num_bytes: int
    licence: str | None
    """The licence in its model card; None without a card in the cache."""


def known() -> Iterator[KnownPart]:
    """Every part of the published models, whether it is on this machine or not."""
    places = [(name, HubFile(repo)) for name, repo in LANGUAGE_MODELS.items()]
    places += [("ta_tok", TA_TOK)]
    places += [(f"ar_dtok {px} px", place) for px, place in AR_DTOK.items()]
    places += [("vqvae", VQVAE)]
    places += [(f"dif_dtok {px} px", place) for px, place in DIF_DTOK.items()]
    for part, place in places:
        path = cached(place)
        if path is not None and place in DIF_DTOK.values():
            path = path.parent
        yield KnownPart(part, place, path, _num_bytes(path), _licence(place.repo))


def _num_bytes(path: Path | None) -> int:
    if path is None:
        return 0
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _licence(repo: str) -> str | None:
    from huggingface_hub import ModelCard

    file = _cached(repo, "README.md")
    if file is None:
        return None
    try:
        licence = ModelCard.load(file, ignore_metadata_errors=True).data.license
    except Exception:  # the YAML of a damaged card raises many types
        return None
    return str(licence) if licence else None


def fetch(model: str, *, size_px: int | None = None, dtok: DtokName = "ar") -> ModelPaths:
    """Download the missing files of a named model into the hub's cache; returns its parts.

    Raises UserError when a file cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repo = LANGUAGE_MODELS.get(model.lower(), model)
    sizes = AR_DTOK if dtok == "ar" else DIF_DTOK
    px = min(sizes) if size_px is None else size_px
    if not HUB_ID.fullmatch(repo) or px not in sizes:
        # Not a model of the hub, or no such size: `find` raises the error or has all parts.
        return find(model, size_px=size_px, dtok=dtok)
    files = [TA_TOK, sizes[px], *([VQVAE] if dtok == "ar" else [])]
    cards = [HubFile(place.repo, "README.md") for place in files]
    try:
        snapshot_download(repo, allow_patterns=list(LM_FILES), cache_dir=cache_dir())
        if dtok == "dif":
            snapshot_download(sizes[px].repo, allow_patterns=list(DIF_FILES), cache_dir=cache_dir())
        for place in [*files, *cards]:
            if place.file != "README.md" or _cached(place.repo, place.file) is None:
                hf_hub_download(place.repo, place.file, cache_dir=cache_dir())
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, LocalEntryNotFoundError):
            reason = f"the hub cannot be reached ({error.__cause__ or reason})"
        raise UserError(
            f"{model} could not be fetched: {reason}",
            hint=f"get {repo}, {', '.join(map(str, files))} on a machine that reaches the hub, and "
            f"copy its hub cache to {cache_dir()}",
        ) from None
    return find(model, size_px=size_px, dtok=dtok)


# The parts of a published Dif-DTok that are read; the text encoder that it names is never used.
NEGATIVE = next(iter(DIF_DTOK.values())).file
SANA_PARTS = ("transformer", "vae", "scheduler")


def weight_files(folder: Path) -> list[Path]:
    """Every file of a published Dif-DTok folder that its pictures depend on."""
    files = [path for part in SANA_PARTS for path in sorted((folder / part).iterdir())]
    return [*files, folder / NEGATIVE]
