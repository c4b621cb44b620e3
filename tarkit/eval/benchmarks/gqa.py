"""GQA: short answers about the relations in a picture (Hudson and Manning 1902.09506)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tarkit.eval.benchmark_parts.question_files import (
    SHORT_SUFFIX,
    first_value,
    picture_fields,
    question_rows,
    require_texts,
)
from tarkit.eval.benchmarks.base import ItemRow, QuestionBenchmark


def read_gqa(path: Path, images: Path | None) -> list[ItemRow]:
    """Rows of {id: {question, answer, imageId, types}} as .json, or of files with these columns."""
    rows = []
    for place, row in question_rows(path):
        require_texts(row, ("question", "answer"), place)
        types = row.get("types")
        item = {
            "id": str(first_value(row, ("id", "question_id"), default=place)),
            "tag": str(types.get("structural")) if isinstance(types, Mapping) else "all",
            "prompt": str(row["question"]) + SHORT_SUFFIX,
            "truth": str(row["answer"]),
            "meta": {},
        }
        rows.append(item | picture_fields(row, images, place))
    return rows


def exact(answer: str, truth: str) -> bool:
    """GQA's verdict: the same words, without regard to case and punctuation."""
    return _words(answer) == _words(truth)


def _words(text: str) -> list[str]:
    return re.sub(r"[^\w\s]", "", text).casefold().split()


BENCHMARK = QuestionBenchmark(
    name="gqa",
    data="GQA's questions as .json or .jsonl",
    read=read_gqa,
    reader="exact-match",
    correct=lambda item, answer: exact(answer, str(item.truth)),
)
