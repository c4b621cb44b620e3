"""POPE: is an object in the picture, yes or no (Li et al. 2305.10355)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tarkit.artifacts.files import write_whole
from tarkit.artifacts.tables import read_json_lines
from tarkit.eval.benchmarks.layouts import _answered, _name
from tarkit.eval.benchmarks.rows import SHORT, Row, _images, _inside, _need
from tarkit.eval.metrics.summaries import QuestionScores, question_results
from tarkit.eval.metrics.yes_no import parse_yes_no
from tarkit.eval.run import Run
from tarkit.scoring.statistics import chance_floor


def read_pope(path: Path, images: Path | None) -> list[Row]:
    """POPE: jsonl rows of question_id, image, text, label; of a folder each file is a split."""
    folder = _images(path, images, "POPE")
    rows = []
    for file in sorted(path.glob("*.json*")) if path.is_dir() else [path]:
        split = file.stem.removeprefix("coco_pope_")
        for line in read_json_lines(file):
            number, found = line.number, line.require()
            _need(found, ("image", "text", "label"), f"{file}:{number}")
            rows.append(
                {
                    "id": f"{split}-{found.get('question_id', number)}",
                    "tag": split,
                    "prompt": found["text"] + SHORT,
                    "picture": str(_inside(folder, found["image"], f"{file}:{number}")),
                    "truth": found["label"].lower(),
                    "meta": {"group": found["image"]},
                }
            )
    return rows


def _pope(asked: Run, said: Sequence[str | None]) -> dict[str, Any]:
    labels = [item.truth == "yes" for item in asked.items]

    def by_other(question: int, other: int) -> bool:
        text = said[other]
        return text is not None and parse_yes_no(text) == labels[question]

    return question_results(
        QuestionScores(
            kinds=[item.tag for item in asked.items],
            columns=[""] * len(asked.items),
            pictures=[item.group for item in asked.items],
            answers=said,
            labels=labels,
            chance=chance_floor(by_other, len(asked.items)),
        )
    )


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
