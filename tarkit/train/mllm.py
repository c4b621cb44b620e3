"""`tarkit train mllm`: a causal language model that reads and writes words and pictures.

Source: paper Sec. 3.3-3.4. With `--tokenizer` the vocabulary grows by the codes, started from the
text-aligned codebook; without one it trains on text alone (what stands in for a pretrained LM in
miniature). With `--lm` a given model goes on, without one a small Qwen2 is made from nothing; one
that already has the tokenizer's codes goes on as it is (the paper's second stage, Sec. 3.4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from tarkit.artifacts import Artifact, open_artifact
from tarkit.checkpoints import (
    TOKENIZER,
    LoadedTaTok,
    has_visual_tokens,
    load_mllm,
    load_ta_tok,
    read_config,
    read_text_tokenizer,
)
from tarkit.config import load_config
from tarkit.detokenizers import ArDetokenizer
from tarkit.errors import UserError
from tarkit.images import contact_sheet
from tarkit.models.mllm import (
    EmbeddingStart,
    LmArch,
    Packed,
    PackedLoss,
    build,
    from_scratch,
    generate_codes,
    grow,
    pack,
)
from tarkit.train.data import Stream, draw_scale, seed_of, to_bytes
from tarkit.train.loop import LoopConfig, train
from tarkit.vocab import (
    END_OF_TEXT,
    Scale,
    TextTokenizer,
    VisualVocabulary,
    Vocabulary,
    train_text_tokenizer,
)

TaskName = Literal["t2i", "i2t", "text", "i2i", "ti2i"]


class MllmConfig(LoopConfig):
    """Numbers of the language model's training."""

    lm: LmArch = LmArch()
    """Sizes of a model made from nothing; not read with `--lm`."""
    text_vocab: int = Field(default=4096, ge=259)
    """Tokens of a tokenizer made from nothing: 256 bytes and three tags at the least."""
    system: str | None = "You are a helpful assistant."
    """The system turn of every chat; "" leaves it out, as the paper prints it (App. C.1)."""
    ratio: Mapping[TaskName, int] = {"i2t": 2, "t2i": 2, "text": 1}
    """Rows of each task in a round (Table 8: 2 understanding, 2 generation, 1 text)."""
    scale_ratio: tuple[int, int, int] = (2, 1, 1)
    """How often scales 1, 2, 3 are drawn, one a row (App. C.1)."""
    prompt_dropout: float = Field(default=0.0, ge=0, le=1)
    """Share of t2i rows whose prompt is left empty: what `prompt_guidance` draws away from."""
    text_weight: float = Field(default=1.0, gt=0)
    """Weight of a supervised token of text; a code weighs 1 (the paper weighs all alike)."""
    length: int = 2048
    """Tokens of a packed row; a longer chat is an error, never cut."""
    embedding_start: EmbeddingStart = "codebook"
    codebook_norm: Literal["unit", "text"] = "unit"
    sample_temperature: float = 0.7
    tokenizer_documents: int = 200_000
    """Documents that the text tokenizer is made from."""


class _Shards:
    """Chats of several artifacts as one numbered list of shards, rows decoded when asked for."""

    def __init__(self, artifacts: Sequence[Artifact], columns: Sequence[str]) -> None:
        self.places = [(a, name) for a in artifacts for name in a.shards]
        self.columns = columns
        self._table = lru_cache(maxsize=24)(self._read)

    def _read(self, index: int) -> pa.Table:
        artifact, name = self.places[index]
        return artifact.read(name, columns=list(self.columns))

    def row(self, index: int, row: int) -> dict[str, Any]:
        """One chat."""
        found: dict[str, Any] = self._table(index).slice(row, 1).to_pylist()[0]
        return found

    def of_task(self, task: TaskName, index: int) -> np.ndarray:
        """Row numbers of a shard's usable training chats of one task."""
        artifact, name = self.places[index]
        table = artifact.read(name, columns=["task", "split", "status"])
        columns = [table[c].to_pylist() for c in ("task", "split", "status")]
        keep = [
            i
            for i, (t, split, status) in enumerate(zip(*columns, strict=True))
            if t == task and split in (None, "train") and status == "ok"
        ]
        return np.asarray(keep, dtype=np.int64)


class ChatStreams:
    """One endless drawn stream a task, dealt in rounds of the configured ratio.

    Which task stands at a slot, and which row of it, follow from the slot's number alone.
    """

    def __init__(
        self, artifacts: Sequence[Artifact], ratio: Mapping[TaskName, int], seed: int
    ) -> None:
        for artifact in artifacts:
            artifact.require_complete()
        self.shards = _Shards(artifacts, ["key", "task", "messages", "images"])
        self.seed = seed
        self.ratio = {task: count for task, count in ratio.items() if count > 0}
        self.round = [task for task, count in sorted(self.ratio.items()) for _ in range(count)]
        self.streams: dict[TaskName, Stream[tuple[int, int]]] = {}
        for task in self.ratio:
            rows = [self.shards.of_task(task, i) for i in range(len(self.shards.places))]
            if not sum(map(len, rows)):
                raise UserError(
                    f"the ratio asks for {task} rows, but the chats given hold none",
                    hint="tarkit inspect the chats, or set the ratio of that task to 0",
                )
            self.streams[task] = _places(rows, seed_of(seed, task))

    def __getitem__(self, slot: int) -> dict[str, Any]:
        """The chat at a slot."""
        turn, within = divmod(slot, len(self.round))
        order = np.random.default_rng(seed_of(self.seed, turn, "round")).permutation(
            len(self.round)
        )
        task = self.round[int(order[within])]
        earlier = sum(self.round[int(i)] == task for i in order[:within])
        shard, row = self.streams[task][turn * self.ratio[task] + earlier]
        return self.shards.row(shard, row)

    def of_task(self, task: TaskName, position: int) -> dict[str, Any]:
        """The chat at a position of one task's own stream."""
        return self.shards.row(*self.streams[task][position])

    def documents(self, limit: int) -> list[str]:
        """Text-only rows in order, for making a tokenizer and counting its rows' use."""
        texts: list[str] = []
        for index in range(len(self.shards.places)):
            for row in self.shards.of_task("text", index):
                texts.append(
                    "\n".join(m["content"] for m in self.shards.row(index, int(row))["messages"])
                )
                if len(texts) >= limit:
                    return texts
        return texts


def _places(rows: Sequence[np.ndarray], seed: int) -> Stream[tuple[int, int]]:
    """The stream of (shard, row) over the given rows of each shard."""

    def load(shard: int) -> list[tuple[int, int]]:
        return [(shard, int(row)) for row in rows[shard]]

    return Stream([len(r) for r in rows], load, seed=seed, shards_together=4)


def encode_chat(
    vocabulary: Vocabulary, chat: Mapping[str, Any], scale: Scale
) -> tuple[list[int], list[int]]:
    """Ids and labels of one chats row; a lone document is raw text, supervised whole."""
    messages = chat["messages"]
    if chat["task"] == "text" and len(messages) == 1:
        end = vocabulary.text.special[END_OF_TEXT]
        ids = [end, *vocabulary.text.encode(messages[0]["content"]), end]
        return ids, [-100, *ids[1:]]
    pictures = [(scale, picture[f"codes_{int(scale)}"]) for picture in chat["images"] or []]
    if any(codes is None for _, codes in pictures):
        raise UserError(
            f"chat {chat['key']} has no codes of scale {int(scale)}",
            hint="set scale_ratio to the scales that `tarkit encode` stored",
        )
    try:
        return vocabulary.chat(messages, pictures)
    except ValueError as error:
        raise UserError(
            f"chat {chat['key']}: {error}", hint="leave the row out, or make the chats again"
        ) from None


class MllmTask:
    """Chats of all tasks, packed side by side."""

    def __init__(
        self,
        config: MllmConfig,
        streams: ChatStreams,
        *,
        tokenizer: LoadedTaTok | None,
        lm: Path | None,
        dtok: ArDetokenizer | None = None,
    ) -> None:
        self.config = config
        self.streams = streams
        self.tokenizer = tokenizer
        self.dtok = dtok
        self.counts: list[int] | None = None
        visual: VisualVocabulary | None = None
        if lm is None:
            texts = streams.documents(config.tokenizer_documents)
            if not texts:
                raise UserError(
                    "a language model from nothing needs text rows to make its tokenizer from",
                    hint="tarkit curate chats --text FILE --out DIR, and name DIR with --chats",
                )
            text = TextTokenizer(train_text_tokenizer(texts, vocab_size=config.text_vocab))
            base = build(from_scratch(config.lm, text.size))
            counted = np.bincount(
                np.concatenate([np.asarray(ids) for ids in text.encode_batch(texts)]),
                minlength=text.size,
            )
            self.counts = counted.tolist()
        else:
            text, base, visual = _given(lm)
        if visual is not None:
            _check_goes_on(lm, visual, tokenizer)
        elif tokenizer is not None:
            visual = VisualVocabulary(first_id=text.size, num_codes=tokenizer.num_codes)
            with torch.no_grad():
                codebook = tokenizer.model.codebook.projected()
            if (
                config.embedding_start == "codebook"
                and codebook.shape[1] != base.config.hidden_size
            ):
                raise UserError(
                    f"codes are {codebook.shape[1]} wide, the language model's embeddings "
                    f"{base.config.hidden_size}: the codebook cannot start them",
                    hint="--set embedding_start=mean, or train the tokenizer with this --lm",
                )
            grow(
                base,
                visual,
                codebook,
                start=config.embedding_start,
                norm=config.codebook_norm,
            )
        self.vocabulary = Vocabulary(text=text, visual=visual, system=config.system)
        self.model: PackedLoss = PackedLoss(base)

    def batch(self, step: int, size: int, rank: int, world: int) -> Packed:
        first = (step * world + rank) * size
        chats = []
        for slot in range(first, first + size):
            scale = draw_scale(self.config.scale_ratio, self.config.seed, slot)
            chat = self._prompted(self.streams[slot], slot)
            ids, labels = encode_chat(self.vocabulary, chat, scale)
            if len(ids) > self.config.length:
                raise UserError(
                    f"chat {chat['key']} has {len(ids)} tokens, length is {self.config.length}",
                    hint=f"--set length={len(ids)}, or leave such rows out of the chats",
                )
            chats.append((ids, labels))
        return pack(chats, self.config.length)

    def _prompted(self, chat: dict[str, Any], slot: int) -> dict[str, Any]:
        """The chat of a slot, without its prompt where `prompt_dropout` says so."""
        dropout = self.config.prompt_dropout
        if chat["task"] != "t2i" or not dropout:
            return chat
        if np.random.default_rng(seed_of(self.config.seed, slot, "prompt")).random() >= dropout:
            return chat
        bare = [m | {"content": ""} if m["role"] == "user" else m for m in chat["messages"]]
        return chat | {"messages": bare}

    def loss(self, model: nn.Module, batch: Packed, step: int) -> tuple[Tensor, dict[str, float]]:
        losses, targets = model(batch)
        weights = torch.ones_like(losses)
        figures: dict[str, float] = {"tokens": int((batch.chats >= 0).sum())}
        if self.vocabulary.visual is not None:
            is_code = targets >= self.vocabulary.visual.first_code
            weights[~is_code] = self.config.text_weight
            for name, chosen in (("code_loss", is_code), ("text_loss", ~is_code)):
                if chosen.any():
                    figures[name] = float(losses.detach()[chosen].mean())
        return (losses * weights).sum() / weights.sum(), figures

    def after_step(self, step: int, model: nn.Module) -> None:
        return None

    def samples(self, step: int) -> Image.Image | None:
        """What the model draws of eight training prompts, where a de-tokenizer is given."""
        visual = self.vocabulary.visual
        if self.dtok is None or self.tokenizer is None or visual is None:
            return None
        if "t2i" not in self.streams.streams:
            return None
        self.model.eval()
        scale = max(zip(self.config.scale_ratio, Scale, strict=True))[1]
        chats = [self.streams.of_task("t2i", i) for i in range(8)]
        prompts = [chat["messages"][0]["content"] for chat in chats]
        codes = generate_codes(
            self.model.lm,
            [self.vocabulary.prompt(prompt, draw=scale) for prompt in prompts],
            visual=visual,
            num_codes=scale.num_codes(self.tokenizer.grid),
            temperature=self.config.sample_temperature,
            top_k=0,
            top_p=1.0,
        )
        condition = self.tokenizer.condition(codes)
        drawn = self.dtok.draw(condition, guidance=1.0, temperature=0.0)
        cells = [Image.fromarray(a) for a in to_bytes(drawn)]
        return contact_sheet(cells, prompts, columns=4, cell_px=96)

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        arch = self.model.lm.config.to_diff_dict()
        visual = self.vocabulary.visual
        return self.model.lm, {
            "kind": "mllm",
            "arch": {k: v for k, v in arch.items() if k not in ("dtype", "transformers_version")},
            "visual": visual and {"first_id": visual.first_id, "num_codes": visual.num_codes},
            "system": self.config.system,
            "tokenizer_sha256": self.tokenizer and self.tokenizer.sha256,
            "grid": self.tokenizer and self.tokenizer.grid,
            "token_counts": self.counts,
        }


def _given(lm: Path) -> tuple[TextTokenizer, Any, VisualVocabulary | None]:
    """Words, network and visual tokens, if it has any, of tarkit's own model or another's."""
    kind = read_config(lm).get("kind", "foreign")
    if kind not in ("mllm", "foreign"):
        raise UserError(
            f"{lm} is {kind}, where a language model is needed", hint=f"tarkit inspect {lm}"
        )
    if kind == "mllm" or has_visual_tokens(lm):
        loaded = load_mllm(lm)
        return loaded.vocabulary.text, loaded.model, loaded.vocabulary.visual
    from transformers import AutoModelForCausalLM

    text = read_text_tokenizer(lm)
    try:
        network = AutoModelForCausalLM.from_pretrained(
            lm, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{lm} is no causal language model in safetensors: {error}",
            hint=f"tarkit inspect {lm}",
        ) from None
    return text, network, None


def _check_goes_on(
    lm: Path | None, visual: VisualVocabulary, tokenizer: LoadedTaTok | None
) -> None:
    """Refuse a model that draws with another tokenizer's codes, or to train it without one."""
    if tokenizer is None:
        raise UserError(
            f"{lm} has visual tokens, and no --tokenizer says what they mean",
            hint="name the tokenizer that it was trained with by --tokenizer",
        )
    # A published model does not say which tokenizer it was trained with.
    made_for = read_config(lm).get("tokenizer_sha256") if lm else None
    if visual.num_codes != tokenizer.num_codes or made_for not in (None, tokenizer.sha256):
        raise UserError(
            f"{lm} draws with {visual.num_codes:,} codes of tokenizer {str(made_for)[:12]}, "
            f"--tokenizer has {tokenizer.num_codes:,} and is {tokenizer.sha256[:12]}",
            hint="name the tokenizer that it was trained with, or grow a text-only model",
        )


def _check_codes(chats: Sequence[Artifact], tokenizer: LoadedTaTok | None) -> None:
    """Refuse codes that another tokenizer made."""
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


def run(
    config: Path | None,
    *,
    chats: Sequence[Path],
    out: Path,
    tokenizer: Path | None = None,
    lm: Path | None = None,
    dtok: tuple[Path, Path] | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Train a language model on chats; returns the model directory.

    `dtok`, directories of an AR-DTok and its image VQ, only draws the sample sheets.
    """
    settings = load_config(MllmConfig, config, overrides)
    torch.manual_seed(settings.seed)
    artifacts = [open_artifact(path, "chats") for path in chats]
    ta_tok = load_ta_tok(tokenizer) if tokenizer else None
    _check_codes(artifacts, ta_tok)
    streams = ChatStreams(artifacts, settings.ratio, settings.seed)
    painter = ArDetokenizer.load(*dtok) if dtok else None
    task = MllmTask(settings, streams, tokenizer=ta_tok, lm=lm, dtok=painter)
    parents = {f"chats_{i}": path for i, path in enumerate(chats)}
    parents |= {"tokenizer": tokenizer} if tokenizer else {}
    parents |= {"lm": lm} if lm else {}
    files = {TOKENIZER: task.vocabulary.text.json}
    return train(task, settings, out=out, name="mllm", parents=parents, files=files)
