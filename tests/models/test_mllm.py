"""The language model: growing its vocabulary, packing without leaks, drawing codes and words."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from tarkit.models.mllm import (
    LmArch,
    Packed,
    PackedLoss,
    build,
    from_scratch,
    generate_codes,
    generate_text,
    grow,
    hidden_states,
    next_logits,
    pack,
)
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


def test_the_mask_is_causal_within_a_chat() -> None:
    packed = pack([chat(1, 2, 3, answer=1), chat(4, 5, answer=1)], 8)
    assert packed.mask.shape == (1, 1, 5, 5)
    assert packed.mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


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
