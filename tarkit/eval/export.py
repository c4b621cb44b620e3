"""`tarkit eval export`: write a run's pictures or answers in the layout an official scorer reads.

Each benchmark's module describes its layouts, `benchmark_parts/export_layouts.py` describes `adm-
npz`. A picture or an answer that failed is an error in every layout: GenEval, DPG and ADM have no
place for it, an empty answer is a yes for POPE, and no scorer would count it apart from a wrong
one. Only MMMU's questions about several pictures, which Tar cannot be asked, are exported as "".

Official scorers need programs of their own age; `tarkit eval collect` brings their verdicts back.
"""

from __future__ import annotations

from pathlib import Path

from tarkit.artifacts.files import sweep, whole_folder
from tarkit.errors import UserError
from tarkit.eval.benchmarks import load_benchmark
from tarkit.eval.run import open_run


def run(path: Path, *, out: Path, layout: str) -> Path:
    """Write the folder `out` in `layout`, completely or not at all.

    Raises UserError for a layout of another benchmark, and for a picture or answer that failed.
    """
    started = open_run(path)
    layouts = load_benchmark(started.bench).layouts
    if layout not in layouts:
        known = f"--format {' | '.join(layouts)}"
        raise UserError(
            f"{started.bench} is not exported as {layout!r}",
            hint=known if layouts else f"tarkit eval score {path} scores it here",
        )
    sweep(out.resolve().parent)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder; give another --out")
    with whole_folder(out.resolve()) as folder:
        layouts[layout](started, folder)
    return out
