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
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tarkit.artifacts.files import whole_file, whole_folder
from tarkit.errors import UserError
from tarkit.eval.benchmarks.choices import _mmmu_json
from tarkit.eval.benchmarks.dpg import _dpg_grid
from tarkit.eval.benchmarks.geneval import _geneval_dir
from tarkit.eval.benchmarks.layouts import _drawn, _require_size
from tarkit.eval.benchmarks.mme import _mme_txt
from tarkit.eval.benchmarks.pope import _pope_jsonl
from tarkit.eval.run import Run, open_run
from tarkit.images import to_uint8


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
    with whole_folder(out.resolve()) as folder:
        chosen.write(asked, folder)
    return out


# ---- pictures -----------------------------------------------------------------------------------


def _adm_npz(asked: Run, folder: Path) -> None:
    """Picture by picture, for 50,000 of 256 x 256 are 10 GB; stored, as `np.savez` would."""
    size = None
    with (
        whole_file(folder / "samples.npz") as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
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


# ---- answers ------------------------------------------------------------------------------------


LAYOUTS = {
    "geneval-dir": Layout(("geneval",), _geneval_dir),
    "dpg-grid": Layout(("dpg",), _dpg_grid),
    "adm-npz": Layout(("geneval", "dpg"), _adm_npz),
    "mme-txt": Layout(("mme",), _mme_txt),
    "pope-jsonl": Layout(("pope",), _pope_jsonl),
    "mmmu-json": Layout(("mmmu",), _mmmu_json),
}
