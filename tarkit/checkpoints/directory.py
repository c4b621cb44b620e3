"""Model directories: `config.json` + `model.safetensors` (+ `tokenizer.json`, `run.toml`).

Writes such directories, reads their sizes and tensors, and fills networks with them; load.py and
language_model.py build the models. A network is built without memory and takes its weights as they
are mapped from the file; only tensors of another precision are converted, and so copied.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import torch
from torch import Tensor, nn

from tarkit.artifacts.digests import file_sha256, remembered_sha256, require_sha256
from tarkit.artifacts.files import read_object, whole_file, write_whole
from tarkit.artifacts.manifest import MANIFEST, read_manifest
from tarkit.config import Config, write_toml
from tarkit.errors import UserError
from tarkit.models.ar_dtok import ArDtok, ArDtokArch
from tarkit.models.encoder import EncoderArch, VisionEncoder
from tarkit.models.ta_tok import TaTok, TaTokArch
from tarkit.models.vqvae import Vqvae, VqvaeArch

ModuleT = TypeVar("ModuleT", bound=nn.Module)
ArchT = TypeVar("ArchT", bound=Config)

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
PRECISIONS: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Sizes and network of each kind of model that tarkit defines; a language model is transformers'.
MODELS: Mapping[str, tuple[type[Config], Callable[[Any], nn.Module]]] = {
    "encoder": (EncoderArch, VisionEncoder),
    "ta_tok": (TaTokArch, TaTok),
    "ar_dtok": (ArDtokArch, ArDtok),
    "vqvae": (VqvaeArch, Vqvae),
}
REFETCH = "download the file again from its publisher"


# ---- writing -------------------------------------------------------------------------------------


def save_model(
    out: Path, model: nn.Module, config: Mapping[str, Any], run: Config | None = None
) -> None:
    """Write a finished model directory.

    `config` must hold `kind` and `arch`. The weights' sha256 is written into it as the model's
    identity, which a half-precision copy keeps.
    """
    if run is not None:
        write_whole(out / "run.toml", write_toml(run).encode())
    write_model(out, unshared(model), config)


def write_model(
    out: Path, state: Mapping[str, Tensor], config: Mapping[str, Any], identity: Path | None = None
) -> None:
    """Write config.json and then the weights, whose presence means that the model is complete.

    The model's identity is the sha256 of the file `identity`, by default of the weights.
    """
    from safetensors.torch import save_file

    with whole_file(out / WEIGHTS) as weights:
        save_file(dict(state), weights, metadata={"format": "pt"})
        written = file_sha256(weights)
        config = {**config, "sha256": remembered_sha256(identity) if identity else written}
        _write_config(out, {**config, "weights_sha256": written})


def _write_config(out: Path, config: Mapping[str, Any]) -> None:
    write_whole(out / CONFIG, (json.dumps(config, indent=1, default=str) + "\n").encode())


def half(path: Path) -> None:
    """Turn a model directory's weights into float16, in place.

    Raises UserError when a weight is beyond float16's range.
    """
    from safetensors.torch import load_file, save_file

    state = load_file(path / WEIGHTS)
    halved = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    worst = max((float(v.abs().max()) for v in halved.values() if v.numel()), default=0.0)
    if not torch.isfinite(torch.tensor(worst)):
        raise UserError(f"{path} has weights beyond float16's range")
    with whole_file(path / WEIGHTS) as weights:
        save_file(halved, weights, metadata={"format": "pt"})
        config = read_config(path)
        _write_config(path, {**config, "weights_sha256": file_sha256(weights)})


def unshared(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without the second name of a tied tensor."""
    seen: dict[int, str] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen[tensor.data_ptr()] = name
        state[name] = tensor.detach().contiguous().cpu()
    return state


# ---- reading -------------------------------------------------------------------------------------


def read_config(path: Path, kind: str | None = None) -> dict[str, Any]:
    """The config.json of a model directory; UserError if there is none, or of another kind."""
    file = path / CONFIG
    if not path.is_dir():
        raise UserError(
            f"{path} is no model directory: "
            + ("it is a file" if path.exists() else "there is no such folder"),
            hint="name the --out of a training, or mini; tarkit models lists the known names",
        )
    if not file.exists():
        raise UserError(
            f"{path} is no model directory: it holds no {CONFIG}",
            hint=_unfinished(path) if _in_training(path) else f"tarkit inspect {path}",
        )
    config = read_object(file, hint=f"tarkit inspect {path}")
    if kind is not None and config.get("kind") != kind:
        actual_kind = config.get("kind") or f"a {config.get('model_type', 'foreign')} model"
        raise UserError(
            f"{path} is {actual_kind}, where a model of kind {kind} is needed",
            hint=f"tarkit inspect {path}",
        )
    if (kind in MODELS or kind == "mllm") and not isinstance(config.get("sha256"), str):
        raise UserError(
            f"{file} has no sha256, which identifies the model's codes",
            hint=f"copy {file.name} from the training of {path} again",
        )
    return config


def require_weights(path: Path) -> Path:
    """The weights file of a model directory; UserError where its training did not finish."""
    file = path / WEIGHTS
    if not file.exists():
        raise UserError(
            f"{path} has no {WEIGHTS}: its training did not finish", hint=_unfinished(path)
        )
    return file


def _in_training(path: Path) -> bool:
    return (path / MANIFEST).exists() and read_manifest(path)["kind"] == "model"


def _unfinished(path: Path) -> str:
    return f"its training is unfinished: run the `tarkit train` command with --out {path} again"


def read_arch(cls: type[ArchT], path: Path, config: Mapping[str, Any]) -> ArchT:
    """The sizes in a config.json; UserError for every key that does not fit."""
    try:
        return cls.model_validate(config.get("arch"))
    except pydantic.ValidationError as error:
        faults = [
            ": ".join([*filter(None, [".".join(map(str, e["loc"]))]), e["msg"]])
            for e in error.errors()
        ]
        raise UserError(
            f"{path / CONFIG}: arch is not one of tarkit's {cls.__name__}: {'; '.join(faults)}",
            hint=f"tarkit inspect {path}",
        ) from None


def read_weights(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a model directory with floats in `dtype`.

    Raises UserError if there are none, or if they are not those that its config.json describes.
    """
    return in_precision(read_tensors(require_recorded_weights(path)), dtype)


def require_recorded_weights(path: Path) -> Path:
    """The weights file of a model directory; UserError where it is not what config.json records."""
    file = require_weights(path)
    sha256 = read_config(path).get("weights_sha256")
    if sha256 is not None:  # of older directories it is not known
        hint = f"copy both files of {path} again from where the model was made, or train it again"
        require_sha256(file, str(sha256), recorded_in=path / CONFIG, hint=hint)
    return file


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file as they are stored, mapped from it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, RecursionError, KeyError, ValueError) as error:
        raise damaged(file, error) from None


def damaged(file: Path, error: Exception) -> UserError:
    """The error for a safetensors file that cannot be parsed."""
    return UserError(f"{file} is damaged: {error}", hint="copy or train the model again")


def precision_of(name: str) -> torch.dtype:
    """The torch type of a precision by its name; UserError for an unknown name."""
    if name not in PRECISIONS:
        raise UserError(f"precision {name!r} is unknown", hint=f"one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def in_precision(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors with their floats in `dtype`; those stored in it stay mapped, not copied."""
    return {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for name, value in state.items()
    }


# ---- filling a network ---------------------------------------------------------------------------


def fill(model: ModuleT, state: Mapping[str, Tensor], file: Path, hint: str) -> ModuleT:
    """`model` in eval mode with the tensors of `state`, which were read from `file`.

    Raises UserError that names missing and unexpected keys and those of another shape.
    """
    expected = model.state_dict()
    faults = [f"missing {k}" for k in expected if k not in state]
    faults += [f"unexpected {k}" for k in state if k not in expected]
    faults += [
        f"{k} is {list(v.shape)}, expected {list(expected[k].shape)}"
        for k, v in state.items()
        if k in expected and expected[k].shape != v.shape
    ]
    faults += [
        f"{k} holds {v.dtype}, expected {expected[k].dtype}"
        for k, v in state.items()
        if k in expected and expected[k].is_floating_point() != v.is_floating_point()
    ]
    if faults:
        more = f" and {len(faults) - 6} more" if len(faults) > 6 else ""
        raise UserError(
            f"{file} does not fit the sizes it comes with: {'; '.join(faults[:6])}{more}", hint=hint
        )
    model.load_state_dict(state, assign=True)
    return model.eval()


def fill_directory(model: ModuleT, state: Mapping[str, Tensor], path: Path) -> ModuleT:
    """As `fill`, with the weights of a model directory."""
    return fill(model, state, path / WEIGHTS, f"copy both files of {path} from one training again")
