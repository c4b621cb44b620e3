"""The chats of a picture or document, task by task.

Source: paper App. D.2 (tasks I2T, T2I, text, I2I, TI2I and their questions). The texts of a picture
are `[prompt, *captions]`. Each task asks and answers (`->`):
  t2i   a text of the picture, the prompt first -> <image>
  i2t   "Describe the image." -> the first caption (the prompt where there is none)
        a detailed question -> a further caption; a short question -> the prompt
        the question of a question-answer row -> its answer
        whether the picture shows a prompt -> yes or no, and the reason
  i2i   "Generate an image similar to <image>.", with another picture of the group -> <image>
  ti2i  the picture's template, with the group's references at its marks -> <image>
  text  a document: one assistant turn, or the turns of its conversation
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from tarkit.config import Config, Seed
from tarkit.curate.sources.text import Document
from tarkit.seeds import chat_seed
from tarkit.vocab import IMAGE_MARK, judgement_question

ChatTask = Literal["t2i", "i2t", "i2i", "ti2i", "text"]
Turn = tuple[str, str]
"""(role, content)."""

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

LEFT_OUT = "left out"
"""The status, in memory only, of a row whose picture is left out of the chats."""


class ChatsConfig(Config):
    """How many chats of each task a picture gives; training chooses the share of each task."""

    seed: Seed = 0
    codes: Literal["ta_tok", "vq"] = "ta_tok"
    """Which codes of the tokens a picture is in the chats: those of TA-Tok, or of the image VQ with
    the picture's key (`tarkit encode --vqvae`), for the other representations of Sec. 4.3."""
    t2i_per_picture: int = Field(default=3, ge=0)
    """Texts that ask for the picture: the prompt, then the captions in their order."""
    captions_per_picture: int = Field(default=2, ge=0)
    """The plain description first, then detailed and short ones in random order."""
    qa_per_picture: int = Field(default=4, ge=0)
    qa_turns: int = Field(default=1, ge=1)
    """Question-answer rows in one chat: in a longer chat they share the codes of one picture."""
    qa_order: Literal["drawn", "given"] = "drawn"
    """`given` keeps the order of the rows, as a conversation needs it; `drawn` is random."""
    i2i_per_picture: int = Field(default=1, ge=0)
    ti2i_per_picture: int = Field(default=1, ge=0)
    plain_question_share: float = Field(default=0.5, ge=0, le=1)
    """Share of descriptions whose question is the first one of its list."""
    max_documents: int | None = Field(default=None, ge=1)
    documents_per_shard: int = Field(default=10_000, ge=1)
    """Used without tokens; with tokens the documents are spread over the shards of the tokens."""


@dataclass(frozen=True, kw_only=True)
class Chat:
    """One chat. `pictures` are row numbers of its tokens shard, one for each mark in order."""

    key: str
    task: ChatTask | None
    split: str | None = None
    turns: tuple[Turn, ...] = ()
    pictures: tuple[int, ...] = ()
    error: str | None = None


def chats_of_pictures(rows: Sequence[Mapping[str, Any]], config: ChatsConfig) -> Iterator[Chat]:
    """The chats of one tokens shard in the order of its rows; a failed row is one failed chat.

    Random choices depend only on the seed and the row's key, so that they stay the same when other
    rows change.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if row["group"] is not None and row["status"] == "ok":
            groups[row["group"]].append(number)
    incomplete = {row["group"] for row in rows if row["status"] == LEFT_OUT}
    for number, row in enumerate(rows):
        if row["status"] == LEFT_OUT:
            continue
        if row["status"] != "ok":
            error = f"its tokens row failed: {row['error']}"
            yield Chat(key=f"{row['key']}-00", task=None, split=row["split"], error=error)
            continue
        rng = np.random.default_rng(chat_seed(config.seed, row["key"]))
        mates = [mate for mate in groups[row["group"]] if mate != number] if row["group"] else []
        chats = [
            *_t2i(row, number, config),
            *_descriptions(row, number, config, rng),
            *_answers(row, number, config, rng),
            *_judgement(row, number),
            *_i2i(row, number, mates, rows, config, rng),
            *_ti2i(row, number, mates, rows, config, rng, incomplete=row["group"] in incomplete),
        ]
        if not chats and not mates and not _texts(row) and not row["qa"]:
            chats = [Chat(key="", task=None, error="no prompt, caption, question or group")]
        for index, chat in enumerate(chats):
            yield _checked(chat, key=f"{row['key']}-{index:02d}", split=row["split"])


def chat_of_document(document: Document, *, key: str) -> Chat:
    """The chat of a document; a failed one if the document has an error."""
    chat = Chat(key="", task="text", turns=document.turns, error=document.error)
    return _checked(chat, key=key, split=None)


# ---- the chats of each task ---------------------------------------------------------------------


def _t2i(row: Mapping[str, Any], number: int, config: ChatsConfig) -> Iterator[Chat]:
    for text in _texts(row)[: config.t2i_per_picture]:
        turns = (("user", text), ("assistant", IMAGE_MARK))
        yield Chat(key="", task="t2i", turns=turns, pictures=(number,))


def _descriptions(
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
        yield _i2t(number, [(question, answer)])


def _answers(
    row: Mapping[str, Any], number: int, config: ChatsConfig, rng: np.random.Generator
) -> Iterator[Chat]:
    pairs = [(pair["question"], pair["answer"]) for pair in row["qa"] or ()]
    order = rng.permutation(len(pairs))[: config.qa_per_picture]
    if config.qa_order == "given":
        order = np.sort(order)
    for start in range(0, len(order), config.qa_turns):
        yield _i2t(number, [pairs[index] for index in order[start : start + config.qa_turns]])


def _judgement(row: Mapping[str, Any], number: int) -> Iterator[Chat]:
    """Whether the picture shows the prompt `judged`: yes or no, and the reason."""
    if row.get("verdict"):
        answer = f"{row['verdict']}. {row['reason']}" if row["reason"] else row["verdict"]
        yield _i2t(number, [(judgement_question(row["judged"]), answer)])


def _i2i(
    row: Mapping[str, Any],
    number: int,
    mates: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    config: ChatsConfig,
    rng: np.random.Generator,
) -> Iterator[Chat]:
    similar = ("target", "similar")
    if row["role"] not in similar:
        return
    partners = [
        mate
        for mate in mates
        if rows[mate]["role"] in similar and rows[mate]["split"] == row["split"]
    ]
    for index in rng.permutation(len(partners))[: config.i2i_per_picture]:
        turns = (("user", SIMILAR), ("assistant", IMAGE_MARK))
        yield Chat(key="", task="i2i", turns=turns, pictures=(partners[index], number))


def _ti2i(
    row: Mapping[str, Any],
    number: int,
    mates: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    config: ChatsConfig,
    rng: np.random.Generator,
    *,
    incomplete: bool,
) -> Iterator[Chat]:
    """A template with one mark takes any one reference; with several marks, all in their order.

    Any other number of references is an error, except in a group of which pictures were left out.
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
    elif not incomplete:
        error = f"its template has {marks} {IMAGE_MARK} marks, its group {len(references)} usable"
        yield Chat(key="", task="ti2i", error=f"{error} references")


def _i2t(number: int, pairs: Sequence[tuple[str, str]]) -> Chat:
    """A chat of (question, answer) pairs about one picture, placed before the first question."""
    turns: list[Turn] = []
    for index, (question, answer) in enumerate(pairs):
        turns.append(("user", f"{IMAGE_MARK}\n{question}" if index == 0 else question))
        turns.append(("assistant", answer))
    return Chat(key="", task="i2t", turns=tuple(turns), pictures=(number,))


def _texts(row: Mapping[str, Any]) -> list[str]:
    """The prompt and the captions of a row in their order, without blank and repeated ones."""
    texts = [row["prompt"], *(row["captions"] or ())]
    return list(dict.fromkeys(text for text in texts if text and text.strip()))


def _checked(chat: Chat, *, key: str, split: str | None) -> Chat:
    """The chat with its key and split; failed where a text contains the image mark itself."""
    marks = sum(content.count(IMAGE_MARK) for _, content in chat.turns)
    error = chat.error
    if error is None and marks != len(chat.pictures):
        error = f"a text contains the mark {IMAGE_MARK}: {marks} marks, {len(chat.pictures)} images"
    if error is not None:
        return Chat(key=key, task=chat.task, split=split, error=error)
    return Chat(key=key, task=chat.task, split=split, turns=chat.turns, pictures=chat.pictures)
