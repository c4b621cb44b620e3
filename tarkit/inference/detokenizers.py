"""What turns TA-Tok's decoded features into pixels: autoregressive or by diffusion.

Source: paper Sec. 3.2 (AR-DTok and Dif-DTok). Both draw from one condition (B, N, W) and one
generator a picture, so that a picture depends on its own codes and seed alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tarkit.checkpoints.hub import NEGATIVE, SANA_PARTS
from tarkit.checkpoints.load import load_ar_dtok, load_vqvae
from tarkit.checkpoints.published import read_tensor
from tarkit.errors import UserError
from tarkit.models.ar_dtok import ArDtok
from tarkit.models.vqvae import Vqvae

if TYPE_CHECKING:
    from diffusers import SanaPipeline


class ArDetokenizer(NamedTuple):
    """AR-DTok and the image VQ whose codes it writes."""

    ar_dtok: ArDtok
    vqvae: Vqvae

    @classmethod
    def load(cls, ar_dtok: Path, vqvae: Path, dtype: torch.dtype = torch.float32) -> ArDetokenizer:
        """Load both, the image VQ in float32 whatever `dtype` AR-DTok's weights are kept in.

        Raises UserError where the one writes more or fewer codes than the other reads.
        """
        loaded = cls(load_ar_dtok(ar_dtok, dtype), load_vqvae(vqvae))
        written, read = loaded.ar_dtok.arch.vocab_size, loaded.vqvae.arch.num_codes
        if written != read:
            raise UserError(
                f"{ar_dtok} has vocab_size {written}, the parts beside it need {read}",
                hint="name parts that belong together",
            )
        return loaded

    @property
    def condition_width(self) -> int:
        return self.ar_dtok.arch.condition_width

    @property
    def size_px(self) -> int:
        """Side of the pictures drawn."""
        return math.isqrt(self.ar_dtok.arch.num_codes) * self.vqvae.arch.downsampling

    def to(self, device: str | torch.device) -> None:
        self.ar_dtok.to(device)
        self.vqvae.to(device)

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


MAX_SIZE_PX = 4096  # the largest SANA; a config.json could claim any size
SCHEDULERS = ("DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler")
REFETCH = "tarkit models fetch tar-1.5b --dtok dif"


@dataclass(frozen=True)
class DifDetokenizer:
    """Dif-DTok: SANA with TA-Tok's features where its text embeddings would be.

    The features of an empty picture, against which guidance works, come with the model: (M, W).
    """

    pipeline: SanaPipeline
    negative: Tensor

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> DifDetokenizer:
        """Load a published folder, strictly; `dtype` is the transformer's, the VAE has float32.

        Only transformer, VAE, scheduler and negative embeddings are read, each as the class that is
        known here: what else the folder holds or names is neither loaded nor run.
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
                f"{folder} is no diffusion de-tokenizer: it lacks {', '.join(absent)}", hint=REFETCH
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
        return int(self.pipeline.transformer.config.caption_channels)

    @property
    def size_px(self) -> int:
        """Side of the pictures it was trained on."""
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

        Condition and negative embeddings may differ in length, as they do at scales 2 and 3: the
        shorter is masked up to the longer, which changes neither (the published program can only
        concatenate equal lengths). A picture is drawn at the size the model was trained on, where
        the published program leaves diffusers' 1024 px to every model.
        """
        negative = self.negative.to(condition).expand(len(condition), -1, -1)
        length = max(condition.shape[1], negative.shape[1])
        wanted, wanted_mask = _masked(condition, length)
        unwanted, unwanted_mask = _masked(negative, length)
        return self.pipeline(
            prompt_embeds=wanted,
            prompt_attention_mask=wanted_mask,
            negative_prompt=None,
            negative_prompt_embeds=unwanted,
            negative_prompt_attention_mask=unwanted_mask,
            guidance_scale=guidance,
            num_inference_steps=steps,
            height=self.size_px,
            width=self.size_px,
            use_resolution_binning=False,
            generator=list(generators),
            output_type="pt",
        ).images.float()


def _check_sizes(pipeline: SanaPipeline, folder: Path) -> None:
    """UserError where the parts do not fit each other, or would draw what no SANA draws."""
    latents, drawn = pipeline.vae.config.latent_channels, pipeline.transformer.config
    if latents != drawn.in_channels:
        raise UserError(
            f"{folder}: the VAE has {latents} latent channels, the transformer {drawn.in_channels}",
            hint=REFETCH,
        )
    side = drawn.sample_size * pipeline.vae_scale_factor
    if not isinstance(side, int) or side % 32 or not 0 < side <= MAX_SIZE_PX:
        raise UserError(
            f"{folder} would draw {side} px: expected a multiple of 32 up to {MAX_SIZE_PX}",
            hint=REFETCH,
        )


def _masked(features: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """(B, n, W) filled with zeros up to (B, length, W), and which of them are real."""
    batch, own, width = features.shape
    filled = features.new_zeros(batch, length, width)
    filled[:, :own] = features
    mask = torch.zeros(batch, length, dtype=torch.int16, device=features.device)
    mask[:, :own] = 1
    return filled, mask


def _strict(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A diffusers model from its folder; UserError names every key that does not fit."""
    try:
        model, told = cls.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers raises many kinds for what is wrong with a folder
        message = " ".join(str(error).split())[:400]
        raise UserError(f"{folder} is no {cls.__name__}: {message}", hint=REFETCH) from None
    faults = [f"missing {key}" for key in told["missing_keys"]]
    faults += [f"unexpected {key}" for key in told["unexpected_keys"]]
    faults += [f"misshaped {key}" for key in told["mismatched_keys"]]
    if faults:
        more = f" and {len(faults) - 6} more" if len(faults) > 6 else ""
        raise UserError(
            f"{folder} does not fit its own sizes: {'; '.join(faults[:6])}{more}", hint=REFETCH
        )
    return model.eval()


def _scheduler(folder: Path) -> Any:
    """The scheduler a folder names, if it is one that SANA is used with."""
    import diffusers

    try:
        named = json.loads((folder / "scheduler_config.json").read_text("utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} holds no scheduler: {error!r}", hint=REFETCH) from None
    if named not in SCHEDULERS:
        raise UserError(
            f"{folder} names the scheduler {named!r}, expected {' or '.join(SCHEDULERS)}",
            hint=REFETCH,
        )
    try:
        return getattr(diffusers, named).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above: a value that its constructor does not take
        raise UserError(f"{folder} makes no {named}: {error}", hint=REFETCH) from None
