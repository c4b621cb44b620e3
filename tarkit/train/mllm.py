"""`tarkit train mllm`: a causal language model that reads and writes words and pictures.

Source: paper Sec. 3.3-3.4. With `--tokenizer` the vocabulary grows by the codes, whose embeddings
start from the text-aligned codebook. Without it the model trains on text alone, which replaces a
pretrained LM in miniature. `--lm` names the model to start from; without it a small Qwen2 is made
from nothing. A model that already has the tokenizer's codes is trained as it is (the paper's second
stage, Sec. 3.4).

`representation` chooses how the model sees pictures (checkpoints/representation.py): by TA-Tok's
codes, or in one of the ways that the paper compares them with (Sec. 4.3).
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

from tarkit.artifacts.artifact import Artifact, open_artifact
from tarkit.checkpoints.directory import TOKENIZER, read_config
from tarkit.checkpoints.from_transformers import from_transformers
from tarkit.checkpoints.language_model import (
    has_visual_tokens,
    lm_sha256,
    load_mllm,
    read_text_tokenizer,
    require_readable,
)
from tarkit.checkpoints.load import (
    LoadedEncoder,
    LoadedTaTok,
    LoadedVqvae,
    load_pixel_tokenizer,
    load_reading_encoder,
    load_ta_tok,
)
from tarkit.checkpoints.representation import (
    TEXT_ALIGNED,
    Representation,
    representation_of,
)
from tarkit.config import load_config
from tarkit.errors import UserError
from tarkit.images import contact_sheet
from tarkit.inference.ar_detokenizer import ArDetokenizer
from tarkit.models.mllm import (
    PROJECTOR,
    EmbeddingStart,
    LmArch,
    Packed,
    PackedLoss,
    Projector,
    build,
    fit_width,
    from_scratch,
    grow,
    projector_of,
    require_packable,
)
from tarkit.models.mllm_decoding import generate_codes
from tarkit.models.pixel_range import bytes_to_unit, from_unit_truncated
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
from tarkit.train.read_pictures import ChatPictures, ReadChats
from tarkit.train.streams import picture_parents
from tarkit.train.task import Amount, Figure, RowName, Total
from tarkit.train.workloads.language import language_costs, reading_flops
from tarkit.vocab import (
    Scale,
    TextTokenizer,
    VisualVocabulary,
    Vocabulary,
    drawn_scales,
    train_text_tokenizer,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


SHEETS_NEED = "sample sheets need both --ar-dtok and --vqvae"


class MllmConfig(LoopConfig, ChatBatchesConfig):
    """Numbers of the language model's training."""

    FREE_KEYS = frozenset({"micro_batch_tokens", "sample_temperature"})
    LATER_KEYS = frozenset({"lora", "codebook_projection", "representation", "read_layer"})

    representation: Representation = TEXT_ALIGNED
    """How the model sees pictures. "text-aligned": TA-Tok's codes (--tokenizer). "vq": pixel codes
    of an image VQ (--vqvae). "separate": it writes pixel codes (--vqvae) and reads features of a
    frozen encoder (--encoder) of --images, through an MLP of two layers that is trained with it.
    "hybrid": as "vq", with an image VQ that was also trained to match captions. The chats are made
    with `codes = "vq"` for all but the first."""
    read_layer: int = -2
    """With separate encoders, the hidden state that is read: by default the one that TA-Tok reads.
    `read_scale_ratio` pools it, as TA-Tok does."""
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

    @model_validator(mode="after")
    def _pixel_codes_have_one_scale(self) -> MllmConfig:
        if self.representation != TEXT_ALIGNED and drawn_scales(self.scale_ratio) != [Scale.FULL]:
            raise ValueError(
                f"representation = {self.representation} draws with pixel codes, which have scale "
                "1 alone: scale_ratio must be [1, 0, 0]"
            )
        pools = self.read_scale_ratio and drawn_scales(self.read_scale_ratio) != [Scale.FULL]
        if pools and self.representation in ("vq", "hybrid"):
            raise ValueError(
                f"representation = {self.representation} reads pixel codes, which have scale 1 "
                "alone: leave read_scale_ratio out"
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
    projector: Projector | None = None
    """Of a model that reads features, and which is no part of the family's own network."""


class EncoderReading(NamedTuple):
    """What a model with separate encoders reads with, and where the pictures stand."""

    encoder: LoadedEncoder
    pictures: ChatPictures


class MllmTask:
    """Cross-entropy on chats of all tasks, several in each row."""

    unused_parameters = False

    def __init__(
        self,
        config: MllmConfig,
        streams: ChatStreams,
        *,
        tokenizer: LoadedTaTok | LoadedVqvae | None,
        lm: Path | None,
        dtok: ArDetokenizer | None = None,
        reading: EncoderReading | None = None,
        out: Path | None = None,
    ) -> None:
        """`out`: the model directory, for adapters and the list of chats longer than a row."""
        self.config = config
        self.streams = streams
        self.tokenizer = tokenizer
        self.dtok = dtok
        self.reading = reading
        self.out = out
        start = _from_nothing(config, streams) if lm is None else _start_from(lm, config)
        visual = start.visual
        if visual is not None:
            _require_same_representation(lm, config.representation)
            _require_same_codes(lm, visual, tokenizer)
        elif tokenizer is not None:
            visual = _grow_by_codes(start, tokenizer, config)
        if config.shrink != 1:
            shrink(start.model, config.shrink)
        self.token_counts = start.token_counts
        self.vocabulary = Vocabulary(
            text=start.text,
            visual=visual,
            system=config.system,
            feature_grid=reading.encoder.grid if reading else None,
        )
        _require_trainable(start.model)
        require_fitting(streams, config, self.vocabulary, size=config.batch_size)
        self.too_long = TooLongChats(out / "too_long.jsonl" if out else None)
        self.costs = language_costs(start.model.config, config.lora)
        if config.lora is not None:
            add_adapters(start.model, config.lora, base=str(lm))
        if reading is not None:
            width = start.model.config.hidden_size
            projector = start.projector or Projector(reading.encoder.width, width)
            setattr(start.model, PROJECTOR, projector)
        self.model: PackedLoss = PackedLoss(
            start.model,
            chunk_tokens=config.loss_chunk_tokens,
            attention=config.packed_attention,
        )
        if config.lora is not None:
            save_trained_only(self.model)

    def batch(self, step: int, size: int, part: int, parts: int) -> Any:
        """`Packed` chats, or `ReadChats` where the model has separate encoders."""
        packed = self._packed_step(step, size * parts, list_too_long=part == 0)
        return self._read(rows_of_part(packed, part, parts, length=self.config.length))

    def passes(self, step: int, size: int, part: int, parts: int) -> list[Any]:
        packed = self._packed_step(step, size * parts, list_too_long=part == 0)
        length, tokens = self.config.length, self.config.micro_batch_tokens
        if tokens:
            rows = -(-len(packed.ids) // parts)  # of the part that has most
            num_passes = -(-rows // (tokens // length))
        else:
            num_passes = size // (self.config.micro_batch_size or size)
        first, all_passes = part * num_passes, parts * num_passes
        return [
            self._read(rows_of_part(packed, first + number, all_passes, length=length))
            for number in range(num_passes)
        ]

    def _read(self, packed: Packed) -> Packed | ReadChats:
        """The chats with the pixels that the encoder reads, where the model has one."""
        if self.reading is None:
            return packed
        return self.reading.pictures.with_pictures(packed, self.streams, self.config)

    def _packed_step(self, step: int, size: int, *, list_too_long: bool) -> Packed:
        return packed_chats(
            self.streams,
            self.config,
            self.vocabulary,
            first=step * size,
            size=size,
            too_long=self.too_long if list_too_long else None,
        )

    def weight(self, batch: Packed | ReadChats) -> float:
        """Supervised tokens, by their weight."""
        return supervision(_packed(batch), self.vocabulary, self.config.text_weight)

    def loss(
        self, model: nn.Module, batch: Packed | ReadChats, step: int
    ) -> tuple[Tensor, dict[str, Figure]]:
        packed = _packed(batch)
        if isinstance(batch, ReadChats):
            losses, targets = model(packed, self._features(batch))
        else:
            losses, targets = model(packed)
        loss, figures = weighted_loss(losses, targets, self.vocabulary, self.config.text_weight)
        if self.config.logs_after(step + 1):
            figures |= losses_by_group(losses, packed, self.streams, self.config)
        return loss, figures | self._work(batch, supervised=len(losses))

    def _features(self, batch: ReadChats) -> Tensor:
        """The features (M, W) of the pictures that a batch reads, in the order of their places."""
        assert self.reading is not None  # it made the batch
        encoder = self.reading.encoder
        encoder.model.to(batch.pixels.device)
        features = encoder.features(bytes_to_unit(batch.pixels), batch.scales)
        # None still reach the projector, so that all of its weights have a gradient.
        return torch.cat([batch.pixels.new_empty(0, encoder.width).float(), *features])

    def _work(self, read: Packed | ReadChats, *, supervised: int) -> dict[str, Figure]:
        """How much a batch holds, and the FLOPs that it takes where the family's are known."""
        batch = _packed(read)
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
            flops = self.costs.flops(tokens, squared, supervised)
            if isinstance(read, ReadChats) and self.reading is not None:
                arch, layer = self.reading.encoder.model.arch, self.config.read_layer
                flops += len(read.pixels) * reading_flops(arch, layer)
            work["flops_per_s"] = Amount(flops)
        return work

    def row_names(self, batch: Packed | ReadChats, first: int) -> list[RowName]:
        chats = [self.streams[n] for n in _packed(batch).numbers.unique().tolist() if n >= 0]
        return [RowName(chat["chats"], chat["key"]) for chat in chats]

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        return {}

    def samples(self, step: int) -> Image.Image | None:
        """Pictures that the model draws of eight training prompts; None where it cannot."""
        visual = self.vocabulary.visual
        if self.tokenizer is None or visual is None or "t2i" not in self.streams.orders:
            return None
        if self.dtok is None and isinstance(self.tokenizer, LoadedTaTok):
            return None
        self.model.eval()
        self.tokenizer.model.to(self.model.lm.device)
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
        if isinstance(self.tokenizer, LoadedVqvae):
            pixels = self.tokenizer.decode(codes)
        else:
            assert self.dtok is not None
            self.dtok.to(self.model.lm.device)
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
            representation=self.config.representation,
            reader=self.reading.encoder.facts() if self.reading else None,
        )
        return lm, description | {"token_counts": self.token_counts}


def _packed(batch: Packed | ReadChats) -> Packed:
    return batch.packed if isinstance(batch, ReadChats) else batch


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


def _grow_by_codes(
    start: LmStart, tokenizer: LoadedTaTok | LoadedVqvae, config: MllmConfig
) -> VisualVocabulary:
    """Grow the model's vocabulary by the tokenizer's codes, in place (paper Sec. 3.3)."""
    if config.lora is not None and not config.lora.train_embeddings:
        raise UserError(
            "the language model has no codes yet, and adapters leave its embeddings as they are",
            hint="--set lora.train_embeddings=true, or name a model that has codes with --lm",
        )
    visual = VisualVocabulary(first_id=start.text.size, num_codes=tokenizer.num_codes)
    with torch.no_grad():
        codebook = tokenizer.codebook()
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
        projector = projector_of(loaded.model)
        if projector is not None:
            delattr(loaded.model, PROJECTOR)
            projector = projector.float()
        start = LmStart(
            loaded.vocabulary.text, loaded.model, loaded.vocabulary.visual, None, projector
        )
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


def _require_same_representation(lm: Path | None, wanted: Representation) -> None:
    """Raise UserError where a model with image tokens sees pictures in another way."""
    own = representation_of(read_config(lm), lm) if lm else wanted
    if own != wanted:
        raise UserError(
            f"{lm} was trained with representation = {own}, and this training has {wanted}",
            hint=f"--set representation={own}, or grow a text-only model",
        )


def _require_same_reader(lm: Path | None, encoder: LoadedEncoder) -> None:
    """Raise UserError where a model that reads features was trained with other ones."""
    own = read_config(lm).get("reader") if lm else None
    if own is not None and own != encoder.facts():
        raise UserError(
            f"{lm} reads layer {own.get('layer')} of encoder "
            f"{str(own.get('encoder_sha256'))[:12]}, and this training layer {encoder.layer} of "
            f"{encoder.sha256[:12]}",
            hint="name the encoder that the model was trained with, and its read_layer",
        )


def _require_same_codes(
    lm: Path | None, visual: VisualVocabulary, tokenizer: LoadedTaTok | LoadedVqvae | None
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


def _pixel_tokenizer(
    vqvae: Path | None, chats: Sequence[Artifact], representation: Representation
) -> LoadedVqvae:
    """The image VQ whose codes the chats hold; UserError where there is none that fits."""
    if vqvae is None:
        raise UserError(
            f"representation = {representation} draws with an image VQ, and there is no --vqvae",
            hint="name the image VQ that made the chats' codes with --vqvae",
        )
    grids = {artifact.settings["sides"]["1"] for artifact in chats if _has_pixel_codes(artifact)}
    if len(grids) != 1:
        there = ", ".join(f"{grid} x {grid}" for grid in sorted(grids)) or "none"
        raise UserError(
            f"representation = {representation} needs chats with pixel codes of one size, and they "
            f"have {there}",
            hint="tarkit curate chats TOKENS --set codes=vq --out CHATS",
        )
    tokenizer = load_pixel_tokenizer(vqvae, grid=grids.pop())
    if tokenizer.is_aligned != (representation == "hybrid"):
        how = "to match captions too" if tokenizer.is_aligned else "on pixels alone"
        fitting = "hybrid" if tokenizer.is_aligned else "vq"
        raise UserError(
            f"{vqvae} was trained {how}, which is not representation = {representation}",
            hint=f"--set representation={fitting}, or name another --vqvae",
        )
    return tokenizer


def _reading(
    encoder: Path | None, images: Sequence[Path], chats: Sequence[Artifact], config: MllmConfig
) -> EncoderReading:
    """The encoder and the pictures that it reads; UserError where one of them is missing."""
    for option, given in (("--encoder", encoder), ("--images", images)):
        if not given:
            raise UserError(
                f"representation = separate reads pictures with a vision encoder, and there is no "
                f"{option}",
                hint="tarkit train mllm CONFIG.toml --vqvae DIR --encoder DIR --images DIR "
                "--chats DIR --out DIR",
            )
    assert encoder is not None
    loaded = load_reading_encoder(encoder, layer=config.read_layer)
    artifacts = [open_artifact(path, "images") for path in images]
    return EncoderReading(loaded, ChatPictures(chats, artifacts, size_px=loaded.size_px))


def _require_none(representation: Representation, **parts: Path | None) -> None:
    """Raise UserError for a part that the representation does not use."""
    for name, path in parts.items():
        if path is not None:
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"representation = {representation} does not use {option} {path}",
                hint=f"leave {option} out",
            )


def _has_pixel_codes(chats: Artifact) -> bool:
    return chats.settings.get("codes") == "vq" and bool(chats.settings.get("tokenizer_sha256"))


def run(
    config: Path | None,
    *,
    chats: Sequence[Path],
    out: Path,
    tokenizer: Path | None = None,
    lm: Path | None = None,
    ar_dtok: Path | None = None,
    vqvae: Path | None = None,
    encoder: Path | None = None,
    images: Sequence[Path] = (),
    overrides: Sequence[str] = (),
) -> Path:
    """Train a language model on chats artifacts; returns the model directory.

    `lm`: a model directory, or the folder of any causal language model of transformers. `tokenizer`
    is the TA-Tok of text-aligned codes; `ar_dtok` and `vqvae` then draw the sample sheets. For the
    other representations `vqvae` is the image VQ whose codes the chats hold. With separate encoders
    `encoder` reads the pictures of `images`, the artifacts that the chats' tokens were made from.
    """
    if ar_dtok and not vqvae:
        raise UserError(SHEETS_NEED, hint="tarkit train mllm --help")
    settings = load_config(MllmConfig, config, overrides)
    begin_training(settings.seed)
    artifacts = [open_artifact(path, "chats") for path in chats]
    representation = settings.representation
    loaded: LoadedTaTok | LoadedVqvae | None
    if representation == TEXT_ALIGNED:
        if vqvae and not ar_dtok:
            raise UserError(
                SHEETS_NEED, hint="tarkit train mllm --help, or --set representation=vq"
            )
        loaded = load_ta_tok(tokenizer) if tokenizer else None
    else:
        _require_none(representation, tokenizer=tokenizer, ar_dtok=ar_dtok)
        loaded = _pixel_tokenizer(vqvae, artifacts, representation)
    reading = None
    if representation == "separate":
        reading = _reading(encoder, images, artifacts, settings)
        if lm:
            _require_same_reader(lm, reading.encoder)
    else:
        _require_none(representation, encoder=encoder, images=next(iter(images), None))
    check_codes(artifacts, loaded)
    # Features have every scale.
    of_codes = {} if reading is None else {"read_scale_ratio": None}
    check_scales(artifacts, settings.model_copy(update=of_codes))
    streams = ChatStreams(artifacts, settings.ratio, settings.seed)
    detokenizer = ArDetokenizer.load(ar_dtok, vqvae) if ar_dtok and vqvae else None
    task = MllmTask(
        settings,
        streams,
        tokenizer=loaded,
        lm=lm,
        dtok=detokenizer,
        reading=reading,
        out=out,
    )
    parents = {f"chats_{i}": path for i, path in enumerate(chats)}
    parents |= {"tokenizer": tokenizer} if tokenizer else {}
    parents |= {"vqvae": vqvae} if vqvae and representation != TEXT_ALIGNED else {}
    parents |= {"encoder": encoder} if encoder else {}
    parents |= picture_parents(images)
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
