"""`tarkit train mllm`: a causal language model that reads and writes words and pictures.

Source: paper Sec. 3.3-3.4. With `--tokenizer` the vocabulary grows by the codes, started from the
text-aligned codebook; without one it trains on text alone (what stands in for a pretrained LM in
miniature). With `--lm` a given model goes on, without one a small Qwen2 is made from nothing; one
that already has the tokenizer's codes goes on as it is (the paper's second stage, Sec. 3.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from tarkit.artifacts.artifact import open_artifact
from tarkit.checkpoints.directory import TOKENIZER, read_config
from tarkit.checkpoints.language_model import has_visual_tokens, load_mllm, read_text_tokenizer
from tarkit.checkpoints.load import LoadedTaTok, load_ta_tok
from tarkit.config import load_config
from tarkit.errors import UserError
from tarkit.images import contact_sheet
from tarkit.inference.detokenizers import ArDetokenizer
from tarkit.models.mllm import (
    EmbeddingStart,
    LmArch,
    Packed,
    PackedLoss,
    build,
    from_scratch,
    generate_codes,
    grow,
)
from tarkit.train.chat_batches import (
    ChatBatchesConfig,
    ChatStreams,
    check_codes,
    described,
    packed_chats,
    weighted_loss,
)
from tarkit.train.loop import LoopConfig, begin_training, train
from tarkit.train.optimizers import shrink
from tarkit.train.streams import to_bytes
from tarkit.vocab import Scale, TextTokenizer, VisualVocabulary, Vocabulary, train_text_tokenizer


class MllmConfig(LoopConfig, ChatBatchesConfig):
    """Numbers of the language model's training."""

    lm: LmArch = LmArch()
    """Sizes of a model made from nothing; not read with `--lm`."""
    text_vocab: int = Field(default=4096, ge=259)
    """Tokens of a tokenizer made from nothing: 256 bytes and three tags at the least."""
    system: str | None = "You are a helpful assistant."
    """The system turn of every chat; "" leaves it out, as the paper prints it (App. C.1)."""
    embedding_start: EmbeddingStart = "codebook"
    codebook_norm: Literal["unit", "text"] = "unit"
    shrink: float = Field(default=1.0, gt=0, le=1)
    """What every hidden matrix of `--lm` is multiplied by before it goes on (Ash & Adams 2020,
    "shrink and perturb", without the noise). Weights that have grown far too large saturate their
    attention and move no more; scaled down, the model soon does what it did, and learns again.
    """
    sample_temperature: float = 0.7
    tokenizer_documents: int = 200_000
    """Documents that the text tokenizer is made from."""


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
            if config.shrink != 1:
                raise UserError(
                    f"shrink = {config.shrink} is for a model that goes on, and none is given",
                    hint="name it with --lm, or leave shrink out",
                )
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
        if config.shrink != 1:
            shrink(base, config.shrink)
        self.vocabulary = Vocabulary(text=text, visual=visual, system=config.system)
        self.model: PackedLoss = PackedLoss(base)

    def batch(self, step: int, size: int, rank: int, world: int) -> Packed:
        return packed_chats(
            self.streams,
            self.config,
            self.vocabulary,
            first=(step * world + rank) * size,
            size=size,
        )

    def loss(self, model: nn.Module, batch: Packed, step: int) -> tuple[Tensor, dict[str, float]]:
        losses, targets = model(batch)
        loss, figures = weighted_loss(losses, targets, self.vocabulary, self.config.text_weight)
        return loss, figures | {"tokens": int((batch.chats >= 0).sum())}

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
        tokenizer = self.tokenizer.sha256 if self.tokenizer else None
        grid = self.tokenizer.grid if self.tokenizer else None
        description = described(self.model.lm, self.vocabulary, tokenizer=tokenizer, grid=grid)
        return self.model.lm, description | {"token_counts": self.counts}


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
    begin_training(settings.seed)
    artifacts = [open_artifact(path, "chats") for path in chats]
    ta_tok = load_ta_tok(tokenizer) if tokenizer else None
    check_codes(artifacts, ta_tok)
    streams = ChatStreams(artifacts, settings.ratio, settings.seed)
    painter = ArDetokenizer.load(*dtok) if dtok else None
    task = MllmTask(settings, streams, tokenizer=ta_tok, lm=lm, dtok=painter)
    parents = {f"chats_{i}": path for i, path in enumerate(chats)}
    parents |= {"tokenizer": tokenizer} if tokenizer else {}
    parents |= {"lm": lm} if lm else {}
    files = {TOKENIZER: task.vocabulary.text.json}
    return train(task, settings, out=out, name="mllm", parents=parents, files=files)
