"""Tokens per second of the language model's loss and its gradient (paper Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tarkit.bench.case import BenchSettings, Case, Floor, close_share
from tarkit.bench.cases.sample import language_model
from tarkit.models.mllm import Packed, PackedLoss, pack

ROW, TINY_ROW = 1024, 64


def cases(settings: BenchSettings) -> Iterator[Case]:
    model, visual = language_model(settings)
    model.requires_grad_(True)
    row = TINY_ROW if settings.tiny else ROW
    for name, lengths in (
        ("one chat a row", [row]),
        ("four chats a row", [row // 2, row // 4, row // 8, row // 8]),
    ):
        generator = settings.generator()
        chats = [
            torch.randint(visual.size, (length,), generator=generator).tolist()
            for length in lengths
        ]
        yield Case(
            name=f"loss and gradient, {name}",
            ours=_ours(model, _packed(chats, row, settings.device)),
            against={"stock": _stock(model, chats, settings.device)},
            floor=Floor(flops=6.0 * sum(p.numel() for p in model.parameters()) * row),
            count=row,
            unit="tokens",
            agreement=close_share,
        )


def _packed(chats: list[list[int]], row: int, device: torch.device) -> Packed:
    supervised = [(ids, [-100, *ids[1:]]) for ids in chats]
    return Packed(*(part.to(device) for part in pack(supervised, row)))


def _ours(model: Any, packed: Packed) -> Callable[[], Tensor]:
    """Packed rows, and logits of a part of the tokens at a time."""
    loss_of = PackedLoss(model)

    def way() -> Tensor:
        losses, _ = loss_of(packed)
        return _stepped(model, losses.mean())

    return way


def _stock(model: Any, chats: list[list[int]], device: torch.device) -> Callable[[], Tensor]:
    """A padded batch with labels, as examples of transformers train: all logits at once."""
    longest = max(map(len, chats))
    ids = torch.zeros(len(chats), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for number, chat in enumerate(chats):
        ids[number, : len(chat)] = torch.tensor(chat)
        labels[number, : len(chat)] = torch.tensor(chat)
        mask[number, : len(chat)] = 1
    ids, labels, mask = ids.to(device), labels.to(device), mask.to(device)

    def way() -> Tensor:
        out = model(input_ids=ids, labels=labels, attention_mask=mask, use_cache=False)
        return _stepped(model, out.loss)

    return way


def _stepped(model: Any, loss: Tensor) -> Tensor:
    """The loss and the sum of one gradient, after the backward pass; gradients are freed."""
    loss.backward()
    result = torch.stack([loss.detach(), model.model.norm.weight.grad.abs().sum()])
    model.zero_grad(set_to_none=True)
    return result
