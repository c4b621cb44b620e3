"""`tarkit inspect`: what a folder is, with counts, failures, settings, commands and lineage.

Images get a contact sheet, tokens the usage and perplexity of their codes, a model its parameters
and last figures, results their table. The folder is only read: the sheet is written next to it.
"""

import json
import math
import re
import shlex
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
from tarkit.artifacts.card import CARD
from tarkit.artifacts.commands import read_commands
from tarkit.artifacts.digests import file_sha256
from tarkit.artifacts.files import read_text, write_whole
from tarkit.artifacts.manifest import MANIFEST, input_url, nearest_artifacts, read_manifest
from tarkit.artifacts.remote import is_there, shown_path, url_of
from tarkit.artifacts.schema import KINDS
from tarkit.errors import UserError
from tarkit.images import contact_sheet, decode, png_bytes
from tarkit.report.readers import read_log, read_table
from tarkit.terminal import print_result, printable

MAX_SHEET = 36
MAX_FAILED = 20
AT_A_URL = "at a URL"
MAX_NUMBERS = 12  # of a list on one line
MAX_HEADER_BYTES = 100 << 20  # the limit of safetensors itself
# Of a model, and of a part of a Dif-DTok.
WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")
COUNTED_COLUMNS = ("status", "split", "role", "task")


def run(path: Path, *, out: Path | None = None, as_json: bool = False) -> dict[str, Any]:
    """Print the facts of a folder to stdout, as text or JSON, and return them.

    `out` is the file of an images artifact's contact sheet, by default `DIR.png` next to the
    folder, and none where that is at a URL. Raises UserError for a folder that tarkit did not make,
    and for `out` without images.
    """
    facts = describe(path)
    if facts["kind"] == "images":
        sheet = draw_sheet(open_artifact(path)) if out or not url_of(path) else None
        if sheet is not None:
            place = out or path.resolve().with_name(path.resolve().name + ".png")
            _save(sheet, place)
            facts["contact_sheet"] = str(place)
    elif out is not None:
        raise UserError(f"{path} holds {facts['kind']}: only images have a contact sheet")
    if as_json:
        print_result(json.dumps(facts))
    else:
        card = facts.get("card", "")
        _show({name: value for name, value in facts.items() if name != "card"})
        if card:  # without its header of YAML
            print_result(card.split("---\n", 2)[-1].strip())
    return facts


def describe(path: Path) -> dict[str, Any]:
    """The facts of an artifact, a model or results, as JSON values.

    Raises UserError for a folder that tarkit did not make.
    """
    if not path.is_dir():
        reason = "it is a file" if path.exists() else "there is no such folder"
        raise UserError(
            f"{path} is no folder that tarkit made: {reason}", hint=nearest_artifacts(path)
        )
    facts: dict[str, Any] = {"path": shown_path(path)}
    if (path / MANIFEST).exists():
        manifest = read_manifest(path)
        facts |= {"kind": manifest["kind"], "tarkit": manifest.get("tarkit")}
        if manifest["kind"] in KINDS:
            facts |= _shards(open_artifact(path))
        facts["settings"] = manifest.get("settings", {})
        facts["lineage"] = _lineage(path)
    facts["commands"] = read_commands(path)
    if (path / CARD).is_file():
        facts["card"] = read_text(path / CARD)
    if (path / "config.json").exists() or facts.get("kind") == "model":
        facts = {"kind": "model"} | facts | _model(path)
    if (path / "results.json").exists():
        facts = {"kind": "results"} | facts | {"results": read_table(path / "results.json")}
    if "kind" not in facts:
        raise UserError(
            f"{path} is no folder that tarkit made: it has no {MANIFEST}, config.json or "
            "results.json",
            hint=nearest_artifacts(path),
        )
    return facts


def draw_sheet(artifact: Artifact, *, count: int = MAX_SHEET) -> Image.Image | None:
    """The first `count` pictures that did not fail, with their prompts; None without any."""
    pictures: list[Image.Image] = []
    captions: list[str] = []
    for name in artifact.shards:
        if len(pictures) == count or not is_there(artifact.shard_path(name)):
            break
        for row, blob in artifact.read_images(name):
            if blob is not None and len(pictures) < count:
                pictures.append(decode(blob, max_pixels=artifact.max_pixels))
                captions.append(row["prompt"] or row["source"] or row["key"])
    return contact_sheet(pictures, captions) if pictures else None


# ---- shards -------------------------------------------------------------------------------------


def _shards(artifact: Artifact) -> dict[str, Any]:
    """Counts over the shards that exist."""
    missing = artifact.missing()
    present = [name for name in artifact.shards if name not in set(missing)]
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in COUNTED_COLUMNS if name in artifact.schema.names
    }
    errors: Counter[str] = Counter()
    failed: list[str] = []
    label = "source" if "source" in artifact.schema.names else "key"
    for name in present:
        table = artifact.read_few(name, [*counts, "error", *{label, "key"}])
        for row in table.filter(pc.is_valid(table["error"])).to_pylist():
            # Reasons that differ only in their numbers count as one reason.
            errors[re.sub(r"\d+", "N", row["error"])] += 1
            if len(failed) < MAX_FAILED:
                failed.append(f"{row[label] or row['key']}: {row['error']}")
        for column, counter in counts.items():
            counter.update(str(value) for value in table[column].to_pylist())
    facts: dict[str, Any] = {
        "shards": {"planned": len(artifact.shards), "made": len(present), "missing": missing[:10]},
        "rows": counts["status"].total(),
        "counts": {name: dict(sorted(counter.items())) for name, counter in counts.items()},
        "failures": dict(errors.most_common(10)),
        "failed": failed,
    }
    by_kind = {"images": _pictures, "tokens": _codes, "scores": _scores, "chats": _chats}
    if artifact.kind in by_kind and present:
        facts |= by_kind[artifact.kind](artifact, present)
    return facts


def _pictures(artifact: Artifact, names: Sequence[str]) -> dict[str, Any]:
    """The commonest sizes of the pictures, and the numbers of their texts."""
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
    """For each scale: codes per picture, the share of the codebook in use, and its perplexity.

    Perplexity is exp of the entropy of the codes' frequencies: K if all K codes are equally common.
    """
    codebook_size = int(artifact.settings["codebook_size"])
    sizes = {n: codebook_size for n in artifact.schema.names if n.startswith("codes_")}
    if "vq_codebook_size" in artifact.settings:
        sizes["vq_codes"] = int(artifact.settings["vq_codebook_size"])
    usage: dict[str, Any] = {}
    for column, size in sizes.items():
        counts = np.zeros(size, dtype=np.int64)
        for name in names:
            codes = artifact.read_few(name, [column])[column].combine_chunks().flatten().to_numpy()
            counts += np.bincount(codes, minlength=size)
        shares = counts[counts > 0] / max(1, counts.sum())
        usage[column] = {
            "per_picture": artifact.schema.field(column).type.list_size,
            "num_used": int((counts > 0).sum()),
            "usage": float((counts > 0).mean()),
            "perplexity": float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0,
        }
    return {"codebook_size": codebook_size, "codes": usage}


def _scores(artifact: Artifact, names: Sequence[str]) -> dict[str, Any]:
    """The least, mean and greatest value of each column of scores."""
    ranges: dict[str, Any] = {}
    for column in artifact.settings["columns"]:
        chunks = [artifact.read_few(name, [column])[column].drop_null() for name in names]
        values = np.concatenate([chunk.to_numpy() for chunk in chunks])
        if len(values):
            figures = (values.min(), values.mean(), values.max())
            ranges[column] = dict(zip(("min", "mean", "max"), map(float, figures), strict=True))
    return {"scores": ranges}


def _chats(artifact: Artifact, names: Sequence[str]) -> dict[str, Any]:
    """The first chat of every task, as text."""
    examples: dict[str, list[str]] = {}
    for name in names:
        few = artifact.read_few(name, ["task", "status"])
        tasks = few.filter(pc.equal(few["status"], "ok"))["task"].unique().to_pylist()
        if examples.keys() >= set(tasks):
            continue
        for row in artifact.rows(name, ["task", "status", "messages"]):
            if row["status"] == "ok" and row["task"] not in examples:
                turns = row["messages"] or []
                examples[row["task"]] = [f"{turn['role']}: {turn['content']}" for turn in turns]
    return {"examples": examples}


# ---- lineage ------------------------------------------------------------------------------------


def _lineage(path: Path) -> list[dict[str, Any]]:
    """The inputs, their inputs and so on, nearest first, each with its state today."""
    lineage: list[dict[str, Any]] = []
    seen = {path.resolve()}
    folders = [path]
    while folders:
        folder = folders.pop(0)
        for name, parent in read_manifest(folder).get("parents", {}).items():
            url = input_url(folder, parent["path"])
            place = (folder / parent["path"]).resolve()
            lineage.append(
                {
                    "of": folder.name,
                    "name": name,
                    "kind": parent["kind"],
                    "path": url or str(place),
                    "state": AT_A_URL if url else _state(place, parent["manifest_sha256"]),
                }
            )
            if not url and place not in seen and (place / MANIFEST).exists():
                seen.add(place)
                folders.append(place)
    return lineage


def _state(place: Path, sha256: str) -> str:
    """Whether an input is still there and has the fingerprint that was recorded."""
    if not place.exists():
        return "gone"
    for file in (place / MANIFEST, place, place / "config.json"):
        if file.is_file():
            return "unchanged" if file_sha256(file) == sha256 else "changed since"
    return "not fingerprinted"


# ---- models and results -------------------------------------------------------------------------


def _model(path: Path) -> dict[str, Any]:
    """config.json, the parameters in the weights' header, last figures, and a system's parts."""
    facts: dict[str, Any] = {}
    if (path / "config.json").exists():
        facts["config"] = read_table(path / "config.json")
    for weights in filter(Path.exists, (path / name for name in WEIGHTS)):
        tensors = _safetensors_header(weights)
        facts["num_parameters"] = sum(math.prod(tensor["shape"]) for tensor in tensors.values())
        facts["dtypes"] = dict(Counter(tensor["dtype"] for tensor in tensors.values()))
        facts["num_bytes"] = weights.stat().st_size
    log = read_log(path / "metrics.jsonl")
    if log.rows:
        facts["last_metrics"] = log.rows[-1]
    if bad_rows := read_log(path / "bad_rows.jsonl").rows:
        facts["bad_rows"] = len(bad_rows)
    if log.num_damaged_lines:
        facts["damaged_metrics_lines"] = log.num_damaged_lines
    has_weights = "num_parameters" in facts
    parts = {
        folder.name: _model(folder)
        for folder in sorted(path.iterdir())
        if folder.is_dir() and (folder / "config.json").exists()
    }
    if parts:
        facts["parts"] = parts
        # A trained Dif-DTok has weights of its own, the trained ones, which its parts hold again.
        if not has_weights:
            facts["num_parameters"] = sum(p.get("num_parameters", 0) for p in parts.values())
    elif not has_weights:
        facts["unfinished"] = True
    return facts


def _safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """Names, shapes and types of the tensors; reads no tensor and needs no torch."""
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= min(MAX_HEADER_BYTES, path.stat().st_size):
            raise UserError(f"{path} is not a safetensors file: a header of {length} bytes")
        try:
            header = json.loads(file.read(length))
            tensors = {name: each for name, each in header.items() if name != "__metadata__"}
            for each in tensors.values():
                math.prod(each["shape"])
                str(each["dtype"])
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a safetensors file: {error!r}") from None
    return tensors


def _save(sheet: Image.Image, place: Path) -> None:
    try:
        write_whole(place, png_bytes(sheet))
    except OSError as error:
        raise UserError(
            f"the contact sheet cannot be written to {place}: {error.strerror}",
            hint="tarkit inspect DIR --out FILE.png",
        ) from None


# ---- text ---------------------------------------------------------------------------------------


def _show(facts: Mapping[str, Any]) -> None:
    """Print two columns, names and values; long values wrap."""
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
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        print_result(line.rstrip())  # rich fills lines up with blanks


def _lines(facts: Mapping[str, Any], indent: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if value in ({}, [], None):
            continue
        label = indent + printable(name.replace("_", " "))
        if name == "lineage":
            yield from _lineage_lines(value)
        elif name == "commands":
            for number, argv in enumerate(value):
                yield label if number == 0 else "", printable(shlex.join(argv))
        elif isinstance(value, Mapping) and any(map(_is_nested, value.values())):
            yield label, ""
            yield from _lines(value, indent + "  ")
        elif isinstance(value, Mapping):
            pairs = (f"{printable(key)} {_value(item)}" for key, item in value.items())
            yield label, ", ".join(pairs)
        elif _is_nested(value):
            for number, item in enumerate(value):
                yield label if number == 0 else "", _value(item)
        else:
            yield label, _value(value)


def _is_nested(value: Any) -> bool:
    """Whether a value needs lines of its own: a table, or a list of texts."""
    if isinstance(value, list):
        return any(isinstance(item, str) for item in value)
    return isinstance(value, Mapping)


def _lineage_lines(lineage: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for number, parent in enumerate(lineage):
        text = f"{parent['name']} of {parent['of']}: {parent['path']} ({parent['kind']}"
        yield "lineage" if number == 0 else "", printable(f"{text}, {parent['state']})")


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:_}" if value >= 10_000 else str(value)
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list) and len(value) > MAX_NUMBERS:
        shown = json.dumps(value[:MAX_NUMBERS], ensure_ascii=False)
        return printable(f"{shown[:-1]}, ...] ({len(value):_} in all, see --json)")
    return printable(json.dumps(value, ensure_ascii=False))
