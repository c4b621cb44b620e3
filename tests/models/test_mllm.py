"""The language model: growing its vocabulary, packing without leaks, drawing codes and words."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from tarkit.errors import UserError
from tarkit.models import mllm
from tarkit.models.mllm import (
    LmArch,
    Packed,
    PackedLoss,
    build,
    code_log_probs,
    fit_width,
    from_scratch,
    grow,
    hidden_states,
    pack,
    packed_attention,
    require_packable,
)
from tarkit.models.mllm_decoding import (
    CachedDecoding,
    generate_codes,
    generate_text,
    next_logits,
)
from tarkit.models.sampling import draw
from tarkit.vocab import VisualVocabulary

IGNORED = -100
TEXT, K, WIDTH = 40, 16, 24
VISUAL = VisualVocabulary(first_id=TEXT, num_codes=K)
SIZES = LmArch(width=WIDTH, layers=2, heads=4, kv_heads=2, mlp_width=32, max_positions=64)


def lm(vocab_size: int = TEXT, *, tied: bool = True) -> Any:
    """A Qwen2 whose weights are strong enough that no two candidates tie."""
    torch.manual_seed(0)
    model = build({**from_scratch(SIZES, vocab_size), "tie_word_embeddings": tied}).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return lm(VISUAL.size)


def chat(*numbers: int, answer: int) -> tuple[list[int], list[int]]:
    """Ids of which the last `answer` are supervised."""
    ids = list(numbers)
    return ids, [IGNORED] * (len(ids) - answer) + ids[-answer:]


# ---- growing


@pytest.mark.parametrize("tied", [True, False])
def test_the_codes_rows_start_as_the_codebook_and_the_words_stay(tied: bool) -> None:
    # Qwen pads its table; here 50 rows of which 40 are text.
    base = lm(50, tied=tied)
    words = base.get_input_embeddings().weight.detach()[:TEXT].clone()
    head = base.get_output_embeddings().weight.detach()[:TEXT].clone()
    codebook = F.normalize(torch.randn(K, WIDTH), dim=-1)
    grow(base, VISUAL, codebook, start="codebook")
    table = base.get_input_embeddings().weight.detach()
    # 40 words, 2 tags, 3 scales, 16 codes: the padding is cut.
    assert table.shape == (TEXT + 5 + K, WIDTH) and base.config.vocab_size == 61
    assert torch.equal(table[:TEXT], words)
    assert torch.equal(table[VISUAL.first_code :], codebook)
    out = base.get_output_embeddings().weight
    assert (out is base.get_input_embeddings().weight) is tied
    assert torch.equal(out.detach()[:TEXT], words if tied else head)
    assert torch.equal(out.detach()[VISUAL.first_code :], codebook)


def test_the_codes_can_start_at_the_words_mean_length_or_as_their_mean() -> None:
    base = lm()
    words = base.get_input_embeddings().weight.detach().clone()
    codebook = F.normalize(torch.randn(K, WIDTH), dim=-1)
    length = words.norm(dim=1).mean()
    grow(base, VISUAL, codebook, start="codebook", norm="text")
    rows = base.get_input_embeddings().weight.detach()[VISUAL.first_code :]
    assert_close(rows, codebook * length)
    assert float(length) > 1.5  # not what unit rows would pass for
    rows = grow(lm(), VISUAL, None, start="mean").get_input_embeddings().weight.detach()
    assert_close(rows[VISUAL.first_code :], words.mean(0).expand(K, WIDTH))
    rows = grow(lm(), VISUAL, None, start="random").get_input_embeddings().weight.detach()
    assert len(rows[VISUAL.first_code :].unique(dim=0)) == K
    assert float(rows[VISUAL.first_code :].std()) == pytest.approx(float(words.std()), rel=0.2)


def test_a_codebook_of_another_width_cannot_start_the_codes() -> None:
    # What the published program skips in silence: 1,536 wide codes for the 7B's 3,584.
    with pytest.raises(ValueError, match=r"codebook is \(16, 8\), .* rows to start are \(16, 24\)"):
        grow(lm(), VISUAL, torch.zeros(K, 8), start="codebook")
    with pytest.raises(ValueError, match="codebook is None"):
        grow(lm(), VISUAL, None, start="codebook")


def test_a_fitted_codebook_keeps_its_geometry_as_far_as_the_width_allows() -> None:
    torch.manual_seed(0)
    codebook = torch.randn(30, 8) * torch.tensor([9.0, 8, 7, 6, 5, 1, 1, 1])
    wide = fit_width(codebook, 20)
    assert wide.shape == (30, 20)
    assert_close(wide @ wide.T, codebook @ codebook.T, rtol=1e-4, atol=1e-4)
    # No direction of the wider table is preferred: no column is empty.
    assert float(wide.std(0).min()) > 0.5
    narrow = fit_width(codebook, 5)
    # The products of the five largest singular values, which no five directions can beat.
    values, vectors = torch.linalg.eigh(codebook @ codebook.T)
    best = (vectors[:, -5:] * values[-5:]) @ vectors[:, -5:].T
    assert_close(narrow @ narrow.T, best, rtol=1e-3, atol=1e-3)


# ---- packing


def test_chats_are_packed_longest_first_into_the_first_row_with_room() -> None:
    chats = [chat(*range(n), answer=1) for n in (3, 5, 2, 4)]
    # Rows of 7: 5, then 4, then 3 beside 4, then 2 beside 5.
    packed = pack(chats, 7)
    assert packed.ids.tolist() == [[0, 1, 2, 3, 4, 0, 1], [0, 1, 2, 3, 0, 1, 2]]
    assert packed.positions.tolist() == packed.ids.tolist()
    assert packed.chats.tolist() == [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1, 1]]
    i = IGNORED
    assert packed.labels.tolist() == [[i, i, i, i, 4, i, 1], [i, i, i, 3, i, i, 2]]
    # Rows of 6 leave room: three rows, as wide as the fullest, and padding is of no chat.
    packed = pack(chats, 6)
    assert packed.ids.shape == (3, 6)
    assert packed.chats.tolist() == [[0, 0, 0, 0, 0, -1], [0, 0, 0, 0, 1, 1], [0, 0, 0, -1, -1, -1]]
    with pytest.raises(ValueError, match="a chat has 5 tokens, a row holds 4"):
        pack(chats, 4)


def dense_mask(packed: Packed) -> Tensor:
    """(P, 1, T, T) bool: causal, and only within one chat."""
    same = packed.chats[:, :, None] == packed.chats[:, None, :]
    return (same & torch.ones_like(same[:1]).tril())[:, None]


def test_no_chats_are_one_row_of_padding(model: Any) -> None:
    packed = pack([], 8)
    assert packed.ids.shape == (1, 1) and packed.chats.tolist() == [[-1]]
    losses, targets = PackedLoss(model)(packed)
    assert len(losses) == len(targets) == 0


CHATS = [
    chat(1, 7, 3, 9, 2, answer=2),
    chat(5, 41, 50, 8, answer=3),
    chat(30, 6, 48, answer=1),
    chat(11, 12, 13, 14, 15, 16, answer=4),
]


def lone_states(model: Any, ids: Sequence[int]) -> Tensor:
    """Hidden states of one chat with nothing beside it and no mask of ours."""
    states: Tensor = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return states


@torch.no_grad()
def test_no_chat_sees_another(model: Any) -> None:
    packed = pack(CHATS, 10)
    assert packed.ids.shape == (2, 10)  # 6 + 4 and 5 + 3: two chats share each row
    states = hidden_states(model, packed)
    assert not torch.isnan(states).any()
    seen = set()
    for row in range(2):
        for number in (0, 1):
            span = packed.chats[row] == number
            ids = packed.ids[row][span].tolist()
            assert_close(states[row][span], lone_states(model, ids), atol=1e-4, rtol=1e-4)
            seen.add(tuple(ids))
    assert seen == {tuple(ids) for ids, _ in CHATS}
    # Other words in the first chat of a row move not one bit of the second.
    changed = packed._replace(ids=packed.ids.clone())
    first = packed.chats[0] == 0
    changed.ids[0][first] = 39 - packed.ids[0][first]
    after = hidden_states(model, changed)
    assert torch.equal(after[0][packed.chats[0] == 1], states[0][packed.chats[0] == 1])
    assert not torch.allclose(after[0][first], states[0][first])
    assert torch.equal(after[1], states[1])


@torch.no_grad()
def test_the_models_own_mask_is_the_dense_one(model: Any) -> None:
    packed = pack(CHATS, 12)
    assert (packed.chats < 0).any()
    mask = dense_mask(packed)
    assert mask[1, 0, 6, :8].tolist() == [False] * 4 + [True] * 3 + [False]  # 4 tokens, then 3
    expected = model.base_model(
        input_ids=packed.ids, attention_mask=mask, position_ids=packed.positions
    ).last_hidden_state
    real = packed.chats >= 0
    assert torch.equal(hidden_states(model, packed)[real], expected[real])


@torch.no_grad()
def test_the_packed_loss_is_of_every_supervised_token(model: Any) -> None:
    losses, targets = PackedLoss(model)(pack(CHATS, 10))
    alone = []
    for ids, labels in CHATS:
        p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        # What stands at t is predicted at t - 1.
        alone += [-float(p[t - 1, ids[t]]) for t in range(len(ids)) if labels[t] != IGNORED]
    assert len(alone) == 2 + 3 + 1 + 4 == len(losses)
    assert sorted(losses.tolist()) == pytest.approx(sorted(alone), rel=1e-3, abs=1e-4)
    assert sorted(targets.tolist()) == sorted(x for _, y in CHATS for x in y if x != IGNORED)


@torch.no_grad()
def test_packing_otherwise_changes_nothing(model: Any) -> None:
    def loss(packed: Packed) -> float:
        return float(PackedLoss(model)(packed)[0].mean())

    expected = loss(pack(CHATS, 6))
    for length in (7, 10, 18):
        assert loss(pack(CHATS, length)) == pytest.approx(expected, rel=1e-4)
    assert loss(pack(CHATS[::-1], 10)) == pytest.approx(expected, rel=1e-4)


# ---- the loss in chunks


def gradients(model: Any, losses: Tensor) -> list[Tensor]:
    model.zero_grad()
    losses.square().sum().backward()
    return [w.grad.clone() for w in model.parameters()]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 9])
def test_the_loss_in_chunks_is_the_whole_one(tied: bool, chunk_tokens: int) -> None:
    model, packed = lm(VISUAL.size, tied=tied), pack(CHATS, 10)
    whole, targets = PackedLoss(model)(packed)
    expected = gradients(model, whole)
    chunked, same = PackedLoss(model, chunk_tokens=chunk_tokens)(packed)
    assert torch.equal(targets, same) and len(targets) == 10
    assert_close(chunked, whole, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(model, chunked), expected, strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_a_loss_of_one_chunk_has_the_bits_of_the_whole_one(model: Any) -> None:
    packed = pack(CHATS, 10)
    states = hidden_states(model, packed)[:, :-1]
    supervised = packed.labels[:, 1:] != IGNORED
    logits = model.get_output_embeddings()(states[supervised])
    whole = F.cross_entropy(logits, packed.labels[:, 1:][supervised], reduction="none")
    for chunk_tokens in (None, 10):
        assert torch.equal(PackedLoss(model, chunk_tokens=chunk_tokens)(packed)[0], whole)


def test_the_logits_of_a_chunk_alone_are_made(model: Any, monkeypatch: Any) -> None:
    sizes: list[int] = []
    head = model.get_output_embeddings()
    with head.register_forward_hook(lambda *args: sizes.append(len(args[2]))):
        losses, _ = PackedLoss(model, chunk_tokens=4)(pack(CHATS, 10))
        losses.sum().backward()
        # The default is a number of logits, whatever the vocabulary.
        monkeypatch.setattr(mllm, "LOGITS_AT_ONCE", 5 * VISUAL.size + 1)
        PackedLoss(model)(pack(CHATS, 10))
    assert sizes == [4, 4, 2] + [2, 4, 4] + [5, 5]


MEMORY = """
import resource, sys, torch
from tarkit.models.mllm import LmArch, build, from_scratch, vocabulary_losses
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
torch.manual_seed(0)
model = build(from_scratch(LmArch(width=64, layers=1, heads=4, kv_heads=2, mlp_width=64), 217_206))
states = torch.randn(2560, 64, requires_grad=True)
targets = torch.randint(217_206, (2560,))
before = peak()
losses = vocabulary_losses(model, states, targets, chunk_tokens=int(sys.argv[1]) or None)
losses.mean().backward()
head = model.get_output_embeddings().weight.grad
print(peak() - before, float(losses.detach().mean()), float(states.grad.norm()), float(head.norm()))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_default_takes_a_quarter_of_the_memory_at_most() -> None:
    def measured(chunk_tokens: int) -> list[float]:
        command = [sys.executable, "-c", MEMORY, str(chunk_tokens)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return [float(x) for x in text.split()]

    (whole, *expected), (chunked, *figures) = measured(2560), measured(0)
    print(f"whole {whole:.0f} MB, in chunks {chunked:.0f} MB")
    assert chunked <= whole / 4
    assert figures == pytest.approx(expected, rel=1e-5)


# ---- families of language models


BODY: dict[str, Any] = {
    **{"vocab_size": VISUAL.size, "hidden_size": WIDTH, "intermediate_size": 32},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6},
    **{"max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
# The window is shorter than a chat, and the scales and caps move the loss.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 3},
    "gemma2": {
        **{"sliding_window": 3, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 3.0},
        **{"query_pre_attn_scalar": 6, "layer_types": ["sliding_attention", "full_attention"]},
    },
    "gemma3_text": {"sliding_window": 3, "query_pre_attn_scalar": 6},
    "granite": {"logits_scaling": 3.0, "attention_multiplier": 0.4, "embedding_multiplier": 2.0},
    "cohere": {"logit_scale": 0.3},
}
LINEAR: dict[str, Any] = {
    **{"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 6},
    **{"linear_value_head_dim": 6, "layer_types": ["linear_attention", "full_attention"]},
    **{"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
    "shared_expert_intermediate_size": 16,
}
MAMBA: dict[str, Any] = {
    **{"mamba_d_ssm": 24, "mamba_n_heads": 4, "mamba_d_head": 6, "mamba_n_groups": 1},
    **{"mamba_d_state": 4, "mamba_chunk_size": 8},
}
CARRYING: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 4},
    "mamba2": {"state_size": 4, "num_heads": 4, "head_dim": 12, "n_groups": 1, "chunk_size": 8},
    "falcon_h1": MAMBA,
    "qwen3_next": LINEAR,
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 32},
}


def of_family(family: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = build({"model_type": family, **BODY, **settings}).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                weight.mul_(8)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_packed_loss_is_the_familys_own(family: str) -> None:
    model = of_family(family, **FAMILIES[family])
    require_packable(model)
    losses, _ = PackedLoss(model, chunk_tokens=4)(pack(CHATS, 10))
    ours = losses.sum()
    # transformers' own loss of each chat alone: a mean over its supervised tokens.
    own = sum(
        model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        * sum(label != IGNORED for label in labels)
        for ids, labels in CHATS
    )
    assert_close(ours, own, rtol=1e-5, atol=1e-5)
    table = model.get_input_embeddings().weight
    (expected,) = torch.autograd.grad(own, table)
    (gradient,) = torch.autograd.grad(ours, table)
    assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("family", ["mistral", "gemma2", "granite", "cohere"])
def test_windows_caps_and_scales_move_the_loss(family: str) -> None:
    """Else the test above would pass where they are ignored."""
    model, packed = of_family(family, **FAMILIES[family]), pack(CHATS, 10)
    neutral = {"sliding_window": 64, "final_logit_softcapping": None, "logits_scaling": 1.0}
    given = FAMILIES[family] | {k: v for k, v in neutral.items() if k in FAMILIES[family]}
    given |= {"logit_scale": 1.0} if family == "cohere" else {}
    plain = of_family(family, **given)
    with torch.no_grad():
        a, b = (float(PackedLoss(m)(packed)[0].sum()) for m in (model, plain))
    assert abs(a - b) > 0.1


@pytest.mark.parametrize("family", CARRYING)
def test_families_that_carry_a_chat_into_the_next_are_refused(family: str) -> None:
    model = of_family(family, **CARRYING[family]).train()
    with pytest.raises(ValueError, match=f"{family} models carry one packed chat into the next"):
        require_packable(model)
    assert model.training


def test_families_with_other_logits_are_refused() -> None:
    # It multiplies by what Granite, under the same name, divides by.
    with pytest.raises(ValueError, match="hyperclovax models change their logits after the head"):
        require_packable(of_family("hyperclovax", logits_scaling=2.0))


@torch.no_grad()
def test_codes_and_words_are_drawn_from_the_familys_own_logits() -> None:
    model = of_family("granite", **FAMILIES["granite"])
    logits = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
    assert_close(next_logits(model, PROMPTS)[0], logits)
    codes = torch.tensor([[5], [2], [9]])
    log_probs = code_log_probs(model, PROMPTS, codes, visual=VISUAL)
    assert_close(log_probs[0, 0], logits[VISUAL.first_code :].log_softmax(-1)[5])
    # A draw with a seed tells a temperature from three times it.
    generators = [torch.Generator().manual_seed(n) for n in range(50)]
    drawn = codes_of(model, PROMPTS[:1] * 50, num_codes=1, temperature=1.0, generator=generators)
    expected = [
        draw(
            logits[None, VISUAL.first_code :],
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            generator=[torch.Generator().manual_seed(n)],
        )
        for n in range(50)
    ]
    assert torch.equal(drawn[:, 0], torch.cat(expected))


# ---- attention by device


# torch's compiler imports what torch itself deprecates, and transformers gives it an old argument.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("family", ["qwen2", "mistral", "gemma2", "cohere"])
@torch.no_grad()
def test_flex_attention_computes_what_the_dense_mask_does(family: str) -> None:
    model, packed = of_family(family, **FAMILIES[family]), pack(CHATS, 12)
    dense = hidden_states(model, packed)
    with torch.compiler.set_stance("force_eager"):
        flex = hidden_states(model, packed, attention="flex_attention")
    assert model.config._attn_implementation == "flex_attention"
    real = packed.chats >= 0
    assert_close(flex[real], dense[real], rtol=1e-5, atol=1e-5)
    # Prompts are read with the default again: it has a cache, and no compiling.
    next_logits(model, PROMPTS)
    assert model.config._attn_implementation != "flex_attention"


def test_the_attention_is_decided_by_the_device() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    wide = of_family("qwen2", hidden_size=64, head_dim=16)
    assert packed_attention(wide, cpu) == "sdpa"
    assert packed_attention(wide, cuda) == "flex_attention"
    assert packed_attention(of_family("qwen2"), cuda) == "sdpa"  # heads 6 wide
    dropping = of_family("qwen2", hidden_size=64, head_dim=16, attention_dropout=0.1)
    assert packed_attention(dropping, cuda) == "sdpa"
    assert packed_attention(of_family("gemma2"), cpu) == "eager"
    assert packed_attention(of_family("gpt2", n_head=1), cuda) == "sdpa"  # it has no flex


# ---- drawing codes


PROMPTS = [[3, 40, 42], [9, 8, 7, 6, 5, 4, 40, 42], [40]]


def codes_of(model: Any, prompts: Sequence[Sequence[int]], **changes: Any) -> Tensor:
    settings: dict[str, Any] = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "num_codes": 6}
    return generate_codes(model, prompts, visual=VISUAL, **settings | changes)


@torch.no_grad()
def test_greedy_codes_are_teacher_forcing_over_the_codes_alone(model: Any) -> None:
    drawn = codes_of(model, PROMPTS)
    assert drawn.shape == (3, 6)
    for prompt, codes in zip(PROMPTS, drawn.tolist(), strict=True):
        ids = [*prompt, *[code + VISUAL.first_code for code in codes]]
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        among_codes = logits[len(prompt) - 1 : -1, VISUAL.first_code :]
        assert among_codes.argmax(-1).tolist() == codes
        # Over the whole vocabulary some word would have won: the constraint matters here.
        if prompt is PROMPTS[0]:
            assert (logits[len(prompt) - 1 : -1].argmax(-1) < VISUAL.first_code).any()


def test_padding_on_the_left_changes_nothing(model: Any) -> None:
    together = codes_of(model, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        assert torch.equal(codes_of(model, [prompt])[0], together[row])
    assert_close(next_logits(model, PROMPTS)[0], next_logits(model, PROMPTS[:1])[0])


@pytest.mark.parametrize("num_codes", [1, 4, 9])
def test_drawn_codes_are_always_as_many_as_asked_and_in_the_book(
    model: Any, num_codes: int
) -> None:
    prompts = [PROMPTS[i % 3] for i in range(40)]
    torch.manual_seed(0)
    drawn = codes_of(model, prompts, num_codes=num_codes, temperature=50.0)
    assert drawn.shape == (40, num_codes)
    found = set(drawn.flatten().tolist())
    assert found <= set(range(K))
    # So hot that every code is near equally likely: 360 draws miss none.
    assert num_codes < 9 or found == set(range(K))


def test_a_draw_depends_on_its_own_prompt_and_seed_alone(model: Any) -> None:
    def drawn(rows: Sequence[int]) -> list[list[int]]:
        generators = [torch.Generator().manual_seed(row) for row in rows]
        prompts = [PROMPTS[row] for row in rows]
        return codes_of(
            model, prompts, temperature=20.0, top_k=10, top_p=0.9, generator=generators
        ).tolist()

    together = drawn([0, 1, 2])
    assert drawn([2]) == together[2:] and drawn([1, 0]) == [together[1], together[0]]
    assert len({tuple(row) for row in together}) == 3


@torch.no_grad()
def test_guided_codes_lie_beyond_the_prompts_own(model: Any) -> None:
    """Greedy, by hand: one sequence at a time, both logits after the same codes."""
    against = [[5, 40, 42], [40], [1, 2, 3, 4]]
    for guidance in (0.0, 0.5, 3.0):
        drawn = codes_of(model, PROMPTS, guidance=guidance, unguided=against)
        for prompt, other, codes in zip(PROMPTS, against, drawn.tolist(), strict=True):
            sofar: list[int] = []
            for code in codes:
                c, u = (
                    model(input_ids=torch.tensor([[*start, *sofar]])).logits[0, -1]
                    for start in (prompt, other)
                )
                mixed = (u + guidance * (c - u))[VISUAL.first_code :]
                assert int(mixed.argmax()) == code
                sofar.append(code + VISUAL.first_code)
    assert torch.equal(codes_of(model, PROMPTS, guidance=0.0, unguided=against),
                       codes_of(model, against))  # fmt: skip
    assert torch.equal(codes_of(model, PROMPTS, guidance=1.0, unguided=against),
                       codes_of(model, PROMPTS))  # fmt: skip
    assert not torch.equal(codes_of(model, PROMPTS, guidance=3.0, unguided=against),
                           codes_of(model, PROMPTS))  # fmt: skip
    with pytest.raises(ValueError, match="3 prompts, 2 to guide them away from"):
        codes_of(model, PROMPTS, guidance=3.0, unguided=against[:2])


# ---- drawing words


@torch.no_grad()
def test_greedy_words_are_teacher_forcing_over_the_words_alone(model: Any) -> None:
    answers = generate_text(model, PROMPTS, stop=[], text_size=TEXT, max_tokens=7)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert len(answer) == 7
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
        assert logits[len(prompt) - 1 : -1, :TEXT].argmax(-1).tolist() == answer


def test_an_answer_ends_before_its_stop_and_does_not_cut_the_others(model: Any) -> None:
    whole = generate_text(model, PROMPTS, stop=[], text_size=TEXT, max_tokens=7)
    stop = whole[1][3]
    answers = generate_text(model, PROMPTS, stop=[stop], text_size=TEXT, max_tokens=7)
    for answer, full in zip(answers, whole, strict=True):
        assert answer == (full[: full.index(stop)] if stop in full else full)
    assert len(answers[1]) == whole[1].index(stop)


@torch.no_grad()
def test_the_next_logits_are_those_after_each_prompt(model: Any) -> None:
    found = next_logits(model, PROMPTS)
    assert found.shape == (3, VISUAL.size)
    for prompt, row in zip(PROMPTS, found, strict=True):
        assert_close(row, model(input_ids=torch.tensor([prompt])).logits[0, -1])


def test_a_prompt_longer_than_the_models_positions_is_refused() -> None:
    sizes = LmArch(width=16, layers=1, heads=2, kv_heads=1, mlp_width=24, max_positions=8)
    model = build(from_scratch(sizes, 20)).eval()
    CachedDecoding(model, [[1] * 8], num_steps=0)
    visual = VisualVocabulary(first_id=9, num_codes=2)
    more = "a prompt has 5 tokens and 4 more follow, the model has 8 positions"
    with pytest.raises(UserError, match=more):
        generate_codes(
            model, [[1] * 5], visual=visual, num_codes=5, temperature=1.0, top_k=0, top_p=1.0
        )
    with pytest.raises(UserError, match=more):
        generate_text(model, [[1] * 5], stop=[], text_size=9, max_tokens=9)
    with pytest.raises(UserError, match="a prompt has 9 tokens, the model has 8 positions"):
        CachedDecoding(model, [[1], [1] * 9], num_steps=3)
