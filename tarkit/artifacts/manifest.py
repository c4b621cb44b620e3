"""`manifest.json`: the plan of any directory that tarkit makes, written once and then compared.

Its keys are `tarkit` (the version), `kind`, `settings`, `parents` ({name: {path, kind,
manifest_sha256}}) and, for artifacts, `shards` and `counts`. The first worker writes it; the others
compare theirs with it.
"""

import importlib.metadata
import json
import os
import posixpath
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tarkit.artifacts.digests import file_sha256, remembered_sha256
from tarkit.artifacts.files import read_object, sweep, write_once
from tarkit.artifacts.remote import is_url, url_of
from tarkit.errors import UserError

SettingsT = TypeVar("SettingsT")

MANIFEST = "manifest.json"
SHARD_NAME = re.compile(r"[0-9]{5,18}")
DAMAGED = "copy it again from where it was made, or make the directory again with another --out"
NOTHING_NEAR = "name the --out of an earlier command; tarkit curate --help lists the first ones"


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of any directory that tarkit made: artifact, model or results.

    Raises UserError when there is none or it cannot be read.
    """
    place = path / MANIFEST
    if path.is_file():
        raise UserError(f"{path} is a file, not an artifact", hint=nearest_artifacts(path))
    if not place.exists():
        why = f"is not an artifact: it has no {MANIFEST}" if path.exists() else "does not exist"
        raise UserError(f"{path} {why}", hint=nearest_artifacts(path))
    manifest = read_object(place, hint=DAMAGED)
    fault = _fault(manifest)
    if fault:
        raise UserError(f"{place} is not a tarkit manifest: {fault}", hint=DAMAGED)
    return manifest


def read_settings(path: Path, shape: type[SettingsT]) -> SettingsT:
    """The settings in the manifest of `path`, as a dataclass with the types that it annotates.

    Settings that are no field of it are left out. Raises UserError for one that is missing or has
    another type.
    """
    settings = read_manifest(path)["settings"]
    try:
        # As JSON, in which a list may become a tuple even where types are compared strictly.
        return TypeAdapter(shape).validate_json(json.dumps(settings), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "settings"
        raise UserError(
            f"{path / MANIFEST} is not a manifest of this kind: {name}: {first['msg']}",
            hint=DAMAGED,
        ) from None


def _fault(manifest: Mapping[str, Any]) -> str | None:
    """What is wrong with a manifest; None where everything in it is as tarkit writes it."""
    if not isinstance(manifest.get("kind"), str):
        return "it names no kind"
    if not isinstance(manifest.get("settings"), dict):
        return "it has no settings"
    try:
        json.dumps(manifest, allow_nan=False)
    except ValueError:
        return "it holds a number that is not finite"
    if not isinstance(manifest.get("parents", {}), dict):
        return "its parents are not a table"
    for name, parent in manifest.get("parents", {}).items():
        texts = ("path", "kind", "manifest_sha256")
        if not isinstance(parent, dict) or not all(isinstance(parent.get(t), str) for t in texts):
            return f"its input {name} lacks one of {', '.join(texts)}"
        if "\0" in parent["path"]:
            return f"its input {name} has a path that no file can have"
    shards, counts = manifest.get("shards", []), manifest.get("counts", {})
    if not isinstance(shards, list) or not isinstance(counts, dict):
        return "its shards are not a list, or their counts not a table"
    names = [name for name in [*shards, *counts] if not _is_shard_name(name)]
    if names or len(set(shards)) != len(shards):
        return (
            f"shards have names of five or more digits, each once, and not {names[:1] or 'twice'}"
        )
    if not all(type(count) is int and count >= 0 for count in counts.values()):
        return "its counts are not numbers of rows"
    return None


def _is_shard_name(name: Any) -> bool:
    return isinstance(name, str) and SHARD_NAME.fullmatch(name) is not None


def write_manifest_once(path: Path, manifest: Mapping[str, Any]) -> bool:
    """Writes `manifest.json` unless it exists; True for the one worker that wrote it."""
    text = json.dumps(_plain(manifest), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    return write_once(path / MANIFEST, text.encode())


def begin_directory(
    out: Path,
    kind: str,
    *,
    settings: Mapping[str, Any],
    parents: Mapping[str, Path] | None = None,
    plan: Mapping[str, Any] | None = None,
    ignored: Collection[str] = (),
    hint: str = "",
) -> dict[str, Any]:
    """Writes the manifest of `out`, or returns the equal one that `out` already has.

    `plan` holds further keys, such as an artifact's shards. `ignored` are settings that are not
    compared: older manifests may hold some. Raises UserError with `hint` that names every
    difference when `out` was begun with other settings or inputs.
    """
    manifest = {
        "tarkit": _version(),
        "kind": kind,
        "settings": _plain(settings),
        "parents": describe_parents(out, parents or {}),
        **_plain(plan or {}),
    }
    out.mkdir(parents=True, exist_ok=True)
    for folder in (out, *(path for path in out.iterdir() if path.is_dir())):
        sweep(folder)  # also of files that this run does not write again
    if write_manifest_once(out, manifest):
        return manifest
    there = read_manifest(out)
    _compare(out, there, manifest, ignored, hint)
    return there


def describe_parents(out: Path, parents: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """`{path, kind, manifest_sha256}` of every input, the path relative to `out`, or a URL."""
    return {name: _parent(out, parent) for name, parent in sorted(parents.items())}


def input_url(folder: Path, recorded: str) -> str | None:
    """The URL of an input that a manifest records: its own, or one beside the folder's URL.

    None for an input on this machine. No URL is opened that only a manifest names.
    """
    if is_url(recorded):
        return recorded
    url = url_of(folder)
    if url is None:
        return None
    scheme, _, place = url.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(place, recorded))}"


def _parent(out: Path, path: Path) -> dict[str, str]:
    relative = url_of(path) or os.path.relpath(path.resolve(), out.resolve())
    if (path / MANIFEST).exists():
        kind = str(read_manifest(path)["kind"])
        return {"path": relative, "kind": kind, "manifest_sha256": file_sha256(path / MANIFEST)}
    if path.is_file():
        return {"path": relative, "kind": "file", "manifest_sha256": remembered_sha256(path)}
    if (path / "config.json").exists():  # a published model directory has no manifest
        return {
            "path": relative,
            "kind": "model",
            "manifest_sha256": file_sha256(path / "config.json"),
        }
    if path.is_dir():  # a folder of a user's pictures is named, not fingerprinted
        return {"path": relative, "kind": "folder", "manifest_sha256": ""}
    raise UserError(f"the input {path} does not exist", hint=nearest_artifacts(path))


def _compare(
    out: Path,
    there: Mapping[str, Any],
    now: Mapping[str, Any],
    ignored: Collection[str],
    hint: str,
) -> None:
    """Raises UserError that names every difference with both values."""
    if there["kind"] != now["kind"]:
        raise UserError(
            f"{out} already holds {there['kind']}, not {now['kind']}", hint="give another --out"
        )
    old_settings, new_settings = (
        {name: value for name, value in manifest.get("settings", {}).items() if name not in ignored}
        for manifest in (there, now)
    )
    differences = list(_differences(old_settings, new_settings))
    for name in sorted(there.get("parents", {}).keys() | now["parents"].keys()):
        old, new = there.get("parents", {}).get(name, {}), now["parents"].get(name, {})
        if old.get("manifest_sha256") != new.get("manifest_sha256"):
            differences.append(f"{name}: {_input(old)} there, {_input(new)} now")
    if not differences:  # with other settings the shards differ too
        for key in ("shards", "counts"):
            if there.get(key) != now.get(key):
                differences.append(
                    f"{key}: {_brief(there.get(key))} there, {_brief(now.get(key))} now"
                )
    if differences:
        raise UserError(
            f"{out} was begun with other settings ({'; '.join(differences)}); give another --out",
            hint=hint,
        )


def _differences(there: Any, now: Any, key: str = "") -> Iterator[str]:
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        for name in sorted(there.keys() | now.keys()):
            place = f"{key}.{name}" if key else name
            yield from _differences(there.get(name), now.get(name), place)
    elif there != now:
        yield f"{key}: {_brief(there)} there, {_brief(now)} now"


def _brief(value: Any) -> str:
    text = "none" if value is None else _text(value)
    return text if len(text) <= 60 else text[:40] + f"... ({len(text)} characters)"


def _input(parent: Mapping[str, str]) -> str:
    if not parent:
        return "none"
    return f"{parent['path']} ({parent['kind']}, manifest {parent['manifest_sha256'][:8] or '-'})"


def nearest_artifacts(path: Path) -> str:
    """A hint for a path that is no artifact: the names of those in its nearest folder."""
    for folder in (path, *path.parents):
        if folder.is_dir():
            names = sorted(item.parent.name for item in folder.glob(f"*/{MANIFEST}"))[:6]
            return f"artifacts in {folder}: {', '.join(names)}" if names else NOTHING_NEAR
    return NOTHING_NEAR


def _plain(value: Any) -> Any:
    """`value` as JSON reads it back, so that a plan equals the one read from its file."""
    return json.loads(json.dumps(value, sort_keys=True, default=str, allow_nan=False))


def _version() -> str:
    try:
        return importlib.metadata.version("tarkit")
    except importlib.metadata.PackageNotFoundError:
        return "source tree"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
