"""What one step of each trainer computes and keeps, from its settings and what it starts from.

A model is built on torch's meta device: its values are counted, none is allocated. FLOPs and bytes
follow the formulas of `tarkit.train.costs`.

Letters: B rows of a pass, N codes of a picture, K codes, V vocabulary, D width, E width of an
embedding of the language model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tarkit.checkpoints.directory import TOKENIZER, read_config
from tarkit.checkpoints.language_model import has_visual_tokens, read_text_tokenizer
from tarkit.errors import UserError
from tarkit.models.ar_dtok import ArDtok, ArDtokArch
from tarkit.models.encoder import EncoderArch, VisionEncoder
from tarkit.models.mllm import (
    LOGITS_AT_ONCE,
    LmArch,
    from_scratch,
    packed_attention,
    skeleton,
)
from tarkit.models.ta_tok import TaTok, TaTokArch
from tarkit.models.vqvae import Vqvae, VqvaeArch
from tarkit.train.adapters import AdapterConfig, add_adapters
from tarkit.train.costs import (
    DRAW_BYTES,
    FROZEN,
    LOGIT_BYTES,
    SCORE_BYTES,
    TRAINED,
    Stack,
    conv_flops,
    conv_kept_bytes,
    count,
)
from tarkit.train.task import Amount
from tarkit.vocab import Scale, VisualVocabulary

Settings = Mapping[str, Any]
"""A trainer's config as `model_dump()` gives it."""

GATED_FAMILIES = ("qwen2", "llama", "mistral")
"""Families of language models whose blocks `Stack` describes: RMSNorm, SwiGLU, no other norms."""
MARKS = 3
"""Tokens around the codes of a picture in a chat: start, scale, end."""
DEVIATIONS = 5
"""The fullest pass that memory is planned for has so many standard deviations more tokens than the
mean pass: one pass in three million is fuller."""


@dataclass(frozen=True)
class Start:
    """What a training starts from, as far as its sizes depend on it; None is the default."""

    lm: Path | None = None
    embedding_width: int | None = None  # of `lm`, where it is known without its folder
    tokenizer: TaTokArch | None = None
    encoder: EncoderArch | None = None
    vqvae: VqvaeArch | None = None
    size_px: int | None = None
    text_tokens: int = 100
    picture_bytes: float = 100e3
    from_images: bool = False  # AR-DTok encodes pictures while it trains


class Kept(NamedTuple):
    """Bytes of one forward pass that its backward pass needs."""

    activations: float
    checkpointed: float  # activations with activation checkpointing
    loss: float  # logits of a cross-entropy (if larger: a block's gradients); scores of a codebook
    block: float = 0.0  # of a block that is computed again, when the loss has gone


@dataclass(frozen=True)
class Workload:
    """The cost of a trainer's step. Figures of a row are means over what is drawn."""

    unit: str  # a row of batch_size: "pictures" or "chats"
    model: nn.Module  # what is trained, on the meta device
    tokens: float  # positions of a row in the trained model
    flops: float  # of a row, forward and backward
    kept: Callable[[int], Kept]  # B -> bytes of a pass, at the fullest
    read_bytes: float  # of a row on the disk
    idle: int = 0  # trained values that no gradient reaches
    tied: int = 0  # trained values with two gradients, which are whole before they are added
    frozen: int = 0  # values of frozen models
    frozen_in_checkpoint: bool = False
    frozen_flops: float = 0.0  # of a row
    block_flops: float = 0.0  # of a row's forward pass through blocks: again if checkpointed
    recomputed_flops: Callable[[int], float] = lambda rows: 0.0  # B -> of a row, in a pass of B
    float32_flops: float = 0.0  # those of a row's that autocast is switched off for
    pass_flops: float = 0.0  # of a pass, however many rows it has; in float32
    frozen_is_saved: bool = True  # whether checkpoints hold the model's frozen values
    part: str | None = None  # the name of `model` in the module that is trained; None: it is that
    assumptions: tuple[str, ...] = ()


def _bytes_of(settings: Settings) -> int:
    """c: bytes of a computed value."""
    return 2 if settings["precision"] == "bf16" else 4


def _on_meta(build: Callable[[Any], nn.Module], arch: Any) -> Any:
    with torch.device("meta"):
        return build(arch)


def _odds(ratio: Sequence[int]) -> list[tuple[Scale, float]]:
    """Scales of a ratio with their probabilities."""
    return [(s, n / sum(ratio)) for s, n in zip(Scale, ratio, strict=True) if n]


def _ar_dtok_stack(arch: ArDtokArch) -> Stack:
    return Stack(
        layers=arch.layers,
        width=arch.width,
        mlp_width=arch.ffn_width,
        heads=arch.heads,
        kv_heads=arch.kv_heads or arch.heads,
        head_width=arch.width // arch.heads,
        gated=True,
        input_copies=3,
        dropout=arch.residual_dropout > 0 or arch.ffn_dropout > 0,
    )


def _vit_stack(layers: int, width: int, heads: int, mlp_width: int) -> Stack:
    return Stack(
        layers, width, mlp_width, heads, heads, width // heads, gated=False, input_copies=4
    )


# ---- the language model --------------------------------------------------------------------------


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


def _chats(settings: Settings, grid: int, text_tokens: int) -> list[ChatKind]:
    """Every kind of chat that a step may draw."""
    stored = sum(scale.num_codes(grid) for scale in Scale)
    tasks = {task: n for task, n in settings["ratio"].items() if n > 0}
    chats = []
    for task, n in tasks.items():
        reads = task == "i2t" and settings["read_scale_ratio"]
        for scale, odds in _odds(reads or settings["scale_ratio"]):
            codes = scale.num_codes(grid)
            pictures = PICTURES[task]
            tokens = text_tokens + pictures * (codes + MARKS)
            supervised = text_tokens if task in ("i2t", "text") else codes + 1
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
    grid = start.tokenizer.encoder.grid if start.tokenizer else 1
    drawing = [task for task, n in settings["ratio"].items() if n and PICTURES[task]]
    if drawing and not start.tokenizer:
        raise UserError(
            f"the ratio names {', '.join(drawing)}, whose pictures need a tokenizer",
            hint="--tokenizer DIR, or the TOML of its training: --tokenizer tokenizer.toml",
        )
    chats = _chats(settings, grid, start.text_tokens)
    longest, length = max(chat.tokens for chat in chats), settings["length"]
    if longest > length:
        raise UserError(
            f"the longest chat has about {longest:,} tokens, length is {length:,}: such chats "
            "would be left out",
            hint=f"--set length={longest}",
        )
    arch, assumptions = _lm_arch(settings, start)
    model = skeleton(arch)
    config, c = model.config, _bytes_of(settings)
    adapter = AdapterConfig.model_validate(settings["lora"]) if settings["lora"] else None
    if adapter is not None:
        add_adapters(model.to(torch.bfloat16) if c == 2 else model, adapter)
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
        read_bytes=2 * _mean(chats, "stored_codes") + 4 * start.text_tokens,
        tied=head if config.tie_word_embeddings and head_is_trained else 0,
        part="lm",
        frozen_is_saved=adapter is None,
        assumptions=(f"{start.text_tokens} text tokens in a chat", *assumed, *assumptions),
    )


def _published_start(settings: Settings, start: Start) -> tuple[Start, tuple[str, ...]]:
    """The start with the published Tar where adapters have no other, and what was assumed."""
    assumed = []
    if settings["lora"] and not start.lm:
        start = replace(start, lm=Path("tar-1.5b"))
        assumed.append("the language model is the published tar-1.5b")
    if str(start.lm).lower() in PUBLISHED_LMS and not start.tokenizer:
        start = replace(start, tokenizer=TaTokArch())
        assumed.append("the tokenizer is the released TA-Tok")
    return start, tuple(assumed)


def _lm_arch(settings: Settings, start: Start) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The transformers config of the model with all its codes, and what was assumed."""
    codes = start.tokenizer.num_codes if start.tokenizer else 0

    def grown(text: int) -> int:
        return VisualVocabulary(first_id=text, num_codes=codes).size if codes else text

    if start.lm is None:
        small = from_scratch(LmArch.model_validate(settings["lm"]), grown(settings["text_vocab"]))
        return small, ("a language model from nothing, of the sizes in the TOML",)
    if str(start.lm).lower() in PUBLISHED_LMS and not start.lm.exists():
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
    return arch | {"vocab_size": text if has_codes else grown(text)}, ()


# ---- TA-Tok --------------------------------------------------------------------------------------


def ta_tok_arch(sizes: Settings, encoder: EncoderArch, embedding_width: int) -> TaTokArch:
    """TA-Tok as the tokenizer's training builds it; UserError where the training refuses it."""
    heads = sizes["decoder_heads"]
    if encoder.width % heads:
        fitting = max(n for n in range(1, heads) if encoder.width % n == 0)
        raise UserError(
            f"decoder_heads = {heads} does not divide the encoder's width {encoder.width}",
            hint=f"--set sizes.decoder_heads={fitting}",
        )
    return TaTokArch(
        encoder=encoder.model_copy(update={"head": False}),
        embedding_width=embedding_width,
        **{"code_width": embedding_width, **{k: v for k, v in sizes.items() if v is not None}},
    )


class TaTokParts(NamedTuple):
    """The stacks and matrices of TA-Tok that a picture passes."""

    encoder: Stack  # the blocks up to the selected layer
    patches: int  # values of the patch embedding's convolution
    decoder: Stack
    project: int  # values of the layers before the codebook, which each code passes
    after: int  # and of those behind it


def _ta_tok_parts(arch: TaTokArch) -> TaTokParts:
    encoder, width = arch.encoder, arch.encoder.width
    blocks = arch.select_layer
    blocks = blocks if blocks >= 0 else encoder.layers + 1 + blocks
    return TaTokParts(
        _vit_stack(blocks, width, encoder.heads, encoder.mlp_width),
        0 if encoder.stem_channels else 3 * encoder.patch_px**2 * width,
        _vit_stack(arch.decoder_layers, width, arch.decoder_heads, arch.decoder_mlp_width),
        width**2 + width * arch.code_width,
        arch.code_width**2 + arch.code_width * width + 2 * width**2,
    )


def _encoder_flops(parts: TaTokParts, positions: int) -> float:
    return parts.encoder.flops(positions, positions) + 2 * parts.patches * positions


def _decode_flops(parts: TaTokParts, codes: int) -> float:
    """FLOPs from the `codes` codes of a picture to its features."""
    return 2 * parts.after * codes + parts.decoder.flops(codes, codes)


def _width_of(lm: Path | None) -> int:
    """The width of a language model's embeddings; UserError without a language model."""
    if lm is None:
        raise UserError(
            "the codebook is made of a language model's embeddings: how wide are they?",
            hint="--lm DIR, a folder with the config.json of the language model",
        )
    config = read_config(lm)
    width: int = config.get("arch", config)["hidden_size"]
    return width


def tokenizer(settings: Settings, start: Start) -> Workload:
    """Reconstruction of the teacher's features. Raises UserError without a language model."""
    encoder = start.encoder or EncoderArch()
    arch = ta_tok_arch(settings["sizes"], encoder, start.embedding_width or _width_of(start.lm))
    model: TaTok = _on_meta(TaTok, arch)
    teacher = count(_on_meta(VisionEncoder, encoder))
    parts, positions, c = _ta_tok_parts(arch), encoder.grid**2, _bytes_of(settings)
    free, fixed = settings["free_codebook"], settings["freeze_encoder"]
    model.codebook.embedding.weight.requires_grad_(free)
    if fixed:
        model.encoder.requires_grad_(False)
    blocks = list(model.encoder.encoder.layers)[parts.encoder.layers :]
    idle = [*blocks, model.encoder.post_layernorm]
    table = arch.num_codes * arch.embedding_width * arch.code_width
    odds = _odds(settings["scale_ratio"])
    scores = 2 * arch.num_codes * arch.code_width
    codes = sum(share * scale.num_codes(encoder.grid) for scale, share in odds)
    most = max(scale.num_codes(encoder.grid) for scale, _ in odds)
    after = sum(p * _decode_flops(parts, s.num_codes(encoder.grid)) for s, p in odds)
    after += 2 * parts.project * codes
    encoding = _encoder_flops(parts, positions)
    blocks_flops = 0 if fixed else parts.encoder.flops(positions, positions)
    for scale, share in odds:
        length = scale.num_codes(encoder.grid)
        blocks_flops += share * parts.decoder.flops(length, length)
    flops = TRAINED * after + (0 if fixed else TRAINED * encoding) + scores * codes

    def kept(rows: int) -> Kept:
        picture = 0 if fixed else rows * positions
        width = encoder.width
        # Around the codebook: pooled features, outputs of tanh, features and codes on the sphere.
        around = rows * most * c * (6 * width + 6 * arch.code_width)
        pixels = 0 if fixed else rows * 3 * encoder.size_px**2 * c
        projected = 8 * arch.num_codes * arch.code_width
        whole = parts.encoder.kept_bytes(picture, c) + parts.decoder.kept_bytes(rows * most, c)
        less = parts.encoder.input_bytes(picture) + parts.decoder.input_bytes(rows * most)
        stacks = ((parts.encoder, picture), (parts.decoder, rows * most))
        block = max(stack.block_bytes(positions, c) for stack, positions in stacks)
        rest = around + pixels + projected
        # Codes are drawn picture by picture from the scores of all.
        drawn = (rows * SCORE_BYTES + DRAW_BYTES) * most * arch.num_codes
        return Kept(whole + rest, less + rest, drawn, block)

    return Workload(
        unit="pictures",
        model=model,
        tokens=positions,
        flops=flops,
        float32_flops=scores * codes,
        kept=kept,
        read_bytes=start.picture_bytes,
        part="ta_tok",
        idle=0 if fixed else sum(map(count, idle)),
        block_flops=blocks_flops,
        frozen=teacher,
        frozen_in_checkpoint=True,
        frozen_flops=FROZEN * encoding,
        # The projection of all K rows; where the rows are frozen they need no gradient.
        pass_flops=2 * table * (TRAINED if free else TRAINED - 1),
        assumptions=(
            f"{start.picture_bytes / 1e3:g} kB a picture on the disk",
            *(() if start.encoder else ("the encoder is siglip2-so400m-patch14-384",)),
        ),
    )


# ---- the de-tokenizer ----------------------------------------------------------------------------


def ar_dtok(settings: Settings, start: Start) -> Workload:
    """Cross-entropy of image-VQ codes after the condition; frozen models run in float32."""
    arch = ArDtokArch.model_validate(settings["arch"])
    model: ArDtok = _on_meta(ArDtok, arch)
    stack, c = _ar_dtok_stack(arch), _bytes_of(settings)
    ta_tok = start.tokenizer or TaTokArch()
    image_vq: Vqvae = _on_meta(Vqvae, start.vqvae or VqvaeArch())
    grid, codes = ta_tok.encoder.grid, arch.num_codes
    odds = _odds(settings["scale_ratio"])
    conditions = [(scale.num_codes(grid), share) for scale, share in odds]
    most = max(n for n, _ in conditions)
    project, head = arch.condition_width * arch.width, arch.vocab_size * arch.width
    tokens = sum(share * (n + codes - 1) for n, share in conditions)
    forward = sum(
        share * (stack.flops(n + codes - 1, n + codes - 1) + 2 * project * n)
        for n, share in conditions
    )
    parts = _ta_tok_parts(ta_tok)
    every_scale = sum(scale.num_codes(grid) for scale, _ in odds)
    frozen_flops = sum(share * _decode_flops(parts, n) for n, share in conditions)
    read_bytes = 2.0 * (every_scale + codes)  # codes are 16 bits each
    source = "codes come from --tokens; TA-Tok turns them into features on the same GPUs"
    if start.from_images:
        frozen_flops += (
            _encoder_flops(parts, grid**2)
            + 2 * (parts.project + ta_tok.num_codes * ta_tok.code_width) * every_scale
            + conv_flops(image_vq.encoder, arch.side * image_vq.arch.downsampling)
        )
        read_bytes = start.picture_bytes
        source = "the tokenizer and the image VQ run on the same GPUs, once for each picture"

    def kept(rows: int) -> Kept:
        positions = rows * (most + codes - 1)
        masks = positions * arch.width if arch.token_dropout else 0
        condition = rows * most * (4 + c) * arch.condition_width
        # The last norm: the whole sequence, then normalised and weighted values of the codes.
        ends = 4 * positions * arch.width + rows * codes * (4 + c) * arch.width + masks + condition
        return Kept(
            stack.kept_bytes(positions, c) + ends,
            stack.input_bytes(positions) + ends,
            max(rows * codes * arch.vocab_size * LOGIT_BYTES, stack.gradient_bytes(positions, c)),
            stack.block_bytes(positions, c),
        )

    return Workload(
        unit="pictures",
        model=model,
        tokens=tokens,
        flops=TRAINED * (forward + 2 * head * codes),
        block_flops=sum(p * stack.flops(n + codes - 1, n + codes - 1) for n, p in conditions),
        kept=kept,
        read_bytes=read_bytes,
        # Sample sheets bring the image VQ to the GPU, where it stays.
        frozen=count(_on_meta(TaTok, ta_tok)) + count(image_vq),
        frozen_flops=FROZEN * frozen_flops,
        float32_flops=FROZEN * frozen_flops,
        assumptions=(
            source,
            *((f"{start.picture_bytes / 1e3:g} kB a picture on the disk",) * start.from_images),
            *(() if start.tokenizer else ("the tokenizer is the released TA-Tok",)),
            *(() if start.vqvae else ("the image VQ is LlamaGen's VQ-16",)),
        ),
    )


# ---- what the paper loads ------------------------------------------------------------------------


def vqvae(settings: Settings, start: Start) -> Workload:
    """Reconstruction of pixels. Raises UserError without the pictures' size."""
    size = settings["size_px"] or start.size_px
    if size is None:
        raise UserError(
            "the image VQ trains on pictures as they are: how large are they?", hint="--size 256"
        )
    model: Vqvae = _on_meta(Vqvae, VqvaeArch.model_validate(settings["arch"]))
    arch, c = model.arch, _bytes_of(settings)
    omitted = ["LPIPS"] * (settings["perceptual"] > 0)
    omitted += ["the discriminator"] * (settings["discriminator_from"] is not None)
    if size % arch.downsampling:
        raise UserError(
            f"--size {size} does not divide by {arch.downsampling}, the side of a code in pixels",
            hint=f"--size {size // arch.downsampling * arch.downsampling or arch.downsampling}",
        )
    codes = (size // arch.downsampling) ** 2
    bits = 4 * arch.latent_channels * arch.code_dim * codes
    forward = conv_flops(model.encoder, size) + conv_flops(model.decoder, size) + bits

    def kept(rows: int) -> Kept:
        convs = rows * conv_kept_bytes(model, size, c)
        pixels = 3 * 4 * 3 * rows * size**2  # picture, reconstruction, their difference
        # What checkpointing of its levels saves is not counted.
        return Kept(convs + pixels, convs + pixels, 4 * rows * codes * arch.num_codes)

    return Workload(
        unit="pictures",
        model=model,
        tokens=codes,
        flops=TRAINED * forward + 2 * arch.num_codes * arch.code_dim * codes,
        block_flops=forward - bits,
        kept=kept,
        read_bytes=start.picture_bytes,
        assumptions=(
            f"{start.picture_bytes / 1e3:g} kB a picture on the disk",
            *((f"not counted: {' and '.join(omitted)}",) * bool(omitted)),
        ),
    )


WORKLOADS: dict[str, Callable[[Settings, Start], Workload]] = {
    "vqvae": vqvae,
    "tokenizer": tokenizer,
    "ar_dtok": ar_dtok,
    "mllm": mllm,
}


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


class RowFlops(NamedTuple):
    """FLOPs of forward and backward pass, frozen models included, nothing computed twice."""

    row: float
    float32: float  # of a row, whatever `precision` is
    once: float  # of a pass, however many rows it has; in float32

    def amounts(self, rows: int) -> dict[str, Amount]:
        """The figures of a pass over so many rows."""
        slow = self.float32 * rows + self.once
        return {
            "flops_per_s": Amount(self.row * rows + self.once),
            "float32_flops_per_s": Amount(slow),
        }


def flops_by_scale(stage: str, settings: Settings, start: Start) -> dict[Scale, RowFlops]:
    """What a row costs at each scale that a training draws."""
    costs = {}
    for scale, _ in _odds(settings["scale_ratio"]):
        alone = {"scale_ratio": [int(scale == other) for other in Scale]}
        work = WORKLOADS[stage]({**settings, **alone}, start)
        costs[scale] = RowFlops(work.flops + work.frozen_flops, work.float32_flops, work.pass_flops)
    return costs
