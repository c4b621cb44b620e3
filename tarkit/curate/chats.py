"""`tarkit curate chats`: codes and words of pictures become the chats that the MLLM learns from.

Source: paper App. D.2 (tasks I2T, T2I, text, I2I, TI2I and their questions). One tokens row becomes
several chats, all in the shard of the same number; every chat carries the codes of every stored
scale, because the scale is drawn at training time, and the split of its pictures.

What is said about a picture, where `[prompt, *captions]` are its texts:
  t2i   its texts, the prompt first -> <image>
  i2t   "Describe the image." -> the first caption (the prompt where there is none); a detailed
        question -> a further caption; a short one -> the prompt; its question-answer rows
  i2i   "Generate an image similar to <image>." of another picture of its group -> <image>
  ti2i  its template, the group's references at its marks -> <image>
  text  a document of the text source: one assistant turn, or the turns it came with

Joined by key: captions written for the pictures come after the picture's own texts, judgements are
asked for, and scores say which pictures take part.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from tarkit.artifacts.artifact import Artifact, begin_artifact, open_artifact
from tarkit.artifacts.join import Joined, by_key, row_of
from tarkit.artifacts.preview import first_rows, preview_shards
from tarkit.artifacts.ranks import rank_and_world
from tarkit.config import Config, load_config
from tarkit.curate.sources.text import Document, TextSource
from tarkit.errors import UserError
from tarkit.progress import Progress
from tarkit.seeds import chat_seed
from tarkit.vocab import IMAGE_MARK, judgement_question

Task = Literal["t2i", "i2t", "i2i", "ti2i", "text"]
Turn = tuple[str, str]

DESCRIBE = (
    "Describe the image.",
    "What is in the image?",
    "What does the image show?",
    "Write a caption for the image.",
)
DESCRIBE_IN_DETAIL = (
    "Describe the image in detail.",
    "Give a detailed description of the image.",
    "Describe everything in the image.",
)
DESCRIBE_IN_SHORT = (
    "Write a short prompt for the image.",
    "Which short prompt would draw the image?",
)
SIMILAR = f"Generate an image similar to {IMAGE_MARK}."

CODE_COLUMNS = ("codes_1", "codes_2", "codes_3")
CODES_SETTINGS = ("tokenizer_sha256", "codebook_size", "sides")
WORD_COLUMNS = (
    *("key", "group", "role", "split", "prompt", "captions", "qa", "template", "status", "error"),
)


class ChatsConfig(Config):
    """How many chats a picture gives; which share of a task is trained on is the training's."""

    seed: int = 0
    t2i_per_picture: int = Field(default=3, ge=0)
    """Texts that the picture is drawn from: the prompt, then the captions in their order."""
    captions_per_picture: int = Field(default=2, ge=0)
    """The plain description first, then detailed and short ones in drawn order."""
    qa_per_picture: int = Field(default=4, ge=0)
    qa_turns: int = Field(default=1, ge=1)
    """Question-answer rows in one chat: more of them share one picture's codes."""
    qa_order: Literal["drawn", "given"] = "drawn"
    """"given" keeps the rows' order, as a conversation needs it."""
    i2i_per_picture: int = Field(default=1, ge=0)
    ti2i_per_picture: int = Field(default=1, ge=0)
    plain_question_share: float = Field(default=0.5, ge=0, le=1)
    """Share of descriptions that are asked for in the plain words, the first of their list."""
    max_documents: int | None = Field(default=None, ge=1)
    documents_per_shard: int = Field(default=10_000, ge=1)
    """For a text source alone; beside tokens the documents are dealt over the tokens' shards."""


@dataclass(frozen=True, kw_only=True)
class Chat:
    """One chat; `pictures` are row numbers in its tokens shard, one for each mark in order."""

    key: str
    task: Task | None
    split: str | None = None
    turns: tuple[Turn, ...] = ()
    pictures: tuple[int, ...] = ()
    error: str | None = None


LEFT_OUT = "left out"
"""The status of a row whose picture takes no part; such rows are in no artifact."""


@dataclass(frozen=True)
class Keep:
    """Pictures take part whose score in `column` is at least `least`."""

    scores: Path
    least: float
    column: str | None = None
    """The only column of the scores where it is None."""


@dataclass(frozen=True)
class Sources:
    """What chats are made of: tokens, a text source, and what is joined to the tokens by key."""

    tokens: Path | None = None
    text: Path | None = None
    captions: Sequence[Path] = ()
    """Prompts artifacts of `curate caption`."""
    judgements: Path | None = None
    """The artifact of `curate judge`."""
    keep: Keep | None = None


@dataclass(frozen=True)
class _Opened:
    tokens: Artifact | None
    documents: TextSource | None
    captions: tuple[Artifact, ...] = ()
    scores: Artifact | None = None
    judgements: Artifact | None = None
    column: str = ""
    least: float = 0.0
    num_left_out: Counter[str] = field(default_factory=Counter)
    num_unbalanced: Counter[str] = field(default_factory=Counter)

    @property
    def joined(self) -> Joined | None:
        beside = [*self.captions, *(a for a in (self.scores, self.judgements) if a)]
        return Joined(self.tokens, beside) if self.tokens else None

    @property
    def parents(self) -> dict[str, Artifact]:
        named = {"tokens": self.tokens, "scores": self.scores, "judgements": self.judgements}
        named |= {f"captions_{number}": a for number, a in enumerate(self.captions)}
        return {name: artifact for name, artifact in named.items() if artifact}


@dataclass(frozen=True)
class _Part:
    """What one output shard is made of: rows of the tokens shard, a range of documents."""

    name: str
    num_rows: int
    documents: range


def run(
    sources: Sources,
    *,
    out: Path,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    limit: int | None = None,
) -> Artifact:
    """Write the chats artifact `out`.

    `limit` takes the first rows of the tokens (of the documents where there are no tokens). The
    same call again writes what is missing and what was made from shards that have changed since.
    """
    opened, settings = _open(sources, config, overrides)
    if opened.documents and opened.documents.num_shown:
        told = (
            f"{opened.documents.num_shown} rows show pictures; curate ingest --questions has them"
        )
        print(f"{opened.documents.path}: {told}", file=sys.stderr)
    parts = _parts(opened, settings, limit)
    artifact = begin_artifact(
        out,
        "chats",
        settings=_settings(settings, opened, limit),
        shards=[part.name for part in parts],
        parents=opened.parents,
    )
    rank, world = rank_and_world()
    source = opened.joined
    pending = set(artifact.pending(source, rank, world))
    with Progress("chats", total=len(pending), unit="shards") as progress:
        for part in parts:
            if part.name in pending:
                table = _shard(part, opened, settings)
                made_from = source.shard_sha256(part.name) if source else None
                artifact.write(part.name, table, source_sha256=made_from)
                progress.advance(1, failed=_num_failed(table))
        for reason, count in opened.num_left_out.most_common():
            progress.message(f"{count} pictures left out: {reason}")
        for verdict, count in opened.num_unbalanced.items():
            if count:
                progress.message(f"{count} judgements left out: more {verdict} than its opposite")
    return artifact


def preview(
    sources: Sources,
    *,
    out: Path,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    limit: int | None = None,
) -> dict[str, int]:
    """What `run` would do with the same arguments; writes nothing."""
    opened, settings = _open(sources, config, overrides)
    shards = [part.name for part in _parts(opened, settings, limit)]
    return preview_shards(opened.joined, out, shards)


def chats_of_pictures(rows: Sequence[Mapping[str, Any]], config: ChatsConfig) -> Iterator[Chat]:
    """The chats of one tokens shard in the order of its rows; a failed row is one failed chat.

    Drawn choices depend on the seed and the row's key alone, so they outlive any other change.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if row["group"] is not None and row["status"] == "ok":
            groups[row["group"]].append(number)
    thinned = {row["group"] for row in rows if row["status"] == LEFT_OUT}
    for number, row in enumerate(rows):
        if row["status"] == LEFT_OUT:
            continue
        if row["status"] != "ok":
            error = f"its tokens row failed: {row['error']}"
            yield Chat(key=f"{row['key']}-00", task=None, split=row["split"], error=error)
            continue
        rng = np.random.default_rng(chat_seed(config.seed, row["key"]))
        mates = [mate for mate in groups[row["group"]] if mate != number] if row["group"] else []
        said = [
            *_draw(row, number, config),
            *_describe(row, number, config, rng),
            *_answer(row, number, config, rng),
            *_judge(row, number),
            *_imitate(row, number, mates, rows, config, rng),
            *_compose(row, number, mates, rows, config, rng, thinned=row["group"] in thinned),
        ]
        if not said and not mates and not _texts(row) and not row["qa"]:
            said = [Chat(key="", task=None, error="no prompt, caption, question or group")]
        for index, chat in enumerate(said):
            yield _checked(chat, key=f"{row['key']}-{index:02d}", split=row["split"])


def _draw(row: Mapping[str, Any], number: int, config: ChatsConfig) -> Iterator[Chat]:
    for text in _texts(row)[: config.t2i_per_picture]:
        turns = (("user", text), ("assistant", IMAGE_MARK))
        yield Chat(key="", task="t2i", turns=turns, pictures=(number,))


def _describe(
    row: Mapping[str, Any], number: int, config: ChatsConfig, rng: np.random.Generator
) -> Iterator[Chat]:
    texts = _texts(row)
    captions = [text for text in texts if text != row["prompt"]] or texts
    answers: list[tuple[Sequence[str], str]] = [(DESCRIBE, text) for text in captions[:1]]
    further: list[tuple[Sequence[str], str]] = []
    further += [(DESCRIBE_IN_DETAIL, text) for text in captions[1:]]
    further += [(DESCRIBE_IN_SHORT, text) for text in texts if text not in captions]
    answers += [further[index] for index in rng.permutation(len(further))]
    for questions, answer in answers[: config.captions_per_picture]:
        plain = rng.random() < config.plain_question_share
        question = questions[0] if plain else questions[int(rng.integers(1, len(questions)))]
        yield _seen(number, [(question, answer)])


def _answer(
    row: Mapping[str, Any], number: int, config: ChatsConfig, rng: np.random.Generator
) -> Iterator[Chat]:
    pairs = [(pair["question"], pair["answer"]) for pair in row["qa"] or ()]
    order = rng.permutation(len(pairs))[: config.qa_per_picture]
    if config.qa_order == "given":
        order = np.sort(order)
    for start in range(0, len(order), config.qa_turns):
        yield _seen(number, [pairs[index] for index in order[start : start + config.qa_turns]])


def _judge(row: Mapping[str, Any], number: int) -> Iterator[Chat]:
    """Whether the picture shows a prompt: yes or no, the reason after it."""
    if row.get("verdict"):
        said = f"{row['verdict']}. {row['reason']}" if row["reason"] else row["verdict"]
        yield _seen(number, [(judgement_question(row["judged"]), said)])


def _imitate(
    row: Mapping[str, Any],
    number: int,
    mates: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    config: ChatsConfig,
    rng: np.random.Generator,
) -> Iterator[Chat]:
    alike = ("target", "similar")
    if row["role"] not in alike:
        return
    partners = [
        mate
        for mate in mates
        if rows[mate]["role"] in alike and rows[mate]["split"] == row["split"]
    ]
    for index in rng.permutation(len(partners))[: config.i2i_per_picture]:
        turns = (("user", SIMILAR), ("assistant", IMAGE_MARK))
        yield Chat(key="", task="i2i", turns=turns, pictures=(partners[index], number))


def _compose(
    row: Mapping[str, Any],
    number: int,
    mates: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    config: ChatsConfig,
    rng: np.random.Generator,
    *,
    thinned: bool,
) -> Iterator[Chat]:
    """TI2I: one mark takes any one reference, several marks take all references in their order.

    A group of which pictures were left out may lack references, and then has no such chat.
    """
    template = row["template"]
    if not template or not config.ti2i_per_picture:
        return
    marks = template.count(IMAGE_MARK)
    references = [mate for mate in mates if rows[mate]["role"] == "reference"]
    turns = (("user", template), ("assistant", IMAGE_MARK))
    if marks == 1 and references:
        for index in rng.permutation(len(references))[: config.ti2i_per_picture]:
            yield Chat(key="", task="ti2i", turns=turns, pictures=(references[index], number))
    elif marks == len(references) > 0:
        yield Chat(key="", task="ti2i", turns=turns, pictures=(*references, number))
    elif not thinned:
        error = f"its template has {marks} {IMAGE_MARK} marks, its group {len(references)} usable"
        yield Chat(key="", task="ti2i", error=f"{error} references")


def _seen(number: int, pairs: Sequence[tuple[str, str]]) -> Chat:
    """A chat about one picture, which stands before the first question."""
    turns: list[Turn] = []
    for index, (question, answer) in enumerate(pairs):
        turns.append(("user", f"{IMAGE_MARK}\n{question}" if index == 0 else question))
        turns.append(("assistant", answer))
    return Chat(key="", task="i2t", turns=tuple(turns), pictures=(number,))


def _texts(row: Mapping[str, Any]) -> list[str]:
    """The prompt and the captions of a row without blanks and repetitions, in their order."""
    texts = [row["prompt"], *(row["captions"] or ())]
    return list(dict.fromkeys(text for text in texts if text and text.strip()))


def _checked(chat: Chat, *, key: str, split: str | None) -> Chat:
    """The chat with its key and split, failed where a text brought marks of its own."""
    marks = sum(content.count(IMAGE_MARK) for _, content in chat.turns)
    error = chat.error
    if error is None and marks != len(chat.pictures):
        error = f"a text contains the mark {IMAGE_MARK}: {marks} marks, {len(chat.pictures)} images"
    if error is not None:
        return Chat(key=key, task=chat.task, split=split, error=error)
    return Chat(key=key, task=chat.task, split=split, turns=chat.turns, pictures=chat.pictures)


def _of_document(document: Document, *, key: str) -> Chat:
    chat = Chat(key="", task="text", turns=document.turns, error=document.error)
    return _checked(chat, key=key, split=None)


def _open(
    sources: Sources, config: Path | None, overrides: Sequence[str]
) -> tuple[_Opened, ChatsConfig]:
    if sources.tokens is None and sources.text is None:
        raise UserError(
            "nothing to make chats from: neither a tokens artifact nor a text source was given",
            hint="tarkit curate chats TOKENS_DIR --text FILE --out DIR (one of the two will do)",
        )
    if sources.tokens is None and (sources.captions or sources.keep or sources.judgements):
        raise UserError("captions, scores and judgements need the tokens of their pictures")
    settings = load_config(ChatsConfig, config, overrides)
    keep = sources.keep
    scores = open_artifact(keep.scores, "scores") if keep else None
    opened = _Opened(
        tokens=open_artifact(sources.tokens, "tokens") if sources.tokens else None,
        documents=(
            TextSource(sources.text, limit=settings.max_documents) if sources.text else None
        ),
        captions=tuple(open_artifact(path, "prompts") for path in sources.captions),
        scores=scores,
        judgements=(
            open_artifact(sources.judgements, "judgements") if sources.judgements else None
        ),
        column=_column(scores, keep.column) if scores and keep else "",
        least=keep.least if keep else 0.0,
    )
    return opened, settings


def _column(scores: Artifact, wanted: str | None) -> str:
    columns = [str(name) for name in scores.settings["columns"]]
    if wanted is None and len(columns) == 1:
        return columns[0]
    if wanted not in columns:
        has = f"{scores.path} has the columns {', '.join(columns)}"
        raise UserError(has, hint=f"--by {columns[0]}")
    return str(wanted)


def _parts(opened: _Opened, config: ChatsConfig, limit: int | None) -> list[_Part]:
    """The output shards: one for each tokens shard that `limit` reaches, or text alone."""
    num_documents = opened.documents.num_documents if opened.documents else 0
    if opened.tokens is None:
        num_documents = num_documents if limit is None else min(limit, num_documents)
        starts = range(0, num_documents, config.documents_per_shard)
        ends = [min(start + config.documents_per_shard, num_documents) for start in starts]
        return [
            _Part(f"{number:05d}", 0, range(start, end))
            for number, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]
    counted = list(first_rows(opened.tokens, limit).items())
    bounds = [num_documents * number // len(counted) for number in range(len(counted) + 1)]
    return [
        _Part(name, num_rows, range(bounds[number], bounds[number + 1]))
        for number, (name, num_rows) in enumerate(counted)
    ]


def _settings(config: ChatsConfig, opened: _Opened, limit: int | None) -> dict[str, Any]:
    documents = opened.documents
    settings: dict[str, Any] = {**config.model_dump(mode="json"), "limit": limit}
    settings["text"] = documents.path.name if documents else None
    settings["text_sha256"] = documents.sha256 if documents else None
    settings["keep"] = {"column": opened.column, "least": opened.least} if opened.scores else None
    for name in CODES_SETTINGS:
        settings[name] = opened.tokens.settings[name] if opened.tokens else None
    return settings


def _shard(part: _Part, opened: _Opened, config: ChatsConfig) -> pa.Table:
    chats: list[Chat] = []
    pictures: pa.StructArray | None = None
    if opened.tokens is not None:
        table = opened.tokens.read(part.name).slice(0, part.num_rows)
        rows = _with_joined(table.select(WORD_COLUMNS).to_pylist(), part.name, opened)
        chats += chats_of_pictures(rows, config)
        pictures = _pictures(table)
    if opened.documents is not None:
        texts = opened.documents.read(part.documents.start, part.documents.stop)
        chats += [
            _of_document(document, key=f"{part.name}-{number:06d}")
            for number, document in enumerate(texts)
        ]
    return _table(chats, pictures)


def _with_joined(
    rows: Sequence[dict[str, Any]], name: str, opened: _Opened
) -> Sequence[dict[str, Any]]:
    """The rows with the captions of their keys; those below the score left out."""
    for artifact in opened.captions:
        found = by_key(artifact, name, ["prompt"])
        for row in rows:
            written = row_of(found, row["key"], artifact)
            if written["status"] == "ok":
                row["captions"] = [*(row["captions"] or ()), written["prompt"]]
    if opened.judgements:
        _join_judgements(rows, name, opened)
    if opened.scores:
        found = by_key(opened.scores, name, [opened.column])
        for row in rows:
            scored = row_of(found, row["key"], opened.scores)
            if row["status"] != "ok":
                continue
            if scored["status"] != "ok":
                reason = "no score"
            elif scored[opened.column] < opened.least:
                reason = f"{opened.column} below {opened.least:g}"
            else:
                continue
            row["status"] = LEFT_OUT
            opened.num_left_out[reason] += 1
    return rows


def _join_judgements(rows: Sequence[dict[str, Any]], name: str, opened: _Opened) -> None:
    """As many no as yes in every shard; which of the others go depends on their keys alone."""
    assert opened.judgements is not None
    found = by_key(opened.judgements, name, ["prompt", "verdict", "reason"])
    sides: dict[str, list[dict[str, Any]]] = {"yes": [], "no": []}
    for row in rows:
        judged = row_of(found, row["key"], opened.judgements)
        if row["status"] == "ok" and judged["status"] == "ok":
            sides[judged["verdict"]].append(row)
            row |= {"judged": judged["prompt"], "reason": judged["reason"]}
    least = min(map(len, sides.values()))
    for verdict, side in sides.items():
        drawn = sorted(side, key=lambda row: hashlib.sha256(row["key"].encode()).digest())
        for row in drawn[:least]:
            row["verdict"] = verdict
        opened.num_unbalanced[verdict] += len(side) - least


def _pictures(table: pa.Table) -> pa.StructArray:
    """One struct of codes a row; what a shard does not store is null."""
    codes_type = pa.list_(pa.uint16())
    columns = []
    for name in CODE_COLUMNS:
        if name in table.column_names:
            columns.append(table.column(name).combine_chunks().cast(codes_type))
        else:
            columns.append(pa.nulls(table.num_rows, codes_type))
    return pa.StructArray.from_arrays(columns, names=list(CODE_COLUMNS))


def _table(chats: Sequence[Chat], pictures: pa.StructArray | None) -> pa.Table:
    """The chats as Arrow columns; codes are gathered by Arrow and never become Python numbers."""
    if pictures is None:
        nothing = pa.table({name: pa.array([], pa.list_(pa.uint16())) for name in CODE_COLUMNS})
        pictures = _pictures(nothing)
    taken = pa.array([row for chat in chats for row in chat.pictures], pa.int64())
    image_ends = np.cumsum([0, *(len(chat.pictures) for chat in chats)])
    messages = [[{"role": r, "content": c} for r, c in chat.turns] for chat in chats]
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.table(
        {
            "key": pa.array([chat.key for chat in chats], pa.string()),
            "task": pa.array([chat.task for chat in chats], pa.string()),
            "split": pa.array([chat.split for chat in chats], pa.string()),
            "messages": pa.array(messages, pa.list_(message)),
            "images": pa.ListArray.from_arrays(
                pa.array(image_ends, pa.int32()), pictures.take(taken)
            ),
            "status": pa.array(["failed" if chat.error else "ok" for chat in chats], pa.string()),
            "error": pa.array([chat.error for chat in chats], pa.string()),
        }
    )


def _num_failed(table: pa.Table) -> int:
    return sum(status == "failed" for status in table.column("status").to_pylist())
