"""What a step of `train grpo` costs: pictures are drawn, and the model learns from them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from tarkit.checkpoints.representation import TEXT_ALIGNED
from tarkit.models.ar_decoding import cache_shape
from tarkit.models.ar_dtok import ArDtok, ArDtokArch
from tarkit.models.ta_tok import TaTok, TaTokArch
from tarkit.models.vqvae import Vqvae, VqvaeArch
from tarkit.train.costs import LOGIT_BYTES, count
from tarkit.train.grpo_costs import DtokCosts, PolicyCosts, cache_bytes
from tarkit.train.workloads.language import language_stack, mllm
from tarkit.train.workloads.workload import (
    Kept,
    Settings,
    Start,
    Workload,
    bytes_of,
    on_meta,
)


def grpo(settings: Settings, start: Start) -> Workload:
    """The clipped objective on groups of pictures, and cross-entropy of chats beside it.

    All pictures are taken to teach: a group of equal scores takes less.
    """
    assumed = []
    if start.lm is None:
        start = replace(start, lm=Path("tar-1.5b"))
        assumed.append("the language model is the published tar-1.5b")
    if start.tokenizer is None:
        start = replace(start, tokenizer=TaTokArch())
        assumed.append("the tokenizer is the released TA-Tok")
    ta_tok = start.tokenizer
    assert ta_tok is not None
    pictures, with_chats = settings["batch_size"], settings["chats_size"] > 0
    alone = {} if with_chats else {"ratio": {"text": 1}, "length": max(2, start.text_tokens)}
    language = {"representation": TEXT_ALIGNED, "lora": None}
    chats = mllm(
        {**settings, **language, "batch_size": max(1, settings["chats_size"]), **alone}, start
    )
    chats_of_picture = settings["chats_size"] / pictures
    config, c = chats.model.config, bytes_of(settings)
    arch, image_vq = start.ar_dtok or ArDtokArch(), start.vqvae or VqvaeArch()
    stack, codes = language_stack(config), start.scale.num_codes(ta_tok.encoder.grid)
    guided, dtok_guided = settings["prompt_guidance"] != 1, settings["guidance"] != 1
    costs = PolicyCosts(
        stack,
        ta_tok.num_codes * stack.width,
        guided,
        DtokCosts.of(arch, image_vq, ta_tok),
        dtok_guided,
    )
    prompt, rounds = start.text_tokens, settings["round_steps"]
    positions = prompt + codes
    # Log-probabilities at the time of drawing are computed for the later steps of a round.
    frozen = costs.drawing(prompt, codes)
    again = (rounds - 1) / rounds * costs.reading(prompt, codes)
    scores = (LOGIT_BYTES + 4 * guided) * codes * ta_tok.num_codes  # of a picture

    def kept(rows: int) -> Kept:
        beside = chats.kept(math.ceil(rows * chats_of_picture)) if with_chats else Kept(0, 0, 0)
        seen = rows * positions
        # The last norm, and the states that predict codes.
        ends = seen * 8 * stack.width + rows * codes * c * stack.width
        return Kept(
            stack.kept_bytes(seen, c) + ends + beside.activations,
            stack.input_bytes(seen) + ends + beside.checkpointed,
            rows * scores + beside.loss,
            max(stack.block_bytes(seen, c), beside.block),
        )

    def drawing(rows: int) -> float:
        together = min(settings["draw_size"], rows * rounds)
        both = 2 if guided else 1
        of_lm = both * cache_bytes(stack, positions)
        of_dtok = 4.0 * arch.layers * math.prod(cache_shape(arch, codes, 2 if dtok_guided else 1))
        return together * max(of_lm, of_dtok, scores if rounds > 1 else 0)

    ar_dtok, decoder = on_meta(ArDtok, arch), on_meta(Vqvae, image_vq)
    return Workload(
        unit="pictures",
        model=chats.model,
        tokens=positions + chats_of_picture * chats.tokens,
        flops=costs.learning(prompt, codes) + again + chats_of_picture * chats.flops,
        block_flops=stack.flops(positions, positions) + chats_of_picture * chats.block_flops,
        recomputed_flops=lambda rows: (
            chats_of_picture * chats.recomputed_flops(math.ceil(rows * chats_of_picture))
        ),
        kept=kept,
        before_pass=drawing,
        read_bytes=4 * prompt + chats_of_picture * chats.read_bytes,
        frozen=count(on_meta(TaTok, ta_tok)) + count(ar_dtok) + count(decoder),
        frozen_flops=frozen,
        float32_flops=frozen,
        tied=chats.tied,
        is_divisible=False,
        part="lm",
        assumptions=(
            f"{prompt} text tokens in a prompt, {codes} codes in a picture (scale {start.scale:d})",
            "every picture teaches; not counted: the scorer",
            *assumed,
            *(() if start.ar_dtok else ("the de-tokenizer is the released AR-DTok of 256 px",)),
            *(() if start.vqvae else ("the image VQ is LlamaGen's VQ-16",)),
        ),
    )
