"""`tarkit eval export`: the pictures or answers of a run in the layout an official scorer reads.

- `geneval-dir`: `DIR/00000/{metadata.jsonl, samples/0000.png}`, for `evaluate_images.py`.
- `dpg-grid`: `DIR/ITEM.png`, the pictures of a prompt in a square grid, for `compute_dpg_bench.py`
  with `--resolution` the side of one picture and `--pic-num` their number, 1 or 4.
- `adm-npz`: `DIR/samples.npz`, its `arr_0` uint8 (N, H, W, 3) of prompts one after the other, for
  ADM's `evaluator.py`; its Inception Score splits them in this order.
- `mme-txt`: `DIR/SUBTASK.txt` of `image TAB question TAB truth TAB answer`, for `calculation.py`,
  which asks for all 14 subtasks. Tabs and line ends within an answer become spaces.
- `pope-jsonl`: `DIR/SPLIT_answers.jsonl` for `evaluate.py` and, as that pairs answers with labels
  by their lines, `DIR/SPLIT_labels.jsonl` of just these questions.
- `mmmu-json`: `DIR/total_val_output.json`, {id: answer}, for `main_eval_only.py`. That reads open
  answers itself and wants the letter of a choice: "" where an answer names none, which is wrong.

A picture or an answer that failed is an error in every layout: GenEval, DPG and ADM have no place
for it, an empty answer is a yes for POPE, and no scorer would count it apart from a wrong one. Only
MMMU's questions that Tar cannot be asked (about several pictures) are exported, as "", for MMMU's
scorer leaves out of its mean what is not in the file; how many they are is said.

Official scorers need programs of their own age; `tarkit eval collect` brings their verdicts back.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tarkit.errors import UserError
from tarkit.files import write_whole
from tarkit.images import png_bytes, to_uint8
from tarkit.progress import Progress
from tarkit.questions import MME_TAIL, SHORT
from tarkit.runs import Item, Run, open_run
from tarkit.samples import Failure, open_pictures
from tarkit.scoring.letters import parse_choice

log = logging.getLogger("tarkit")


@dataclass(frozen=True)
class Layout:
    """Of which benchmarks a layout is, and what writes it into a new folder."""

    benches: tuple[str, ...]
    write: Callable[[Run, Path], None]


def run(path: Path, *, out: Path, layout: str) -> Path:
    """Write `out` in `layout`, whole or not at all. Raises UserError, also for whatever failed."""
    asked = open_run(path)
    chosen = LAYOUTS.get(layout)
    if chosen is None or asked.bench not in chosen.benches:
        known = " | ".join(name for name, each in LAYOUTS.items() if asked.bench in each.benches)
        raise UserError(
            f"{asked.bench} is not exported as {layout!r}",
            hint=f"--format {known}" if known else "tarkit eval score scores it here",
        )
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder; give another --out")
    target = out.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as draft:
        folder = Path(draft) / "export"
        folder.mkdir()
        chosen.write(asked, folder)
        os.replace(folder, target)
    return out


# ---- pictures -----------------------------------------------------------------------------------


def _geneval_dir(asked: Run, folder: Path) -> None:
    for row, item, pictures in _drawn(asked):
        line = json.dumps({"prompt": item.prompt, **(item.meta or {})}) + "\n"
        write_whole(folder / f"{row:05d}" / "metadata.jsonl", line.encode())
        for sample, picture in enumerate(pictures):
            file = folder / f"{row:05d}" / "samples" / f"{sample:04d}.png"
            write_whole(file, png_bytes(picture))


def _dpg_grid(asked: Run, folder: Path) -> None:
    if asked.n not in (1, 4):
        raise UserError(
            f"DPG's scorer cuts a sheet into 1 or 4 pictures, {asked.path} has {asked.n} a prompt",
            hint="tarkit eval prepare dpg --n 4 --data CSV --out DIR",
        )
    side = math.isqrt(asked.n)
    for row, item, pictures in _drawn(asked):
        if not re.fullmatch(r"[\w-]+", item.id):  # the scorer takes it from the name, up to a dot
            raise UserError(f"the item {item.id!r} cannot be the name of a file for DPG's scorer")
        width, height = pictures[0].size
        sheet = Image.new("RGB", (side * width, side * height))
        for sample, picture in enumerate(pictures):
            _require_size(picture, (width, height), asked.picture(row, sample))
            sheet.paste(picture, (sample % side * width, sample // side * height))
        write_whole(folder / f"{item.id}.png", png_bytes(sheet))


def _adm_npz(asked: Run, folder: Path) -> None:
    """Picture by picture, for 50,000 of 256 x 256 are 10 GB; stored, as `np.savez` would."""
    size = None
    with (
        zipfile.ZipFile(folder / "samples.npz", "w") as archive,
        archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as array,
    ):
        for row, _, pictures in _drawn(asked):
            if size is None:
                size = width, height = pictures[0].size
                array.write(_npy_header((len(asked.items) * asked.n, height, width, 3)))
            for sample, picture in enumerate(pictures):
                _require_size(picture, size, asked.picture(row, sample))
                array.write(to_uint8(picture).tobytes())


def _npy_header(shape: tuple[int, ...]) -> bytes:
    sink = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(sink, about)
    return sink.getvalue()


def _drawn(asked: Run) -> Iterator[tuple[int, Item, list[Image.Image]]]:
    """Row, prompt and pictures of every prompt; raises UserError for a picture that failed."""
    with Progress("export", total=len(asked.items), unit="prompts") as progress:
        for row, item in enumerate(asked.items):
            files = [asked.picture(row, sample) for sample in range(asked.n)]
            found = zip(files, open_pictures(files), strict=True)
            yield row, item, [_whole(asked, file, picture) for file, picture in found]
            progress.advance(1)


def _whole(asked: Run, file: Path, picture: Image.Image | Failure) -> Image.Image:
    if isinstance(picture, Failure):
        raise UserError(
            f"{file} failed: {picture.reason}",
            hint=f"tarkit eval generate {asked.path} --retry-failed",
        )
    return picture


def _require_size(picture: Image.Image, size: tuple[int, int], file: Path) -> None:
    if picture.size != size:
        found, first = (f"{width} x {height}" for width, height in (picture.size, size))
        raise UserError(f"{file} is {found}, the first is {first}: this layout has one size")


# ---- answers ------------------------------------------------------------------------------------


def _mme_txt(asked: Run, folder: Path) -> None:
    """Each picture's two questions after each other, as MME's tool takes lines by pairs."""
    lines: dict[str, list[tuple[str, str]]] = {}
    for item, answer in _answered(asked):
        if item.truth not in ("yes", "no"):
            raise UserError(f"MME's answers are yes or no, that to {item.id} is {item.truth!r}")
        question = item.prompt.removesuffix(SHORT) + MME_TAIL
        cells = (Path(str(item.picture)).name, question, item.truth.capitalize(), answer.strip())
        line = "\t".join(re.sub(r"[\t\r\n]", " ", cell) for cell in cells) + "\n"
        lines.setdefault(item.tag, []).append((item.group, line))
    for task, found in lines.items():
        groups = [group for group, _ in found]
        if groups[::2] != groups[1::2] or len(set(groups)) != len(groups[::2]):
            raise UserError(
                f"{asked.path} has not two questions of every picture of {task}, which MME's "
                "tool asks for",
                hint="tarkit eval prepare mme --data MME --out DIR, without --limit",
            )
        text = "".join(line for _, line in found)
        write_whole(folder / f"{_name(task)}.txt", text.encode())


def _pope_jsonl(asked: Run, folder: Path) -> None:
    answers: dict[str, list[str]] = {}
    labels: dict[str, list[str]] = {}
    for item, answer in _answered(asked):
        question = item.prompt.removesuffix(SHORT)
        said = {"question": question, "answer": answer}
        label = {"image": item.group, "text": question, "label": item.truth}
        answers.setdefault(item.tag, []).append(json.dumps(said) + "\n")
        labels.setdefault(item.tag, []).append(json.dumps(label) + "\n")
    for kind, files in (("answers", answers), ("labels", labels)):
        for split, lines in files.items():
            write_whole(folder / f"{_name(split)}_{kind}.jsonl", "".join(lines).encode())


def _mmmu_json(asked: Run, folder: Path) -> None:
    found: dict[str, str] = {}
    for item, answer in _answered(asked, unasked=""):
        if not re.fullmatch(r"[a-z]+_\w+_\d+", item.id):
            raise UserError(
                f"MMMU's scorer reads the subject from an id as validation_Accounting_1, and "
                f"would leave {item.id!r} out",
                hint="tarkit eval prepare mmmu --data MMMU --out DIR, of rows with MMMU's own ids",
            )
        options = item.options
        found[item.id] = (parse_choice(answer, options) or "") if options else answer
    unasked = sum(item.unasked is not None for item in asked.items)
    if unasked:
        log.warning("%d of %d questions cannot be asked and are wrong", unasked, len(found))
    text = json.dumps(found, indent=1) + "\n"
    write_whole(folder / "total_val_output.json", text.encode())


def _answered(asked: Run, *, unasked: str | None = None) -> Iterator[tuple[Item, str]]:
    """Every question and its answer, `unasked` for one that cannot be asked.

    Raises UserError for an answer that failed.
    """
    for item, answer in zip(asked.items, asked.answers(), strict=True):
        if item.unasked is not None and unasked is not None:
            yield item, unasked
        elif isinstance(answer, Failure):
            raise UserError(
                f"the answer to {item.id} failed: {answer.reason}",
                hint=f"tarkit eval answer {asked.path} --retry-failed",
            )
        else:
            yield item, answer


def _name(part: str) -> str:
    if not re.fullmatch(r"[\w.-]+", part) or part.startswith("."):
        raise UserError(f"{part!r} cannot be the name of a file")
    return part


LAYOUTS = {
    "geneval-dir": Layout(("geneval",), _geneval_dir),
    "dpg-grid": Layout(("dpg",), _dpg_grid),
    "adm-npz": Layout(("geneval", "dpg"), _adm_npz),
    "mme-txt": Layout(("mme",), _mme_txt),
    "pope-jsonl": Layout(("pope",), _pope_jsonl),
    "mmmu-json": Layout(("mmmu",), _mmmu_json),
}
