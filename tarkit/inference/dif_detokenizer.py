"""Dif-DTok at work: TA-Tok's decoded features condition a diffusion model, SANA.

Source: paper Sec. 3.2. Each picture has its own random generator, so it depends only on its own
codes and seed.

B: pictures, N: image tokens, W: width of the features, S: side of a picture in pixels, M: length of
the negative embeddings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tarkit.checkpoints.hub import NEGATIVE, SANA_PARTS
from tarkit.checkpoints.published_pth import read_tensor
from tarkit.errors import UserError

if TYPE_CHECKING:
    from diffusers import SanaPipeline

MAX_SIZE_PX = 4096  # of the largest SANA; a config.json may state any size
SCHEDULERS = ("DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler")
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
        """Load a published folder; `dtype` is for the transformer, the VAE is always float32.

        Reads only transformer, VAE, scheduler and negative embeddings, each by a class that is
        fixed here; other files and classes that the folder names are neither loaded nor run.
        Raises UserError when a part is missing or does not fit.
        """
        try:
            from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel
        except ImportError as error:
            raise UserError(
                f"the diffusion de-tokenizer needs diffusers: {error}",
                hint="pip install 'tarkit[dif]'",
            ) from None

        absent = [name for name in (*SANA_PARTS, NEGATIVE) if not (folder / name).exists()]
        if absent:
            raise UserError(
                f"{folder} is not a diffusion de-tokenizer: it lacks {', '.join(absent)}",
                hint=REFETCH,
            )
        pipeline = SanaPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=_strict(AutoencoderDC, folder / "vae", torch.float32),
            transformer=_strict(SanaTransformer2DModel, folder / "transformer", dtype),
            scheduler=_scheduler(folder / "scheduler"),
        )
        pipeline.set_progress_bar_config(disable=True)
        negative = read_tensor(folder / NEGATIVE).float()
        loaded = cls(pipeline, negative)
        _check_sizes(pipeline, folder)
        if negative.dim() != 2 or negative.shape[1] != loaded.condition_width:
            raise UserError(
                f"{folder / NEGATIVE} is {list(negative.shape)}, expected a length and the "
                f"transformer's caption_channels {loaded.condition_width}",
                hint=REFETCH,
            )
        return loaded

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


def _check_sizes(pipeline: SanaPipeline, folder: Path) -> None:
    """Raises UserError when the parts do not fit each other, or for a size that no SANA has."""
    latents, transformer = pipeline.vae.config.latent_channels, pipeline.transformer.config
    if latents != transformer.in_channels:
        raise UserError(
            f"{folder}: the VAE has {latents} latent channels, "
            f"the transformer {transformer.in_channels}",
            hint=REFETCH,
        )
    side = transformer.sample_size * pipeline.vae_scale_factor
    if not isinstance(side, int) or side % 32 or not 0 < side <= MAX_SIZE_PX:
        raise UserError(
            f"{folder} would draw {side} px: expected a multiple of 32 up to {MAX_SIZE_PX}",
            hint=REFETCH,
        )


def _masked(features: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """(B, n, W) -> zero-padded features (B, length, W), and their mask (B, length), 1 up to n."""
    batch, num_features, width = features.shape
    filled = features.new_zeros(batch, length, width)
    filled[:, :num_features] = features
    mask = torch.zeros(batch, length, dtype=torch.int16, device=features.device)
    mask[:, :num_features] = 1
    return filled, mask


def _strict(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A diffusers model from its folder. Raises UserError that names the keys that do not fit."""
    try:
        model, loading_info = cls.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers raises exceptions of many types
        message = " ".join(str(error).split())[:400]
        raise UserError(f"{folder} is not a {cls.__name__}: {message}", hint=REFETCH) from None
    faults = [f"missing {key}" for key in loading_info["missing_keys"]]
    faults += [f"unexpected {key}" for key in loading_info["unexpected_keys"]]
    faults += [f"misshaped {key}" for key in loading_info["mismatched_keys"]]
    if faults:
        more = f" and {len(faults) - 6} more" if len(faults) > 6 else ""
        raise UserError(
            f"{folder} does not match its config.json: {'; '.join(faults[:6])}{more}", hint=REFETCH
        )
    return model.eval()


def _scheduler(folder: Path) -> Any:
    """The scheduler that a folder names. Raises UserError when SANA is not used with it."""
    import diffusers

    try:
        name = json.loads((folder / "scheduler_config.json").read_text("utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} has no scheduler: {error!r}", hint=REFETCH) from None
    if name not in SCHEDULERS:
        raise UserError(
            f"{folder} names the scheduler {name!r}, expected {' or '.join(SCHEDULERS)}",
            hint=REFETCH,
        )
    try:
        return getattr(diffusers, name).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above, here for values that the constructor refuses
        raise UserError(f"{folder} cannot make a {name}: {error}", hint=REFETCH) from None
