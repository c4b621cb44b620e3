"""Model directories: `config.json` + `model.safetensors` (+ `tokenizer.json`), loaded strictly.

Where a TA-Tok, an AR-DTok or an image VQ is named, a published file may stand for a directory. A
model is built without memory of its own and takes its weights as they are mapped from the file;
what is stored in another precision than the one asked for is converted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tarkit.config import Config, write_toml
from tarkit.errors import UserError
from tarkit.images import resize as resize_picture
from tarkit.images import to_uint8
from tarkit.manifests import MANIFEST, file_sha256, read_manifest
from tarkit.models.ar_dtok import ArDtok, ArDtokArch
from tarkit.models.encoder import EncoderArch, VisionEncoder
from tarkit.models.ta_tok import TaTok, TaTokArch
from tarkit.models.vqvae import Vqvae, VqvaeArch
from tarkit.places import PUBLISHED_LMS
from tarkit.published import Published, read_published
from tarkit.vocab import (
    CHAT_END,
    CHAT_START,
    END_OF_TEXT,
    Scale,
    TextTokenizer,
    VisualVocabulary,
    Vocabulary,
    split_tokenizer,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ModuleT = TypeVar("ModuleT", bound=nn.Module)
ArchT = TypeVar("ArchT", bound=Config)

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
PRECISIONS: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def precision_of(name: str) -> torch.dtype:
    """The torch type of weights in the named precision; UserError for a name that is none."""
    if name not in PRECISIONS:
        raise UserError(f"precision {name!r} is unknown", hint=f"one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def save_model(
    out: Path, model: nn.Module, config: Mapping[str, Any], run: Config | None = None
) -> None:
    """Write a finished model directory.

    `config` must hold `kind` and `arch`. The weights' sha256 is written into it as the model's
    identity, which a half-precision copy keeps.
    """
    if run is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "run.toml").write_text(write_toml(run))
    write_model(out, _unshared(model), config)


def write_model(
    out: Path, state: Mapping[str, Tensor], config: Mapping[str, Any], identity: Path | None = None
) -> None:
    """Write config.json and weights, these last: their presence means done.

    The model's identity is the sha256 of the file `identity`, by default of the weights.
    """
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    draft = out / f".{WEIGHTS}.{os.getpid()}"
    save_file(dict(state), draft, metadata={"format": "pt"})
    text = json.dumps({**config, "sha256": file_sha256(identity or draft)}, indent=1, default=str)
    (out / CONFIG).write_text(text + "\n")
    os.replace(draft, out / WEIGHTS)


def _unshared(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without the second name of a tied tensor."""
    seen: dict[int, str] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen[tensor.data_ptr()] = name
        state[name] = tensor.detach().contiguous().cpu()
    return state


def read_config(path: Path, kind: str | None = None) -> dict[str, Any]:
    """The config.json of a model directory; UserError where it is none or of another kind."""
    file = path / CONFIG
    if not path.is_dir():
        raise UserError(
            f"{path} is no model directory: "
            + ("it is a file" if path.exists() else "there is no such folder"),
            hint=f"tarkit inspect {path.parent}",
        )
    if not file.exists():
        raise UserError(
            f"{path} is no model directory: it holds no {CONFIG}",
            hint=_unfinished(path) if _in_training(path) else f"tarkit inspect {path}",
        )
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not JSON: {error}", hint=f"tarkit inspect {path}") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} holds no table of settings", hint=f"tarkit inspect {path}")
    if kind is not None and config.get("kind") != kind:
        found = config.get("kind") or f"a {config.get('model_type', 'foreign')} model"
        raise UserError(
            f"{path} is {found}, where a model of kind {kind} is needed",
            hint=f"tarkit inspect {path}",
        )
    if (kind in MODELS or kind == "mllm") and not isinstance(config.get("sha256"), str):
        raise UserError(
            f"{file} says no sha256, by which its codes would be known",
            hint=f"copy {file.name} of {path} from its training again",
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


def _weights(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    return _in_precision(_stored(require_weights(path)), dtype)


def _stored(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file as they are stored, mapped from it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} is damaged: {error}", hint="copy or train the model again")


def _arch(cls: type[ArchT], path: Path, config: Mapping[str, Any]) -> ArchT:
    """The sizes in a config.json; UserError names every key that does not fit."""
    try:
        return cls.model_validate(config.get("arch"))
    except pydantic.ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UserError(
            f"{path / CONFIG}: arch is not one of tarkit's {cls.__name__}: {'; '.join(faults)}",
            hint=f"tarkit inspect {path}",
        ) from None


def _fill(model: ModuleT, state: Mapping[str, Tensor], file: Path, hint: str) -> ModuleT:
    """Load strictly: every missing, unexpected or misshaped key is named."""
    own = model.state_dict()
    faults = [f"missing {k}" for k in own if k not in state]
    faults += [f"unexpected {k}" for k in state if k not in own]
    faults += [
        f"{k} is {list(v.shape)}, expected {list(own[k].shape)}"
        for k, v in state.items()
        if k in own and own[k].shape != v.shape
    ]
    if faults:
        more = f" and {len(faults) - 6} more" if len(faults) > 6 else ""
        raise UserError(
            f"{file} does not fit the sizes it comes with: {'; '.join(faults[:6])}{more}", hint=hint
        )
    model.load_state_dict(state, assign=True)
    return model.eval()


def _filled(model: ModuleT, state: Mapping[str, Tensor], path: Path) -> ModuleT:
    return _fill(model, state, path / WEIGHTS, f"copy both files of {path} from one training again")


# Sizes and network of each kind of model that is tarkit's own; a language model is transformers'.
MODELS: Mapping[str, tuple[type[Config], Callable[[Any], nn.Module]]] = {
    "encoder": (EncoderArch, VisionEncoder),
    "ta_tok": (TaTokArch, TaTok),
    "ar_dtok": (ArDtokArch, ArDtok),
    "vqvae": (VqvaeArch, Vqvae),
}
REFETCH = "download the file again from its publisher"


def _empty(build: Callable[[Any], ModuleT], arch: Config) -> ModuleT:
    """A network that takes no memory until its weights are assigned."""
    with torch.device("meta"):
        return build(arch)


def _load(
    path: Path,
    kind: str,
    build: Callable[[Any], ModuleT],
    dtype: torch.dtype = torch.float32,
) -> tuple[ModuleT, str]:
    """A model in eval mode, and what identifies it: the sha256 of its weights."""
    if path.is_file():
        found = read_published(path)
        return _published(found, path, kind, build, dtype), file_sha256(path)
    config = read_config(path, kind)
    model = _empty(build, _arch(MODELS[kind][0], path, config))
    return _filled(model, _weights(path, dtype), path), str(config["sha256"])


def check_published(found: Published, path: Path) -> None:
    """UserError where a published file's weights do not fit its own sizes."""
    _fill(_empty(MODELS[found.kind][1], found.arch), found.state, path, REFETCH)


def _published(
    found: Published,
    path: Path,
    kind: str,
    build: Callable[[Any], ModuleT],
    dtype: torch.dtype,
) -> ModuleT:
    """The model of a published file's content; UserError where it is of another kind."""
    if found.kind != kind:
        raise UserError(
            f"{path} is a published {found.kind}, where a model of kind {kind} is needed",
            hint=f"tarkit models convert {path} --out DIR",
        )
    state = _in_precision(found.state, dtype)
    return _fill(_empty(build, found.arch), state, path, REFETCH)


def _in_precision(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Plain values of one precision; what is stored in it stays where it is mapped."""
    return {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for name, value in state.items()
    }


def load_vqvae(path: Path) -> Vqvae:
    """An image VQ in eval mode, float32; `path` is a model directory or a published file."""
    return _load(Path(path), "vqvae", Vqvae)[0]


def load_encoder(path: Path) -> VisionEncoder:
    """A vision encoder in eval mode, float32."""
    return _load(Path(path), "encoder", VisionEncoder)[0]


Resize = Literal["pil-bicubic", "bilinear", "bilinear-noaa"]


@dataclass(frozen=True)
class LoadedTaTok:
    """TA-Tok and what identifies its codes."""

    model: TaTok
    sha256: str

    @property
    def size_px(self) -> int:
        return self.model.arch.encoder.size_px

    @property
    def grid(self) -> int:
        return self.model.arch.encoder.grid

    @property
    def num_codes(self) -> int:
        """K, the size of the codebook."""
        return self.model.arch.num_codes

    def encode(
        self, images: Tensor, scale: Scale | int = 1, resize: Resize = "pil-bicubic"
    ) -> Tensor:
        """RGB pictures (B, 3, H, W) in [0, 1] -> codes (B, N) int64, argmax in float32.

        Pictures of another size are resized, the whole of each to a square. The three published
        ways give other codes: "pil-bicubic" is what the published language model was trained with,
        "bilinear" what its scripts do with torchvision 0.17 and later, "bilinear-noaa" (no
        antialiasing) with earlier ones. Raises ValueError for pixels that are none.
        """
        pixels = self.sized(images, resize)
        return self.encode_scales(pixels, [Scale(scale)])[Scale(scale)]

    def encode_scales(self, images: Tensor, scales: Sequence[Scale]) -> dict[Scale, Tensor]:
        """Pictures (B, 3, size_px, size_px) in [0, 1] -> codes (B, N) int64 of each scale.

        Argmax in float32, one encoder pass for all scales.
        """
        return self.model.encode(images * 2 - 1, scales)

    def sized(self, images: Tensor, resize: Resize) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] -> (B, 3, size_px, size_px), the whole of each."""
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"expected float pictures (B, 3, H, W), got {images.dtype} {tuple(images.shape)}"
            )
        low, high = images.aminmax()
        if not (0 <= low and high <= 1):
            raise ValueError(f"pixels span {float(low):.3f} to {float(high):.3f}, not [0, 1]")
        size = (self.size_px, self.size_px)
        if tuple(images.shape[-2:]) == size:
            return images
        if resize == "pil-bicubic":
            rows = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
            sized = [
                to_uint8(resize_picture(Image.fromarray(row), size[0], "squash")) for row in rows
            ]
            stacked = torch.from_numpy(np.stack(sized)).permute(0, 3, 1, 2)
            return stacked.to(images.device).float() / 255
        if resize not in ("bilinear", "bilinear-noaa"):
            raise ValueError(f"resize {resize!r}: expected one of {', '.join(get_args(Resize))}")
        # Resized as the model sees them, in [-1, 1], as the published scripts do.
        seen = F.interpolate(
            images * 2 - 1,
            size=size,
            mode="bilinear",
            align_corners=False,
            antialias=resize == "bilinear",
        )
        return seen * 0.5 + 0.5

    def condition(self, codes: Tensor) -> Tensor:
        """Codes (B, N) -> features (B, N, W) that the de-tokenizers are conditioned on."""
        return self.model.condition(codes)


def load_ta_tok(path: Path) -> LoadedTaTok:
    """A tokenizer in eval mode, float32; `path` is a model directory or a published file."""
    return LoadedTaTok(*_load(Path(path), "ta_tok", TaTok))


def load_ar_dtok(path: Path, dtype: torch.dtype = torch.float32) -> ArDtok:
    """An autoregressive de-tokenizer, likewise; its weights may be kept in half precision."""
    return _load(Path(path), "ar_dtok", ArDtok, dtype)[0]


@dataclass(frozen=True)
class LoadedMllm:
    """A causal language model with its vocabulary of words and pictures."""

    model: PreTrainedModel
    vocabulary: Vocabulary
    config: dict[str, Any]


def load_mllm(path: Path, dtype: torch.dtype = torch.float32) -> LoadedMllm:
    """A language model (grown or text-only) in eval mode.

    `path` is a tarkit model directory or a published one: a transformers directory with Tar's
    visual tokens in its tokenizer.json.
    """
    from tarkit.models.mllm import skeleton

    config = read_config(path)
    if "kind" not in config and config.get("model_type") in PUBLISHED_LMS:
        return _published_mllm(path, config, dtype)
    config = read_config(path, "mllm")
    model = skeleton(config["arch"])
    state = _tied(model, _weights(path, dtype))
    _filled(model, state, path)
    model.tie_weights()
    return LoadedMllm(model, read_vocabulary(path, config), config)


# The vision tower that a demo training leaves in the file: TA-Tok again, from its own file here.
LEFT_OVER = "model.vision_tower."


def _published_mllm(path: Path, config: Mapping[str, Any], dtype: torch.dtype) -> LoadedMllm:
    """Tar's published language model; strict but for what its training left in the file."""
    from tarkit.models.mllm import skeleton

    try:
        text, visual = split_tokenizer(_tokenizer_json(path))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / TOKENIZER}: {error}", hint=REFETCH) from None
    _check_tags(text, path / TOKENIZER)
    if visual is None:
        raise UserError(
            f"{path} has no visual tokens: a language model before it learned pictures",
            hint="tarkit train mllm CONFIG.toml --lm DIR --tokenizer DIR --chats DIR --out DIR",
        )
    state: dict[str, Tensor] = {}
    for file in _weight_files(path):
        state |= _stored(file)
    table = state.get("model.embed_tokens.weight")
    rows = len(table) if table is not None else 0
    if rows != visual.size:
        raise UserError(
            f"{path} has {rows:,} embeddings, its tokenizer {visual.size:,} tokens", hint=REFETCH
        )
    state = {k: v for k, v in state.items() if not k.startswith(LEFT_OVER)}
    state = _in_precision(state, dtype)
    arch = {**config, "model_type": "qwen2", "vocab_size": visual.size}
    for name in ("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"):
        arch.pop(name, None)
    try:
        model = skeleton(arch)
    except Exception as error:  # transformers raises many kinds for a config that fits nothing
        raise UserError(f"{path / CONFIG} makes no model: {error}", hint=REFETCH) from None
    _fill(model, _tied(model, state), path, REFETCH)
    model.tie_weights()
    return LoadedMllm(model, Vocabulary(text=text, visual=visual), dict(config))


def _tied(model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with the head that is its embeddings again, where it is."""
    if model.config.tie_word_embeddings and "model.embed_tokens.weight" in state:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state


def _weight_files(path: Path) -> list[Path]:
    """The safetensors of a transformers directory: those of its index, or the only one."""
    index = path / f"{WEIGHTS}.index.json"
    if not index.exists():
        return [require_weights(path)]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is no index of weights: {error!r}", hint=REFETCH) from None
    files = [path / str(name) for name in names]
    for file in files:
        if file.parent != path or not file.is_file():
            raise UserError(f"{index} names {file.name}, which is not beside it", hint=REFETCH)
    return files


def _tokenizer_json(path: Path) -> str:
    file = path / TOKENIZER
    if not file.exists():
        raise UserError(
            f"{path} has no {TOKENIZER}: only fast tokenizers can be read",
            hint=f"tarkit inspect {path}",
        )
    return file.read_text(encoding="utf-8")


def read_text_tokenizer(path: Path) -> TextTokenizer:
    """The `tokenizer.json` of a language model directory, with the tags of a chat in it."""
    try:
        text = TextTokenizer(_tokenizer_json(path))
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise UserError(
            f"{path / TOKENIZER} is no tokenizer: {error}", hint=f"tarkit inspect {path}"
        ) from None
    _check_tags(text, path / TOKENIZER)
    return text


def has_visual_tokens(path: Path) -> bool:
    """Whether the `tokenizer.json` of a published language model has Tar's visual tokens."""
    try:
        return split_tokenizer(_tokenizer_json(path))[1] is not None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / TOKENIZER}: {error}", hint=REFETCH) from None


def _check_tags(text: TextTokenizer, file: Path) -> None:
    missing = [name for name in (CHAT_START, CHAT_END, END_OF_TEXT) if name not in text.special]
    if missing:
        raise UserError(
            f"{file} has no {', '.join(missing)}: chats are written with Qwen's tags",
            hint="name a model of the Qwen family",
        )


def read_vocabulary(path: Path, config: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a tarkit language model directory."""
    text = read_text_tokenizer(path)
    visual = config.get("visual")
    return Vocabulary(
        text=text,
        visual=VisualVocabulary(**visual) if visual else None,
        system=config.get("system"),
    )


@dataclass(frozen=True)
class Embeddings:
    """A language model's input embeddings, and which rows its training text used."""

    table: Tensor  # (V, E) float32
    used: Tensor  # (U,) int64, ascending


def read_embeddings(path: Path) -> Embeddings:
    """The input embeddings of any causal LM directory, by that one tensor alone.

    A tarkit model knows which rows its text used; of another model every row counts as used.
    """
    from safetensors import SafetensorError, safe_open

    names = ("model.embed_tokens.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight")
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{path} holds no safetensors weights to take embeddings from",
            hint="name the directory of a causal language model with --lm",
        )
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                found = [name for name in names if name in opened.keys()]  # noqa: SIM118 (no dict)
                table = opened.get_tensor(found[0]).float() if found else None
        except SafetensorError as error:
            raise _damaged(file, error) from None
        if table is not None:
            counts = read_config(path).get("token_counts")
            used = torch.tensor(counts) > 0 if counts else torch.ones(len(table)).bool()
            return Embeddings(table, used.nonzero()[:, 0])
    raise UserError(
        f"no embedding table in {path}: looked for {', '.join(names)}",
        hint="name the directory of a causal language model with --lm",
    )


def half(path: Path) -> None:
    """Turn a model directory's weights into half precision, in place."""
    from safetensors.torch import load_file, save_file

    state = load_file(path / WEIGHTS)
    draft = path / f".{WEIGHTS}.{os.getpid()}"
    halved = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    worst = max((float(v.abs().max()) for v in halved.values() if v.numel()), default=0.0)
    if not torch.isfinite(torch.tensor(worst)):
        raise UserError(f"{path} has weights beyond float16's range")
    save_file(halved, draft, metadata={"format": "pt"})
    os.replace(draft, path / WEIGHTS)


def from_transformers(family: Any, model: str, **options: Any) -> Any:
    """What `family.from_pretrained` makes of a folder or hub id: float32, safetensors alone."""
    if hasattr(family, "_model_mapping") or hasattr(family, "base_model_prefix"):
        options |= {"use_safetensors": True, "dtype": torch.float32}
    try:
        return family.from_pretrained(model, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UserError(
            f"the model {model} cannot be loaded: {' '.join(str(error).split())[:300]}",
            hint="--model names a folder or hub id in transformers' layout",
        ) from None
