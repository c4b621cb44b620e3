"""What the trainers of the language model share: chats by task, packed rows, weighted loss.

Source: paper Sec. 3.3-3.4, App. C.1.

Letters: P packed rows, T positions, M supervised tokens.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.files import write_whole
from tarkit.checkpoints.language_model import stored_arch
from tarkit.checkpoints.load import LoadedTaTok
from tarkit.config import Config
from tarkit.errors import UserError
from tarkit.models.mllm import Attention, Packed, pack
from tarkit.seeds import training_seed
from tarkit.train.streams import Rounds, Stream, draw_scale, source_names
from tarkit.train.task import Figure, Mean, mean_of
from tarkit.vocab import END_OF_TEXT, Scale, Supervised, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("tarkit")

TaskName = Literal["t2i", "i2t", "text", "i2i", "ti2i"]


class ChatBatchesConfig(Config):
    """Which chats a step learns from, and how much each of their tokens weighs."""

    seed: int = 0
    ratio: Mapping[TaskName, int] = {"i2t": 2, "t2i": 2, "text": 1}
    """Rows of each task in a round (Table 8: 2 understanding, 2 generation, 1 text)."""
    scale_ratio: tuple[int, int, int] = (2, 1, 1)
    """Odds of scales 1, 2, 3; each row draws its own (App. C.1)."""
    read_scale_ratio: tuple[int, int, int] | None = None
    """Odds for i2t rows, if they differ; None: `scale_ratio`."""
    prompt_dropout: float = Field(default=0.0, ge=0, le=1)
    """Share of t2i rows whose prompt is made empty, for classifier-free guidance on prompts."""
    text_weight: float = Field(default=1.0, gt=0)
    """Weight of a supervised text token; a code weighs 1 (the paper weighs all the same)."""
    length: int = 2048
    """Tokens of a packed row. A longer chat is left out and listed in `too_long.jsonl`; no chat is
    cut."""
    supervise: Supervised = "answers"
    """What is learned of a chat. "answers": what the assistant says (paper Sec. 3.3, and what
    inference needs). "published": as the published program does, which adds the header of each
    answer and the turn tags and newlines of all turns. A lone document is learned whole."""
    loss_chunk_tokens: PositiveInt | None = None
    """Supervised tokens whose logits are held at once; more are computed chunk by chunk, twice.
    Default: as many as make 2^26 logits (308 tokens of Tar's vocabulary), which takes an eighth
    of the memory that 2,560 tokens take at once."""
    packed_attention: Attention | None = None
    """Attention of packed rows. Default: flex attention on CUDA, for families that have it;
    elsewhere the family's own with a dense mask."""


class TooLongChats:
    """The chats that are longer than a packed row: each is listed once, the first is logged."""

    def __init__(self, file: Path | None) -> None:
        """`file`: a line is {"chats", "key", "tokens", "length"} in JSON; None: only the log."""
        self.file = file
        self.listed: set[tuple[str, str]] | None = None

    def add(self, chats: str, key: str, *, tokens: int, length: int) -> None:
        """List a chat of an artifact, unless an earlier step or start of this training has."""
        if self.listed is None:
            self.listed = self._read()
            log.warning(
                "chat %s has %d tokens, length is %d: it is left out, as all longer ones are%s",
                key,
                tokens,
                length,
                f"; {self.file} lists them" if self.file else "",
            )
        if (chats, key) in self.listed:
            return
        self.listed.add((chats, key))
        if self.file:
            with self.file.open("a") as file:
                line = {"chats": chats, "key": key, "tokens": tokens, "length": length}
                file.write(json.dumps(line) + "\n")

    def _read(self) -> set[tuple[str, str]]:
        if self.file is None or not self.file.exists():
            return set()
        *lines, half = self.file.read_text().split("\n")
        if half:  # of a killed run
            write_whole(self.file, "".join(f"{line}\n" for line in lines).encode())
        return {(row["chats"], row["key"]) for row in map(json.loads, lines)}


class _Shards:
    """Chats of several artifacts as one numbered list of shards; rows are decoded on demand."""

    def __init__(self, artifacts: Sequence[Artifact], columns: Sequence[str]) -> None:
        self.shards = [(artifact, name) for artifact in artifacts for name in artifact.shards]
        self.columns = columns
        self._table = lru_cache(maxsize=24)(self._read)

    def _read(self, index: int) -> pa.Table:
        artifact, name = self.shards[index]
        return artifact.read(name, columns=list(self.columns))

    def row(self, index: int, row: int) -> dict[str, Any]:
        """The chat in a row of shard `index`, with the path of its artifact as "chats"."""
        chat: dict[str, Any] = self._table(index).slice(row, 1).to_pylist()[0]
        return {**chat, "chats": str(self.shards[index][0].path)}

    def of_task(self, task: TaskName, index: int) -> np.ndarray:
        """Row numbers of a shard's usable training chats of one task."""
        artifact, name = self.shards[index]
        table = artifact.read(name, columns=["task", "split", "status"])
        columns = [table[c].to_pylist() for c in ("task", "split", "status")]
        rows = [
            i
            for i, (t, split, status) in enumerate(zip(*columns, strict=True))
            if t == task and split in (None, "train") and status == "ok"
        ]
        return np.asarray(rows, dtype=np.int64)


class ChatStreams:
    """An endless stream of chats per task, mixed in rounds of the configured ratio.

    The task of a slot, and the row of that task, are functions of the seed and the slot's number.
    """

    def __init__(
        self, artifacts: Sequence[Artifact], ratio: Mapping[TaskName, int], seed: int
    ) -> None:
        """Raises UserError for an incomplete artifact, or a task in `ratio` without any rows."""
        for artifact in artifacts:
            artifact.require_complete()
        self.sources = source_names([artifact.path for artifact in artifacts])
        self.shards = _Shards(artifacts, ["key", "task", "messages", "images"])
        self.ratio = {task: count for task, count in ratio.items() if count > 0}
        self.tasks = sorted(self.ratio)
        self.rounds = Rounds([self.ratio[task] for task in self.tasks], seed=seed)
        self.streams: dict[TaskName, Stream[tuple[int, int]]] = {}
        for task in self.ratio:
            rows = [self.shards.of_task(task, i) for i in range(len(self.shards.shards))]
            if not sum(map(len, rows)):
                raise UserError(
                    f"the ratio names the task {task}, but the chats hold no row of it",
                    hint="run tarkit inspect on the chats, or set the ratio of that task to 0",
                )
            self.streams[task] = _row_stream(rows, training_seed(seed, task))

    def __getitem__(self, slot: int) -> dict[str, Any]:
        """The chat at a slot."""
        number, position = self.rounds[slot]
        shard, row = self.streams[self.tasks[number]][position]
        return self.shards.row(shard, row)

    def place(self, slot: int) -> tuple[TaskName, Artifact]:
        """The task of the chat at a slot, and its artifact; no chat is read."""
        number, position = self.rounds[slot]
        shard, _ = self.streams[self.tasks[number]][position]
        return self.tasks[number], self.shards.shards[shard][0]

    def of_task(self, task: TaskName, position: int) -> dict[str, Any]:
        """The chat at a position of one task's own stream."""
        return self.shards.row(*self.streams[task][position])

    def documents(self, limit: int) -> list[str]:
        """The first `limit` text-only rows in order: to train a tokenizer and count its tokens."""
        texts: list[str] = []
        for index in range(len(self.shards.shards)):
            for row in self.shards.of_task("text", index):
                texts.append(
                    "\n".join(m["content"] for m in self.shards.row(index, int(row))["messages"])
                )
                if len(texts) >= limit:
                    return texts
        return texts


def _row_stream(rows: Sequence[np.ndarray], seed: int) -> Stream[tuple[int, int]]:
    """The stream of (shard, row) over these rows of each shard."""

    def load(shard: int) -> list[tuple[int, int]]:
        return [(shard, int(row)) for row in rows[shard]]

    return Stream([len(r) for r in rows], load, seed=seed, shards_together=4)


def encode_chat(
    vocabulary: Vocabulary,
    chat: Mapping[str, Any],
    scale: Scale,
    *,
    supervise: Supervised = "answers",
) -> tuple[list[int], list[int]]:
    """Token ids and labels (-100: not supervised) of one chat, its pictures at one scale.

    A text row of a single message is a raw document and supervised as a whole. Raises UserError
    where the codes of that scale are missing or the chat does not fit the vocabulary.
    """
    messages = chat["messages"]
    if chat["task"] == "text" and len(messages) == 1:
        end = vocabulary.text.special[END_OF_TEXT]
        ids = [end, *vocabulary.text.encode(messages[0]["content"]), end]
        return ids, [-100, *ids[1:]]
    pictures = [(scale, picture[f"codes_{int(scale)}"]) for picture in chat["images"] or []]
    if any(codes is None for _, codes in pictures):
        raise UserError(
            f"chat {chat['key']} has no codes of scale {int(scale)}",
            hint="set scale_ratio to the scales that tarkit encode stored",
        )
    try:
        return vocabulary.chat(messages, pictures, supervise=supervise)
    except ValueError as error:
        raise UserError(
            f"chat {chat['key']}: {error}", hint="leave the row out, or make the chats again"
        ) from None


def packed_chats(
    streams: ChatStreams,
    config: ChatBatchesConfig,
    vocabulary: Vocabulary,
    *,
    first: int,
    size: int,
    too_long: TooLongChats,
) -> Packed:
    """The chats of `size` slots from `first` on, packed into rows of `config.length` tokens.

    Chats longer than a row are left out and listed in `too_long`. A chat's number is its slot.
    """
    chats, slots = [], []
    for slot in range(first, first + size):
        chat, ids, labels = _chat_of_slot(streams, config, vocabulary, slot)
        if len(ids) > config.length:
            too_long.add(chat["chats"], chat["key"], tokens=len(ids), length=config.length)
        else:
            chats.append((ids, labels))
            slots.append(slot)
    return pack(chats, config.length, numbers=slots)


def require_fitting(
    streams: ChatStreams, config: ChatBatchesConfig, vocabulary: Vocabulary, *, size: int
) -> None:
    """Raise UserError where none of the first `size` chats fits into a row."""
    shortest = None
    for slot in range(size):
        _, ids, _ = _chat_of_slot(streams, config, vocabulary, slot)
        if len(ids) <= config.length:
            return
        shortest = min(shortest or len(ids), len(ids))
    if shortest:
        raise UserError(
            f"none of the first {size} chats fits into length = {config.length}: the shortest has "
            f"{shortest} tokens",
            hint=f"--set length={shortest} or more",
        )


def _chat_of_slot(
    streams: ChatStreams, config: ChatBatchesConfig, vocabulary: Vocabulary, slot: int
) -> tuple[dict[str, Any], list[int], list[int]]:
    """The chat of a slot, its token ids and its labels, with pictures at the slot's own scale."""
    chat = _prompted(streams[slot], slot, config)
    scale = _scale_of_slot(config, chat["task"], slot)
    ids, labels = encode_chat(vocabulary, chat, scale, supervise=config.supervise)
    return chat, ids, labels


def _scale_of_slot(config: ChatBatchesConfig, task: TaskName, slot: int) -> Scale:
    """The scale of the pictures in the chat of a slot."""
    ratio = (task == "i2t" and config.read_scale_ratio) or config.scale_ratio
    return draw_scale(ratio, config.seed, slot)


def _prompted(chat: dict[str, Any], slot: int, config: ChatBatchesConfig) -> dict[str, Any]:
    """The chat of a slot, with an empty prompt for the share `prompt_dropout` of t2i slots."""
    dropout = config.prompt_dropout
    if chat["task"] != "t2i" or not dropout:
        return chat
    if np.random.default_rng(training_seed(config.seed, slot, "prompt")).random() >= dropout:
        return chat
    messages = [m | {"content": ""} if m["role"] == "user" else m for m in chat["messages"]]
    return chat | {"messages": messages}


def supervision(packed: Packed, vocabulary: Vocabulary, text_weight: float) -> float:
    """The sum of the weights of the supervised tokens of packed chats, as `weighted_loss` has it.

    A text token weighs `text_weight`, a code 1.
    """
    targets = packed.labels[:, 1:]
    supervised = int((targets != -100).sum())
    visual = vocabulary.visual
    if visual is None:
        return supervised
    codes = int((targets >= visual.first_code).sum())
    return codes + text_weight * (supervised - codes)


def weighted_loss(
    losses: Tensor, targets: Tensor, vocabulary: Vocabulary, text_weight: float
) -> tuple[Tensor, dict[str, Figure]]:
    """The weighted mean () of losses (M,) whose targets (M,) are token ids; 0 of none.

    A text token weighs `text_weight`, a code 1. The figures are the unweighted means over codes
    and over text tokens.
    """
    weights = torch.ones_like(losses)
    figures: dict[str, Figure] = {}
    if vocabulary.visual is not None:
        is_code = targets >= vocabulary.visual.first_code
        weights[~is_code] = text_weight
        for name, mask in (("code_loss", is_code), ("text_loss", ~is_code)):
            if mask.any():
                figures[name] = Mean(float(losses.detach()[mask].mean()), int(mask.sum()))
    # Where every chat of a step was too long, the loss is 0.
    total = weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    return (losses * weights).sum() / total, figures


def losses_by_group(
    losses: Tensor, packed: Packed, streams: ChatStreams, config: ChatBatchesConfig
) -> dict[str, Figure]:
    """Mean losses of the supervised tokens (M,) of packed chats by task, by scale and by source.

    There is none by task, or by source, where the training has a single one.
    """
    supervised = packed.labels[:, 1:] != -100
    slots, chats = packed.numbers[:, 1:][supervised].unique(return_inverse=True)
    sums = torch.zeros(len(slots), device=losses.device)
    sums.index_add_(0, chats, losses.detach().float())
    counts = torch.bincount(chats, minlength=len(slots))
    parts: dict[str, list[Mean]] = {}
    for slot, loss, count in zip(slots.tolist(), sums.tolist(), counts.tolist(), strict=True):
        mean = Mean(loss / count, count)
        task, artifact = streams.place(slot)
        names = []
        if len(streams.tasks) > 1:
            names.append(f"loss_by_task/{task}")
        if task != "text":
            names.append(f"loss_by_scale/{int(_scale_of_slot(config, task, slot))}")
        if len(streams.sources) > 1:
            names.append(f"loss_by_source/{streams.sources[artifact.path]}")
        for name in names:
            parts.setdefault(name, []).append(mean)
    return {name: mean_of(means) for name, means in sorted(parts.items())}


def model_description(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    *,
    tokenizer_sha256: str | None,
    grid: int | None,
) -> dict[str, Any]:
    """The config.json of a language model; sha256 and grid are those of its codes' tokenizer."""
    visual = vocabulary.visual
    return {
        "kind": "mllm",
        "arch": stored_arch(model),
        "visual": visual and {"first_id": visual.first_id, "num_codes": visual.num_codes},
        "system": vocabulary.system,
        "tokenizer_sha256": tokenizer_sha256,
        "grid": grid,
    }


def check_codes(chats: Sequence[Artifact], tokenizer: LoadedTaTok | None) -> None:
    """Raise UserError for chats with codes of another tokenizer, or with codes but no tokenizer."""
    for artifact in chats:
        made_by = artifact.settings.get("tokenizer_sha256")
        if made_by is None:
            continue
        if tokenizer is None:
            raise UserError(
                f"{artifact.path} holds picture codes, but no --tokenizer is given",
                hint="name the tokenizer directory that made them with --tokenizer",
            )
        if made_by != tokenizer.sha256:
            raise UserError(
                f"{artifact.path} holds codes of tokenizer {made_by[:12]}, --tokenizer is "
                f"{tokenizer.sha256[:12]}: codes of another codebook mean nothing to this model",
                hint="encode the pictures again with this tokenizer, or name the other one",
            )
