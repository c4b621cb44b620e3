"""MMVP: questions on pairs of pictures that CLIP cannot tell apart (Tong et al. 2401.06209).

300 pictures with one question each, in 150 pairs: questions 1 and 2, 3 and 4, and so on. A pair is
alike to CLIP and different to DINOv2, and its two questions have different answers. The paper's
figure is the share of pairs with both questions correct; guessing gives 25 %. `pair_accuracy` is
that figure, `accuracy` the share of single questions; both intervals redraw pairs.

Data: MMVP's folder with `Questions.csv` (Index, Question, Options "(a) Open (b) Closed", Correct
Answer "(a)") and `MMVP Images/1.jpg`. Some copies spell the first column `lndex`.

Departures. The published scorer (tsb0601/MMVP `scripts/gpt_grader.py`) asks GPT-4 whether an answer
is correct; here the answer must state the letter or repeat the option, as lmms-eval reads it in
essence, so that a figure needs no other model. An answer that states neither, or both, is wrong and
counted in `unclear`. The prompt is lmms-eval's; the published program puts the options behind the
question as they are and samples at temperature 0.2. The true answers are those of the file:
tsb0601/MMVP#30 reports that the answers to 99 and 100, and to 279 and 280, are exchanged in it.

The layout `mmvp-jsonl` is `DIR/answer.jsonl` for `gpt_grader.py`, which takes lines by pairs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tarkit.artifacts.files import write_whole
from tarkit.errors import UserError
from tarkit.eval.benchmark_parts.choices import listed
from tarkit.eval.benchmark_parts.export_layouts import run_answers
from tarkit.eval.benchmark_parts.question_files import (
    LETTER_SUFFIX,
    file_inside,
    first_value,
    question_rows,
    require_columns,
)
from tarkit.eval.benchmarks.base import ItemRow, QuestionBenchmark, ReadAnswer, coverage_of
from tarkit.eval.run import BenchmarkItem, BenchmarkRun
from tarkit.scoring.statistics import bootstrap

WHOLE_PAIRS = "tarkit eval prepare mmvp --data MMVP --out DIR, with an even --limit or none"


def read_mmvp(path: Path, images: Path | None) -> list[ItemRow]:
    """Rows of `Questions.csv`, or of the folder that holds it; `images` replaces `MMVP Images`.

    Raises UserError for a row without two options or a true one, and for half a pair.
    """
    file = path / "Questions.csv" if path.is_dir() else path
    folder = images or file.parent / "MMVP Images"
    rows: list[ItemRow] = []
    for place, row in question_rows(file):
        require_columns(row, ("Question", "Options", "Correct Answer"), place)
        index = str(first_value(row, ("Index", "lndex"), default=""))
        if not index.isdecimal() or int(index) < 1:
            raise UserError(f"{place}: Index {index!r} is not a number from 1 on")
        options = _options(str(row["Options"]))
        truth = str(row["Correct Answer"]).strip().strip("()").upper()
        if len(options) < 2 or truth not in options:
            raise UserError(
                f"{place}: {row['Correct Answer']!r} is not one of two or more options in "
                f"{row['Options']!r}"
            )
        rows.append(
            {
                "id": index,
                "tag": "all",
                "prompt": str(row["Question"]).strip() + listed(options) + LETTER_SUFFIX,
                "picture": str(file_inside(folder, f"{index}.jpg", place)),
                "truth": truth,
                "meta": {"group": str((int(index) + 1) // 2), "options": options},
            }
        )
    _require_pairs([row["meta"]["group"] for row in rows], str(file))
    return rows


def _options(text: str) -> dict[str, str]:
    """`(a) Open (b) Closed` -> {"A": "Open", "B": "Closed"}."""
    parts = re.findall(r"\(([a-z])\)\s*(.*?)\s*(?=\([a-z]\)|$)", text.strip(), re.DOTALL)
    return {letter.upper(): option for letter, option in parts}


def _require_pairs(groups: Sequence[str], name: str) -> None:
    """Raise UserError unless the two questions of every pair follow each other."""
    if groups[::2] != groups[1::2] or len(set(groups)) != len(groups[::2]):
        raise UserError(f"{name} does not hold both questions of every pair", hint=WHOLE_PAIRS)


def parse_mmvp(answer: str, options: dict[str, str]) -> str | None:
    """The letter of the only option that an answer states, or None.

    A letter counts in brackets, in front of `.`, `)` or `:`, alone, or at the end after "answer is"
    or "option". The article in "a dog" is no letter. Without a letter, the whole answer may be the
    text of an option.
    """
    letters = "".join(options)
    stated = re.findall(
        rf"\(([{letters}])\)|^([{letters}])(?=[.):]|$)|(?:answer is|option) ([{letters}])(?=\W*$)",
        answer.strip(),
        re.IGNORECASE,
    )
    choices = {letter.upper() for groups in stated for letter in groups if letter}
    if not choices:
        text = answer.strip().strip(".").casefold()
        choices = {letter for letter, option in options.items() if option.casefold() == text}
    return choices.pop() if len(choices) == 1 else None


def mmvp_correct(item: BenchmarkItem, answer: str) -> bool:
    """Whether the answer states the true option and no other."""
    return parse_mmvp(answer, item.options) == item.truth


def mmvp_figures(answers: Sequence[ReadAnswer]) -> dict[str, Any]:
    """Figures of pairs and of single questions; raises UserError for half a pair."""
    groups = [answer.item.group for answer in answers]
    _require_pairs(groups, "the run")
    correct = np.array([answer.correct for answer in answers], dtype=np.float64).reshape(-1, 2)
    # Of a pair: whether both are correct, how many are, and how many there are.
    counts = np.stack([correct.min(1), correct.sum(1), np.full(len(correct), 2.0)], axis=1)
    pairs = groups[::2]
    unclear = [a for a in answers if a.text is None or parse_mmvp(a.text, a.item.options) is None]
    return {
        "pair_accuracy": bootstrap(counts, pairs, lambda s: 2 * s[..., 0] / s[..., 2])._asdict(),
        "accuracy": bootstrap(counts, pairs, lambda s: s[..., 1] / s[..., 2])._asdict(),
        "unclear": len(unclear) / len(answers),
        "coverage": coverage_of(answers),
        "num_pairs": len(pairs),
        "num_questions": len(answers),
    }


def write_mmvp_jsonl(run: BenchmarkRun, folder: Path) -> None:
    """A line an answer: question_id, prompt as published, the true `(a)`, and the response."""
    _require_pairs([item.group for item in run.items], str(run.path))
    lines = []
    for item, answer in run_answers(run):
        question = item.prompt.removesuffix(listed(item.options) + LETTER_SUFFIX)
        options = " ".join(f"({letter.lower()}) {text}" for letter, text in item.options.items())
        line = {
            "question_id": int(item.id),
            "prompt": f"{question} {options}",
            "answer": f"({str(item.truth).lower()})",
            "response": answer,
        }
        lines.append(json.dumps(line) + "\n")
    write_whole(folder / "answer.jsonl", "".join(lines).encode())


BENCHMARK = QuestionBenchmark(
    name="mmvp",
    data="MMVP's folder, with Questions.csv and 'MMVP Images'",
    read=read_mmvp,
    reader="stated-letter",
    correct=mmvp_correct,
    figures=mmvp_figures,
    layouts={"mmvp-jsonl": write_mmvp_jsonl},
)
