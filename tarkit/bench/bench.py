"""`tarkit bench`: how near the models come to the limits of this machine, and other programs too.

One run measures the machine's ceilings, and then for each piece of work its floor, our time, and
the times of other ways, all in turn within the run. Figures of two runs are not comparable: the
load of the machine may have changed between them.
"""

from __future__ import annotations

import dataclasses
import importlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tarkit.bench.case import BenchSettings, Case
from tarkit.bench.ceilings import Ceilings, machine, probe
from tarkit.bench.timing import SHORTEST_S, Spread, timed
from tarkit.config import provenance
from tarkit.progress import Progress

ROUNDS, TINY_ROUNDS = 7, 3
BUDGET_S = 60.0
"""Of one case; where its rounds take longer there are fewer, but at least three."""
OURS = "ours"


def run(
    subjects: Sequence[str],
    *,
    tiny: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    rounds: int | None = None,
    only: str = "",
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the cases of some subjects; the result is what `--json` prints.

    `only`: the cases whose names have this part. `rounds`: 7 by default, or 3 with `tiny`.
    Times are seconds, ceilings operations and bytes per second.
    """
    place = torch.device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    ceilings = probe(place, tiny=tiny)
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="tarkit-bench-") as folder,
        Progress("bench", total=None, unit="cases") as progress,
    ):
        settings = BenchSettings(tiny=tiny, device=place, seed=seed, folder=Path(folder))
        for subject, case in _cases(subjects, settings):
            if only in case.name:
                rounds_of_case = rounds or (TINY_ROUNDS if tiny else ROUNDS)
                rows.append(
                    {"subject": subject, **_measured(case, ceilings, settings, rounds_of_case)}
                )
                progress.advance()
    return {
        "machine": machine(place),
        "versions": provenance(),
        "tiny": tiny,
        "seed": seed,
        "ceilings": dataclasses.asdict(ceilings),
        "cases": rows,
    }


def _cases(subjects: Iterable[str], settings: BenchSettings) -> Iterator[tuple[str, Case]]:
    for subject in dict.fromkeys(subjects):
        module = importlib.import_module(f"tarkit.bench.cases.{subject}")
        for case in module.cases(settings):
            yield subject, case


def _measured(
    case: Case, ceilings: Ceilings, settings: BenchSettings, rounds: int
) -> dict[str, Any]:
    timings, results = timed(
        {OURS: case.ours, **case.against},
        settings.device,
        rounds=rounds,
        budget_s=BUDGET_S,
        shortest_s=0.0 if settings.tiny else SHORTEST_S,
    )
    ours = timings[OURS]
    bound = ceilings.bound(case.floor) if case.floor else None
    ways: dict[str, Mapping[str, Any]] = {}
    for name, timing in timings.items():
        seconds = timing.seconds()
        way: dict[str, Any] = {
            "first_s": timing.first_s,
            "rounds": len(timing.rounds_s),
            **_named("seconds", seconds),
            "per_second": case.count / seconds.median,
        }
        if name == OURS:
            way["of_floor"] = bound.seconds / seconds.median if bound else None
        else:
            way |= _named("times_ours", timing.times(ours))
            compared = case.agreement is not None and results[name] is not None
            if case.agreement is not None and compared:
                way["agreement"] = case.agreement(results[OURS], results[name])
        ways[name] = way
    return {
        "name": case.name,
        "count": case.count,
        "unit": case.unit,
        "floor": dataclasses.asdict(case.floor) if case.floor else None,
        "floor_seconds": bound.seconds if bound else None,
        "floor_by": bound.by if bound else None,
        "ways": ways,
    }


def _named(name: str, value: Spread) -> dict[str, float]:
    return {
        name: value.median,
        f"{name}_low": value.low,
        f"{name}_high": value.high,
        "confidence": value.confidence,
    }
