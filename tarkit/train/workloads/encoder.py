"""What a step of `train encoder` costs: two towers, and all pairs of a step."""

from __future__ import annotations

from tarkit.train.contrastive import EncoderConfig, SigLip
from tarkit.train.contrastive_costs import ContrastiveCosts
from tarkit.train.workloads.workload import Kept, Settings, Start, Workload, bytes_of, on_meta

PAIR_BYTES = 16
"""Bytes of a pair in the loss: its cosine, its sign, the signed logit, and the gradient."""


def encoder(settings: Settings, start: Start) -> Workload:
    """The contrastive loss; a caption has `text_tokens` tokens, at most `text_length`."""
    config = EncoderConfig.model_validate(settings)
    model: SigLip = on_meta(SigLip, config)
    costs, c, pictures = ContrastiveCosts.of(config), bytes_of(settings), config.batch_size
    text = min(start.text_tokens, config.text_length)
    positions = config.arch.grid**2

    def kept(rows: int) -> Kept:
        # The longest caption decides how long all are.
        tokens = rows * config.text_length
        seen, ends = rows * positions, rows * costs.end_bytes(c)
        whole = costs.vision.kept_bytes(seen, c) + costs.text.kept_bytes(tokens, c)
        less = costs.vision.input_bytes(seen) + costs.text.input_bytes(tokens)
        block = max(costs.vision.block_bytes(seen, c), costs.text.block_bytes(tokens, c))
        gradient = max(costs.vision.gradient_bytes(seen, c), costs.text.gradient_bytes(tokens, c))
        pairs = PAIR_BYTES * pictures**2
        return Kept(whole + ends, less + ends, max(pairs, gradient), block)

    grounded = ("not counted: the grounding loss",) if config.grounding else ()
    return Workload(
        unit="pictures",
        model=model,
        tokens=positions + text,
        flops=costs.flops(1, text, text**2, of_step=pictures),
        block_flops=costs.vision.flops(positions, positions) + costs.text.flops(text, text),
        kept=kept,
        read_bytes=start.picture_bytes,
        is_divisible=False,
        assumptions=(
            f"{text} tokens in a caption",
            f"{start.picture_bytes / 1e3:g} kB a picture on the disk",
            *grounded,
        ),
    )
