"""What the trainers of the language model share: chats by task, packed rows, weighted loss.

Source: paper Sec. 3.3-3.4, App. C.1.

Letters: P packed rows, T positions, M supervised tokens.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt
from torch import Tensor

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.remote import shown_path, url_of
from tarkit.artifacts.row_counts import RowKind, row_counts
from tarkit.checkpoints.language_model import stored_arch
from tarkit.checkpoints.load import LoadedTaTok, LoadedVqvae
from tarkit.checkpoints.representation import TEXT_ALIGNED, Representation
from tarkit.config import Config, Seed
from tarkit.errors import UserError
from tarkit.models.mllm import Attention, Packed, pack
from tarkit.seeds import training_seed
from tarkit.train.streams import Order, Rounds, ShardsAhead, draw_scale, source_names
from tarkit.train.task import Figure, Mean, mean_of
from tarkit.vocab import (
    END_OF_TEXT,
    FEATURE,
    IMAGE_MARK,
    Scale,
    ScaleOdds,
    Supervised,
    Vocabulary,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("tarkit")

TaskName = Literal["t2i", "i2t", "text", "i2i", "ti2i"]
CHAT_COLUMNS = ("key", "task", "split", "messages", "images", "status")


def _some_task(ratio: Mapping[TaskName, int]) -> Mapping[TaskName, int]:
    if not any(ratio.values()):
        raise ValueError(f"no task has rows in {dict(ratio)}: one number must be above 0")
    return ratio


TaskRatio = Annotated[Mapping[TaskName, NonNegativeInt], AfterValidator(_some_task)]


class ChatBatchesConfig(Config):
    """Which chats a step learns from, and how much each of their tokens weighs."""

    FREE_KEYS: ClassVar[frozenset[str]] = frozenset({"loss_chunk_tokens", "packed_attention"})
    LATER_KEYS: ClassVar[frozenset[str]] = frozenset({"supervise"})

    seed: Seed = 0
    ratio: TaskRatio = {"i2t": 2, "t2i": 2, "text": 1}
    """Rows of each task in a round (Table 8: 2 understanding, 2 generation, 1 text)."""
    scale_ratio: ScaleOdds = (2, 1, 1)
    """Odds of scales 1, 2, 3; each row draws its own (App. C.1)."""
    read_scale_ratio: ScaleOdds | None = None
    """Odds for i2t rows, if they differ; None: `scale_ratio`."""
    prompt_dropout: float = Field(default=0.0, ge=0, le=1)
    """Share of t2i rows whose prompt is made empty, for classifier-free guidance on prompts."""
    text_weight: float = Field(default=1.0, gt=0)
    """Weight of a supervised text token; a code weighs 1 (the paper weighs all the same)."""
    length: int = Field(default=2048, ge=2)
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
        self.listed: set[tuple[str, str]] = set()
        self.end = 0  # of what has been read of the file
        self.warned = False

    def add(self, chats: str, key: str, *, tokens: int, length: int) -> None:
        """List a chat of an artifact, unless an earlier step or start of this training has."""
        if not self.warned:
            self.warned = True
            log.warning(
                "chat %s has %d tokens, length is %d: it is left out, as all longer ones are%s",
                key,
                tokens,
                length,
                f"; {self.file} lists them" if self.file else "",
            )
        if self.file is None or (chats, key) in self.listed:
            return
        line = {"chats": chats, "key": key, "tokens": tokens, "length": length}
        with self.file.open("a+b") as file:
            # Several processes may read for one training.
            fcntl.flock(file, fcntl.LOCK_EX)
            self._read_new_lines(file)
            if (chats, key) not in self.listed:
                self.listed.add((chats, key))
                file.write(json.dumps(line).encode() + b"\n")
                self.end = file.tell()

    def _read_new_lines(self, file: BinaryIO) -> None:
        file.seek(self.end)
        *lines, half = file.read().split(b"\n")
        self.end += sum(len(line) + 1 for line in lines)
        if half:  # of a killed run
            file.truncate(self.end)
        for line in lines:
            # A damaged line lists no chat, which may then be listed twice.
            with contextlib.suppress(KeyError, RecursionError, TypeError, ValueError):
                row = json.loads(line)
                self.listed.add((row["chats"], row["key"]))


class ChatShard:
    """The usable training chats of one shard by their task: status "ok", split "train" or none."""

    def __init__(self, table: pa.Table, chats: str, name: str) -> None:
        """`chats`: the path of the artifact, or its URL; `name`: that of the shard."""
        self.table = table
        self.chats = chats
        self.name = name
        self._rows: dict[str, np.ndarray] = {}

    def rows_of(self, task: TaskName) -> np.ndarray:
        """The numbers of the rows of a task."""
        if task not in self._rows:
            in_split = pc.fill_null(pc.equal(self.table["split"], "train"), True)
            usable = pc.and_(pc.equal(self.table["status"], "ok"), in_split)
            usable = pc.and_(usable, pc.equal(self.table["task"], task))
            self._rows[task] = np.flatnonzero(np.asarray(usable))
        return self._rows[task]

    def chat(self, row: int) -> dict[str, Any]:
        """The chat of a row, with the path of its artifact as "chats", and its "shard"."""
        columns: dict[str, Any] = self.table.slice(row, 1).to_pylist()[0]
        return {**columns, "chats": self.chats, "shard": self.name}


class ChatStreams:
    """An endless stream of chats per task, mixed in rounds of the configured ratio.

    The task of a slot, and the row of that task, are functions of the seed and the slot's number.
    """

    def __init__(
        self, artifacts: Sequence[Artifact], ratio: Mapping[TaskName, int], seed: int
    ) -> None:
        """Raises UserError for an incomplete artifact, or a task in `ratio` without any rows."""
        self.shards = [(artifact, name) for artifact in artifacts for name in artifact.shards]
        self.sources = source_names([artifact.path for artifact in artifacts])
        self.ratio = {task: count for task, count in ratio.items() if count > 0}
        self.tasks = sorted(self.ratio)
        self.rounds = Rounds([self.ratio[task] for task in self.tasks], seed=seed)
        self.orders: dict[TaskName, Order] = {}
        # Each task reads from four shards at one time.
        self._shard = lru_cache(maxsize=5 * len(self.tasks))(self._read)
        counts = [counts for artifact in artifacts for counts in row_counts(artifact)]
        self._with_text = [
            i for i, c in enumerate(counts) if any(k.task == "text" and k.status == "ok" for k in c)
        ]
        usable = Counter({artifact.path: 0 for artifact in artifacts})
        for task in self.ratio:
            kinds = [RowKind(task, split, "ok") for split in ("train", None)]
            counts_of_task = [sum(c.get(kind, 0) for kind in kinds) for c in counts]
            if not sum(counts_of_task):
                raise UserError(
                    f"the ratio names the task {task}, but the chats hold no row of it",
                    hint="run tarkit inspect on the chats, or set the ratio of that task to 0",
                )
            self.orders[task] = Order(
                counts_of_task, seed=training_seed(seed, task), shards_together=4
            )
            for (artifact, _), count in zip(self.shards, counts_of_task, strict=True):
                usable[artifact.path] += count
        for path, count in usable.items():
            if not count:
                log.warning(
                    "%s adds nothing: it has no row of a task in the ratio (%s) with status ok and "
                    "split 'train' or none",
                    path,
                    ", ".join(self.tasks),
                )
        at_urls = any(url_of(artifact.path) for artifact in artifacts)
        self._ahead = {
            task: ShardsAhead(order, self._files) for task, order in self.orders.items() if at_urls
        }

    def _files(self, index: int) -> list[Path]:
        artifact, name = self.shards[index]
        return artifact.files(name)

    def _read(self, index: int) -> ChatShard:
        artifact, name = self.shards[index]
        table = artifact.read(name, columns=list(CHAT_COLUMNS))
        return ChatShard(table, shown_path(artifact.path), name)

    def __getitem__(self, slot: int) -> dict[str, Any]:
        """The chat at a slot."""
        number, position = self.rounds[slot]
        return self.of_task(self.tasks[number], position)

    def place(self, slot: int) -> tuple[TaskName, Artifact]:
        """The task of the chat at a slot, and its artifact; no chat is read."""
        number, position = self.rounds[slot]
        shard, _ = self.orders[self.tasks[number]][position]
        return self.tasks[number], self.shards[shard][0]

    def of_task(self, task: TaskName, position: int) -> dict[str, Any]:
        """The chat at a position of one task's own stream."""
        index, place = self.orders[task][position]
        if task in self._ahead:
            self._ahead[task].at(position)
        shard = self._shard(index)
        return shard.chat(int(shard.rows_of(task)[place]))

    def documents(self, limit: int) -> list[str]:
        """The first `limit` text-only rows in order: to train a tokenizer and count its tokens."""
        texts: list[str] = []
        for index in self._with_text:
            shard = self._read(index)
            rows = shard.rows_of("text")[: limit - len(texts)]
            for messages in shard.table["messages"].take(pa.array(rows)).to_pylist():
                texts.append("\n".join(message["content"] for message in messages))
            if len(texts) == limit:
                break
        return texts


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
    pictures = []
    for picture, is_read in zip(chat["images"] or [], _are_read(chat), strict=True):
        if is_read and vocabulary.feature_grid is not None:
            places = scale.num_codes(vocabulary.feature_grid)
            pictures.append((scale, [FEATURE] * places))
        else:
            drawn = scale if vocabulary.feature_grid is None else Scale.FULL
            pictures.append((drawn, picture[f"codes_{int(drawn)}"]))
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


def _are_read(chat: Mapping[str, Any]) -> list[bool]:
    """Whether each picture of a chat is read, and not drawn by the assistant."""
    marks = ((m["role"], m["content"].count(IMAGE_MARK)) for m in chat["messages"])
    read = [role != "assistant" for role, count in marks for _ in range(count)]
    num_pictures = len(chat["images"] or [])
    # Where marks and pictures differ in number, the vocabulary says so.
    return (read + [False] * num_pictures)[:num_pictures]


def pictures_read(chat: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The pictures of a chat that are read, in the order of their marks."""
    pairs = zip(chat["images"] or [], _are_read(chat), strict=True)
    return [picture for picture, is_read in pairs if is_read]


def packed_chats(
    streams: ChatStreams,
    config: ChatBatchesConfig,
    vocabulary: Vocabulary,
    *,
    first: int,
    size: int,
    too_long: TooLongChats | None,
) -> Packed:
    """The chats of `size` slots from `first` on, packed into rows of `config.length` tokens.

    Chats longer than a row are left out and listed in `too_long`, if it is there. A chat's number
    is its slot.
    """
    chats, slots = [], []
    for slot in range(first, first + size):
        chat, ids, labels = _chat_of_slot(streams, config, vocabulary, slot)
        if len(ids) <= config.length:
            chats.append((ids, labels))
            slots.append(slot)
        elif too_long:
            too_long.add(chat["chats"], chat["key"], tokens=len(ids), length=config.length)
    return pack(chats, config.length, numbers=slots)


def rows_of_part(packed: Packed, part: int, parts: int, *, length: int) -> Packed:
    """The packed rows of part `part` of a step's `parts`; one row of padding where it has none.

    A step is packed as a whole and its rows are then shared: packs are the same for any number of
    processes and passes, which get as many rows each, to within one.
    """
    num_rows = len(packed.ids)
    own = slice(part * num_rows // parts, (part + 1) * num_rows // parts)
    if own.start == own.stop:
        return pack([], length)
    return Packed(*(tensor[own] for tensor in packed))


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
    scale = scale_of_slot(config, chat["task"], slot)
    ids, labels = encode_chat(vocabulary, chat, scale, supervise=config.supervise)
    return chat, ids, labels


def scale_of_slot(config: ChatBatchesConfig, task: TaskName, slot: int) -> Scale:
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
            names.append(f"loss_by_scale/{int(scale_of_slot(config, task, slot))}")
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
    representation: Representation = TEXT_ALIGNED,
    reader: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The config.json of a language model; sha256 and grid are those of its codes' tokenizer.

    `reader`: the facts of the encoder whose features it reads.
    """
    visual = vocabulary.visual
    named = {} if representation == TEXT_ALIGNED else {"representation": representation}
    read = {"reader": dict(reader)} if reader else {}
    return {
        **named,
        **read,
        "kind": "mllm",
        "arch": stored_arch(model),
        "visual": visual and {"first_id": visual.first_id, "num_codes": visual.num_codes},
        "system": vocabulary.system,
        "tokenizer_sha256": tokenizer_sha256,
        "grid": grid,
    }


def check_scales(chats: Sequence[Artifact], config: ChatBatchesConfig) -> None:
    """Raise UserError where a scale is drawn that the chats' pictures were not encoded at."""
    ratios = (config.scale_ratio, config.read_scale_ratio or config.scale_ratio)
    drawn = [s for s, odds in zip(Scale, zip(*ratios, strict=True), strict=True) if any(odds)]
    for artifact in chats:
        sides = artifact.settings.get("sides")
        missing = [int(s) for s in drawn if sides is not None and str(int(s)) not in sides]
        if missing:
            raise UserError(
                f"{artifact.path} has no codes of scale {missing[0]}, which scale_ratio or "
                "read_scale_ratio draws",
                hint=f"set the odds of scale {missing[0]} to 0, or encode the pictures at every "
                "scale and make the chats again",
            )


def check_codes(chats: Sequence[Artifact], tokenizer: LoadedTaTok | LoadedVqvae | None) -> None:
    """Raise UserError for chats with codes of another tokenizer, or with codes but no tokenizer."""
    for artifact in chats:
        made_by = artifact.settings.get("tokenizer_sha256")
        if made_by is None:
            continue
        is_pixel = artifact.settings.get("codes") == "vq"
        if is_pixel and not isinstance(tokenizer, LoadedVqvae):
            raise UserError(
                f"{artifact.path} holds pixel codes of an image VQ, and the representation is "
                "text-aligned",
                hint='--set representation=vq --vqvae DIR, or make the chats with codes = "ta_tok"',
            )
        if not is_pixel and isinstance(tokenizer, LoadedVqvae):
            raise UserError(
                f"{artifact.path} holds codes of TA-Tok, and the representation draws with pixel "
                "codes of an image VQ",
                hint="tarkit curate chats TOKENS --set codes=vq --out CHATS",
            )
        if tokenizer is None:
            raise UserError(
                f"{artifact.path} holds picture codes, but no --tokenizer is given",
                hint="name the tokenizer directory that made them with --tokenizer",
            )
        if made_by != tokenizer.sha256:
            raise UserError(
                f"{artifact.path} holds codes of tokenizer {str(made_by)[:12]}, "
                f"{'--vqvae' if is_pixel else '--tokenizer'} is {tokenizer.sha256[:12]}: codes of "
                "another codebook mean nothing to this model",
                hint="encode the pictures again with this tokenizer, or name the other one",
            )
