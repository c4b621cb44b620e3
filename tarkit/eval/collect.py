"""`tarkit eval collect`: bring back verdicts on a run's pictures that a scorer made elsewhere.

A benchmark's module describes the formats that it collects; today that is GenEval's results file.
"""

from __future__ import annotations

from pathlib import Path

from tarkit.errors import UserError
from tarkit.eval.benchmarks import load_benchmark
from tarkit.eval.benchmarks.base import PictureBenchmark, write_verdicts
from tarkit.eval.run import open_run


def run(path: Path, file: Path, *, layout: str = "geneval-jsonl", scorer: str = "official") -> Path:
    """Write `scores/BENCH@SCORER` of the run from `file`, which must have all its verdicts.

    Raises UserError for another format, and for a file that does not fit the run.
    """
    started = open_run(path)
    benchmark = load_benchmark(started.bench)
    collectors = benchmark.collectors if isinstance(benchmark, PictureBenchmark) else {}
    if layout not in collectors:
        known = f"--format {' | '.join(collectors)}"
        raise UserError(
            f"{started.bench} does not collect {layout!r}",
            hint=known if collectors else f"tarkit eval score {path} scores it here",
        )
    verdicts = collectors[layout](started, file, scorer)
    settings = {"run": str(started.path), "collected": file.name, "n": started.n}
    return write_verdicts(started, verdicts, settings=settings).path
