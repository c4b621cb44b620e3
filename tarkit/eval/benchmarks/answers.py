"""Benchmarks of questions: answers are read as each of them publishes it, and by nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from tarkit.errors import UserError
from tarkit.eval.benchmarks.base import Verdicts
from tarkit.eval.benchmarks.choices import exact, first_letter, open_correct, parse_choice
from tarkit.eval.benchmarks.mme import _mme, parse_mme
from tarkit.eval.benchmarks.pope import _pope
from tarkit.eval.metrics.yes_no import parse_yes_no
from tarkit.eval.outcome import score_row
from tarkit.eval.run import Item, Run
from tarkit.eval.samples import Failure
from tarkit.scoring.statistics import micro

READERS = {
    **{"pope": "official-parse", "mme": "official-parse", "mmmu": "official-parse"},
    **{"mmbench": "first-letter", "seed": "first-letter", "gqa": "exact-match"},
}


def question_verdicts(asked: Run, name: str) -> Verdicts:
    """Reads the run's answers by the reader `name`, which must be the benchmark's."""
    if name != READERS[asked.bench]:
        raise UserError(f"{asked.bench} is read by {READERS[asked.bench]}, not by {name}")
    answers = asked.answers()
    said = [None if isinstance(answer, Failure) else answer for answer in answers]
    right = [
        text is not None and correct(asked.bench, item, text)
        for item, text in zip(asked.items, said, strict=True)
    ]
    rows = [
        score_row(
            asked.bench,
            item.tag,
            "",
            item.id,
            prompt=item.prompt,
            answer=text,
            label=item.truth,
            correct=ok,
            error=answer.reason if isinstance(answer, Failure) else None,
        )
        for item, text, ok, answer in zip(asked.items, said, right, answers, strict=True)
    ]
    figures = _figures(asked, said, right)
    return Verdicts(name, {f"{asked.bench}@{name}": figures}, rows, {"scorer": {"reader": name}})


def correct(bench: str, item: Item, answer: str) -> bool:
    """Whether an answer is right, as its benchmark reads it."""
    truth = str(item.truth)
    if bench == "pope":
        return parse_yes_no(answer) == (truth == "yes")
    if bench == "mme":
        return parse_mme(answer) == truth
    if bench == "gqa":
        return exact(answer, truth)
    key = json.loads(truth)
    options = item.options
    if bench == "mmmu":
        return parse_choice(answer, options) == key if options else open_correct(answer, key)
    return first_letter(answer, list(options)) == key


def _figures(asked: Run, said: Sequence[str | None], right: Sequence[bool]) -> dict[str, Any]:
    if asked.bench == "mme":
        return _mme(asked, said)
    if asked.bench == "pope":
        return _pope(asked, said)
    values, tags = np.array(right, dtype=np.float64), np.array([item.tag for item in asked.items])
    return {
        "accuracy": micro(values)._asdict(),
        "tasks": {str(tag): micro(values[tags == tag])._asdict() for tag in dict.fromkeys(tags)},
        "coverage": 1.0 - sum(text is None for text in said) / len(said),
        "num_questions": len(said),
    }
