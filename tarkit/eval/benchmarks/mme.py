"""MME: two yes/no questions about every picture (Fu et al. 2306.13394).

Source of the scores: `calculation.py` of its evaluation tool. An answer is yes or no by its first
four characters; a subtask scores 100 times the share of correct answers plus 100 times the share of
pictures with both correct.

The layout `mme-txt` is `DIR/SUBTASK.txt` of `image TAB question TAB truth TAB answer`, for
`calculation.py`, which expects all 14 subtasks. Tabs and line ends within an answer become spaces.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tarkit.artifacts.files import is_system_file, read_lines, write_whole
from tarkit.errors import UserError
from tarkit.eval.benchmark_parts.export_layouts import file_name, run_answers
from tarkit.eval.benchmark_parts.question_files import (
    PICTURE_ENDINGS,
    SHORT_SUFFIX,
    encoding_of,
    files_of,
    yes_or_no,
)
from tarkit.eval.benchmarks.base import ItemRow, QuestionBenchmark, ReadAnswer, coverage_of
from tarkit.eval.run import BenchmarkItem, BenchmarkRun
from tarkit.scoring.statistics import bootstrap

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity"),
    *("scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
PUBLISHED_SUFFIX = " Please answer yes or no."


def read_mme(path: Path, images: Path | None) -> list[ItemRow]:
    """A folder a subtask, with a .txt beside every picture or in `questions_answers_YN`."""
    rows = []
    folders = sorted(each for each in path.iterdir() if each.is_dir())
    for folder in (each for each in folders if not is_system_file(each.name)):
        texts = files_of(folder, "*.txt") + files_of(folder, "questions_answers_YN/*.txt")
        for text in sorted(texts):
            lines = read_lines(text, encoding=encoding_of(text))
            for number, (line_number, line) in enumerate(lines):
                question, tab, answer = line.rstrip().rpartition("\t")
                if not tab:
                    raise UserError(f"{text}:{line_number} is not a question, a tab and an answer")
                rows.append(
                    {
                        "id": f"{folder.name}-{text.stem}-{number}",
                        "tag": folder.name,
                        "prompt": question.replace(PUBLISHED_SUFFIX, "").strip() + SHORT_SUFFIX,
                        "picture": str(_picture_file(folder, text.stem)),
                        "truth": yes_or_no(answer, f"{text}:{line_number}"),
                        "meta": {"group": text.stem},
                    }
                )
    if not rows:
        raise UserError(f"{path} has no subtask folders with .txt files")
    return rows


def _picture_file(folder: Path, stem: str) -> Path:
    files = [
        where / f"{stem}{ending}"
        for where in (folder, folder / "images")
        for ending in PICTURE_ENDINGS
    ]
    return next((file for file in files if file.is_file()), files[0])


def parse_mme(answer: str) -> str | None:
    """yes, no, or None for neither, which is wrong whatever the truth."""
    start = answer.strip().lower()[:4]
    return next((word for word in ("yes", "no") if word in start), None)


def mme_correct(item: BenchmarkItem, answer: str) -> bool:
    """Whether the answer, as MME's tool reads it, is the true one."""
    return parse_mme(answer) == item.truth


def mme_figures(answers: Sequence[ReadAnswer]) -> dict[str, Any]:
    """`perception` (at most 2000) and `cognition` (at most 800) with the subtasks they sum.

    A sum over fewer subtasks than MME's is None, because it is another figure. Raises UserError for
    a picture that does not have two questions, because its acc+ is not defined.
    """
    pairs: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for item, _, correct in answers:
        pairs[item.tag][item.group].append(correct)
    tasks = {task: _subtask(task, pictures) for task, pictures in pairs.items()}
    unclear = [a for a in answers if a.text is None or parse_mme(a.text) is None]
    return {
        "perception": _sum(tasks, PERCEPTION),
        "cognition": _sum(tasks, COGNITION),
        "tasks": tasks,
        "unclear": len(unclear) / len(answers),
        "coverage": coverage_of(answers),
        "num_questions": len(answers),
    }


def _subtask(task: str, pictures: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    odd = [picture for picture, correct in pictures.items() if len(correct) != 2]
    if odd:
        raise UserError(f"{odd[0]} of {task} has {len(pictures[odd[0]])} questions, MME asks two")
    counts = np.array([(sum(pair), all(pair), 1) for pair in pictures.values()], dtype=float)

    def score(sums: np.ndarray) -> np.ndarray:
        return np.asarray((50 * sums[..., 0] + 100 * sums[..., 1]) / sums[..., 2])

    return bootstrap(counts, list(pictures), score)._asdict()


def _sum(tasks: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> float | None:
    if any(name not in tasks for name in names):
        return None
    return sum(tasks[name]["value"] for name in names)


def write_mme_txt(run: BenchmarkRun, folder: Path) -> None:
    """Write a picture's two questions one after the other, as MME's tool takes lines by pairs.

    Raises UserError for a truth other than yes or no, and for a picture without two questions.
    """
    lines: dict[str, list[tuple[str, str]]] = {}
    for item, answer in run_answers(run):
        if item.truth not in ("yes", "no"):
            raise UserError(f"MME's answers are yes or no, that to {item.id} is {item.truth!r}")
        question = item.prompt.removesuffix(SHORT_SUFFIX) + PUBLISHED_SUFFIX
        cells = (Path(str(item.picture)).name, question, item.truth.capitalize(), answer.strip())
        line = "\t".join(re.sub(r"[\t\r\n]", " ", cell) for cell in cells) + "\n"
        lines.setdefault(item.tag, []).append((item.group, line))
    for task, grouped in lines.items():
        groups = [group for group, _ in grouped]
        if groups[::2] != groups[1::2] or len(set(groups)) != len(groups[::2]):
            raise UserError(
                f"{run.path} does not have two questions of every picture of {task}, which MME's "
                "tool expects",
                hint="tarkit eval prepare mme --data MME --out DIR, without --limit",
            )
        text = "".join(line for _, line in grouped)
        write_whole(folder / f"{file_name(task)}.txt", text.encode())


BENCHMARK = QuestionBenchmark(
    name="mme",
    data="MME's folder, a subfolder a subtask",
    read=read_mme,
    reader="official-parse",
    correct=mme_correct,
    figures=mme_figures,
    layouts={"mme-txt": write_mme_txt},
)
