"""The inputs of `curate chats`: tokens, a text source, and artifacts joined to the tokens by key.

Captions written for the pictures are added after a picture's own texts, judgements become a
question and an answer, and scores decide which pictures take part.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from tarkit.artifacts.artifact import Artifact, open_artifact
from tarkit.artifacts.join import Joined, by_key, row_of
from tarkit.curate.picture_chats import LEFT_OUT
from tarkit.curate.sources.text import TextSource
from tarkit.errors import UserError

WORD_COLUMNS = (
    *("key", "group", "role", "split", "prompt", "captions", "qa", "template", "status", "error"),
)


@dataclass(frozen=True)
class MinScore:
    """Only pictures whose score in `column` is at least `minimum` take part.

    `scores` is a scores artifact; `column` may be None where it has only one.
    """

    scores: Path
    minimum: float
    column: str | None = None


class SelectedRows(NamedTuple):
    """Rows with their joined columns; how many pictures and judgements are left out, by reason."""

    rows: Sequence[dict[str, Any]]
    left_out: Counter[str]
    unbalanced: Counter[str]


@dataclass(frozen=True, kw_only=True)
class ChatInputs:
    """The opened inputs; tokens or documents may be missing, but not both."""

    tokens: Artifact | None
    documents: TextSource | None
    captions: tuple[Artifact, ...] = ()
    judgements: Artifact | None = None
    scores: Artifact | None = None
    column: str = ""
    """The column of the scores."""
    minimum: float = 0.0

    @cached_property
    def joined(self) -> Joined | None:
        """The tokens with the artifacts that are joined to them."""
        others = [*self.captions, *(a for a in (self.scores, self.judgements) if a)]
        return Joined(self.tokens, others) if self.tokens else None

    @property
    def parents(self) -> dict[str, Artifact | Path]:
        named = {"tokens": self.tokens, "scores": self.scores, "judgements": self.judgements}
        named |= {f"captions_{number}": a for number, a in enumerate(self.captions)}
        return {name: artifact for name, artifact in named.items() if artifact}

    def select(self, name: str, table: pa.Table) -> SelectedRows:
        """The rows `table` of the tokens shard `name`, joined with other artifacts' rows."""
        rows = table.select(WORD_COLUMNS).to_pylist()
        for artifact in self.captions:
            _add_captions(rows, artifact, name)
        unbalanced = _add_judgements(rows, self.judgements, name) if self.judgements else Counter()
        left_out: Counter[str] = Counter()
        if self.scores:
            left_out = _leave_out(rows, self.scores, name, self.column, self.minimum)
        return SelectedRows(rows, left_out, unbalanced)


def open_inputs(
    *,
    tokens: Path | None,
    text: Path | None,
    captions: Sequence[Path],
    judgements: Path | None,
    min_score: MinScore | None,
    max_documents: int | None,
) -> ChatInputs:
    """Opens the inputs; raises UserError where there are none or they do not fit together."""
    if tokens is None and text is None:
        raise UserError(
            "there is nothing to make chats from: neither a tokens artifact nor a text source",
            hint="tarkit curate chats TOKENS_DIR --text FILE --out DIR (either of the two will do)",
        )
    if tokens is None and (captions or min_score or judgements):
        raise UserError("captions, scores and judgements need the tokens of their pictures")
    scores = open_artifact(min_score.scores, "scores") if min_score else None
    return ChatInputs(
        tokens=open_artifact(tokens, "tokens") if tokens else None,
        documents=TextSource(text, limit=max_documents) if text else None,
        captions=tuple(open_artifact(path, "prompts") for path in captions),
        judgements=open_artifact(judgements, "judgements") if judgements else None,
        scores=scores,
        column=_column(scores, min_score.column) if scores and min_score else "",
        minimum=min_score.minimum if min_score else 0.0,
    )


def _column(scores: Artifact, column: str | None) -> str:
    """The named column of the scores, or the only one."""
    columns = [str(name) for name in scores.settings["columns"]]
    if column is None and len(columns) == 1:
        return columns[0]
    if not columns:
        raise UserError(f"{scores.path} has no columns", hint=f"tarkit inspect {scores.path}")
    if column not in columns:
        message = f"{scores.path} has the columns {', '.join(columns)}"
        raise UserError(message, hint=f"--by {columns[0]}")
    return str(column)


def _add_captions(rows: Sequence[dict[str, Any]], captions: Artifact, name: str) -> None:
    caption_rows = by_key(captions, name, ["prompt"])
    for row in rows:
        caption = row_of(caption_rows, row["key"], captions)
        if caption["status"] == "ok":
            row["captions"] = [*(row["captions"] or ()), caption["prompt"]]


def _add_judgements(
    rows: Sequence[dict[str, Any]], judgements: Artifact, name: str
) -> Counter[str]:
    """Adds as many yes as no; returns how many of each verdict are left out.

    Which ones are left out depends only on their keys.
    """
    judgement_rows = by_key(judgements, name, ["prompt", "verdict", "reason"])
    rows_by_verdict: dict[str, list[dict[str, Any]]] = {"yes": [], "no": []}
    for row in rows:
        judgement = row_of(judgement_rows, row["key"], judgements)
        if row["status"] == "ok" and judgement["status"] == "ok":
            rows_by_verdict[judgement["verdict"]].append(row)
            row |= {"judged": judgement["prompt"], "reason": judgement["reason"]}
    num_each = min(map(len, rows_by_verdict.values()))
    unbalanced: Counter[str] = Counter()
    for verdict, verdict_rows in rows_by_verdict.items():
        shuffled = sorted(
            verdict_rows, key=lambda row: hashlib.sha256(row["key"].encode()).digest()
        )
        for row in shuffled[:num_each]:
            row["verdict"] = verdict
        unbalanced[verdict] = len(verdict_rows) - num_each
    return unbalanced


def _leave_out(
    rows: Sequence[dict[str, Any]], scores: Artifact, name: str, column: str, minimum: float
) -> Counter[str]:
    """Marks the rows without a sufficient score as left out; returns their number by reason."""
    score_rows = by_key(scores, name, [column])
    left_out: Counter[str] = Counter()
    for row in rows:
        score = row_of(score_rows, row["key"], scores)
        if row["status"] != "ok":
            continue
        if score["status"] != "ok":
            reason = "no score"
        elif score[column] < minimum:
            reason = f"{column} below {minimum:g}"
        else:
            continue
        row["status"] = LEFT_OUT
        left_out[reason] += 1
    return left_out
