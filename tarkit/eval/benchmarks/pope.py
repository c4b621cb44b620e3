"""POPE: is an object in the picture, yes or no (Li et al. 2305.10355).

The layout `pope-jsonl` is `DIR/SPLIT_answers.jsonl` for AoiDragon/POPE's `evaluate.py`. As that
pairs answers with labels by their lines, `DIR/SPLIT_labels.jsonl` holds the labels of just these
questions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tarkit.artifacts.files import write_whole
from tarkit.artifacts.tables import read_json_records
from tarkit.eval.benchmark_parts.export_layouts import file_name, run_answers
from tarkit.eval.benchmark_parts.question_files import (
    SHORT_SUFFIX,
    encoding_of,
    file_inside,
    files_of,
    require_images,
    require_texts,
    yes_or_no,
)
from tarkit.eval.benchmarks.base import ItemRow, QuestionBenchmark, ReadAnswer
from tarkit.eval.metrics.summaries import QuestionScores, question_results
from tarkit.eval.metrics.yes_no import parse_yes_no
from tarkit.eval.run import BenchmarkItem, BenchmarkRun
from tarkit.scoring.statistics import chance_floor


def read_pope(path: Path, images: Path | None) -> list[ItemRow]:
    """Lines, or a list, of question_id, image, text and label; each file of a folder is a split."""
    folder = require_images(path, images, "POPE")
    rows = []
    for file in files_of(path, "*.json*") if path.is_dir() else [path]:
        split = file.stem.removeprefix("coco_pope_")
        for line in read_json_records(file, encoding=encoding_of(file)):
            number, row = line.number, line.require()
            place = f"{file}:{number}"
            require_texts(row, ("image", "text", "label"), place)
            rows.append(
                {
                    "id": f"{split}-{row.get('question_id', number)}",
                    "tag": split,
                    "prompt": str(row["text"]) + SHORT_SUFFIX,
                    "picture": str(file_inside(folder, row["image"], place)),
                    "truth": yes_or_no(row["label"], place),
                    "meta": {"group": row["image"]},
                }
            )
    return rows


def pope_correct(item: BenchmarkItem, answer: str) -> bool:
    """Whether the answer, as POPE's program reads it, is the label."""
    return parse_yes_no(answer) == (item.truth == "yes")


def pope_figures(answers: Sequence[ReadAnswer]) -> dict[str, Any]:
    """POPE's figures of each split and of all; chance is that of another question's answer."""
    texts = [answer.text for answer in answers]
    labels = [answer.item.truth == "yes" for answer in answers]

    def correct_of_other(question: int, other: int) -> bool:
        text = texts[other]
        return text is not None and parse_yes_no(text) == labels[question]

    return question_results(
        QuestionScores(
            kinds=[answer.item.tag for answer in answers],
            columns=[""] * len(answers),
            pictures=[answer.item.group for answer in answers],
            answers=texts,
            labels=labels,
            chance=chance_floor(correct_of_other, len(answers)),
        )
    )


def write_pope_jsonl(run: BenchmarkRun, folder: Path) -> None:
    """Two files for each split, line N of one belonging to line N of the other."""
    answers: dict[str, list[str]] = {}
    labels: dict[str, list[str]] = {}
    for item, text in run_answers(run):
        question = item.prompt.removesuffix(SHORT_SUFFIX)
        answer = {"question": question, "answer": text}
        label = {"image": item.group, "text": question, "label": item.truth}
        answers.setdefault(item.tag, []).append(json.dumps(answer) + "\n")
        labels.setdefault(item.tag, []).append(json.dumps(label) + "\n")
    for kind, files in (("answers", answers), ("labels", labels)):
        for split, lines in files.items():
            write_whole(folder / f"{file_name(split)}_{kind}.jsonl", "".join(lines).encode())


BENCHMARK = QuestionBenchmark(
    name="pope",
    data="a POPE file of questions, or a folder of them",
    read=read_pope,
    reader="official-parse",
    correct=pope_correct,
    figures=pope_figures,
    layouts={"pope-jsonl": write_pope_jsonl},
)
