"""AR-DTok at work: TA-Tok's decoded features condition image-VQ codes, which become pixels.

Source: paper Sec. 3.2. Each picture has its own random generator, so it depends only on its own
codes and seed.

B: pictures, N: image tokens, W: width of the features, S: side of a picture in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tarkit.checkpoints.load import load_ar_dtok, load_vqvae
from tarkit.errors import UserError
from tarkit.models.ar_dtok import ArDtok
from tarkit.models.vqvae import Vqvae


class ArDetokenizer(NamedTuple):
    """AR-DTok and the image VQ whose codes it writes."""

    ar_dtok: ArDtok
    vqvae: Vqvae

    @classmethod
    def load(cls, ar_dtok: Path, vqvae: Path, dtype: torch.dtype = torch.float32) -> ArDetokenizer:
        """Load both; `dtype` is for AR-DTok, the image VQ is always float32.

        Raises UserError when their codebooks differ in size.
        """
        loaded = cls(load_ar_dtok(ar_dtok, dtype), load_vqvae(vqvae))
        vocab_size, num_codes = loaded.ar_dtok.arch.vocab_size, loaded.vqvae.arch.num_codes
        if vocab_size != num_codes:
            raise UserError(
                f"{ar_dtok} has vocab_size {vocab_size}, but {vqvae} has {num_codes} codes",
                hint="name parts that belong together",
            )
        return loaded

    @property
    def condition_width(self) -> int:
        """W, the width of the features that it reads."""
        return self.ar_dtok.arch.condition_width

    @property
    def size_px(self) -> int:
        """S, the side of the pictures that it draws."""
        return math.isqrt(self.ar_dtok.arch.num_codes) * self.vqvae.arch.downsampling

    def to(self, device: str | torch.device) -> None:
        self.ar_dtok.to(device)
        self.vqvae.to(device)
        self.vqvae.decoder.lay_out()

    def draw(
        self,
        condition: Tensor,
        *,
        guidance: float,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """Features (B, N, W) -> pixels (B, 3, S, S) in [0, 1]."""
        codes = self.ar_dtok.sample(
            condition.to(self.ar_dtok.abs_pe.dtype),
            guidance=guidance,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=generators,
        )
        return self.vqvae.decode(codes)
