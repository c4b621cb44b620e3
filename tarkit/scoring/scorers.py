"""Scorers: numbers for pictures, one at a time or with their prompts.

A scorer names its columns before it is loaded. It gives every picture its numbers, or the reason
why it has none. Models are read from safetensors alone, and no code of a repository is run. A
user's own scorer is named by its Python module, and so is that of the drawn world.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tarkit.checkpoints.from_transformers import from_transformers
from tarkit.errors import UserError

Scores = Mapping[str, float] | str
"""The numbers by column, or the reason why there are none."""


@dataclass(frozen=True)
class Shown:
    """One picture, and the prompt that it should show (None where it has none)."""

    picture: Image.Image
    prompt: str | None


class Scorer(Protocol):
    """Numbers for pictures, in order."""

    def score(self, shown: Sequence[Shown]) -> list[Scores]: ...


@dataclass(frozen=True)
class Plan:
    """The columns of a scorer, its identity in a manifest, and how it is loaded on a device."""

    columns: tuple[str, ...]
    identity: Mapping[str, Any]
    load: Callable[[str], Scorer]


def plan_scorer(name: str, model: str | None, *, option: str = "--model") -> Plan:
    """The scorer of a name: pixels, shapes, clip, classifier, tar, or `module:function`.

    `model` is a folder, hub id or name, for those that need one. `function()` gives an object with
    `columns` and `score`. Raises UserError, whose hint names the `option` that the model came by.
    """
    if ":" in name:
        if model is not None:
            raise UserError(f"the scorer {name} chooses its own model", hint=f"leave {option} out")
        return _from_module(name, name)
    if name not in PLANS:
        known = ", ".join(PLANS)
        raise UserError(f"no scorer {name!r}: it is one of {known}, or module:function")
    if (model is None) == (name not in WITHOUT_MODEL):
        if name in WITHOUT_MODEL:
            raise UserError(f"the scorer {name} takes no model", hint=f"leave {option} out")
        raise UserError(f"the scorer {name} needs a model", hint=f"{option} DIR|HUB-ID")
    return PLANS[name](model or "")


def _from_module(name: str, function: str) -> Plan:
    """The scorer that `module:function` makes; UserError where it makes none."""
    module, _, attribute = function.partition(":")
    try:
        scorer = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(f"the scorer {name} cannot be made: {error}") from None
    columns = tuple(getattr(scorer, "columns", ()))
    if not columns or not hasattr(scorer, "score"):
        raise UserError(f"what {name} makes is no scorer: it needs columns and score(shown)")
    return Plan(columns, {"scorer": name}, lambda device: scorer)


# ---- from the pixels ----------------------------------------------------------------------------


class Pixels:
    """`spread`: standard deviation over all levels, 0 to 0.5; a blank picture has 0."""

    def score(self, shown: Sequence[Shown]) -> list[Scores]:
        levels = [np.asarray(one.picture.convert("RGB"), np.float64) / 255 for one in shown]
        return [{"spread": float(level.std(axis=(0, 1)).max())} for level in levels]


def _pixels(model: str) -> Plan:
    return Plan(("spread",), {"scorer": "pixels"}, lambda device: Pixels())


# ---- dual encoders ------------------------------------------------------------------------------


class DualEncoder:
    """CLIP's or SigLIP's raw cosine of a picture and its prompt, -1 to 1.

    A prompt longer than the text encoder reads is cut at its limit; `cut_tokens` is the number of
    tokens that were cut off.
    """

    def __init__(self, model: str, device: str) -> None:
        import transformers

        self._device = device
        self._network = from_transformers(transformers.AutoModel, model).to(device).eval()
        self._tokenizer = from_transformers(transformers.AutoTokenizer, model)
        self._processor = from_transformers(transformers.AutoImageProcessor, model, backend="pil")
        config = self._network.config
        if not hasattr(config, "text_config") or not hasattr(self._network, "get_text_features"):
            raise UserError(
                f"{model} is no dual encoder of pictures and texts: {config.model_type}"
            )
        self._length = int(config.text_config.max_position_embeddings)
        # SigLIP was trained on texts filled up to the full length, CLIP reads a mask.
        self._padding = "max_length" if "siglip" in config.model_type else True

    @torch.inference_mode()
    def score(self, shown: Sequence[Shown]) -> list[Scores]:
        scores: list[Scores] = ["it has no prompt to compare with"] * len(shown)
        prompted = [
            (place, one.picture, one.prompt) for place, one in enumerate(shown) if one.prompt
        ]
        if not prompted:
            return scores
        texts = [text for _, _, text in prompted]
        full = [len(ids) for ids in self._tokenizer(texts)["input_ids"]]
        words = self._tokenizer(
            texts,
            padding=self._padding,
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        ).to(self._device)
        pixels = self._processor([picture for _, picture, _ in prompted], return_tensors="pt")
        cosines = torch.cosine_similarity(
            _features(self._network.get_image_features(pixels["pixel_values"].to(self._device))),
            _features(self._network.get_text_features(**words)),
        )
        for (place, _, _), cosine, length in zip(prompted, cosines.tolist(), full, strict=True):
            scores[place] = {"cosine": cosine, "cut_tokens": float(max(0, length - self._length))}
        return scores


def _features(output: Any) -> Tensor:
    features: Tensor = getattr(output, "pooler_output", output)
    return features.float()


def _clip(model: str) -> Plan:
    identity = {"scorer": "clip", "model": model, "truncation": "cut at the model's limit"}
    return Plan(("cosine", "cut_tokens"), identity, lambda device: DualEncoder(model, device))


# ---- classifiers --------------------------------------------------------------------------------


class Classifier:
    """A picture classifier's probabilities by label: safe or not safe to see, for example."""

    def __init__(self, model: str, columns: Sequence[str], device: str) -> None:
        import transformers

        self._device, self._columns = device, columns
        family = transformers.AutoModelForImageClassification
        self._network = from_transformers(family, model).to(device).eval()
        self._processor = from_transformers(transformers.AutoImageProcessor, model, backend="pil")

    @torch.inference_mode()
    def score(self, shown: Sequence[Shown]) -> list[Scores]:
        pixels = self._processor([one.picture for one in shown], return_tensors="pt")
        logits = self._network(pixels["pixel_values"].to(self._device)).logits.float()
        if logits.shape[1] == 1:  # one number, an aesthetic score for example, as it is
            return [{self._columns[0]: float(row[0])} for row in logits]
        return [dict(zip(self._columns, row, strict=True)) for row in logits.softmax(1).tolist()]


MAX_LABELS = 32


def _classifier(model: str) -> Plan:
    import transformers

    labels = from_transformers(transformers.AutoConfig, model).id2label
    names = [str(labels[number]) for number in sorted(labels)]
    if len(names) > MAX_LABELS:
        raise UserError(f"{model} has {len(names)} labels, and a score for at most {MAX_LABELS}")
    columns = tuple(re.sub(r"\W+", "_", name.strip().casefold()) or "label" for name in names)
    if len(set(columns)) != len(columns):
        raise UserError(f"labels of {model} are the same as columns: {', '.join(columns)}")
    identity = {"scorer": "classifier", "model": model}
    return Plan(columns, identity, lambda device: Classifier(model, columns, device))


# ---- Tar itself ---------------------------------------------------------------------------------


class Likelihood:
    """`gain`: how much likelier a Tar model finds a picture's codes after its prompt; nats a code.

    It needs no third model, and is at home in the pictures that its model was trained on.
    """

    def __init__(self, model: str, device: str) -> None:
        from tarkit.inference.tar_model import Tar

        self._tar = Tar.load(model, device=device, dtok=None)

    @torch.inference_mode()
    def score(self, shown: Sequence[Shown]) -> list[Scores]:
        scores: list[Scores] = ["it has no prompt to compare with"] * len(shown)
        prompted = [
            (place, one.picture, one.prompt) for place, one in enumerate(shown) if one.prompt
        ]
        if prompted:
            scale = self._tar.default_scale
            codes = self._tar.encode([picture for _, picture, _ in prompted], [scale])[scale]
            gains = self._tar.prompt_gain(codes, [text for _, _, text in prompted])
            for (place, _, _), gain in zip(prompted, gains, strict=True):
                scores[place] = {"gain": gain}
        return scores


def _tar(model: str) -> Plan:
    identity = {"scorer": "tar", "model": model}
    return Plan(("gain",), identity, lambda device: Likelihood(model, device))


# ---- by name ------------------------------------------------------------------------------------

SHAPES = "tarkit.scoring.shapes_scorer:ShapesScorer"  # named: only the drawn world imports it
WITHOUT_MODEL = ("pixels", "shapes")
PLANS: Mapping[str, Callable[[str], Plan]] = {
    "pixels": _pixels,
    "shapes": lambda model: _from_module("shapes", SHAPES),
    "clip": _clip,
    "classifier": _classifier,
    "tar": _tar,
}


def checked(scores: Scores, columns: Sequence[str]) -> Scores:
    """The scores where they are finite and complete, else the reason why they are not taken."""
    if isinstance(scores, str):
        return scores
    if set(scores) != set(columns):
        return f"the scorer gave the columns {', '.join(sorted(scores))}"
    for name in columns:
        number = scores[name]
        if not isinstance(number, (int, float, np.floating)) or not math.isfinite(number):
            return f"the score {name} is {number!r}"
    return {name: float(scores[name]) for name in columns}
