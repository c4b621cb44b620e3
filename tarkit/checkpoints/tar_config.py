"""A complete Tar on disk: its sampling settings, and the sha256 of each of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import pydantic
from pydantic import Field

from tarkit.artifacts.digests import remembered_sha256
from tarkit.checkpoints.directory import CONFIG, read_config
from tarkit.checkpoints.hub import ModelPaths, weight_files
from tarkit.config import Config
from tarkit.errors import UserError
from tarkit.vocab import Scale


def _usable_temperature(value: float) -> float:
    if 0 < value < 1e-3:
        raise ValueError("0 takes the likeliest code; a temperature above it is at least 0.001")
    return value


# Logits are divided by the temperature and multiplied by the guidance, and must stay finite.
Temperature = Annotated[float, Field(ge=0, le=1e6), pydantic.AfterValidator(_usable_temperature)]
Guidance = Annotated[float, Field(ge=0, le=1e4)]


class Sampling(Config):
    """The sampling settings of the language model and the de-tokenizer.

    The defaults are those of the published scripts; a generation_config.json is not used.
    """

    temperature: Temperature = 1.0
    top_k: int = Field(default=1200, ge=0)
    top_p: float = Field(default=0.95, ge=0, le=1)
    prompt_guidance: Guidance = 1.0
    """Classifier-free guidance of the language model, against an empty prompt; 1 is off."""
    guidance: Guidance = 4.0
    """Classifier-free guidance of the de-tokenizer; 1 is off."""
    dtok_temperature: Temperature = 1.0
    """This and the next two are for AR-DTok; Dif-DTok uses none of them."""
    dtok_top_k: int = Field(default=0, ge=0)
    dtok_top_p: float = Field(default=1.0, ge=0, le=1)
    dif_steps: int = Field(default=20, ge=1, le=10_000)
    """Denoising steps of Dif-DTok; AR-DTok does not use it."""

    def changed(self, changes: Mapping[str, float | int] | None) -> Sampling:
        """A copy with some settings changed; UserError for one that is out of its range."""
        try:
            return Sampling.model_validate({**self.model_dump(), **(changes or {})})
        except pydantic.ValidationError as error:
            raise UserError(f"the sampling settings: {faults_of(error)}") from None


class AssembleConfig(Config):
    """The defaults of an assembled model: the TOML of `tarkit assemble`."""

    default_scale: Scale = Scale.FULL
    read_scale: Scale | None = None
    """The scale at which pictures are read; None for the one at which they are drawn."""
    sampling: Sampling = Sampling()
    words: tuple[str, ...] = ()
    """Every word of the prompts that the model was trained on, in lower case, where they are few;
    `generate` names the words of a prompt that are not among them."""


ASSEMBLE = "tarkit assemble --mllm DIR --tokenizer DIR --ar-dtok DIR --vqvae DIR --out DIR"


def read_defaults(path: Path) -> AssembleConfig:
    """The settings in the config.json of an assembled model; UserError if they do not fit."""
    config = read_config(path, "tar")
    try:
        return AssembleConfig.model_validate({k: v for k, v in config.items() if k != "kind"})
    except pydantic.ValidationError as error:
        raise UserError(f"{path}/config.json: {faults_of(error)}", hint=ASSEMBLE) from None


def faults_of(error: pydantic.ValidationError) -> str:
    """Every key that is wrong, with the reason."""
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())


def identity_of(part: str, path: Path) -> str:
    """A part's sha256: the one in its config.json, else those of its weights files."""
    sha256 = read_config(path).get("sha256") if (path / CONFIG).exists() else None
    return str(sha256 or "+".join(_digests(part, path).values()))


def fingerprints(places: ModelPaths) -> dict[str, str]:
    """sha256 of every weights file by part; the model is not loaded."""
    return {
        name: digest
        for part, path in places.parts.items()
        for name, digest in _digests(part, path).items()
    }


def _digests(part: str, path: Path) -> dict[str, str]:
    base = path
    if path.is_file():
        base, files = path.parent, [path]
    elif part == "dif_dtok":
        files = weight_files(path)
    else:
        files = sorted(path.glob("*.safetensors"))
    return {f"{part}/{file.relative_to(base)}": remembered_sha256(file) for file in files}
