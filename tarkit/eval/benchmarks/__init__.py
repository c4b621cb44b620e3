"""The table of benchmarks: their names in order, and the layouts each is exported in.

The module `tarkit/eval/benchmarks/NAME.py` defines the benchmark NAME as `BENCHMARK`. The command
line, its help and every step of `tarkit eval` read this table. A module is imported when its
benchmark is used, because the help must not load pyarrow or PIL.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tarkit.errors import UserError

if TYPE_CHECKING:
    from tarkit.eval.benchmarks.base import PictureBenchmark, QuestionBenchmark

PICTURES: Mapping[str, tuple[str, ...]] = {
    "geneval": ("geneval-dir", "adm-npz"),
    "geneval2": ("geneval2-json", "adm-npz"),
    "dpg": ("dpg-grid", "adm-npz"),
}
"""Benchmarks of prompts, for which a model draws pictures."""

QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "pope": ("pope-jsonl",),
    "mme": ("mme-txt",),
    "mmbench": (),
    "seed": (),
    "gqa": (),
    "mmmu": ("mmmu-json",),
    "mmvp": ("mmvp-jsonl",),
}
"""Benchmarks of questions about pictures, which a model answers."""

LAYOUTS = tuple(dict.fromkeys(sum((*PICTURES.values(), *QUESTIONS.values()), ())))


def load_benchmark(name: str) -> PictureBenchmark | QuestionBenchmark:
    """The benchmark of that name; raises UserError for a name that the table does not have."""
    names = (*PICTURES, *QUESTIONS)
    if name not in names:
        raise UserError(f"no benchmark {name!r}: known are {', '.join(names)}")
    module = importlib.import_module(f"{__name__}.{name}")
    benchmark: PictureBenchmark | QuestionBenchmark = module.BENCHMARK
    return benchmark
