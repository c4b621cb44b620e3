"""MME's scores, and the paper's mean over understanding benchmarks.

Sources: MME (Fu et al. 2306.13394), `calculation.py` of its evaluation tool: yes or no within the
first four characters of an answer; an image has two questions; a subtask scores 100 times the
share of right answers and 100 times the share of images with both right.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tarkit.artifacts.files import write_whole
from tarkit.errors import UserError
from tarkit.eval.benchmarks.layouts import _answered, _name
from tarkit.eval.benchmarks.rows import MME_TAIL, PICTURE_ENDINGS, SHORT, Row
from tarkit.eval.run import Run
from tarkit.scoring.statistics import bootstrap

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity"),
    *("scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


class Asked(NamedTuple):
    """One question of MME; `answer` is None where none could be had."""

    task: str
    picture: str
    truth: str
    answer: str | None


def parse_mme(answer: str) -> str | None:
    """yes, no, or None for neither, which is wrong whatever the truth."""
    start = answer.strip().lower()[:4]
    return next((word for word in ("yes", "no") if word in start), None)


def mme_results(asked: Sequence[Asked]) -> dict[str, Any]:
    """`perception` (at most 2000) and `cognition` (at most 800) with the subtasks they sum.

    A sum over fewer subtasks than MME's is None: it is another figure. Raises UserError for a
    picture that has not two questions, of which acc+ cannot be taken.
    """
    pairs: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for one in asked:
        said = None if one.answer is None else parse_mme(one.answer)
        pairs[one.task][one.picture].append(said == one.truth.strip().lower())
    tasks = {task: _subtask(task, pictures) for task, pictures in pairs.items()}
    unclear = [a for a in asked if a.answer is None or parse_mme(a.answer) is None]
    return {
        "perception": _sum(tasks, PERCEPTION),
        "cognition": _sum(tasks, COGNITION),
        "tasks": tasks,
        "unclear": len(unclear) / len(asked),
        "coverage": 1.0 - sum(a.answer is None for a in asked) / len(asked),
        "num_questions": len(asked),
    }


def _subtask(task: str, pictures: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    odd = [picture for picture, right in pictures.items() if len(right) != 2]
    if odd:
        raise UserError(f"{odd[0]} of {task} has {len(pictures[odd[0]])} questions, MME asks two")
    counts = np.array([(sum(right), all(right), 1) for right in pictures.values()], dtype=float)

    def score(sums: np.ndarray) -> np.ndarray:
        return np.asarray((50 * sums[..., 0] + 100 * sums[..., 1]) / sums[..., 2])

    return bootstrap(counts, list(pictures), score)._asdict()


def _sum(tasks: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> float | None:
    if any(name not in tasks for name in names):
        return None
    return sum(tasks[name]["value"] for name in names)


def read_mme(path: Path, images: Path | None) -> list[Row]:
    """MME: a folder a subtask, in it (or in `questions_answers_YN`) a .txt beside every picture."""
    rows = []
    for folder in sorted(each for each in path.iterdir() if each.is_dir()):
        texts = sorted([*folder.glob("*.txt"), *folder.glob("questions_answers_YN/*.txt")])
        for text in texts:
            for number, line in enumerate(text.read_text(encoding="utf-8").splitlines()):
                question, tab, answer = line.rpartition("\t")
                if not tab:
                    raise UserError(f"{text}:{number + 1} is not a question, a tab and an answer")
                rows.append(
                    {
                        "id": f"{folder.name}-{text.stem}-{number}",
                        "tag": folder.name,
                        "prompt": question.replace(MME_TAIL, "").strip() + SHORT,
                        "picture": str(_beside(folder, text)),
                        "truth": answer.strip().lower(),
                        "meta": {"group": text.stem},
                    }
                )
    if not rows:
        raise UserError(f"{path} has no subtask folders with .txt files")
    return rows


def _beside(folder: Path, text: Path) -> Path:
    places = [
        where / f"{text.stem}{ending}"
        for where in (folder, folder / "images")
        for ending in PICTURE_ENDINGS
    ]
    return next((file for file in places if file.is_file()), places[0])


def _mme(asked: Run, said: Sequence[str | None]) -> dict[str, Any]:
    return mme_results(
        [
            Asked(item.tag, item.group, str(item.truth), text)
            for item, text in zip(asked.items, said, strict=True)
        ]
    )


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
