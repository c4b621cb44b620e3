"""GQA: short answers about the relations in a picture (Hudson and Manning 1902.09506)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tarkit.eval.benchmarks.rows import SHORT, Row, _first, _need, _picture, _rows


def read_short(path: Path, images: Path | None) -> list[Row]:
    """GQA: {id: {question, answer, imageId, types}} as .json, or rows of the same names."""
    rows = []
    for place, found in _rows(path):
        _need(found, ("question", "answer"), place)
        types = found.get("types")
        row = {
            "id": str(_first(found, ("id", "question_id"), place)),
            "tag": str(types.get("structural")) if isinstance(types, Mapping) else "all",
            "prompt": str(found["question"]) + SHORT,
            "truth": str(found["answer"]),
            "meta": {},
        }
        rows.append(row | _picture(found, images, place))
    return rows
