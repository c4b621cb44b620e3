"""What a step of `train ar-dtok` costs."""

from __future__ import annotations

from tarkit.models.ar_dtok import ArDtok, ArDtokArch
from tarkit.models.ta_tok import TaTok, TaTokArch
from tarkit.models.vqvae import Vqvae, VqvaeArch
from tarkit.train.costs import FROZEN, LOGIT_BYTES, TRAINED, Stack, conv_flops, count
from tarkit.train.workloads.tokenizer import decode_flops, encoder_flops, ta_tok_parts
from tarkit.train.workloads.workload import (
    Kept,
    Settings,
    Start,
    Workload,
    bytes_of,
    on_meta,
    scale_odds,
)


def ar_dtok_stack(arch: ArDtokArch) -> Stack:
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


def ar_dtok(settings: Settings, start: Start) -> Workload:
    """Cross-entropy of image-VQ codes after the condition; frozen models run in float32."""
    arch = ArDtokArch.model_validate(settings["arch"])
    model: ArDtok = on_meta(ArDtok, arch)
    stack, c = ar_dtok_stack(arch), bytes_of(settings)
    ta_tok = start.tokenizer or TaTokArch()
    image_vq: Vqvae = on_meta(Vqvae, start.vqvae or VqvaeArch())
    grid, codes = ta_tok.encoder.grid, arch.num_codes
    odds = scale_odds(settings["scale_ratio"])
    conditions = [(scale.num_codes(grid), share) for scale, share in odds]
    most = max(n for n, _ in conditions)
    project, head = arch.condition_width * arch.width, arch.vocab_size * arch.width
    tokens = sum(share * (n + codes - 1) for n, share in conditions)
    forward = sum(
        share * (stack.flops(n + codes - 1, n + codes - 1) + 2 * project * n)
        for n, share in conditions
    )
    parts = ta_tok_parts(ta_tok)
    every_scale = sum(scale.num_codes(grid) for scale, _ in odds)
    frozen_flops = sum(share * decode_flops(parts, n) for n, share in conditions)
    read_bytes = 2.0 * (every_scale + codes)  # codes are 16 bits each
    source = "codes come from --tokens; TA-Tok turns them into features on the same GPUs"
    if start.from_images:
        frozen_flops += (
            encoder_flops(parts, grid**2)
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
        frozen=count(on_meta(TaTok, ta_tok)) + count(image_vq),
        frozen_flops=FROZEN * frozen_flops,
        float32_flops=FROZEN * frozen_flops,
        assumptions=(
            source,
            *((f"{start.picture_bytes / 1e3:g} kB a picture on the disk",) * start.from_images),
            *(() if start.tokenizer else ("the tokenizer is the released TA-Tok",)),
            *(() if start.vqvae else ("the image VQ is LlamaGen's VQ-16",)),
        ),
    )
