"""Text-to-image pipelines of diffusers, by hub id or folder: from prompts to pixels.

Only safetensors files are read and no code of a repository is run. Each picture has its own random
generator, so its noise depends on its seed and not on its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tarkit.checkpoints.directory import precision_of
from tarkit.checkpoints.from_transformers import is_network, require_whole
from tarkit.checkpoints.hub import find_snapshot
from tarkit.errors import UserError


class PictureRequest(NamedTuple):
    """One picture: its prompt and the seed of its noise."""

    prompt: str
    seed: int


Offload = Literal["none", "model", "sequential"]
"""Which weights wait in the CPU's memory: none, those of the models that do not run at the moment
(FLUX.1 then needs what its transformer does, not that and both text encoders), or all, layer by
layer, which needs least and is much slower."""

Embed = Callable[[Any, Sequence[str], int], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Painter:
    """A loaded pipeline; `embed` makes prompt embeddings where the pipeline accepts them."""

    pipeline: Any
    embed: Embed | None

    def paint(
        self,
        requests: Sequence[PictureRequest],
        *,
        size_px: int,
        steps: int,
        guidance: float,
        max_prompt_tokens: int,
    ) -> list[np.ndarray | str]:
        """RGB uint8 (size_px, size_px, 3) of every request in order, or the reason why it failed.

        Equal prompts are embedded once. When a batch fails, its pictures are drawn one by one.
        Raises UserError where the batch does not fit into memory.
        """
        if not requests:
            return []
        try:
            return self._batch(requests, size_px, steps, guidance, max_prompt_tokens)
        except torch.OutOfMemoryError:
            raise UserError(
                f"{len(requests)} pictures of {size_px} px do not fit into memory",
                hint="--set batch_size=N, smaller",
            ) from None
        except (ValueError, RuntimeError) as error:
            if len(requests) == 1:
                return [f"the pipeline failed: {' '.join(str(error).split())[:200]}"]
        return [
            self.paint(
                [request],
                size_px=size_px,
                steps=steps,
                guidance=guidance,
                max_prompt_tokens=max_prompt_tokens,
            )[0]
            for request in requests
        ]

    def _batch(
        self,
        requests: Sequence[PictureRequest],
        size_px: int,
        steps: int,
        guidance: float,
        max_prompt_tokens: int,
    ) -> list[np.ndarray | str]:
        inputs: dict[str, Any] = {"prompt": [request.prompt for request in requests]}
        if self.embed is not None:
            inputs = dict(self._embeddings(requests, max_prompt_tokens))
        # As diffusers itself: accelerate makes parameters of the weights that come back.
        try:
            with torch.no_grad():
                images = self.pipeline(
                    **inputs,
                    height=size_px,
                    width=size_px,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generator=[torch.Generator("cpu").manual_seed(each.seed) for each in requests],
                    output_type="np",
                ).images
        except (LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"the generator cannot draw with its settings: {str(error) or repr(error)}"[:300],
                hint="put the files of this generator into its folder again",
            ) from None
        return [_pixels(image) for image in images]

    def _embeddings(
        self, requests: Sequence[PictureRequest], max_prompt_tokens: int
    ) -> Mapping[str, Tensor]:
        assert self.embed is not None
        unique = list(dict.fromkeys(request.prompt for request in requests))
        with torch.no_grad():
            embeddings = self.embed(self.pipeline, unique, max_prompt_tokens)
        places = torch.tensor([unique.index(request.prompt) for request in requests])
        return {name: value[places.to(value.device)] for name, value in embeddings.items()}


def _flux(pipeline: Any, prompts: Sequence[str], max_prompt_tokens: int) -> Mapping[str, Tensor]:
    embeds, pooled, _ = pipeline.encode_prompt(
        prompt=list(prompts), prompt_2=None, max_sequence_length=max_prompt_tokens
    )
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


# Pipelines that accept embeddings, by class; any other gets the text of the prompts.
EMBEDS: Mapping[str, Embed] = {"FluxPipeline": _flux}


def check_offload(offload: Offload, device: str) -> None:
    """Raises UserError where there is nothing to offload from."""
    if offload != "none" and torch.device(device).type == "cpu":
        raise UserError(
            f"offload = {offload!r} moves weights from a GPU into the CPU's memory, and the device "
            "is the CPU",
            hint="leave offload out, or --device cuda",
        )


def load_painter(model: str, *, device: str, precision: str, offload: Offload = "none") -> Painter:
    """The text-to-image pipeline of a folder, or of a hub id that is in the hub's cache.

    Raises UserError where it cannot be loaded or offloaded.
    """
    dtype = precision_of(precision)
    check_offload(offload, device)
    try:
        from diffusers import AutoPipelineForText2Image
    except ImportError as error:
        raise UserError(
            f"drawing pictures needs diffusers: {error}", hint="pip install 'tarkit[dif]'"
        ) from None
    folder = find_snapshot(model, file="model_index.json")
    try:
        parts = _whole_parts(model, folder, dtype)
        pipeline = AutoPipelineForText2Image.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, **parts
        )
    except UserError:
        raise
    except Exception as error:  # diffusers raises many types for a bad folder
        raise UserError(
            f"{model} cannot be loaded as a text-to-image pipeline: "
            f"{' '.join(str(error).split())[:300]}",
            hint="name a folder in diffusers' layout, with safetensors"
            if folder == Path(model)
            else f"hf download {model}, if a file is missing",
        ) from None
    pipeline.set_progress_bar_config(disable=True)
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None  # it blackens pictures in silence; use `curate score`
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()  # a newly built T5 would apply dropout
    _place(pipeline, device, offload)
    return Painter(pipeline, EMBEDS.get(type(pipeline).__name__))


def _whole_parts(model: str, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The networks of a pipeline by name; UserError where the files of one lack weights.

    A pipeline itself does not tell that it gave a network random weights.
    """
    import diffusers
    import transformers

    libraries = {"diffusers": diffusers, "transformers": transformers}
    parts: dict[str, Any] = {}
    for name, place in diffusers.DiffusionPipeline.load_config(folder).items():
        library, kind = place if isinstance(place, (list, tuple)) and len(place) == 2 else ("", "")
        family = getattr(libraries.get(library), str(kind), None)
        is_part = isinstance(family, type) and issubclass(family, diffusers.ModelMixin)
        if name == "safety_checker" or not (is_part or is_network(family)):
            continue
        parts[name], info = family.from_pretrained(  # type: ignore[union-attr]
            folder,
            subfolder=name,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
        )
        require_whole(info, f"{name} of {model}")
    return parts


def _place(pipeline: Any, device: str, offload: Offload) -> None:
    """Move a pipeline to its device, or have its weights come there when they are needed."""
    if offload == "none":
        pipeline.to(device)
        return
    try:
        if offload == "model":
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline.enable_sequential_cpu_offload(device=device)
    except ValueError as error:  # a pipeline that does not say in which order its models run
        raise UserError(
            f"{type(pipeline).__name__} cannot be offloaded: {error}",
            hint="--set offload=none, or --set offload=sequential",
        ) from None


def _pixels(image: np.ndarray) -> np.ndarray | str:
    if not np.isfinite(image).all():
        return "the picture has pixels that are no numbers"
    return np.asarray((image * 255).round().clip(0, 255), np.uint8)
