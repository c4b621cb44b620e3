"""`tarkit verify`: compares a directory and its inputs with what was recorded of their files.

Shards are read whole, with their checksums; tars, weights and inputs are hashed anew. With `repair`
the shards that do not hold are made again by the command that made them; no other shard is touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tarkit.artifacts.artifact import Artifact, open_artifact
from tarkit.artifacts.commands import read_commands
from tarkit.artifacts.digests import file_sha256
from tarkit.artifacts.files import read_object
from tarkit.artifacts.manifest import MANIFEST, input_url, read_manifest
from tarkit.artifacts.remote import fetched, forget, shown_path, url_of, with_urls
from tarkit.artifacts.schema import KINDS
from tarkit.errors import UserError
from tarkit.progress import Progress
from tarkit.terminal import print_result

ASIDE = ".damaged"


class Fault(NamedTuple):
    """A file that is not what was recorded of it. `shard` is its name where a run can remake it."""

    folder: Path
    what: str
    shard: str | None = None


def run(path: Path, *, repair: bool = False, as_json: bool = False) -> bool:
    """Whether a directory and all of its inputs are whole; prints each fault and a summary.

    With `repair`, damaged and missing shards are made again, inputs first, and all is compared once
    more. Raises UserError for a directory that tarkit did not make, and where a repair does not
    know its command or that command fails; the damaged files are then where they were.
    """
    url = url_of(path)
    if repair and url:
        raise UserError(
            f"{url} is at a URL, where nothing is written",
            hint="repair the folder that it was copied from, and copy that again",
        )
    forget(path)
    folders = lineage(path)
    for folder in folders if repair else ():
        _put_back(folder)
    faults = [fault for folder in folders for fault in verify(folder)]
    repaired = 0
    if repair and any(fault.shard for fault in faults):
        for folder in reversed(folders):
            names = [f.shard for f in verify(folder) if f.shard]
            if names:
                _repair(folder, names)
                repaired += len(names)
        faults = [fault for folder in folders for fault in verify(folder)]
    facts: dict[str, Any] = {
        "folders": [shown_path(folder) for folder in folders],
        "faults": [
            {"path": shown_path(fault.folder), "fault": with_urls(fault.what)} for fault in faults
        ],
        "repaired_shards": repaired,
    }
    not_compared = [each for folder in folders for each in _inputs_at_urls(folder)]
    if not_compared:
        facts["not_compared"] = not_compared
    if as_json:
        print_result(json.dumps(facts))
    else:
        for fault in faults:
            print_result(with_urls(fault.what))
        for each in not_compared:
            print_result(f"{each} is at a URL and was not compared: tarkit verify {each}")
        held = "all as recorded" if not faults else f"{len(faults)} faults"
        more = f", {repaired} shards made again" if repaired else ""
        print_result(
            f"{shown_path(path)}: {len(folders)} directories with its inputs: {held}{more}"
        )
    return not faults


def lineage(path: Path) -> list[Path]:
    """A directory, its inputs, their inputs and so on, each once; only those that tarkit made."""
    folders = [path]
    seen = {path.resolve()}
    for folder in folders:  # grows meanwhile
        manifest: dict[str, Any] = {}
        if (folder / MANIFEST).exists():
            with contextlib.suppress(UserError):  # a damaged one is a fault of `verify`
                manifest = read_manifest(folder)
        for parent in manifest.get("parents", {}).values():
            if input_url(folder, parent["path"]):
                continue
            place = Path(os.path.normpath(folder / parent["path"]))
            is_ours = (place / MANIFEST).exists() or (place / "config.json").exists()
            if is_ours and place.resolve() not in seen:
                seen.add(place.resolve())
                folders.append(place)
    return folders


def _inputs_at_urls(folder: Path) -> Iterator[str]:
    if not (folder / MANIFEST).exists():
        return
    with contextlib.suppress(UserError):  # a damaged manifest is a fault of `verify`
        for parent in read_manifest(folder).get("parents", {}).values():
            url = input_url(folder, parent["path"])
            if url:
                yield url


def verify(folder: Path) -> Iterator[Fault]:
    """The faults of one directory, without those of its inputs."""
    if not (folder / MANIFEST).exists() and not (folder / "config.json").exists():
        raise UserError(
            f"{folder} is no directory that tarkit made: it has neither {MANIFEST} nor config.json",
            hint="name the --out of an earlier command",
        )
    if (folder / MANIFEST).exists():
        try:
            manifest = read_manifest(folder)
            artifact = open_artifact(folder) if manifest["kind"] in KINDS else None
        except UserError as error:
            yield Fault(folder, error.message)
            return
        yield from _parents(folder, manifest)
        if artifact is not None:
            yield from _shards(artifact)
    for config in sorted(folder.rglob("config.json")):
        yield from _weights(config)


def _parents(folder: Path, manifest: dict[str, Any]) -> Iterator[Fault]:
    for name, parent in manifest.get("parents", {}).items():
        if input_url(folder, parent["path"]):
            continue
        place = folder / parent["path"]
        recorded = parent["manifest_sha256"]
        files = (place / MANIFEST, place, place / "config.json")
        file = next((file for file in files if file.is_file()), None)
        if recorded and file is None:
            yield Fault(folder, f"{folder}: its input {name}, {place}, is gone")
        elif recorded and file is not None and file_sha256(file) != recorded:
            yield Fault(folder, f"{folder}: its input {name}, {file}, has changed since")


def _shards(artifact: Artifact) -> Iterator[Fault]:
    with Progress(f"verify {artifact.path}", total=len(artifact.shards), unit="shards") as progress:
        for name in artifact.shards:
            why = _shard_fault(artifact, name)
            if why:
                yield Fault(artifact.path, f"{artifact.shard_path(name)}: {why}", name)
            progress.advance(1, failed=int(bool(why)))


def _shard_fault(artifact: Artifact, name: str) -> str | None:
    index, tar = fetched(artifact.shard_path(name)), fetched(artifact.tar_path(name))
    if not index.exists():
        return "is missing"
    try:
        artifact.read(name)
        why = artifact.tar_fault(name, anew=True) if artifact.kind == "images" else None
    except UserError as error:
        return error.message.removeprefix(f"{index} ")
    return f"{tar.name} is not the tar that it describes: {why}" if why else None


def _weights(config: Path) -> Iterator[Fault]:
    try:
        recorded = read_object(config).get("weights_sha256")
    except UserError as error:
        yield Fault(config.parent, error.message)
        return
    file = config.parent / "model.safetensors"
    if recorded is None:
        return
    if not file.is_file():
        yield Fault(config.parent, f"{file} is missing")
    elif file_sha256(file) != recorded:
        yield Fault(config.parent, f"{file} is not what {config.name} records")


# ---- repair -------------------------------------------------------------------------------------


def _put_back(folder: Path) -> None:
    """Undo what a killed repair left: a shard that was put aside, unless it has been made again."""
    for aside in sorted(folder.glob(f"[0-9]*{ASIDE}")):
        path = aside.with_name(aside.name.removesuffix(ASIDE))
        if path.exists():
            aside.unlink()
        else:
            os.replace(aside, path)


def _repair(folder: Path, names: list[str]) -> None:
    """Make shards again by the last command that wrote into the folder."""
    argv = _command(folder)
    artifact = open_artifact(folder)
    paths = [p for n in names for p in (artifact.shard_path(n), artifact.tar_path(n))]
    aside = {p: p.with_name(p.name + ASIDE) for p in paths if p.exists()}
    for path, other in aside.items():
        os.replace(path, other)
    try:
        done = subprocess.run([sys.executable, "-m", "tarkit.cli", *argv[1:]], stdout=sys.stderr)
    finally:
        for path, other in aside.items():
            if path.exists():
                other.unlink()
            else:
                os.replace(other, path)
    if done.returncode not in (0, 3):  # 3: with failed rows
        raise UserError(
            f"the command that made {folder} ended with status {done.returncode}",
            hint=shlex.join(argv),
        )


def _command(folder: Path) -> list[str]:
    commands = read_commands(folder)
    if not commands:
        raise UserError(
            f"{folder} does not record the command that made it",
            hint=f"delete the shards that are named above and run the command with --out {folder}",
        )
    argv = commands[-1]
    named = [word for word in argv if _is(Path(word.removeprefix("--out=")), folder)]
    if not named:
        raise UserError(
            f"the command that made {folder} names paths of another working folder",
            hint=f"from that folder, run {shlex.join(argv)}",
        )
    return argv


def _is(path: Path, folder: Path) -> bool:
    return path.is_dir() and path.resolve() == folder.resolve()
