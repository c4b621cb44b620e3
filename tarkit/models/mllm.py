"""The multimodal language model: any causal LM whose vocabulary has grown by the visual tokens.

Source: paper Sec. 3.3. Pictures are tokens like any other; there is no connector and no second
head. The embedding table starts as {E, C}: text embeddings E and text-aligned codebook C.

Letters: B sequences, P packed rows, T positions, D width, V vocabulary, K codes, N codes of a
picture, M supervised tokens.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tarkit.config import Config, Count, Size
from tarkit.vocab import VisualVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("tarkit")

EmbeddingStart = Literal["codebook", "mean", "random"]


class LmArch(Config):
    """Sizes of a language model made from nothing (Qwen2's architecture, tied embeddings)."""

    width: Size = 192
    layers: Count = 6
    heads: Count = 6
    kv_heads: Count = 3
    mlp_width: Size = 512
    max_positions: Size = 1024

    @model_validator(mode="after")
    def _heads_fit(self) -> LmArch:
        # Rotary positions turn pairs of values.
        if self.width % (2 * self.heads) or self.heads % self.kv_heads:
            raise ValueError(
                f"heads = {self.heads} must divide width = {self.width} into even widths, and "
                f"kv_heads = {self.kv_heads} must divide heads"
            )
        return self


def from_scratch(arch: LmArch, vocab_size: int) -> dict[str, Any]:
    """The transformers config, as a dict, of a small Qwen2."""
    return {
        "model_type": "qwen2",
        "vocab_size": vocab_size,
        "hidden_size": arch.width,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.kv_heads,
        "intermediate_size": arch.mlp_width,
        "max_position_embeddings": arch.max_positions,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    }


def build(arch: Mapping[str, Any]) -> PreTrainedModel:
    """A causal LM from a transformers config, with its own random weights, in float32."""
    with _without_collection():
        from transformers import AutoModelForCausalLM

        config = _config(arch)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


@contextmanager
def _without_collection() -> Iterator[None]:
    """Switch Python's search for cyclic garbage off, for a while.

    The import of transformers makes hundreds of thousands of objects that stay. To search them
    again and again takes a fifth of its time, half a second of the start of `tarkit generate`.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def skeleton(arch: Mapping[str, Any]) -> PreTrainedModel:
    """The same on the meta device, but with the buffers that no file holds (rotary frequencies)."""
    with torch.device("meta"):
        model = build(arch)
    for module in model.modules():
        # There is no public way: transformers' own loading makes these buffers as here.
        if names := module._non_persistent_buffers_set:
            for name in names:
                module._buffers[name] = torch.empty_like(getattr(module, name), device="cpu")
            model._init_weights(module)
    return model


def _config(arch: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    settings = dict(arch)
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


@torch.no_grad()
def fit_width(codebook: Tensor, width: int) -> Tensor:
    """A codebook (K, C) -> (K, `width`), by a random rotation of its main directions.

    The projection is V Q: V (C, r) are the r = min(C, width) directions in which the codes are
    longest, Q (r, width) random orthonormal rows. To a wider model, lengths and angles of the codes
    stay as they are; to a narrower one no projection keeps more of them. How codes lie to the text
    embeddings is lost, because a model of another width has others.
    """
    exact = codebook.double()
    _, directions = torch.linalg.eigh(exact.T @ exact)  # ascending
    kept = directions[:, -min(width, codebook.shape[1]) :]
    rotation = torch.linalg.qr(torch.randn(width, kept.shape[1], dtype=torch.float64)).Q
    return (exact @ kept @ rotation.T).to(codebook.dtype)


@torch.no_grad()
def grow(
    model: PreTrainedModel,
    visual: VisualVocabulary,
    codebook: Tensor | None,
    *,
    start: EmbeddingStart,
    norm: Literal["unit", "text"] = "unit",
) -> PreTrainedModel:
    """Extend the vocabulary to `visual.size` rows, in place, and return the model.

    The rows of the codes start by `start`: "codebook" copies C (K, D), with `norm="unit"` as it is
    (published), with "text" scaled to the mean norm of the text rows; "mean" copies the mean text
    row; "random" draws from a normal distribution around 0 with the text rows' standard deviation.
    Rows of the table beyond the text (Qwen pads its table) are cut, as published. The tags' rows
    are drawn around the mean text row. In an untied head, the new rows equal the input rows. Raises
    ValueError where the codebook is missing or of another shape.
    """
    base = model.get_input_embeddings().weight.detach()[: visual.first_id].clone()
    head = model.get_output_embeddings().weight.detach()[: visual.first_id].clone()
    tied = bool(model.config.tie_word_embeddings)
    mean, spread = base.mean(0), float(base.std())
    tags = mean + torch.randn(visual.NUM_TAGS, base.shape[1]) * spread
    shape = (visual.num_codes, base.shape[1])
    if start == "codebook":
        if codebook is None or tuple(codebook.shape) != shape:
            given = None if codebook is None else tuple(codebook.shape)
            raise ValueError(f"the codebook is {given}, the embedding rows to start are {shape}")
        codes = codebook * (base.norm(dim=1).mean() if norm == "text" else 1.0)
    elif start == "mean":
        codes = mean.expand(shape)
    else:
        codes = torch.randn(shape) * spread
    model.resize_token_embeddings(visual.size, mean_resizing=False)
    model.get_input_embeddings().weight.copy_(torch.cat([base, tags, codes]))
    if not tied:
        model.get_output_embeddings().weight.copy_(torch.cat([head, tags, codes]))
    return model


class Projector(nn.Sequential):
    """Features of a frozen vision encoder (M, W) -> embeddings (M, D): an MLP of two layers.

    Source: Janus (Wu et al. 2024, Sec. 3.1), as the paper compares with it (Sec. 4.3). Features are
    normalised first, which Janus does not: those before an encoder's last norm are of any length.
    """

    def __init__(self, feature_width: int, width: int) -> None:
        super().__init__(
            nn.LayerNorm(feature_width),
            nn.Linear(feature_width, width),
            nn.GELU(),
            nn.Linear(width, width),
        )


PROJECTOR = "projector"
"""The name of the projector in the language model whose part it is."""


def projector_of(model: PreTrainedModel) -> Projector | None:
    """The projector of a model that reads features; None of another model."""
    projector: Projector | None = getattr(model, PROJECTOR, None)
    return projector


def embedded(model: PreTrainedModel, ids: Tensor, features: Tensor) -> Tensor:
    """The embeddings (B, T, D) of ids (B, T); those beyond the vocabulary are `features`, in order.

    `features`, (M, D), has a row for each such position, row by row of the ids.
    """
    table = model.get_input_embeddings()
    is_feature = ids >= model.config.vocab_size
    embeddings = table(ids.masked_fill(is_feature, 0))
    return embeddings.masked_scatter(is_feature[..., None], features.to(embeddings.dtype))


class Packed(NamedTuple):
    """Several chats in each row; no chat attends to another."""

    ids: Tensor  # (P, T) int64
    labels: Tensor  # (P, T) int64: ids[t] where position t is supervised, else -100
    positions: Tensor  # (P, T) int64, each chat from 0
    chats: Tensor  # (P, T) int64, number of the chat in its row; -1: padding
    numbers: Tensor  # (P, T) int64, number of the chat, as `pack` was given it; -1: padding


def pack(
    chats: Sequence[tuple[Sequence[int], Sequence[int]]],
    length: int,
    *,
    numbers: Sequence[int] | None = None,
) -> Packed:
    """Pack chats (ids, labels) into rows of at most `length` tokens.

    `numbers`: what each chat is known by; None: its place among `chats`. First-fit decreasing:
    longest chat first, each into the first row with room. No chats make one row of one padding
    token. Raises ValueError for a chat longer than a row: to cut it could cut a picture.
    """
    order = sorted(range(len(chats)), key=lambda i: (-len(chats[i][0]), i))
    rows: list[list[int]] = []
    room: list[int] = []
    for index in order:
        need = len(chats[index][0])
        if need > length:
            raise ValueError(f"a chat has {need} tokens, a row holds {length}")
        place = next((r for r, free in enumerate(room) if free >= need), None)
        if place is None:
            rows.append([])
            room.append(length)
            place = len(rows) - 1
        rows[place].append(index)
        room[place] -= need
    if not rows:
        rows, room = [[]], [length - 1]
    width = length - min(room)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100, dtype=torch.long)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    in_row = torch.full((len(rows), width), -1, dtype=torch.long)
    among_all = in_row.clone()
    for r, members in enumerate(rows):
        at = 0
        for number, index in enumerate(members):
            chat, target = chats[index]
            span = slice(at, at + len(chat))
            ids[r, span] = torch.tensor(chat)
            labels[r, span] = torch.tensor(target)
            positions[r, span] = torch.arange(len(chat))
            in_row[r, span] = number
            among_all[r, span] = index if numbers is None else numbers[index]
            at += len(chat)
    return Packed(ids, labels, positions, in_row, among_all)


# ---- attention of packed rows ------------------------------------------------------------------

Attention = Literal["flex_attention", "sdpa", "eager"]


def packed_attention(model: PreTrainedModel, device: torch.device) -> str:
    """The attention implementation, by transformers' name, of packed rows on a device.

    On CUDA flex attention, whose block mask takes no (P, 1, T, T) memory, where the family has it,
    heads are at least 16 wide (less has no kernel) and there is no attention dropout (which it
    lacks). Otherwise the family's default, SDPA or eager, with a dense mask: on a CPU, flex
    attention has no backward pass.
    """
    config = model.config
    heads = int(getattr(config, "num_attention_heads", 1))
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    flex = (
        device.type == "cuda"
        and model._supports_flex_attn
        and head_width >= 16
        and not getattr(config, "attention_dropout", 0.0)
    )
    return "flex_attention" if flex else default_attention(model)


def default_attention(model: PreTrainedModel) -> str:
    """SDPA, or eager for a family without it."""
    return str(model.get_correct_attn_implementation(None))


def use_attention(model: PreTrainedModel, name: str) -> None:
    """Set a model's attention implementation, by transformers' name."""
    if model.config._attn_implementation != name:
        model.set_attn_implementation(name)
        log.info("attention of the %s: %s", model.config.model_type, name)


def hidden_states(
    model: PreTrainedModel,
    packed: Packed,
    *,
    attention: Attention | None = None,
    features: Tensor | None = None,
) -> Tensor:
    """The last hidden states (P, T, D) of packed chats; `attention` None: `packed_attention`.

    `features`, (M, D): what stands at the positions of features, as `embedded` takes them.

    No chat attends to another. The model itself makes the mask, each layer its own kind: it takes
    a position that does not follow the one before for the beginning of a chat. That needs neither
    a padding mask nor a cache. `require_packable` says whether a family does so. The setting stays
    on the model, as the layers may run again in the backward pass.
    """
    use_attention(model, attention or packed_attention(model, packed.ids.device))
    read: dict[str, Any] = {"input_ids": packed.ids}
    if features is not None:
        read = {"inputs_embeds": embedded(model, packed.ids, features)}
    out = model.base_model(**read, position_ids=packed.positions, use_cache=False)
    states: Tensor = out.last_hidden_state
    return states


# ---- loss --------------------------------------------------------------------------------------

# Logits that are held at once by default: 256 MB in float32, of which the loss holds three copies.
LOGITS_AT_ONCE = 2**26


def rescaled(model: PreTrainedModel, logits: Tensor) -> Tensor:
    """Logits of the head as the model's family scales or caps them.

    Granite divides by `logits_scaling`, Cohere multiplies by `logit_scale`, Gemma 2 and others cap
    at `final_logit_softcapping`; `require_packable` finds families that do something else.
    """
    config = model.config
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (factor := getattr(config, "logit_scale", None)) is not None:
        logits = logits * factor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def head_logits(model: PreTrainedModel, states: Tensor) -> Tensor:
    """The model's own logits (..., V) after hidden states (..., D)."""
    return rescaled(model, model.get_output_embeddings()(states))


def _token_losses(model: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(head_logits(model, states).float(), targets, reduction="none")


def vocabulary_losses(
    model: PreTrainedModel, states: Tensor, targets: Tensor, *, chunk_tokens: int | None = None
) -> Tensor:
    """Cross-entropy (M,) float32 of targets (M,) after hidden states (M, D), chunk by chunk.

    Only the logits of `chunk_tokens` tokens are held at once, and those of more than one chunk are
    computed again in the backward pass. None: as many tokens as make 2^26 logits.
    """
    size = chunk_tokens or max(1, LOGITS_AT_ONCE // int(model.config.vocab_size))
    if len(targets) <= size:
        return _token_losses(model, states, targets)
    losses = [
        checkpoint(_token_losses, model, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in zip(states.split(size), targets.split(size), strict=True)
    ]
    return torch.cat(losses)


class PackedLoss(nn.Module):
    """Cross-entropy of the supervised tokens of packed chats (paper Sec. 3.3)."""

    def __init__(
        self,
        lm: PreTrainedModel,
        *,
        chunk_tokens: int | None = None,
        attention: Attention | None = None,
    ) -> None:
        """`chunk_tokens`: see `vocabulary_losses`; `attention`: see `hidden_states`."""
        super().__init__()
        self.lm = lm
        self.chunk_tokens = chunk_tokens
        self.attention = attention

    def forward(self, packed: Packed, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Loss (M,) and target (M,) of every supervised token.

        `features`: those of a vision encoder, one at each position of the chats that holds one.
        """
        if features is not None:
            features = self.lm.get_submodule(PROJECTOR)(features)
        # A label is predicted from the position before it, which must be of the same chat; the
        # first token of a chat is never supervised.
        states = hidden_states(self.lm, packed, attention=self.attention, features=features)[:, :-1]
        targets = packed.labels[:, 1:]
        supervised = targets != -100
        losses = vocabulary_losses(
            self.lm, states[supervised], targets[supervised], chunk_tokens=self.chunk_tokens
        )
        return losses, targets[supervised]


# ---- which families can be trained -------------------------------------------------------------

# Token ids of two chats that can stand first in a row, and of a shorter one that then follows.
_FIRST, _OTHER_FIRST, _SECOND = (1, 2, 3, 4, 5, 6), (7, 8, 9, 10, 11, 12), (3, 9, 5, 2)


@torch.no_grad()
def require_packable(model: PreTrainedModel) -> None:
    """Raise ValueError unless the packed loss of a model is its own loss of each chat.

    Two small forward passes decide, not the family's name: the hidden states of a chat must not
    depend on the chat before it (layers with a state or a convolution carry one chat into the
    next), and `head_logits` must be the model's own logits.
    """
    family = model.config.model_type
    training = model.training
    model.eval()
    try:
        states = []
        for first in (_FIRST, _OTHER_FIRST):
            packed = pack([(first, first), (_SECOND, _SECOND)], 16)
            packed = Packed(*(part.to(model.device) for part in packed))
            states.append(hidden_states(model, packed)[packed.chats == 1])
        alone = torch.tensor([_FIRST], device=model.device)
        ours = head_logits(model, model.base_model(input_ids=alone).last_hidden_state)
        theirs = model(input_ids=alone).logits
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{family} models cannot read packed chats: {error}") from None
    finally:
        model.train(training)
    if not _agree(*states):
        raise ValueError(
            f"{family} models carry one packed chat into the next, as layers with a state or a "
            "convolution do"
        )
    if not _agree(ours, theirs):
        raise ValueError(f"{family} models change their logits after the head in an unknown way")


def _agree(a: Tensor, b: Tensor) -> bool:
    """Whether two results of the same computation are equal but for rounding."""
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


def code_log_probs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    codes: Tensor,
    *,
    visual: VisualVocabulary,
    temperature: float = 1.0,
    guidance: float = 1.0,
    unguided: Sequence[Sequence[int]] = (),
) -> Tensor:
    """The natural log-probability (B, N) of each of the codes (B, N) in [0, K) after its prompt.

    The distribution is the one `generate_codes` draws from: over codes alone, at a temperature and
    with guidance. No gradient flows through the logits after `unguided`.
    """
    logits = _code_logits(model, prompts, codes, visual)
    if guidance != 1:
        if len(unguided) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, {len(unguided)} to guide them away from")
        with torch.no_grad():
            unconditional = _code_logits(model, unguided, codes, visual)
        logits = unconditional + (logits - unconditional) * guidance
    log_probs = (logits / temperature).log_softmax(-1)
    return log_probs.gather(2, codes.to(model.device)[..., None]).squeeze(-1)


def _code_logits(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    codes: Tensor,
    visual: VisualVocabulary,
) -> Tensor:
    """The logits (B, N, K) float32 of every code at each position of the codes (B, N)."""
    first, last = visual.first_code, visual.first_code + visual.num_codes
    num_codes = codes.shape[1]
    longest = max(map(len, prompts)) + num_codes
    ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=model.device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt, device=model.device)
        ids[row, len(prompt) : len(prompt) + num_codes] = codes[row].to(model.device) + first
        mask[row, : len(prompt) + num_codes] = 1
    # Without a cache: layers may run again in the backward pass.
    out = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    hidden = out.last_hidden_state
    # The state before a code predicts it.
    starts = torch.tensor([len(prompt) - 1 for prompt in prompts], device=model.device)
    places = starts[:, None] + torch.arange(num_codes, device=model.device)
    before = hidden[torch.arange(len(prompts), device=model.device)[:, None], places]
    head = model.get_output_embeddings().weight[first:last]
    return rescaled(model, before @ head.T).float()


@torch.no_grad()
def code_log_likelihood(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    codes: Tensor,
    *,
    visual: VisualVocabulary,
) -> Tensor:
    """The mean (B,) of `code_log_probs` over the codes of a picture."""
    return code_log_probs(model, prompts, codes, visual=visual).mean(1)
