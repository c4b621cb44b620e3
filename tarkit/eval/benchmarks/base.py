"""What a benchmark is: where its items come from, how they are scored, how a run is exported.

There are two kinds: prompts that a model draws pictures of (`PictureBenchmark`), and questions
about pictures that a model answers (`QuestionBenchmark`). The modules beside this one that carry a
benchmark's name define one each, as `BENCHMARK`; `load_benchmark` finds it by name.

A picture or an answer that failed scores 0 and lowers `coverage`; it is never left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tarkit.errors import UserError
from tarkit.eval.outcome import Scored, score_row, write_outcome
from tarkit.eval.result_tables import run_tables, show
from tarkit.eval.run import BenchmarkItem, BenchmarkRun, scorer_folder
from tarkit.eval.sample_files import Failure
from tarkit.scoring.statistics import micro

ItemRow = dict[str, Any]
"""The fields of a `BenchmarkItem`; `blob`, encoded bytes, may replace the path `picture`."""

ScoreRow = dict[str, Any]
"""One row of `scores.parquet`, as `tarkit.eval.outcome.score_row` makes it."""


@dataclass(frozen=True, kw_only=True)
class ScorerOptions:
    """The scorer's name and what it may need; each scorer uses what concerns it.

    `model` is the detector's or the judge's, `clip` the one that names colours, `file` a file of
    detections or answers made elsewhere, `server` the address of a judge that is served.
    """

    scorer: str
    model: str | None = None
    clip: str | None = None
    file: Path | None = None
    server: str | None = None
    as_published: bool = False
    retry_failed: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Verdicts:
    """By the scorer `name`: figures under the names of results, and a row for every verdict.

    `settings` describe the scorer, because its name alone does not suffice to repeat it. `repair`
    is the command line that makes failed samples again and scores them.
    """

    name: str
    figures: Mapping[str, Mapping[str, Any]]
    rows: Sequence[ScoreRow]
    settings: Mapping[str, Any]
    repair: str = ""

    @property
    def coverage(self) -> float:
        """The share in [0, 1] of pictures or questions that have a verdict."""
        return min(float(figures["coverage"]) for figures in self.figures.values())


class ReadAnswer(NamedTuple):
    """A question, the answer as text (None: it failed), and whether the benchmark accepts it."""

    item: BenchmarkItem
    text: str | None
    correct: bool


def accuracy_figures(answers: Sequence[ReadAnswer]) -> dict[str, Any]:
    """The share of correct answers, of all questions and of each tag, with intervals."""
    values = np.array([answer.correct for answer in answers], dtype=np.float64)
    tags = np.array([answer.item.tag for answer in answers])
    return {
        "accuracy": micro(values)._asdict(),
        "tasks": {str(tag): micro(values[tags == tag])._asdict() for tag in dict.fromkeys(tags)},
        "coverage": coverage_of(answers),
        "num_questions": len(answers),
    }


def coverage_of(answers: Sequence[ReadAnswer]) -> float:
    """The share in [0, 1] of questions whose answer did not fail."""
    return 1.0 - sum(answer.text is None for answer in answers) / len(answers)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What both kinds have.

    `read(data, images)` gives the items of a file or folder; `images` is the folder of the pictures
    that they name. `data` describes that file in a hint. `default_items` gives the items where the
    user has no file; without it a file is required. `layouts` maps the name of a layout to a
    function that writes a run into an empty folder, for the scorer of the benchmark's authors.
    """

    name: str
    data: str
    read: Callable[[Path, Path | None], Sequence[ItemRow]]
    default_items: Callable[[], Sequence[ItemRow]] | None = None
    layouts: Mapping[str, Callable[[BenchmarkRun, Path], None]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PictureBenchmark(Benchmark):
    """Prompts; a scorer judges the pictures that a model drew of them.

    `collectors` maps the name of a format to a function that reads verdicts of a scorer elsewhere
    from a file; its last argument is the name of that scorer.
    """

    scorers: tuple[str, ...]
    score: Callable[[BenchmarkRun, ScorerOptions], Verdicts]
    collectors: Mapping[str, Callable[[BenchmarkRun, Path, str], Verdicts]] = field(
        default_factory=dict
    )


@dataclass(frozen=True, kw_only=True)
class QuestionBenchmark(Benchmark):
    """Questions; `reader` names the way in which the benchmark's authors read an answer.

    `correct(item, text)` is that reading, `figures` the figures of all answers.
    """

    reader: str
    correct: Callable[[BenchmarkItem, str], bool]
    figures: Callable[[Sequence[ReadAnswer]], dict[str, Any]] = accuracy_figures

    def score(self, run: BenchmarkRun, options: ScorerOptions) -> Verdicts:
        """Read the answers of a run; raises UserError for a scorer other than the reader."""
        if options.scorer != self.reader:
            raise UserError(f"{self.name} is read by {self.reader}, not by {options.scorer}")
        answers, rows = [], []
        for item, answer in zip(run.items, run.answers(), strict=True):
            text = None if isinstance(answer, Failure) else answer
            correct = text is not None and self.correct(item, text)
            answers.append(ReadAnswer(item, text, correct))
            rows.append(
                score_row(
                    self.name,
                    item.tag,
                    "",
                    item.id,
                    prompt=item.prompt,
                    answer=text,
                    label=item.truth,
                    correct=correct,
                    error=answer.reason if isinstance(answer, Failure) else None,
                )
            )
        return Verdicts(
            self.reader,
            {f"{self.name}@{self.reader}": self.figures(answers)},
            rows,
            {"scorer": {"reader": self.reader}},
            f"tarkit eval answer {run.path} --retry-failed, then {score_command(run)}",
        )


def score_command(run: BenchmarkRun, scorer: str | None = None) -> str:
    """The command that scores a run; `scorer` is named where the benchmark has several."""
    return f"tarkit eval score {run.path}" + (f" --scorer {scorer}" if scorer else "")


def write_verdicts(run: BenchmarkRun, verdicts: Verdicts, *, settings: Mapping[str, Any]) -> Scored:
    """Write `scores/BENCH@NAME` of the run with both settings; show the tables."""
    tables = run_tables(verdicts.figures)
    show(tables)
    report = "\n".join([f"# {run.bench}@{verdicts.name}\n", *(t.markdown() for t in tables)])
    out = scorer_folder(run, verdicts.name)
    complete = {**settings, **verdicts.settings}
    write_outcome(out, verdicts.figures, settings=complete, report=report, rows=verdicts.rows)
    return Scored(out, report, sum(row["error"] is not None for row in verdicts.rows))
