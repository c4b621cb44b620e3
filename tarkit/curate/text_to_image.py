"""Text-to-image pipelines of diffusers, by hub id or folder: prompts in, pixels out.

Only safetensors are read and no code of a repository is run. Each picture has a generator of its
own, so its noise depends on its seed and not on its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tarkit.checkpoints.directory import precision_of
from tarkit.errors import UserError


class Job(NamedTuple):
    """One picture: its prompt and the seed of its noise."""

    prompt: str
    seed: int


Embed = Callable[[Any, Sequence[str], int], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Painter:
    """A loaded pipeline; `embed` gives its prompt embeddings where it can be drawn from them."""

    pipeline: Any
    embed: Embed | None
    device: str

    def paint(
        self,
        jobs: Sequence[Job],
        *,
        size_px: int,
        steps: int,
        guidance: float,
        max_prompt_tokens: int,
    ) -> list[np.ndarray | str]:
        """(size_px, size_px, 3) uint8 for every job in order, or the reason why there is none.

        Prompts that occur twice are embedded once. A batch that fails is drawn one by one.
        """
        if not jobs:
            return []
        try:
            return self._batch(jobs, size_px, steps, guidance, max_prompt_tokens)
        except torch.OutOfMemoryError:
            raise UserError(
                f"{len(jobs)} pictures of {size_px} px do not fit into memory",
                hint="--set batch_size=N, smaller",
            ) from None
        except (ValueError, RuntimeError) as error:
            if len(jobs) == 1:
                return [f"the pipeline failed: {' '.join(str(error).split())[:200]}"]
        return [
            self.paint(
                [job],
                size_px=size_px,
                steps=steps,
                guidance=guidance,
                max_prompt_tokens=max_prompt_tokens,
            )[0]
            for job in jobs
        ]

    def _batch(
        self,
        jobs: Sequence[Job],
        size_px: int,
        steps: int,
        guidance: float,
        max_prompt_tokens: int,
    ) -> list[np.ndarray | str]:
        said: dict[str, Any] = {"prompt": [job.prompt for job in jobs]}
        if self.embed is not None:
            said = dict(self._embedded(jobs, max_prompt_tokens))
        with torch.inference_mode():
            images = self.pipeline(
                **said,
                height=size_px,
                width=size_px,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
                output_type="np",
            ).images
        return [_pixels(image) for image in images]

    def _embedded(self, jobs: Sequence[Job], max_prompt_tokens: int) -> Mapping[str, Tensor]:
        assert self.embed is not None
        unique = list(dict.fromkeys(job.prompt for job in jobs))
        with torch.inference_mode():
            found = self.embed(self.pipeline, unique, max_prompt_tokens)
        places = torch.tensor([unique.index(job.prompt) for job in jobs])
        return {name: value[places.to(value.device)] for name, value in found.items()}


def _flux(pipeline: Any, prompts: Sequence[str], max_prompt_tokens: int) -> Mapping[str, Tensor]:
    embeds, pooled, _ = pipeline.encode_prompt(
        prompt=list(prompts), prompt_2=None, max_sequence_length=max_prompt_tokens
    )
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


# Pipelines that draw from embeddings, by class; any other is given the words each time.
EMBEDS: Mapping[str, Embed] = {"FluxPipeline": _flux}


def load_painter(model: str, *, device: str, precision: str) -> Painter:
    """The text-to-image pipeline of a folder or hub id; UserError where it is none."""
    dtype = precision_of(precision)
    try:
        from diffusers import AutoPipelineForText2Image
    except ImportError as error:
        raise UserError(
            f"pictures are drawn by diffusers: {error}", hint="pip install 'tarkit[dif]'"
        ) from None
    try:
        pipeline = AutoPipelineForText2Image.from_pretrained(
            model, dtype=dtype, use_safetensors=True
        )
    except Exception as error:  # diffusers raises many kinds for what is wrong with a folder
        raise UserError(
            f"{model} cannot be loaded as a text-to-image pipeline: "
            f"{' '.join(str(error).split())[:300]}",
            hint="name a folder or hub id in diffusers' layout, with safetensors",
        ) from None
    pipeline.set_progress_bar_config(disable=True)
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None  # it blackens pictures in silence; `curate score` tells
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()  # a freshly built T5 would drop features out
    pipeline.to(device)
    return Painter(pipeline, EMBEDS.get(type(pipeline).__name__), device)


def _pixels(image: np.ndarray) -> np.ndarray | str:
    if not np.isfinite(image).all():
        return "the picture has pixels that are no numbers"
    return np.asarray((image * 255).round().clip(0, 255), np.uint8)
