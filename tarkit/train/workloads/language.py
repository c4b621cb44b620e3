"""What a step of `train mllm` costs, and the FLOPs of a language model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tarkit.checkpoints.directory import TOKENIZER, read_config
from tarkit.checkpoints.language_model import (
    checked_skeleton,
    has_visual_tokens,
    read_text_tokenizer,
)
from tarkit.checkpoints.representation import TEXT_ALIGNED, representation_of
from tarkit.errors import UserError
from tarkit.models.encoder import EncoderArch, VisionEncoder
from tarkit.models.mllm import (
    LOGITS_AT_ONCE,
    PROJECTOR,
    LmArch,
    Projector,
    from_scratch,
    packed_attention,
)
from tarkit.models.ta_tok import TaTokArch
from tarkit.models.vqvae import VqvaeArch
from tarkit.train.adapters import AdapterConfig, add_adapters
from tarkit.train.costs import (
    FROZEN,
    LOGIT_BYTES,
    TRAINED,
    Stack,
    count,
    patch_costs,
    vit_stack,
)
from tarkit.train.workloads.workload import (
    Kept,
    Settings,
    Start,
    Workload,
    bytes_of,
    on_meta,
    scale_odds,
)
from tarkit.vocab import Scale, VisualVocabulary

GATED_FAMILIES = ("qwen2", "llama", "mistral")
"""Families of language models whose blocks `Stack` describes: RMSNorm, SwiGLU, no other norms."""
VQ_SIZE_PX = 256
"""Side of the pictures of pixel codes, where no other is given: that of LlamaGen's VQ-16."""
MARKS = 3
"""Tokens around the codes of a picture in a chat: start, scale, end."""
DEVIATIONS = 5
"""The fullest pass that memory is planned for has so many standard deviations more tokens than the
mean pass: one pass in three million is fuller."""


class Grids(NamedTuple):
    """Positions along a side of a picture."""

    written: int
    read: int | None = None
    """Of the encoder that reads, where it is another one (representation "separate")."""
    stored: tuple[Scale, ...] = tuple(Scale)

    @property
    def largest_read(self) -> int:
        """Positions of a picture that is read at full scale."""
        return Scale.FULL.num_codes(self.read or self.written)


class ChatKind(NamedTuple):
    """A kind of chat: one task with its pictures at one scale."""

    odds: float
    tokens: int
    supervised: int
    stored_codes: int  # codes of all scales in its row on the disk


_QWEN = {"model_type": "qwen2", "vocab_size": 217_206, "max_position_embeddings": 32_768}
PUBLISHED_LMS: Mapping[str, dict[str, Any]] = {
    "tar-1.5b": _QWEN
    | {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
    | {"num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "tar-7b": _QWEN
    | {"hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28}
    | {"num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False},
}
"""Sizes of the published language models, which are Qwen2.5 with 151,665 text tokens, five tags and
65,536 codes: known without their files."""
PICTURES = {"t2i": 1, "i2t": 1, "text": 0, "i2i": 2, "ti2i": 2}
"""Pictures of a chat of each task; all tasks but i2t and text supervise the last one."""


def _chats(settings: Settings, grids: Grids, text_tokens: int) -> list[ChatKind]:
    """Every kind of chat that a step may draw."""
    stored = sum(scale.num_codes(grids.written) for scale in grids.stored)
    tasks = {task: n for task, n in settings["ratio"].items() if n > 0}
    chats = []
    for task, n in tasks.items():
        reads = task == "i2t" and settings["read_scale_ratio"]
        for scale, odds in scale_odds(reads or settings["scale_ratio"]):
            pictures, draws = PICTURES[task], task not in ("i2t", "text")
            codes = (grids.stored[0] if grids.read else scale).num_codes(grids.written)
            read = scale.num_codes(grids.read or grids.written)
            tokens = text_tokens + pictures * MARKS + (pictures - draws) * read + draws * codes
            supervised = codes + 1 if draws else text_tokens
            share = n / sum(tasks.values()) * odds
            chats.append(ChatKind(share, tokens, supervised, pictures * stored))
    return chats


def _mean(chats: Sequence[ChatKind], field: str) -> float:
    return sum(chat.odds * getattr(chat, field) for chat in chats)


def _fullest(chats: Sequence[ChatKind], field: str, rows: int) -> float:
    """The sum over `rows` chats at `DEVIATIONS` above its mean; at most all of the largest kind."""
    mean = _mean(chats, field)
    variance = sum(chat.odds * (getattr(chat, field) - mean) ** 2 for chat in chats)
    largest = max(getattr(chat, field) for chat in chats)
    return min(rows * mean + DEVIATIONS * math.sqrt(rows * variance), rows * largest)


def language_stack(config: Any) -> Stack:
    """The blocks of a language model of `GATED_FAMILIES`, from its transformers config."""
    return Stack(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        mlp_width=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_width=getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        gated=True,
        input_copies=5,
    )


def mllm(settings: Settings, start: Start) -> Workload:
    """Cross-entropy of packed chats. Raises UserError where a kind of chat exceeds `length`."""
    start, assumed = _published_start(settings, start)
    pixels = settings["representation"] != TEXT_ALIGNED
    drawing = [task for task, n in settings["ratio"].items() if n and PICTURES[task]]
    reader = None
    if settings["representation"] == "separate":
        reader = start.encoder or EncoderArch()
        assumed += () if start.encoder else ("the encoder that reads is siglip2-so400m",)
    if pixels:
        grids, of_vq = _pixel_grids(start, reader)
        assumed += of_vq
    else:
        grids = Grids(start.tokenizer.encoder.grid if start.tokenizer else 1)
    if drawing and not start.tokenizer and not pixels:
        raise UserError(
            f"the ratio names {', '.join(drawing)}, whose pictures need a tokenizer",
            hint="--tokenizer DIR, or the TOML of its training: --tokenizer tokenizer.toml",
        )
    chats = _chats(settings, grids, start.text_tokens)
    longest, length = max(chat.tokens for chat in chats), settings["length"]
    if longest > length:
        raise UserError(
            f"the longest chat has about {longest:,} tokens, length is {length:,}: such chats "
            "would be left out",
            hint=f"--set length={longest}",
        )
    arch, assumptions = _lm_arch(settings, start)
    model = checked_skeleton(arch, start.lm or Path())
    config, c = model.config, bytes_of(settings)
    adapter = AdapterConfig.model_validate(settings["lora"]) if settings["lora"] else None
    if adapter is not None:
        add_adapters(model.to(torch.bfloat16) if c == 2 else model, adapter)
    num_read = _num_read(settings) if reader else 0.0  # pictures of a chat, in the mean
    if reader is not None:
        setattr(model, PROJECTOR, on_meta(lambda arch: Projector(*arch), _widths(reader, config)))
    stack = language_stack(config)._replace(adapter_rank=adapter.rank if adapter else 0)
    head_is_trained = adapter is None or adapter.train_embeddings
    head = config.vocab_size * config.hidden_size
    tokens, supervised = _mean(chats, "tokens"), _mean(chats, "supervised")
    packed = min(length, tokens * settings["batch_size"])  # tokens of a packed row
    attention = settings["packed_attention"] or packed_attention(model, torch.device("cuda"))
    if attention == "eager":
        raise UserError(
            "the memory of eager attention is not known",
            hint="--set packed_attention=sdpa, or leave packed_attention out",
        )
    chunk = settings["loss_chunk_tokens"] or max(1, LOGITS_AT_ONCE // config.vocab_size)

    most = settings.get("micro_batch_tokens") or math.inf  # tokens of a pass

    def kept(rows: int) -> Kept:
        fullest = min(_fullest(chats, "tokens", rows), most)
        packs = math.ceil(fullest / length)
        positions = fullest if packs == 1 else packs * length
        # Flex attention has no dense mask. SDPA makes a float one of the bool one in every layer.
        pairs = positions * (positions / packs) if attention == "sdpa" else 0.0
        targets = min(_fullest(chats, "supervised", rows), most)
        # While chunks add up, the head's gradient is held up to twice more.
        summed = 2 * 4 * head if targets > chunk and head_is_trained else 0
        loss = min(targets, chunk) * config.vocab_size * LOGIT_BYTES + summed
        last_norm = 8 if adapter is None else 4  # frozen, it does not keep its normalised input
        ends = positions * last_norm * stack.width + targets * c * stack.width
        if reader is not None:
            # The features, normalised too; the GELU's input and output; the embeddings.
            ends += min(positions, rows * grids.largest_read) * (
                8 * reader.width + 2 * c * stack.width + 4 * stack.width
            )
        return Kept(
            stack.kept_bytes(positions, c) + (1 + stack.layers * c) * pairs + ends,
            stack.input_bytes(positions) + pairs + ends,
            max(loss, stack.gradient_bytes(positions, c)),
            stack.block_bytes(positions, c) + c * pairs,
        )

    return Workload(
        unit="chats",
        model=model,
        tokens=tokens,
        flops=stack.training_flops(tokens, packed)
        + (TRAINED if head_is_trained else TRAINED - 1) * 2 * head * supervised,
        block_flops=stack.flops(tokens, packed),
        # The logits of more than one chunk are computed again in the backward pass.
        recomputed_flops=lambda rows: 2 * head * supervised if rows * supervised > chunk else 0.0,
        kept=kept,
        # Codes are 16 bits each; text is about four bytes a token.
        read_bytes=2 * _mean(chats, "stored_codes")
        + 4 * start.text_tokens
        + num_read * start.picture_bytes,
        frozen=count(on_meta(VisionEncoder, reader)) if reader else 0,
        frozen_flops=num_read * reading_flops(reader, settings["read_layer"]) if reader else 0.0,
        tied=head if config.tie_word_embeddings and head_is_trained else 0,
        part="lm",
        frozen_is_saved=adapter is None,
        assumptions=(f"{start.text_tokens} text tokens in a chat", *assumed, *assumptions),
    )


def _pixel_grids(start: Start, reader: EncoderArch | None) -> tuple[Grids, tuple[str, ...]]:
    """The grids of a model that draws with pixel codes, and what was assumed of its image VQ."""
    arch = start.vqvae or VqvaeArch()
    size_px = start.size_px or VQ_SIZE_PX
    if size_px % arch.downsampling:
        raise UserError(
            f"pictures of {size_px} px do not divide by {arch.downsampling}, the pixels of a code",
            hint=f"--size {max(1, round(size_px / arch.downsampling)) * arch.downsampling}",
        )
    assumed = [] if start.vqvae else ["the image VQ is LlamaGen's VQ-16"]
    assumed += [] if start.size_px else [f"the image VQ's pictures have {VQ_SIZE_PX} px"]
    read = reader.grid if reader else None
    return Grids(size_px // arch.downsampling, read, stored=(Scale.FULL,)), tuple(assumed)


def _num_read(settings: Settings) -> float:
    """Pictures that a chat reads, in the mean."""
    ratio = settings["ratio"]
    read = sum(n * (PICTURES[task] - (task not in ("i2t", "text"))) for task, n in ratio.items())
    return float(read / sum(ratio.values()))


def _widths(reader: EncoderArch, config: Any) -> tuple[int, int]:
    """Of the encoder's features and of the language model's embeddings."""
    return reader.width, config.hidden_size


def reading_flops(arch: EncoderArch, layer: int) -> float:
    """FLOPs of a frozen encoder's way from a picture to its hidden state number `layer`."""
    layers = layer if layer >= 0 else arch.layers + 1 + layer
    stack = vit_stack(layers, arch.width, arch.heads, arch.mlp_width)
    positions = arch.grid**2
    return FROZEN * (stack.flops(positions, positions) + patch_costs(arch).flops)


def _published_start(settings: Settings, start: Start) -> tuple[Start, tuple[str, ...]]:
    """The start with the published Tar where adapters have no other, and what was assumed."""
    assumed = []
    if settings["lora"] and not start.lm:
        start = replace(start, lm=Path("tar-1.5b"))
        assumed.append("the language model is the published tar-1.5b")
    is_tar = str(start.lm).lower() in PUBLISHED_LMS and settings["representation"] == TEXT_ALIGNED
    if is_tar and not start.tokenizer:
        start = replace(start, tokenizer=TaTokArch())
        assumed.append("the tokenizer is the released TA-Tok")
    return start, tuple(assumed)


def _lm_arch(settings: Settings, start: Start) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The transformers config of the model with all its codes, and what was assumed."""
    codes = start.tokenizer.num_codes if start.tokenizer else 0
    if settings["representation"] != TEXT_ALIGNED:
        codes = (start.vqvae or VqvaeArch()).num_codes

    def grown(text: int) -> int:
        return VisualVocabulary(first_id=text, num_codes=codes).size if codes else text

    wanted = settings["representation"]
    if start.lm is None:
        small = from_scratch(LmArch.model_validate(settings["lm"]), grown(settings["text_vocab"]))
        return small, ("a language model from nothing, of the sizes in the TOML",)
    if str(start.lm).lower() in PUBLISHED_LMS and not start.lm.exists():
        _require_same_codes(start.lm, TEXT_ALIGNED, wanted)
        return PUBLISHED_LMS[str(start.lm).lower()], ()
    config = read_config(start.lm)
    if config.get("kind", "mllm") != "mllm":
        raise UserError(f"{start.lm} is {config['kind']}, not a language model")
    own = "kind" in config
    arch = dict(config["arch"] if own else config)
    family = arch.get("model_type")
    if family not in GATED_FAMILIES:
        raise UserError(
            f"{start.lm} is a {family} model; the costs of {', '.join(GATED_FAMILIES)} are known",
            hint="plan with a model of the same sizes of one of these families",
        )
    if own:
        has_codes, text = config["visual"] is not None, arch["vocab_size"]
    elif (start.lm / TOKENIZER).exists():
        has_codes = has_visual_tokens(start.lm)
        text = arch["vocab_size"] if has_codes else read_text_tokenizer(start.lm).size
    else:
        text = arch["vocab_size"]
        note = f"all {text:,} rows of config.json's vocabulary stay: there is no {TOKENIZER}"
        return arch | {"vocab_size": grown(text)}, (note,)
    if has_codes:
        _require_same_codes(start.lm, representation_of(config, start.lm), wanted)
    return arch | {"vocab_size": text if has_codes else grown(text)}, ()


def _require_same_codes(lm: Path, own: str, wanted: str) -> None:
    """Raise UserError where a model with codes sees pictures in another way than is planned."""
    if own != wanted:
        raise UserError(
            f"{lm} was trained with representation = {own}, and this plan has {wanted}",
            hint="--lm names a language model without codes, such as Qwen/Qwen2.5-1.5B-Instruct",
        )


class LanguageCosts(NamedTuple):
    """What decides the FLOPs of a language model's step on packed chats."""

    stack: Stack
    head: int  # values of the matrix that gives the logits
    head_is_trained: bool = True

    def flops(self, tokens: float, squared: float, supervised: float) -> float:
        """FLOPs of forward and backward pass; `squared`: the sum over chats of length squared.

        What attention computes between chats, for a dense mask, does not count, and neither do
        logits that are computed a second time.
        """
        blocks = self.stack.training_flops(tokens, squared / max(tokens, 1))
        passes = TRAINED if self.head_is_trained else TRAINED - 1
        return blocks + passes * 2 * self.head * supervised


def language_costs(config: Any, adapter: AdapterConfig | None = None) -> LanguageCosts | None:
    """Of a language model's transformers config; None of a family whose blocks are not known."""
    if config.model_type not in GATED_FAMILIES:
        return None
    stack = language_stack(config)._replace(adapter_rank=adapter.rank if adapter else 0)
    is_trained = adapter is None or adapter.train_embeddings
    return LanguageCosts(stack, config.vocab_size * config.hidden_size, is_trained)
