"""Dif-DTok at work: TA-Tok's decoded features condition a diffusion model, SANA.

Source: paper Sec. 3.2. Each picture has its own random generator, so it depends only on its own
codes and seed.

B: pictures, N: image tokens, W: width of the features, S: side of a picture in pixels, M: length of
the negative embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tarkit.checkpoints.hub import NEGATIVE
from tarkit.checkpoints.sana import Sana, load_sana, read_negative
from tarkit.errors import UserError

if TYPE_CHECKING:
    from diffusers import SanaPipeline

REFETCH = "tarkit models fetch tar-1.5b --dtok dif"


@dataclass(frozen=True)
class DifDetokenizer:
    """Dif-DTok: SANA, with TA-Tok's features in place of its text embeddings.

    `negative` (M, W) holds the features of an empty picture for guidance; they are published with
    the model.
    """

    pipeline: SanaPipeline
    negative: Tensor

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> DifDetokenizer:
        """Load a published or trained folder; `dtype` is for the transformer, the VAE is float32.

        Reads only transformer, VAE, scheduler and negative embeddings. Raises UserError when a part
        is missing or does not fit.
        """
        if not (folder / NEGATIVE).exists():
            raise UserError(
                f"{folder} is not a diffusion de-tokenizer: it lacks {NEGATIVE}", hint=REFETCH
            )
        sana = load_sana(folder, dtype, hint=REFETCH)
        return cls.of(sana, read_negative(folder, sana.condition_width, hint=REFETCH))

    @classmethod
    def of(cls, sana: Sana, negative: Tensor) -> DifDetokenizer:
        """A SANA that is in memory, at work with the negative embeddings (M, W)."""
        from diffusers import SanaPipeline

        pipeline = SanaPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=sana.vae,
            transformer=sana.transformer,
            scheduler=sana.scheduler,
        )
        pipeline.set_progress_bar_config(disable=True)
        return cls(pipeline, negative)

    @property
    def condition_width(self) -> int:
        """W, the width of the features that it reads."""
        return int(self.pipeline.transformer.config.caption_channels)

    @property
    def size_px(self) -> int:
        """S, the side of the pictures that it was trained on and draws."""
        return int(self.pipeline.transformer.config.sample_size * self.pipeline.vae_scale_factor)

    def to(self, device: str | torch.device) -> None:
        self.pipeline.to(device)

    @torch.no_grad()
    def draw(
        self,
        condition: Tensor,
        *,
        guidance: float,
        steps: int,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Features (B, N, W) -> pixels (B, 3, S, S) in [0, 1].

        Condition and negative embeddings differ in length at scales 2 and 3: the shorter is
        extended by masked positions, which do not change the result (the published program can only
        concatenate equal lengths). A picture has the size that the model was trained on (the
        published program uses the default of diffusers, 1024 px, for every model).
        """
        negative = self.negative.to(condition).expand(len(condition), -1, -1)
        length = max(condition.shape[1], negative.shape[1])
        positive, positive_mask = _masked(condition, length)
        negative, negative_mask = _masked(negative, length)
        return self.pipeline(
            prompt_embeds=positive,
            prompt_attention_mask=positive_mask,
            negative_prompt=None,
            negative_prompt_embeds=negative,
            negative_prompt_attention_mask=negative_mask,
            guidance_scale=guidance,
            num_inference_steps=steps,
            height=self.size_px,
            width=self.size_px,
            use_resolution_binning=False,
            generator=list(generators),
            output_type="pt",
        ).images.float()


def _masked(features: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """(B, n, W) -> zero-padded features (B, length, W), and their mask (B, length), 1 up to n."""
    batch, num_features, width = features.shape
    filled = features.new_zeros(batch, length, width)
    filled[:, :num_features] = features
    mask = torch.zeros(batch, length, dtype=torch.int16, device=features.device)
    mask[:, :num_features] = 1
    return filled, mask
