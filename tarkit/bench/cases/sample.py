"""The codes of a picture, one after the other, from the language model (paper Sec. 3.3).

A step reads every weight once, so memory bandwidth is its floor. Our way computes its products as
`Tar` does, in this machine's fastest forms.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tarkit.bench.case import BenchSettings, Case, Floor, equal_share
from tarkit.bench.random_weights import filled
from tarkit.checkpoints.product_forms import use_machines_forms
from tarkit.models.mllm import LmArch, from_scratch, skeleton
from tarkit.models.mllm_decoding import generate_codes
from tarkit.models.skinny import use_products
from tarkit.vocab import VisualVocabulary

# Qwen2.5-0.5B with Tar's 65,541 visual tokens, and a few codes with the rest of it tiny.
ARCH = LmArch(width=896, layers=24, heads=14, kv_heads=2, mlp_width=4864, max_positions=4096)
TINY = LmArch(width=64, layers=2, heads=4, kv_heads=2, mlp_width=96, max_positions=256)
VISUAL = VisualVocabulary(first_id=151_665, num_codes=65_536)
TINY_VISUAL = VisualVocabulary(first_id=300, num_codes=256)
PROMPT_TOKENS = 32
STEPS, TINY_STEPS = 24, 6
"""Of the 729 codes of a picture; a step with a full cache takes 1 % longer at these sizes."""
TEMPERATURE, TOP_K, TOP_P = 1.0, 1200, 0.95
SAMPLES = 8
"""Pictures of one prompt, against one."""


def language_model(settings: BenchSettings) -> tuple[Any, VisualVocabulary]:
    """A Qwen2 with random weights, and its visual tokens."""
    arch = TINY if settings.tiny else ARCH
    visual = TINY_VISUAL if settings.tiny else VISUAL
    model = skeleton(from_scratch(arch, visual.size))
    model.tie_weights()
    return filled(model, settings.device, seed=settings.seed), visual


def cases(settings: BenchSettings) -> Iterator[Case]:
    stock, visual = language_model(settings)
    # The same weights, in layers that compute their products in the fastest forms.
    model = copy.deepcopy(stock, {id(weight): weight for weight in stock.parameters()})
    use_products(model.base_model)
    use_machines_forms([model])
    steps = TINY_STEPS if settings.tiny else STEPS
    name = "tiny language model" if settings.tiny else "0.5B language model"
    for batch in (1, 4):
        prompts = torch.randint(
            visual.first_id, (batch, PROMPT_TOKENS), generator=settings.generator()
        )
        yield Case(
            name=f"{name}, {steps} codes, batch {batch}",
            ours=_ours(model, visual, prompts, steps, TEMPERATURE, settings),
            against={
                "stock": _stock(stock, visual, prompts, steps, TEMPERATURE),
                "published": _published(stock, prompts, steps),
            },
            floor=_floor(model, visual, batch, steps),
            count=batch * steps,
            unit="codes",
        )
        yield Case(
            name=f"the same, greedy, batch {batch}",
            ours=_ours(model, visual, prompts, steps, 0.0, settings),
            against={"stock": _stock(stock, visual, prompts, steps, 0.0)},
            floor=_floor(model, visual, batch, steps),
            count=batch * steps,
            unit="codes",
            agreement=equal_share,
        )
    prompt = torch.randint(visual.first_id, (1, PROMPT_TOKENS), generator=settings.generator())
    yield Case(
        name=f"the same, {SAMPLES} samples of one prompt",
        ours=_ours(model, visual, prompt.repeat(SAMPLES, 1), steps, TEMPERATURE, settings),
        against={"one sample": _ours(model, visual, prompt, steps, TEMPERATURE, settings)},
        floor=_floor(model, visual, SAMPLES, steps),
        count=SAMPLES * steps,
        unit="codes",
    )


def _floor(model: Any, visual: VisualVocabulary, batch: int, steps: int) -> Floor:
    """Of every step: the layers' weights, the head's rows of codes, and the live cache, read once.

    The prompt's own pass is a step of more rows.
    """
    config = model.config
    table = model.get_input_embeddings().weight
    layers = sum(p.numel() for p in model.parameters() if p is not table)
    head = visual.num_codes * table.shape[1]
    head_width = config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * head_width
    positions = steps * PROMPT_TOKENS + steps * (steps - 1) / 2
    return Floor(
        flops=2.0 * batch * ((steps + PROMPT_TOKENS) * layers + steps * head),
        bytes=4.0 * (steps * (layers + head) + batch * positions * cache),
    )


def _ours(
    model: Any,
    visual: VisualVocabulary,
    prompts: Tensor,
    steps: int,
    temperature: float,
    settings: BenchSettings,
) -> Callable[[], Tensor]:
    def way() -> Tensor:
        return generate_codes(
            model,
            prompts.tolist(),
            visual=visual,
            num_codes=steps,
            temperature=temperature,
            top_k=TOP_K,
            top_p=TOP_P,
            generator=settings.generator(),
        )

    return way


def _stock(
    model: Any, visual: VisualVocabulary, prompts: Tensor, steps: int, temperature: float
) -> Callable[[], Tensor]:
    """transformers' `generate` with the same settings; a logits processor leaves codes alone."""
    from transformers import LogitsProcessor, LogitsProcessorList

    class OnlyCodes(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            scores = scores.clone()
            scores[:, : visual.first_code] = float("-inf")
            return scores

    def way() -> Tensor:
        ids = _generate(model, prompts, steps, temperature, LogitsProcessorList([OnlyCodes()]))
        return ids - visual.first_code

    return way


def _published(model: Any, prompts: Tensor, steps: int) -> Callable[[], None]:
    """The published program draws from the whole vocabulary and picks codes out of the text."""

    def way() -> None:
        _generate(model, prompts, steps, TEMPERATURE, None)

    return way


@torch.no_grad()
def _generate(
    model: Any, prompts: Tensor, steps: int, temperature: float, processors: Any
) -> Tensor:
    ids = prompts.to(model.device)
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": TOP_K, "top_p": TOP_P}
        if temperature
        else {"do_sample": False}
    )
    out: Tensor = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=steps,
        min_new_tokens=steps,
        pad_token_id=0,
        eos_token_id=None,
        logits_processor=processors,
        **sampling,
    )
    return out[:, ids.shape[1] :]
