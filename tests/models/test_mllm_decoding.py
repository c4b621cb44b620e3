"""One reserved cache and recorded steps draw what each family draws with its own cache."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tarkit.models import mllm_decoding, skinny
from tarkit.models.mllm_decoding import (
    CachedDecoding,
    generate_codes,
    generate_text,
    layer_windows,
    next_logits,
)
from tarkit.models.skinny import FORMS, MAX_ROWS, use_products
from tests.models.test_mllm import CARRYING, FAMILIES, PROMPTS, TEXT, VISUAL, of_family

# Unequal lengths, equal prompts, and one that is the beginning of another.
UNEQUAL = [*PROMPTS, PROMPTS[1], PROMPTS[1][:5], PROMPTS[0]]
EQUAL = [[3, 40, 42], [7, 41, 42], [3, 40, 42]]


def rehearsed(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """What a CUDA graph does, without one: the same tensors in, the same tensor out."""
    result = run().clone()

    def replay() -> None:
        result.copy_(run())

    return replay, result


def drawn(model: Any, prompts: Any = UNEQUAL, **changes: Any) -> list[list[int]]:
    generators = [torch.Generator().manual_seed(row) for row in range(len(prompts))]
    settings = {"temperature": 1.0, "top_k": 12, "top_p": 0.9, "generator": generators, **changes}
    return generate_codes(model, prompts, visual=VISUAL, num_codes=9, **settings).tolist()


def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every family decodes with its own cache."""
    monkeypatch.setattr(mllm_decoding, "layer_windows", lambda model: [])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompts", [UNEQUAL, EQUAL], ids=["unequal", "equal"])
def test_every_family_draws_what_its_own_cache_draws(
    family: str, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = of_family(family, **FAMILIES[family])
    assert layer_windows(model)
    sampled, greedy = drawn(model, prompts), drawn(model, prompts, temperature=0.0)
    recorded = [drawn(model, prompts, temperature=t, record=rehearsed) for t in (1.0, 0.0)]
    plainly(monkeypatch)
    assert drawn(model, prompts) == sampled == recorded[0]
    assert drawn(model, prompts, temperature=0.0) == greedy == recorded[1]
    assert len({tuple(row) for row in sampled}) > 2


@pytest.mark.parametrize("family", ["mamba", "qwen3_next", "lfm2"])
def test_a_family_with_states_keeps_its_own_cache(family: str) -> None:
    model = of_family(family, **CARRYING[family])
    assert layer_windows(model) == []
    decoding = CachedDecoding(model, [[3, 4, 5], [3, 4, 5]], num_steps=2)
    decoding.feed(torch.tensor([6, 7]))
    alone = model.base_model(input_ids=torch.tensor([[3, 4, 5, 6], [3, 4, 5, 7]]))
    assert_close(decoding.hidden, alone.last_hidden_state[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_guided_codes_and_words_are_those_of_the_plain_path(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = of_family(family, **FAMILIES[family])

    def results(**record: Any) -> tuple[Any, Any]:
        guided = drawn(model, guidance=2.0, unguided=[[40]] * len(UNEQUAL), **record)
        words = generate_text(model, UNEQUAL, stop=[1], text_size=TEXT, max_tokens=8, **record)
        return guided, words

    fast, recorded = results(), results(record=rehearsed)
    plainly(monkeypatch)
    assert results() == fast == recorded


def test_equal_prompts_are_read_once_and_the_cache_is_reserved_once() -> None:
    model = of_family("qwen2")
    rows: list[tuple[int, ...]] = []
    with model.get_input_embeddings().register_forward_hook(
        lambda module, given, out: rows.append(tuple(given[0].shape))
    ):
        decoding = CachedDecoding(model, [*UNEQUAL, [40], [40]], num_steps=4)
        # Six different prompts of eight tokens at most; equal to a third are two, and [40] is one.
        assert rows == [(4, 8)]
        places = [layer.keys.data_ptr() for layer in decoding.layers]
        for _ in range(4):
            decoding.feed(torch.zeros(8, dtype=torch.long))
    assert rows[1:] == [(8, 1)] * 4
    assert [layer.keys.data_ptr() for layer in decoding.layers] == places
    assert {layer.keys.shape[2] for layer in decoding.layers} == {8 + 4}
    assert next_logits(model, UNEQUAL).shape == (6, VISUAL.size)


@torch.no_grad()
@pytest.mark.parametrize("name", [*FORMS, "int8"])
def test_every_form_of_the_products_draws_the_same_greedy_codes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = of_family("qwen2", hidden_size=128, head_dim=32, intermediate_size=512)
    expected = drawn(model, temperature=0.0)
    monkeypatch.setattr(skinny, "MIN_WEIGHTS", 1)
    monkeypatch.setattr(
        skinny, "_forms", {f"float32 {kind}": [name] * MAX_ROWS for kind in ("tall", "wide")}
    )
    if name == "int8":
        monkeypatch.setattr(skinny, "_forms", {})
    use_products(model.base_model, int8=name == "int8")
    found = drawn(model, temperature=0.0)
    if name != "int8":
        assert found == expected
        return
    # 8-bit weights change some codes of a model of random weights, but no picture wholly.
    pairs = [
        (a, b) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True)
    ]
    assert sum(a == b for a, b in pairs) >= len(pairs) / 4
