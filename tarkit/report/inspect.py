"""Says what a directory is: kind, counts, failures, settings, lineage, and what is special to it.

Pictures give a contact sheet, codes their usage and perplexity, a model its parameters and last
figures, results their table. Reads only; the sheet goes beside the directory, never into it.
"""

import json
import math
import re
import struct
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from tarkit.artifacts.artifact import Artifact, open_artifact
from tarkit.artifacts.files import write_whole
from tarkit.artifacts.manifest import MANIFEST, file_sha256, read_manifest
from tarkit.artifacts.schema import KINDS
from tarkit.errors import UserError
from tarkit.images import contact_sheet, decode, png_bytes

MAX_SHEET = 36
MAX_FAILED = 20
MOST_NUMBERS = 12  # of a list on one line
MAX_HEADER_BYTES = 100 << 20  # what safetensors itself allows
COUNTED = ("status", "split", "role", "task")


def run(path: Path, *, out: Path | None = None, as_json: bool = False) -> dict[str, Any]:
    """Prints what `path` is to stdout, as text or JSON, and returns the same facts.

    `out` is where the contact sheet of an images artifact goes; without it `DIR.png` beside it.
    """
    facts = describe(path)
    if facts["kind"] == "images":
        sheet = draw_sheet(open_artifact(path))
        if sheet is not None:
            place = out or path.resolve().with_name(path.resolve().name + ".png")
            _save(sheet, place)
            facts["contact_sheet"] = str(place)
    elif out is not None:
        raise UserError(f"{path} holds {facts['kind']}: only images have a contact sheet")
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        _show(facts)
    return facts


def describe(path: Path) -> dict[str, Any]:
    """The facts of an artifact, model or results directory, as JSON can hold them."""
    if not path.is_dir():
        why = "it is a file" if path.exists() else "there is no such folder"
        raise UserError(f"{path} is no directory of tarkit's: {why}")
    facts: dict[str, Any] = {"path": str(path)}
    if (path / MANIFEST).exists():
        manifest = read_manifest(path)
        facts |= {"kind": manifest["kind"], "tarkit": manifest.get("tarkit")}
        if manifest["kind"] in KINDS:
            facts |= _shards(open_artifact(path))
        facts["settings"] = manifest.get("settings", {})
        facts["lineage"] = _lineage(path)
    if (path / "config.json").exists() or facts.get("kind") == "model":
        facts = {"kind": "model"} | facts | _model(path)
    if (path / "results.json").exists():
        facts = {"kind": "results"} | facts | {"results": _json(path / "results.json")}
    if "kind" not in facts:
        raise UserError(
            f"{path} is nothing that tarkit made: it has no {MANIFEST}, config.json or results.json"
        )
    return facts


def draw_sheet(artifact: Artifact, *, count: int = MAX_SHEET) -> Image.Image | None:
    """The first `count` good pictures with their prompts; None when there are none."""
    pictures: list[Image.Image] = []
    captions: list[str] = []
    for name in artifact.shards:
        if len(pictures) == count or not artifact.shard_path(name).exists():
            break
        for row, blob in artifact.read_images(name):
            if blob is not None and len(pictures) < count:
                pictures.append(decode(blob))
                captions.append(row["prompt"] or row["source"] or row["key"])
    return contact_sheet(pictures, captions) if pictures else None


# ---- shards -------------------------------------------------------------------------------------


def _shards(artifact: Artifact) -> dict[str, Any]:
    """Counts over the shards that exist."""
    missing = artifact.missing()
    present = [name for name in artifact.shards if name not in set(missing)]
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in COUNTED if name in artifact.schema.names
    }
    errors: Counter[str] = Counter()
    failed: list[str] = []
    called = "source" if "source" in artifact.schema.names else "key"
    for name in present:
        table = artifact.read(name, [*counts, "error", *{called, "key"}])
        for row in table.filter(pc.is_valid(table["error"])).to_pylist():
            # One reason with many numbers in it is still one reason.
            errors[re.sub(r"\d+", "N", row["error"])] += 1
            if len(failed) < MAX_FAILED:
                failed.append(f"{row[called] or row['key']}: {row['error']}")
        for column, counter in counts.items():
            counter.update(str(value) for value in table[column].to_pylist())
    facts: dict[str, Any] = {
        "shards": {"planned": len(artifact.shards), "made": len(present), "missing": missing[:10]},
        "rows": counts["status"].total(),
        "counts": {name: dict(sorted(counter.items())) for name, counter in counts.items()},
        "failures": dict(errors.most_common(10)),
        "failed": failed,
    }
    special = {"images": _pictures, "tokens": _codes, "scores": _scores, "chats": _chats}
    if artifact.kind in special and present:
        facts |= special[artifact.kind](artifact, present)
    return facts


def _pictures(artifact: Artifact, names: Sequence[str]) -> dict[str, Any]:
    sizes: Counter[tuple[int, int]] = Counter()
    texts: Counter[str] = Counter({"prompt": 0, "captions": 0, "questions": 0, "template": 0})
    for name in names:
        columns = ["status", "width", "height", "prompt", "captions", "qa", "template"]
        for row in artifact.rows(name, columns):
            if row["status"] == "ok":
                sizes[row["width"], row["height"]] += 1
            texts["prompt"] += bool(row["prompt"])
            texts["captions"] += len(row["captions"] or ())
            texts["questions"] += len(row["qa"] or ())
            texts["template"] += bool(row["template"])
    commonest = {f"{width} x {height}": n for (width, height), n in sizes.most_common(5)}
    return {"sizes": commonest, "num_sizes": len(sizes), "texts": dict(texts)}


def _codes(artifact: Artifact, names: Sequence[str]) -> dict[str, Any]:
    """Per scale: codes a picture, the share of the codebook in use, and its perplexity.

    Perplexity is exp of the entropy of the codes' frequencies: K when all are used alike.
    """
    codebook_size = int(artifact.settings["codebook_size"])
    columns = [name for name in artifact.schema.names if name.startswith("codes_")]
    used: dict[str, Any] = {}
    for column in columns:
        counts = np.zeros(codebook_size, dtype=np.int64)
        for name in names:
            codes = artifact.read(name, [column])[column].combine_chunks().flatten().to_numpy()
            counts += np.bincount(codes, minlength=codebook_size)
        shares = counts[counts > 0] / max(1, counts.sum())
        used[column] = {
            "per_picture": artifact.schema.field(column).type.list_size,
            "num_used": int((counts > 0).sum()),
            "usage": float((counts > 0).mean()),
            "perplexity": float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0,
        }
    return {"codebook_size": codebook_size, "codes": used}


def _scores(artifact: Artifact, names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for column in artifact.settings["columns"]:
        chunks = [artifact.read(name, [column])[column].drop_null() for name in names]
        values = np.concatenate([chunk.to_numpy() for chunk in chunks])
        if len(values):
            figures = (values.min(), values.mean(), values.max())
            found[column] = dict(zip(("min", "mean", "max"), map(float, figures), strict=True))
    return {"scores": found}


def _chats(artifact: Artifact, names: Sequence[str]) -> dict[str, Any]:
    """The first chat of every task, as text."""
    examples: dict[str, list[str]] = {}
    for name in names:
        for row in artifact.rows(name, ["task", "status", "messages"]):
            if row["status"] == "ok" and row["task"] not in examples:
                turns = row["messages"] or []
                examples[row["task"]] = [f"{turn['role']}: {turn['content']}" for turn in turns]
        if len(examples) == 5:
            break
    return {"examples": examples}


# ---- lineage ------------------------------------------------------------------------------------


def _lineage(path: Path) -> list[dict[str, Any]]:
    """Inputs, their inputs and so on, nearest first, each with how it stands today."""
    found: list[dict[str, Any]] = []
    seen = {path.resolve()}
    todo = [path]
    while todo:
        here = todo.pop(0)
        for name, parent in read_manifest(here).get("parents", {}).items():
            place = (here / parent["path"]).resolve()
            found.append(
                {
                    "of": here.name,
                    "name": name,
                    "kind": parent["kind"],
                    "path": str(place),
                    "state": _state(place, parent["manifest_sha256"]),
                }
            )
            if place not in seen and (place / MANIFEST).exists():
                seen.add(place)
                todo.append(place)
    return found


def _state(place: Path, sha256: str) -> str:
    if not place.exists():
        return "gone"
    for file in (place / MANIFEST, place, place / "config.json"):
        if file.is_file():
            return "as it was" if file_sha256(file) == sha256 else "changed since"
    return "not fingerprinted"


# ---- models and results -------------------------------------------------------------------------


def _model(path: Path) -> dict[str, Any]:
    """config.json, parameters from the weights' header, last figures, and the parts of a system."""
    facts: dict[str, Any] = {}
    if (path / "config.json").exists():
        facts["config"] = _json(path / "config.json")
    if (path / "model.safetensors").exists():
        tensors = _safetensors_header(path / "model.safetensors")
        facts["num_parameters"] = sum(math.prod(tensor["shape"]) for tensor in tensors.values())
        facts["dtypes"] = dict(Counter(tensor["dtype"] for tensor in tensors.values()))
        facts["num_bytes"] = (path / "model.safetensors").stat().st_size
    metrics = path / "metrics.jsonl"
    if metrics.exists():
        lines = metrics.read_text(encoding="utf-8").splitlines()
        if lines:
            facts["last_metrics"] = json.loads(lines[-1])
    finished = "num_parameters" in facts
    parts = {
        folder.name: _model(folder)
        for folder in sorted(path.iterdir())
        if folder.is_dir() and (folder / "config.json").exists()
    }
    if parts:
        facts["parts"] = parts
        facts["num_parameters"] = facts.get("num_parameters", 0) + sum(
            part.get("num_parameters", 0) for part in parts.values()
        )
    elif not finished:
        facts["unfinished"] = True
    return facts


def _safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """Names, shapes and types of the tensors, without reading one or importing torch."""
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= min(MAX_HEADER_BYTES, path.stat().st_size):
            raise UserError(f"{path} is not a safetensors file: a header of {length} bytes")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise UserError(f"{path} is not a safetensors file: {error}") from None
    return {name: tensor for name, tensor in header.items() if name != "__metadata__"}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _save(sheet: Image.Image, place: Path) -> None:
    try:
        write_whole(place, png_bytes(sheet))
    except OSError as error:
        raise UserError(
            f"the contact sheet cannot be written to {place}: {error.strerror}",
            hint="tarkit inspect DIR --out FILE.png",
        ) from None


# ---- for people ---------------------------------------------------------------------------------


def _show(facts: Mapping[str, Any]) -> None:
    """Two columns, a section for each fact; long values wrap."""
    import rich.box
    import rich.console
    import rich.table
    import rich.text

    # rich takes 80 columns when it writes to a file, and would break paths in two.
    width = None if sys.stdout.isatty() else 200
    console = rich.console.Console(file=sys.stdout, width=width, highlight=False)
    table = rich.table.Table(box=rich.box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(facts):
        table.add_row(rich.text.Text(name), rich.text.Text(value))
    console.print(table)


def _lines(facts: Mapping[str, Any], indent: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if value in ({}, [], None):
            continue
        label = indent + _printable(name.replace("_", " "))
        if name == "lineage":
            yield from _lineage_lines(value)
        elif isinstance(value, Mapping) and any(map(_is_nested, value.values())):
            yield label, ""
            yield from _lines(value, indent + "  ")
        elif isinstance(value, Mapping):
            pairs = (f"{_printable(key)} {_value(item)}" for key, item in value.items())
            yield label, ", ".join(pairs)
        elif _is_nested(value):
            for number, item in enumerate(value):
                yield label if number == 0 else "", _value(item)
        else:
            yield label, _value(value)


def _is_nested(value: Any) -> bool:
    """Whether it takes more than its part of a line: a table, or a list of texts."""
    if isinstance(value, list):
        return any(isinstance(item, str) for item in value)
    return isinstance(value, Mapping)


def _lineage_lines(lineage: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for number, parent in enumerate(lineage):
        text = f"{parent['name']} of {parent['of']}: {parent['path']} ({parent['kind']}"
        yield "lineage" if number == 0 else "", _printable(f"{text}, {parent['state']})")


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:_}" if value >= 10_000 else str(value)
    if isinstance(value, str):
        return _printable(value)
    if isinstance(value, list) and len(value) > MOST_NUMBERS:
        shown = json.dumps(value[:MOST_NUMBERS], ensure_ascii=False)
        return _printable(f"{shown[:-1]}, ...] ({len(value):_} in all, by --json)")
    return _printable(json.dumps(value, ensure_ascii=False))


def _printable(text: str) -> str:
    """Names and captions are strangers': an escape in them would steer the terminal."""
    return text if text.isprintable() else ascii(text)
