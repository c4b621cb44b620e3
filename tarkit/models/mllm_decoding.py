"""Drawing codes and words from the multimodal language model, one token of each sequence at a time.

Source: paper Sec. 3.3. The keys and values of a batch lie in memory that is reserved once. Equal
prompts, such as those of several samples and the empty one of guidance, are read once.

Letters: B sequences, U different prompts, T positions, C positions that are reserved, D width,
V vocabulary, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from tarkit.errors import UserError
from tarkit.models.cuda_graph import Record, record_cuda_graph
from tarkit.models.mllm import default_attention, embedded, head_logits, rescaled, use_attention
from tarkit.models.sampling import Generators, draw
from tarkit.models.skinny import product
from tarkit.vocab import VisualVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ReservedLayer(DynamicLayer):
    """One layer's keys and values, (B, heads, C, D / heads), in memory that is reserved once.

    The first update keeps the prompts' own tensors, (U, heads, T, D / heads).
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_initialized = False
        self.length = 0
        self.place: Tensor | None = None
        """Where the next position is written, (1,) int64: then all C positions are returned."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.keys, self.values = key_states, value_states
            self.length, self.is_initialized = key_states.shape[2], True
            return key_states, value_states
        if self.place is not None:
            self.keys.index_copy_(2, self.place, key_states)
            self.values.index_copy_(2, self.place, value_states)
            return self.keys, self.values
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length

    def reserve(self, rows: Tensor, num_positions: int) -> None:
        """Give each sequence the keys and values of its prompt, `rows` (B,), and room for C."""
        for name in ("keys", "values"):
            prompts: Tensor = getattr(self, name)
            _, heads, _, width = prompts.shape
            kept = prompts.new_zeros(len(rows), heads, num_positions, width)
            kept[:, :, : self.length] = prompts[rows]
            setattr(self, name, kept)


def layer_windows(model: PreTrainedModel) -> list[int | None]:
    """How many positions each layer sees, None for all; [] where a layer keeps anything else.

    Such a family, with states or convolutions, decodes with its own cache: the plain path.
    """
    try:
        layers = DynamicCache(config=model.config).layers
    except Exception:  # a config of a family that has a cache of its own
        return []
    chunked = "chunked_attention" in (getattr(model.config, "layer_types", None) or ())
    kinds = {type(layer) for layer in layers}
    if not kinds or chunked or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return []
    return [getattr(layer, "sliding_window", None) for layer in layers]


def num_positions(model: PreTrainedModel) -> int | None:
    """How many tokens a sequence of the model may have; None for a family without a limit."""
    positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return positions or None


def require_positions(model: PreTrainedModel, num_tokens: int, num_new: int = 0) -> None:
    """Raises UserError where a prompt and what follows it have more tokens than positions."""
    positions = num_positions(model)
    if positions is not None and num_tokens + num_new > positions:
        more = f" and {num_new:,} more follow" if num_new else ""
        raise UserError(
            f"a prompt has {num_tokens:,} tokens{more}, the model has {positions:,} positions",
            hint="shorten the prompt, ask for fewer tokens, or give fewer or smaller pictures",
        )


class CachedDecoding:
    """Sequences that begin with prompts of any lengths and are extended by one token at a time.

    `hidden`, (B, D), is the last hidden state of every sequence: it predicts the next token.
    Prompts are padded on the left. On a GPU a step is a CUDA graph where the family allows it:
    launching its thousand kernels takes longer than running them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        *,
        num_steps: int,
        features: Sequence[Tensor] = (),
        record: Record | None = None,
    ) -> None:
        """`num_steps`: how often `feed` is called at most; `record`: how a step is recorded.

        `features`: of each prompt the embeddings (M, D) at its positions of features, in order.

        Raises UserError for a prompt with more tokens than the model has positions.
        """
        self.model = model
        use_attention(model, default_attention(model))
        self.longest = longest = max(map(len, prompts))
        self.num_fed = 0
        require_positions(model, longest)
        positions = num_positions(model)
        if positions is not None:
            num_steps = min(num_steps, positions - longest)
        device = model.device
        # Whether a layer sees all positions or a window of them is the mask's part alone.
        self.windows = layer_windows(model) if num_steps else []
        self.layers = [ReservedLayer() for _ in self.windows]
        self.cache: Any = Cache(layers=list(self.layers)) if self.layers else None
        shared = bool(self.layers) or not num_steps
        # Prompts of equal ids may hold other features.
        is_unique = not shared or bool(features)
        different = list(prompts) if is_unique else list(dict.fromkeys(map(tuple, prompts)))
        padding = [longest - len(prompt) for prompt in different]
        ids = [[*[0] * pad, *prompt] for pad, prompt in zip(padding, different, strict=True)]
        real = torch.arange(longest + num_steps) >= torch.tensor(padding)[:, None]
        self.length = 0
        self._graph: _RecordedStep | None = None
        self._mask = real.long().to(device)
        self._lengths = torch.tensor([[len(prompt)] for prompt in different], device=device)
        self._is_padded = any(padding)
        hidden = self._run(
            torch.tensor(ids, device=device),
            (self._mask[:, :longest].cumsum(1) - 1).clamp(min=0),
            keeps=num_steps > 0,
            features=torch.cat(list(features)) if features else None,
        )
        if not shared:
            self.hidden = hidden
            return
        place = {tuple(prompt): row for row, prompt in enumerate(different)}
        numbers = range(len(prompts)) if is_unique else [place[tuple(each)] for each in prompts]
        rows = torch.tensor(numbers, device=device)
        self.hidden = hidden[rows]
        if num_steps == 0:
            return
        self._mask, self._lengths = self._mask[rows], self._lengths[rows]
        for layer in self.layers:
            layer.reserve(rows, longest + num_steps)
        record = record or (record_cuda_graph if device.type == "cuda" else None)
        # The families that transformers itself can compile take masks and places as tensors.
        if record and getattr(model, "_can_compile_fullgraph", False):
            self._graph = _RecordedStep(self, record)

    def _run(
        self,
        ids: Tensor,
        positions: Tensor,
        *,
        keeps: bool = True,
        features: Tensor | None = None,
    ) -> Tensor:
        self.length += ids.shape[1]
        read: dict[str, Tensor] = {"input_ids": ids}
        if features is not None:
            read = {"inputs_embeds": embedded(self.model, ids, features)}
        # Without padding the model needs no mask; a family's own cache may need one.
        masked = self._is_padded or not self.layers
        out = self.model.base_model(
            **read,
            attention_mask=self._mask[:, : self.length] if masked else None,
            position_ids=positions,
            cache=self.cache,
            use_cache=keeps,
        )
        self.cache = out.cache
        states: Tensor = out.last_hidden_state[:, -1]
        return states

    def feed(self, ids: Tensor) -> None:
        """Append one token (B,) to every sequence.

        Raises UserError where the longest sequence has as many tokens as the model has positions.
        """
        self.num_fed += 1
        require_positions(self.model, self.longest, self.num_fed)
        if self._graph is not None:
            self.hidden = self._graph.run(ids, self._lengths)
        else:
            self.hidden = self._run(ids[:, None], self._lengths)
        self._lengths = self._lengths + 1


class _RecordedStep:
    """A step that is recorded once and replayed: its inputs are tensors that stay where they are.

    It attends to all C reserved positions under masks (B, 1, 1, C), one for each kind of layer:
    0 for a position that is seen, else the least number of the type.
    """

    def __init__(self, decoding: CachedDecoding, record: Record) -> None:
        model, mask = decoding.model, decoding._mask
        self._ids = torch.zeros_like(mask[:, :1])
        self._positions = torch.zeros_like(mask[:, :1])
        self._place = torch.tensor([decoding.length], device=mask.device)
        self._is_prompt, self._cells = mask.bool(), torch.arange(mask.shape[1], device=mask.device)
        self._masks = {
            window: torch.zeros(len(mask), 1, 1, mask.shape[1], dtype=model.dtype).to(mask.device)
            for window in dict.fromkeys(decoding.windows)
        }
        self._hide()
        kinds = {
            "sliding_attention" if window else "full_attention": mask
            for window, mask in self._masks.items()
        }
        given: Any = kinds if len(kinds) > 1 else next(iter(kinds.values()))
        for layer in decoding.layers:
            layer.place = self._place

        def step() -> Tensor:
            states: Tensor = model.base_model(
                input_ids=self._ids,
                attention_mask=given,
                position_ids=self._positions,
                cache=decoding.cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            return states

        self._replay, self._hidden = record(step)

    def _hide(self) -> None:
        """Write the masks of the present place."""
        for window, mask in self._masks.items():
            seen = self._is_prompt & (self._cells <= self._place)
            if window:
                seen &= self._cells > self._place - window
            mask.zero_().masked_fill_(~seen[:, None, None], torch.finfo(mask.dtype).min)

    def run(self, ids: Tensor, positions: Tensor) -> Tensor:
        """The hidden states (B, D) after tokens (B,) at positions (B, 1)."""
        self._ids.copy_(ids[:, None])
        self._positions.copy_(positions)
        self._hide()
        self._replay()
        self._place += 1
        return self._hidden.clone()


@torch.no_grad()
def generate_codes(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    visual: VisualVocabulary,
    num_codes: int,
    temperature: float,
    top_k: int,
    top_p: float,
    generator: Generators = None,
    guidance: float = 1.0,
    unguided: Sequence[Sequence[int]] = (),
    features: Sequence[Tensor] = (),
    record: Record | None = None,
) -> Tensor:
    """Draw exactly `num_codes` codes after each prompt: (B, num_codes) int64 in [0, K).

    Prompts are token ids; `features` are those of each, as `CachedDecoding` takes them.

    With `guidance` other than 1 the logits are u + (c - u) * guidance, c after a prompt and u after
    its counterpart in `unguided`, both followed by the same codes (Ho & Salimans 2022, Eq. 6, on
    tokens). Only the head's rows of codes are computed: no other token can be drawn, and ids never
    pass through text. The published program samples the whole vocabulary, reads codes back by
    regular expression, and fills missing ones with code 0. Raises ValueError
    where `unguided` does not pair with the prompts.
    """
    first, last = visual.first_code, visual.first_code + visual.num_codes
    head = model.get_output_embeddings().weight[first:last]
    guided = guidance != 1
    if guided and len(unguided) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts, {len(unguided)} to guide them away from")
    both = [*prompts, *unguided] if guided else prompts
    require_positions(model, max(map(len, both)), num_codes - 1)  # the last code is not read
    if guided:
        features = [*features, *(rows[:0] for rows in features)]
    decoding = CachedDecoding(
        model, both, num_steps=num_codes - 1, features=features, record=record
    )
    codes: list[Tensor] = []
    for step in range(num_codes):
        logits = rescaled(model, product(decoding.hidden, head))
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + (conditional - unconditional) * guidance
        code = draw(
            logits,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
        )
        codes.append(code)
        if step + 1 < num_codes:
            decoding.feed((torch.cat([code, code]) if guided else code) + first)
    return torch.stack(codes, dim=1)


@torch.no_grad()
def generate_text(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    stop: Sequence[int],
    text_size: int,
    max_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: Generators = None,
    features: Sequence[Tensor] = (),
    record: Record | None = None,
) -> list[list[int]]:
    """At most `max_tokens` text ids after each prompt, up to and without the first stop id.

    Only ids below `text_size` can be drawn. Defaults: greedy. `features` are those of each prompt,
    as `CachedDecoding` takes them.
    """
    head = model.get_output_embeddings().weight[:text_size]
    decoding = CachedDecoding(
        model, prompts, num_steps=max_tokens - 1, features=features, record=record
    )
    texts: list[list[int]] = [[] for _ in prompts]
    unfinished = set(range(len(prompts)))
    for step in range(max_tokens):
        token = draw(
            rescaled(model, product(decoding.hidden, head)),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
        )
        for row in list(unfinished):
            value = int(token[row])
            if value in stop:
                unfinished.discard(row)
            else:
                texts[row].append(value)
        if not unfinished or step + 1 == max_tokens:
            break
        decoding.feed(token)
    return texts


@torch.no_grad()
def next_logits(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, features: Sequence[Tensor] = ()
) -> Tensor:
    """The logits (B, V) of the first token after each prompt."""
    return head_logits(model, CachedDecoding(model, prompts, num_steps=0, features=features).hidden)
