"""What a step of `train tokenizer` costs, and the parts of TA-Tok that other trainers run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tarkit.checkpoints.directory import CONFIG, read_config
from tarkit.checkpoints.from_transformers import MAX_SIZE
from tarkit.errors import UserError
from tarkit.models.encoder import EncoderArch, VisionEncoder
from tarkit.models.ta_tok import TaTok, TaTokArch
from tarkit.train.costs import (
    DRAW_BYTES,
    FROZEN,
    SCORE_BYTES,
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
    patches: float  # FLOPs of a picture's patch embedding
    decoder: Stack
    project: int  # values of the layers before the codebook, which each code passes
    after: int  # and of those behind it


def ta_tok_parts(arch: TaTokArch) -> TaTokParts:
    encoder, width = arch.encoder, arch.encoder.width
    blocks = arch.select_layer
    blocks = blocks if blocks >= 0 else encoder.layers + 1 + blocks
    return TaTokParts(
        vit_stack(blocks, width, encoder.heads, encoder.mlp_width),
        patch_costs(encoder).flops,
        vit_stack(arch.decoder_layers, width, arch.decoder_heads, arch.decoder_mlp_width),
        width**2 + width * arch.code_width,
        arch.code_width**2 + arch.code_width * width + 2 * width**2,
    )


def encoder_flops(parts: TaTokParts, positions: int) -> float:
    return parts.encoder.flops(positions, positions) + parts.patches


def decode_flops(parts: TaTokParts, codes: float) -> float:
    """FLOPs from the `codes` codes of a picture to its features."""
    return 2 * parts.after * codes + parts.decoder.flops(codes, codes)


def lm_width(lm: Path | None) -> int:
    """The width of a language model's embeddings, by its config.json; UserError without one."""
    hint = "--lm DIR, a folder with the config.json of the language model"
    if lm is None:
        raise UserError(
            "the codebook is made of a language model's embeddings: how wide are they?", hint=hint
        )
    config = read_config(lm)
    arch = config.get("arch", config)
    # GPT-2 has another name for it.
    names = ("hidden_size", "n_embd") if isinstance(arch, dict) else ()
    width = next((arch[name] for name in names if name in arch), None)
    if type(width) is not int or not 0 < width <= MAX_SIZE:
        raise UserError(
            f"{lm / CONFIG} names no width of the embeddings: hidden_size = {width!r:.40}",
            hint=hint,
        )
    return width


def tokenizer(settings: Settings, start: Start) -> Workload:
    """Reconstruction of the teacher's features. Raises UserError without a language model."""
    encoder = start.encoder or EncoderArch()
    is_random = settings["codebook_start"] == "random"  # trained, and not projected
    width = start.embedding_width or lm_width(start.lm)
    if is_random:
        width = settings["sizes"]["code_width"] or width
    arch = ta_tok_arch(settings["sizes"], encoder, width)
    model: TaTok = on_meta(TaTok, arch)
    teacher = count(on_meta(VisionEncoder, encoder))
    parts, positions, c = ta_tok_parts(arch), encoder.grid**2, bytes_of(settings)
    free, fixed = settings["free_codebook"], settings["freeze_encoder"]
    model.codebook.embedding.weight.requires_grad_(free or is_random)
    model.codebook.embedding_proj.requires_grad_(not is_random)
    if fixed:
        model.encoder.requires_grad_(False)
    blocks = list(model.encoder.encoder.layers)[parts.encoder.layers :]
    idle = [*blocks, model.encoder.post_layernorm]
    table = arch.num_codes * arch.embedding_width * arch.code_width
    odds = scale_odds(settings["scale_ratio"])
    scores = 2 * arch.num_codes * arch.code_width
    codes = sum(share * scale.num_codes(encoder.grid) for scale, share in odds)
    most = max(scale.num_codes(encoder.grid) for scale, _ in odds)
    after = sum(p * decode_flops(parts, s.num_codes(encoder.grid)) for s, p in odds)
    after += 2 * parts.project * codes
    encoding = encoder_flops(parts, positions)
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
