"""`tarkit curate chats`: makes the chats that the language model learns from.

Source: paper App. D.2. One tokens row becomes several chats, all in the shard with the same number.
Every chat carries the codes of every stored scale, because training chooses the scale, and the
split of its pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.join import Joined
from tarkit.artifacts.plan import ShardPlan
from tarkit.artifacts.ranks import rank_and_world
from tarkit.artifacts.resume import first_rows, pending_shards
from tarkit.artifacts.schema import NUM_CODES_MAX
from tarkit.config import load_config
from tarkit.curate.chat_inputs import ChatInputs, MinScore, open_inputs
from tarkit.curate.picture_chats import Chat, ChatsConfig, chat_of_document, chats_of_pictures
from tarkit.errors import UserError
from tarkit.progress import Progress
from tarkit.terminal import print_note

CODE_COLUMNS = ("codes_1", "codes_2", "codes_3")


@dataclass(frozen=True)
class _Part:
    """The inputs of one output shard: the first rows of a tokens shard, a range of documents."""

    name: str
    num_rows: int
    documents: range


class _Shard(NamedTuple):
    """The chats of an output shard; how many pictures and judgements are left out, by reason."""

    table: pa.Table
    left_out: Counter[str]
    unbalanced: Counter[str]


@dataclass(frozen=True)
class ChatsPlan(ShardPlan):
    """Writes a chats artifact from a tokens artifact, from a text source, or from both.

    `captions` are prompts artifacts of `curate caption` and `judgements` is an artifact of
    `curate judge`, both for the pictures of the tokens. `limit` keeps the first rows of the tokens,
    or the first documents where there are no tokens. A shard is made again when a shard of its
    inputs has changed.
    """

    tokens: Path | None = None
    _: KW_ONLY
    text: Path | None = None
    captions: Sequence[Path] = ()
    judgements: Path | None = None
    min_score: MinScore | None = None

    kind = "chats"

    @cached_property
    def settings(self) -> ChatsConfig:
        return load_config(ChatsConfig, self.config, self.overrides)

    @cached_property
    def inputs(self) -> ChatInputs:
        return open_inputs(
            tokens=self.tokens,
            text=self.text,
            captions=self.captions,
            judgements=self.judgements,
            min_score=self.min_score,
            max_documents=self.settings.max_documents,
        )

    @cached_property
    def parts(self) -> Sequence[_Part]:
        return _parts(self.inputs, self.settings, self.limit)

    @property
    def recorded(self) -> Mapping[str, Any]:
        inputs = self.inputs
        keep = {"column": inputs.column, "least": inputs.minimum} if inputs.scores else None
        settings = self.settings.model_dump(mode="json")
        if self.settings.codes == "ta_tok":
            del settings["codes"]
        return {
            **settings,
            "limit": self.limit,
            "text": inputs.documents.path.name if inputs.documents else None,
            "text_sha256": inputs.documents.sha256 if inputs.documents else None,
            "keep": keep,
            **self._codes,
        }

    @property
    def _codes(self) -> Mapping[str, Any]:
        """What made the codes of the chats' pictures, how many codes it has, and their grids."""
        tokens = self.inputs.tokens
        of_tokens: Mapping[str, Any] = tokens.settings if tokens else {}
        if self.settings.codes == "ta_tok":
            names = ("tokenizer_sha256", "codebook_size", "sides")
            return {name: of_tokens.get(name) for name in names}
        if tokens is None or "vqvae_sha256" not in of_tokens:
            raise UserError(
                f'codes = "vq" needs codes of an image VQ, and {self.tokens or "a text source"} '
                "has none",
                hint="tarkit encode IMAGES --tokenizer DIR --vqvae DIR --set vq_size_px=256 "
                "--out TOKENS",
            )
        if of_tokens["vq_codebook_size"] > NUM_CODES_MAX:
            raise UserError(
                f"{tokens.path} has codes of an image VQ of {of_tokens['vq_codebook_size']:,} "
                f"codes, and chats hold at most {NUM_CODES_MAX:,}",
                hint="name an image VQ with fewer codes in tarkit encode",
            )
        return {
            "tokenizer_sha256": of_tokens["vqvae_sha256"],
            "codebook_size": of_tokens["vq_codebook_size"],
            "sides": {"1": of_tokens["vq_side"]},
            "images_sha256": tokens.parents.get("images", {}).get("manifest_sha256"),
        }

    @property
    def shards(self) -> Sequence[str]:
        return [part.name for part in self.parts]

    @property
    def parents(self) -> Mapping[str, Artifact | Path]:
        return self.inputs.parents

    @property
    def source(self) -> Joined | None:
        return self.inputs.joined

    def make(self, artifact: Artifact) -> None:
        documents = self.inputs.documents
        if documents and documents.num_with_pictures:
            num_rows = documents.num_with_pictures
            print_note(
                f"{documents.path}: {num_rows} rows name pictures and are not used; "
                "curate ingest --questions takes them"
            )
        rank, world = rank_and_world()
        pending = set(pending_shards(artifact, self.source, rank=rank, world=world))
        left_out: Counter[str] = Counter()
        unbalanced: Counter[str] = Counter()
        with Progress("chats", total=len(pending), unit="shards") as progress:
            for part in self.parts:
                if part.name not in pending:
                    continue
                shard = _make_shard(part, self.inputs, self.settings)
                source_sha256 = self.source.shard_sha256(part.name) if self.source else None
                artifact.write(part.name, shard.table, source_sha256=source_sha256)
                left_out += shard.left_out
                unbalanced += shard.unbalanced
                progress.advance(1, failed=_num_failed(shard.table))
            for reason, count in left_out.most_common():
                progress.message(f"{count} pictures left out: {reason}")
            for verdict, count in unbalanced.items():
                progress.message(f"{count} judgements left out: more {verdict} than its opposite")


def _parts(inputs: ChatInputs, config: ChatsConfig, limit: int | None) -> list[_Part]:
    """One output shard for each tokens shard that `limit` reaches, or shards of text alone."""
    num_documents = inputs.documents.num_documents if inputs.documents else 0
    if inputs.tokens is None:
        num_documents = num_documents if limit is None else min(limit, num_documents)
        starts = range(0, num_documents, config.documents_per_shard)
        ends = [min(start + config.documents_per_shard, num_documents) for start in starts]
        return [
            _Part(f"{number:05d}", 0, range(start, end))
            for number, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]
    rows_of = first_rows(inputs.tokens, limit)
    if not rows_of:
        return []
    bounds = [num_documents * number // len(rows_of) for number in range(len(rows_of) + 1)]
    return [
        _Part(name, num_rows, range(bounds[number], bounds[number + 1]))
        for number, (name, num_rows) in enumerate(rows_of.items())
    ]


def _make_shard(part: _Part, inputs: ChatInputs, config: ChatsConfig) -> _Shard:
    chats: list[Chat] = []
    pictures: pa.StructArray | None = None
    left_out: Counter[str] = Counter()
    unbalanced: Counter[str] = Counter()
    if inputs.tokens is not None:
        tokens = inputs.tokens.read(part.name).slice(0, part.num_rows)
        rows, left_out, unbalanced = inputs.select(part.name, tokens)
        chats += chats_of_pictures(rows, config)
        pictures = _pixel_codes(tokens) if config.codes == "vq" else _pictures(tokens)
    if inputs.documents is not None:
        documents = inputs.documents.read(part.documents.start, part.documents.stop)
        chats += [
            chat_of_document(document, key=f"{part.name}-{number:06d}")
            for number, document in enumerate(documents)
        ]
    return _Shard(_table(chats, pictures), left_out, unbalanced)


def _pictures(table: pa.Table) -> pa.StructArray:
    """One struct of codes per row; a scale that the shard does not store is null."""
    codes_type = pa.list_(pa.uint16())
    columns = []
    for name in CODE_COLUMNS:
        if name in table.column_names:
            columns.append(table.column(name).combine_chunks().cast(codes_type))
        else:
            columns.append(pa.nulls(table.num_rows, codes_type))
    return pa.StructArray.from_arrays(columns, names=list(CODE_COLUMNS))


def _pixel_codes(table: pa.Table) -> pa.StructArray:
    """One struct per row: the codes of the image VQ as those of scale 1, and the picture's key."""
    renamed = table.select(["key", "vq_codes"]).rename_columns(["key", CODE_COLUMNS[0]])
    codes = _pictures(renamed).flatten()
    keys = table.column("key").combine_chunks()
    return pa.StructArray.from_arrays([*codes, keys], names=[*CODE_COLUMNS, "key"])


def _table(chats: Sequence[Chat], pictures: pa.StructArray | None) -> pa.Table:
    """The chats as Arrow columns. Arrow copies the codes; they never become Python numbers."""
    if pictures is None:
        empty = pa.table({name: pa.array([], pa.list_(pa.uint16())) for name in CODE_COLUMNS})
        pictures = _pictures(empty)
    row_numbers = pa.array([row for chat in chats for row in chat.pictures], pa.int64())
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
                pa.array(image_ends, pa.int32()), pictures.take(row_numbers)
            ),
            "status": pa.array(["failed" if chat.error else "ok" for chat in chats], pa.string()),
            "error": pa.array([chat.error for chat in chats], pa.string()),
        }
    )


def _num_failed(table: pa.Table) -> int:
    return sum(status == "failed" for status in table.column("status").to_pylist())
