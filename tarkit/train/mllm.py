"""`tarkit train mllm`: a causal language model that reads and writes words and pictures.

Source: paper Sec. 3.3-3.4. With `--tokenizer` the vocabulary grows by the codes, whose embeddings
start from the text-aligned codebook. Without it the model trains on text alone, which replaces a
pretrained LM in miniature. `--lm` names the model to start from; without it a small Qwen2 is made
from nothing. A model that already has the tokenizer's codes is trained as it is (the paper's second
stage, Sec. 3.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from tarkit.artifacts.artifact import open_artifact
from tarkit.checkpoints.directory import TOKENIZER, read_config
from tarkit.checkpoints.from_transformers import from_transformers
from tarkit.checkpoints.language_model import (
    has_visual_tokens,
    lm_sha256,
    load_mllm,
    read_text_tokenizer,
    require_readable,
)
from tarkit.checkpoints.load import LoadedTaTok, load_ta_tok
from tarkit.config import load_config
from tarkit.errors import UserError
from tarkit.images import contact_sheet
from tarkit.inference.ar_detokenizer import ArDetokenizer
from tarkit.models.mllm import (
    EmbeddingStart,
    LmArch,
    Packed,
    PackedLoss,
    build,
    fit_width,
    from_scratch,
    grow,
    require_packable,
)
from tarkit.models.mllm_decoding import generate_codes
from tarkit.models.pixel_range import from_unit_truncated
from tarkit.train.adapters import AdapterConfig, add_adapters, merged, save_adapters
from tarkit.train.chat_batches import (
    ChatBatchesConfig,
    ChatStreams,
    TooLongChats,
    check_codes,
    check_scales,
    losses_by_group,
    model_description,
    packed_chats,
    require_fitting,
    rows_of_part,
    supervision,
    weighted_loss,
)
from tarkit.train.loop import begin_training, train
from tarkit.train.loop_config import LoopConfig
from tarkit.train.optimizers import shrink
from tarkit.train.parameters import save_trained_only
from tarkit.train.task import Amount, Figure, RowName, Total
from tarkit.train.workloads.language import language_costs
from tarkit.vocab import Scale, TextTokenizer, VisualVocabulary, Vocabulary, train_text_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MllmConfig(LoopConfig, ChatBatchesConfig):
    """Numbers of the language model's training."""

    FREE_KEYS = frozenset({"micro_batch_tokens", "sample_temperature"})
    LATER_KEYS = frozenset({"lora", "codebook_projection"})

    micro_batch_tokens: PositiveInt | None = None
    """Tokens of one forward pass of a process, in place of `micro_batch_size`: as many packed rows
    of `length` tokens as fit. The step is the same."""
    lm: LmArch = LmArch()
    """Sizes of a model made from nothing; unused with `--lm`."""
    text_vocab: int = Field(default=4096, ge=259)
    """Tokens of a text tokenizer made from nothing: at least 256 bytes and three tags."""
    system: str | None = "You are a helpful assistant."
    """The system turn of every chat; "" leaves it out, as the paper prints it (App. C.1)."""
    embedding_start: EmbeddingStart = "codebook"
    """Where the rows of new codes start. "codebook": the tokenizer's text-aligned codebook (Sec.
    3.3). "mean": the mean text row. "random": noise of the text rows' spread. Table 3 compares
    codebook (understanding 92.9, generation 70.6), random (91.1, 69.6) and pre-align: random, and
    first a run of 50M rows more with `train_only` on the tables (89.8, 70.3)."""
    codebook_projection: Literal["none", "rotation"] = "none"
    """What is done with a codebook of another width than the model's embeddings. "none": it is
    refused. "rotation": codes keep their lengths and angles to each other, in a random direction
    of the text embeddings; a narrower model keeps the main directions (`fit_width`). The published
    codes are 1,536 wide, as the embeddings of its 1.5B; its program skips this start for the 7B."""
    codebook_norm: Literal["unit", "text"] = "unit"
    shrink: float = Field(default=1.0, gt=0, le=1)
    """Factor on every hidden matrix of `--lm` before training (Ash & Adams 2020, "shrink and
    perturb", without the noise). Weights that have grown far too large saturate attention and stop
    moving; scaled down, the model soon recovers, and learns again."""
    lora: AdapterConfig | None = None
    """LoRA adapters on `--lm`, whose own weights stay as they are (adapters.py; needs the extra
    `lora`). Under precision = "bf16" the frozen weights are stored in bfloat16, and so is the
    merged model. Checkpoints hold what is trained; the saved model has the adapters merged, and
    `adapter/` holds them in peft's format. None: all weights are trained, as in the paper."""
    sample_temperature: float = Field(default=0.7, ge=0)
    tokenizer_documents: PositiveInt = 200_000
    """At most this many documents train the text tokenizer."""

    @model_validator(mode="after")
    def _passes_hold_rows(self) -> MllmConfig:
        tokens = self.micro_batch_tokens
        if tokens and self.micro_batch_size:
            raise ValueError("micro_batch_tokens and micro_batch_size exclude each other")
        if tokens and tokens < self.length:
            raise ValueError(
                f"micro_batch_tokens = {tokens} holds no packed row of length = {self.length}"
            )
        return self


class LmStart(NamedTuple):
    """What a training of the language model starts from."""

    text: TextTokenizer
    model: PreTrainedModel
    visual: VisualVocabulary | None
    """Of a model that has image tokens already."""
    token_counts: list[int] | None
    """How often each token occurs in the text rows, for a model made from nothing."""


class MllmTask:
    """Cross-entropy on chats of all tasks, several in each row."""

    unused_parameters = False

    def __init__(
        self,
        config: MllmConfig,
        streams: ChatStreams,
        *,
        tokenizer: LoadedTaTok | None,
        lm: Path | None,
        dtok: ArDetokenizer | None = None,
        out: Path | None = None,
    ) -> None:
        """`out`: the model directory, for adapters and the list of chats longer than a row."""
        self.config = config
        self.streams = streams
        self.tokenizer = tokenizer
        self.dtok = dtok
        self.out = out
        start = _from_nothing(config, streams) if lm is None else _start_from(lm, config)
        visual = start.visual
        if visual is not None:
            _require_same_codes(lm, visual, tokenizer)
        elif tokenizer is not None:
            visual = _grow_by_codes(start, tokenizer, config)
        if config.shrink != 1:
            shrink(start.model, config.shrink)
        self.token_counts = start.token_counts
        self.vocabulary = Vocabulary(text=start.text, visual=visual, system=config.system)
        _require_trainable(start.model)
        require_fitting(streams, config, self.vocabulary, size=config.batch_size)
        self.too_long = TooLongChats(out / "too_long.jsonl" if out else None)
        self.costs = language_costs(start.model.config, config.lora)
        if config.lora is not None:
            add_adapters(start.model, config.lora, base=str(lm))
        self.model: PackedLoss = PackedLoss(
            start.model,
            chunk_tokens=config.loss_chunk_tokens,
            attention=config.packed_attention,
        )
        if config.lora is not None:
            save_trained_only(self.model)

    def batch(self, step: int, size: int, part: int, parts: int) -> Packed:
        packed = self._packed_step(step, size * parts, list_too_long=part == 0)
        return rows_of_part(packed, part, parts, length=self.config.length)

    def passes(self, step: int, size: int, part: int, parts: int) -> list[Packed]:
        packed = self._packed_step(step, size * parts, list_too_long=part == 0)
        length, tokens = self.config.length, self.config.micro_batch_tokens
        if tokens:
            rows = -(-len(packed.ids) // parts)  # of the part that has most
            num_passes = -(-rows // (tokens // length))
        else:
            num_passes = size // (self.config.micro_batch_size or size)
        first, all_passes = part * num_passes, parts * num_passes
        return [
            rows_of_part(packed, first + number, all_passes, length=length)
            for number in range(num_passes)
        ]

    def _packed_step(self, step: int, size: int, *, list_too_long: bool) -> Packed:
        return packed_chats(
            self.streams,
            self.config,
            self.vocabulary,
            first=step * size,
            size=size,
            too_long=self.too_long if list_too_long else None,
        )

    def weight(self, batch: Packed) -> float:
        """Supervised tokens, by their weight."""
        return supervision(batch, self.vocabulary, self.config.text_weight)

    def loss(self, model: nn.Module, batch: Packed, step: int) -> tuple[Tensor, dict[str, Figure]]:
        losses, targets = model(batch)
        loss, figures = weighted_loss(losses, targets, self.vocabulary, self.config.text_weight)
        if self.config.logs_after(step + 1):
            figures |= losses_by_group(losses, batch, self.streams, self.config)
        return loss, figures | self._work(batch, supervised=len(losses))

    def _work(self, batch: Packed, *, supervised: int) -> dict[str, Figure]:
        """How much a batch holds, and the FLOPs that it takes where the family's are known."""
        visual = self.vocabulary.visual
        is_token = batch.chats >= 0
        # A picture that is read has no tags: it begins where codes do.
        is_code = batch.ids >= (visual.first_code if visual else self.vocabulary.text.size)
        begins = is_code[:, 1:] & ~is_code[:, :-1]
        # The sum over chats of their length squared.
        squares = ((2 * batch.positions + 1) * is_token).sum()
        # In one transfer, as each waits for the device.
        tokens, pictures, squared = torch.stack([is_token.sum(), begins.sum(), squares]).tolist()
        work: dict[str, Figure] = {
            "tokens": Total(tokens),
            "tokens_per_s": Amount(tokens),
            "supervised_tokens_per_s": Amount(supervised),
        }
        if visual:
            work["pictures_per_s"] = Amount(pictures)
        if self.costs:
            work["flops_per_s"] = Amount(self.costs.flops(tokens, squared, supervised))
        return work

    def row_names(self, batch: Packed, first: int) -> list[RowName]:
        chats = [self.streams[n] for n in batch.numbers.unique().tolist() if n >= 0]
        return [RowName(chat["chats"], chat["key"]) for chat in chats]

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        return {}

    def samples(self, step: int) -> Image.Image | None:
        """Pictures that the model draws of eight training prompts; None without a de-tokenizer."""
        visual = self.vocabulary.visual
        if self.dtok is None or self.tokenizer is None or visual is None:
            return None
        if "t2i" not in self.streams.orders:
            return None
        self.model.eval()
        self.tokenizer.model.to(self.model.lm.device)
        self.dtok.to(self.model.lm.device)
        scale = max(zip(self.config.scale_ratio, Scale, strict=True))[1]
        chats = [self.streams.of_task("t2i", i) for i in range(8)]
        prompts = [chat["messages"][0]["content"] for chat in chats]
        lm = self.model.lm
        # Frozen bfloat16 matrices cannot multiply float32 states otherwise.
        mixed = len({parameter.dtype for parameter in lm.parameters()}) > 1
        with torch.autocast(lm.device.type, torch.bfloat16, enabled=mixed):
            codes = generate_codes(
                lm,
                [self.vocabulary.prompt(prompt, draw=scale) for prompt in prompts],
                visual=visual,
                num_codes=scale.num_codes(self.tokenizer.grid),
                temperature=self.config.sample_temperature,
                top_k=0,
                top_p=1.0,
            )
        condition = self.tokenizer.condition(codes)
        pixels = self.dtok.draw(condition, guidance=1.0, temperature=0.0)
        cells = [Image.fromarray(a) for a in from_unit_truncated(pixels)]
        return contact_sheet(cells, prompts, columns=4, cell_px=96)

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        lm = self.model.lm
        if self.config.lora is not None:
            if self.out is not None:
                save_adapters(lm, self.out / "adapter")
            lm = merged(lm)
        description = model_description(
            lm,
            self.vocabulary,
            tokenizer_sha256=self.tokenizer.sha256 if self.tokenizer else None,
            grid=self.tokenizer.grid if self.tokenizer else None,
        )
        return lm, description | {"token_counts": self.token_counts}


def _from_nothing(config: MllmConfig, streams: ChatStreams) -> LmStart:
    """A small Qwen2 with random weights and a text tokenizer trained on the text rows."""
    if config.lora is not None:
        raise UserError(
            "adapters need a trained model under them, and there is no --lm",
            hint="name the model with --lm, or leave [lora] out",
        )
    if config.shrink != 1:
        raise UserError(
            f"shrink = {config.shrink} needs a model to start from, and there is no --lm",
            hint="name the model with --lm, or leave shrink out",
        )
    texts = streams.documents(config.tokenizer_documents)
    if not texts:
        raise UserError(
            "a language model from nothing needs text rows to make its tokenizer from",
            hint="tarkit curate chats --text FILE --out DIR, and name DIR with --chats",
        )
    text = TextTokenizer(train_text_tokenizer(texts, vocab_size=config.text_vocab))
    model = build(from_scratch(config.lm, text.size))
    ids = np.concatenate([np.asarray(ids) for ids in text.encode_batch(texts)])
    return LmStart(text, model, None, np.bincount(ids, minlength=text.size).tolist())


def _grow_by_codes(start: LmStart, tokenizer: LoadedTaTok, config: MllmConfig) -> VisualVocabulary:
    """Grow the model's vocabulary by the tokenizer's codes, in place (paper Sec. 3.3)."""
    if config.lora is not None and not config.lora.train_embeddings:
        raise UserError(
            "the language model has no codes yet, and adapters leave its embeddings as they are",
            hint="--set lora.train_embeddings=true, or name a model that has codes with --lm",
        )
    visual = VisualVocabulary(first_id=start.text.size, num_codes=tokenizer.num_codes)
    with torch.no_grad():
        codebook = tokenizer.model.codebook.projected()
    width = start.model.config.hidden_size
    if config.embedding_start == "codebook" and codebook.shape[1] != width:
        if config.codebook_projection == "none":
            raise UserError(
                f"codes are {codebook.shape[1]} wide, the language model's embeddings "
                f"{width}: the codebook cannot start them as it is",
                hint="--set codebook_projection=rotation, or --set embedding_start=mean, or train "
                "the tokenizer with this --lm",
            )
        codebook = fit_width(codebook, width)
    grow(start.model, visual, codebook, start=config.embedding_start, norm=config.codebook_norm)
    return visual


def _start_from(lm: Path, config: MllmConfig) -> LmStart:
    """The model of a directory, tarkit's own or a causal LM in transformers' layout."""
    frozen_bf16 = config.lora is not None and config.precision == "bf16"
    dtype = torch.bfloat16 if frozen_bf16 else torch.float32
    kind = read_config(lm).get("kind", "foreign")
    if kind not in ("mllm", "foreign"):
        raise UserError(f"{lm} is {kind}, not a language model", hint=f"tarkit inspect {lm}")
    if kind == "mllm" or has_visual_tokens(lm):
        loaded = load_mllm(lm, dtype)
        start = LmStart(loaded.vocabulary.text, loaded.model, loaded.vocabulary.visual, None)
        _require_embeddings(start, lm)
        return start
    from transformers import AutoModelForCausalLM

    text = read_text_tokenizer(lm)
    network = from_transformers(AutoModelForCausalLM, lm, dtype=dtype)
    start = LmStart(text, network, None, None)
    _require_embeddings(start, lm)
    return start


def _require_embeddings(start: LmStart, lm: Path) -> None:
    """Raise UserError where the tokenizer has ids for which the model has no embedding."""
    tokens = start.visual.size if start.visual else start.text.size
    rows = len(start.model.get_input_embeddings().weight)
    if tokens > rows:
        raise UserError(
            f"{lm / TOKENIZER} has {tokens:,} tokens, but the model has {rows:,} embeddings",
            hint="put the tokenizer.json of this language model into its folder",
        )


def _require_trainable(model: PreTrainedModel) -> None:
    """Raise UserError for a family that packing changes, or that cannot be loaded again."""
    try:
        require_packable(model)
        require_readable(model)
    except ValueError as error:
        raise UserError(
            f"this language model cannot be trained: {error}",
            hint="name a model whose layers are all attention, such as Qwen2.5 or Llama",
        ) from None


def _require_same_codes(
    lm: Path | None, visual: VisualVocabulary, tokenizer: LoadedTaTok | None
) -> None:
    """Raise UserError unless the tokenizer is there and is the one the model's codes come from."""
    if tokenizer is None:
        raise UserError(
            f"{lm} has visual tokens, but there is no --tokenizer",
            hint="name the tokenizer that the model was trained with by --tokenizer",
        )
    # A published model does not say which tokenizer it was trained with.
    made_for = read_config(lm).get("tokenizer_sha256") if lm else None
    if visual.num_codes != tokenizer.num_codes or made_for not in (None, tokenizer.sha256):
        raise UserError(
            f"{lm} draws with {visual.num_codes:,} codes of tokenizer {str(made_for)[:12]}, "
            f"--tokenizer has {tokenizer.num_codes:,} and is {tokenizer.sha256[:12]}",
            hint="name the tokenizer that the model was trained with, or grow a text-only model",
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
    """Train a language model on chats artifacts; returns the model directory.

    `lm`: a model directory, or the folder of any causal language model of transformers. `dtok`:
    directories of an AR-DTok and its image VQ, used for the sample sheets only.
    """
    settings = load_config(MllmConfig, config, overrides)
    begin_training(settings.seed)
    artifacts = [open_artifact(path, "chats") for path in chats]
    ta_tok = load_ta_tok(tokenizer) if tokenizer else None
    check_codes(artifacts, ta_tok)
    check_scales(artifacts, settings)
    streams = ChatStreams(artifacts, settings.ratio, settings.seed)
    detokenizer = ArDetokenizer.load(*dtok) if dtok else None
    task = MllmTask(
        settings,
        streams,
        tokenizer=ta_tok,
        lm=lm,
        dtok=detokenizer,
        out=out,
    )
    parents = {f"chats_{i}": path for i, path in enumerate(chats)}
    parents |= {"tokenizer": tokenizer} if tokenizer else {}
    parents |= {"lm": lm} if lm else {}
    files = {TOKENIZER: task.vocabulary.text.json}
    more = {"lm_sha256": lm_sha256(lm)} if lm and settings.lora else {}
    return train(
        task,
        settings,
        out=out,
        name="mllm",
        parents=parents,
        files=files,
        more=more,
        start_option="--lm",
    )
