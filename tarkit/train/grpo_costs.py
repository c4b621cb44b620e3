"""What drawing costs in `train grpo`: pictures are drawn and scored before a step learns from them.

Counted as in `tarkit.train.costs`. A code is drawn from caches of keys and values: its attention
reads those before it alone. Drawing runs in float32, without autocast.

Letters: P tokens of a prompt, N codes of a picture, n condition positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from tarkit.models.ar_dtok import ArDtokArch
from tarkit.models.ta_tok import TaTokArch
from tarkit.models.vqvae import Vqvae, VqvaeArch
from tarkit.train.costs import TRAINED, Stack, conv_flops
from tarkit.train.workloads.ar_dtok import ar_dtok_stack
from tarkit.train.workloads.tokenizer import TaTokParts, decode_flops, ta_tok_parts


def drawing_flops(stack: Stack, head: int, read: float, drawn: int) -> float:
    """FLOPs of `drawn` tokens after `read` positions, and of the logits of each.

    The last token is not read. `head`: values of the matrix that gives the logits.
    """
    later = drawn - 1
    flops = stack.flops(read, read) + 2 * head * drawn
    return flops + stack.flops(later, read + (later + 1) / 2)


def cache_bytes(stack: Stack, positions: float) -> float:
    """Bytes of keys and values of so many positions, in float32."""
    return 4.0 * 2 * stack.layers * stack.kv_heads * stack.head_width * positions


class DtokCosts(NamedTuple):
    """The sizes that decide what AR-DTok's picture costs."""

    arch: ArDtokArch
    stack: Stack
    parts: TaTokParts
    decoding: float  # FLOPs of the image VQ's decoder

    @classmethod
    def of(cls, arch: ArDtokArch, vqvae: VqvaeArch, ta_tok: TaTokArch) -> DtokCosts:
        """Of the sizes of the three models that draw."""
        with torch.device("meta"):
            decoder = Vqvae(vqvae).decoder
        pixels = conv_flops(decoder, arch.side * vqvae.downsampling)
        return cls(arch, ar_dtok_stack(arch), ta_tok_parts(ta_tok), pixels)

    def flops(self, condition: int, *, guided: bool) -> float:
        """FLOPs of a picture from its `condition` codes of TA-Tok."""
        arch = self.arch
        projected = 2 * arch.condition_width * arch.width * condition
        codes = projected + drawing_flops(
            self.stack, arch.vocab_size * arch.width, condition, arch.num_codes
        )
        return decode_flops(self.parts, condition) + (2 if guided else 1) * codes + self.decoding


class PolicyCosts(NamedTuple):
    """The sizes that decide what a picture costs that is drawn and learned from."""

    stack: Stack
    head: int  # values of the head's rows of codes
    prompt_guided: bool
    dtok: DtokCosts | None  # None: of a de-tokenizer whose costs are not known
    dtok_guided: bool

    @property
    def passes(self) -> int:
        """Passes of the language model that make one distribution."""
        return 2 if self.prompt_guided else 1

    def drawing(self, prompt: float, codes: int) -> float:
        """FLOPs of drawing a picture of `codes` codes after a prompt of `prompt` tokens."""
        pixels = self.dtok.flops(codes, guided=self.dtok_guided) if self.dtok else 0.0
        return pixels + self.passes * drawing_flops(self.stack, self.head, prompt, codes)

    def reading(self, prompt: float, codes: int) -> float:
        """FLOPs of the log-probabilities of a picture's codes, without a gradient."""
        return self.passes * self._pass(prompt, codes)

    def learning(self, prompt: float, codes: int) -> float:
        """FLOPs of learning from it: no gradient flows through the empty prompt's logits."""
        return (TRAINED + self.passes - 1) * self._pass(prompt, codes)

    def _pass(self, prompt: float, codes: int) -> float:
        read = prompt + codes
        return self.stack.flops(read, read) + 2 * self.head * codes
