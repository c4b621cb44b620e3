"""Reads the published weight files of TA-Tok, AR-DTok and the image VQ without running their code.

A published file is a pickle, which can run code when it is opened. Here it is opened in torch's
weights-only mode, which accepts only tensors and plain containers. Two more classes are accepted:
`argparse.Namespace`, and `easydict.EasyDict`, which is read as a plain mapping.

Sources: the released TA-Tok, AR-DTok and LlamaGen VQ-16 files, for key names and sizes.
"""

from __future__ import annotations

import argparse
import collections
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from tarkit.artifacts.files import read_object
from tarkit.config import Config
from tarkit.errors import UserError
from tarkit.models.ar_dtok import ArDtokArch
from tarkit.models.encoder import EncoderArch
from tarkit.models.ta_tok import TaTokArch
from tarkit.models.vqvae import VqvaeArch

ArchT = TypeVar("ArchT", bound=Config)

SIGLIP2 = "google/siglip2-so400m-patch14-384"
HINT = "download the file again from its publisher, or name the right file"
PICKLE_LIMIT = 64 * 2**20  # bytes of the pickle, without tensors; < 1 MB in the released files
TEACHER_LIMIT = 2**20  # bytes of a teacher's config.json
SPARE = 2**20  # bytes that tensors with shared storage may need beyond the size of the file

# (depth, heads, width) by the `name` in an AR-DTok file (LlamaGen's table).
AR_SIZES: Mapping[str, tuple[int, int, int]] = {
    "llama-abs-S": (12, 6, 384),
    "llama-abs-B": (12, 12, 768),
    "llama-abs-L": (24, 16, 1024),
    "llama-abs-LP": (30, 20, 1280),
    "llama-abs-XL": (36, 20, 1280),
    "llama-abs-XXL": (48, 24, 1536),
    "llama-abs-XXXL": (48, 40, 2560),
}


class Published(NamedTuple):
    """The content of one published file: the kind of model, its sizes and its weights."""

    kind: str  # ta_tok, ar_dtok or vqvae
    arch: Config  # TaTokArch, ArDtokArch or VqvaeArch
    state: dict[str, Tensor]  # by tarkit's names, in the precision of the file
    ignored: tuple[str, ...]  # names of tensors in the file that tarkit does not use


def read_published(path: Path) -> Published:
    """The model in a published `.pth` or `.pt` file; its tensors are memory-mapped, not copied.

    Raises UserError when the file is missing, damaged or unsafe, or holds none of the three models.
    """
    content = _open(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a mapping", hint=HINT)
    model = content.get("model")
    if not isinstance(model, Mapping):
        raise UserError(f"{path} has no key `model`; it has {_names(content)}", hint=HINT)
    if any(str(key).startswith("quantize.") for key in model):
        state = _tensors(model, path)
        return _published("vqvae", _vqvae_arch(state, path), state, path)
    args, weights = model.get("args"), model.get("sd")
    if not isinstance(args, Mapping) or not isinstance(weights, Mapping):
        raise UserError(
            f"{path}: `model` has the keys {_names(model)}; expected `args` and `sd`, or the "
            "weights of an image VQ",
            hint=HINT,
        )
    state = _tensors(weights, path)
    if "bottleneck" in args:
        state = _renamed(state, TA_TOK_NAMES)
        return _published("ta_tok", _ta_tok_arch(args, state, path), state, path)
    if "abs_pe" in state:
        arch = _ar_dtok_arch(str(model.get("name")), args, state, path)
        return _published("ar_dtok", arch, state, path)
    raise UserError(f"{path} is neither TA-Tok nor AR-DTok; its args: {_names(args)}", hint=HINT)


def read_tensor(path: Path) -> Tensor:
    """The tensor in a published file that holds one float tensor, of any shape, and nothing else.

    Raises UserError for a file with other content.
    """
    tensor = _open(path)
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        raise UserError(f"{path} holds {type(tensor).__name__}, not a float tensor", hint=HINT)
    if tensor.numel() * tensor.element_size() > path.stat().st_size:
        raise UserError(f"{path}: its tensor claims more bytes than the file has", hint=HINT)
    return tensor


def _published(kind: str, arch: Config, state: Mapping[str, Tensor], path: Path) -> Published:
    """Leaves out unused tensors; UserError if the others need more bytes than the file has."""
    ignored = tuple(name for name in state if re.match(UNUSED[kind], name))
    kept = {k: v for k, v in state.items() if k not in set(ignored)}
    # A tensor of stride 0 can claim any size.
    claimed = sum(v.numel() * v.element_size() for v in kept.values())
    if claimed > path.stat().st_size + SPARE:
        raise UserError(
            f"{path}: its tensors claim {claimed:,} bytes, the file has {path.stat().st_size:,}",
            hint=HINT,
        )
    return Published(kind, arch, kept, ignored)


def _names(mapping: Mapping[Any, Any]) -> str:
    names = [str(key) for key in mapping][:6]
    return ", ".join(names) + (", ..." if len(mapping) > 6 else "") if names else "nothing"


# - the file -


def _open(path: Path) -> Any:
    """The content of a torch file, read in weights-only mode and memory-mapped."""
    _check_archive(path)
    allowed = [(collections.OrderedDict, "easydict.EasyDict"), argparse.Namespace]
    try:
        with torch.serialization.safe_globals(allowed):  # type: ignore[arg-type]
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many types for a bad pickle
        raise UserError(
            f"{path} is refused: {_first_line(error)}",
            hint="only tensors and plain values are read; get the file from its publisher",
        ) from None
    return content


def _first_line(error: Exception) -> str:
    match = re.search(r"GLOBAL (\S+)", str(error))
    if match:
        return f"it names {match[1]}, which would run when the file is opened"
    return " ".join(str(error).split(". ")[0].split())[:300] or type(error).__name__


def _check_archive(path: Path) -> None:
    """Raises UserError unless the file is a whole torch archive that unpacks to no more bytes."""
    if not path.is_file():
        what = "is a folder, not a weight file" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}", hint="name a published .pth or .pt file")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, struct.error) as error:
        raise UserError(f"{path} is not a whole torch file: {error}", hint=HINT) from None
    packed = [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise UserError(
            f"{path} holds compressed entries ({packed[0]}): torch writes none, and one could "
            "unpack to any size",
            hint=HINT,
        )
    if sum(e.file_size for e in entries) > path.stat().st_size:
        raise UserError(f"{path}: its entries claim more bytes than the file has", hint=HINT)
    structure = sum(e.file_size for e in entries if e.filename.endswith(".pkl"))
    if structure > PICKLE_LIMIT:
        raise UserError(
            f"{path}: its pickle has {structure:,} bytes, more than {PICKLE_LIMIT:,}",
            hint=HINT,
        )


def _tensors(state: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: {name!r} is {type(value).__name__}, not a tensor", hint=HINT)
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            what = f"{value.layout}, {value.dtype}, on {value.device}".replace("torch.", "")
            raise UserError(f"{path}: {name!r} is not a plain tensor: {what}", hint=HINT)
    return dict(state)


# - keys -

TA_TOK_NAMES: tuple[tuple[str, str], ...] = (
    # tarkit uses the names of the released file. transformers < 5 writes the encoder's names with
    # the prefix `vision_model`; transformers 5 writes the decoder's names without it.
    (r"^encoder\.vision_model\.", "encoder."),
    (r"^decoder\.(?!vision_model\.)", "decoder.vision_model."),
)
# By kind, a pattern of the names of unused tensors.
UNUSED: Mapping[str, str] = {
    "ta_tok": r"teacher\.|encoder\.head\.|decoder\.vision_model\.head\.|scale_layer\.",
    "ar_dtok": r"(?!)",
    "vqvae": r"(?!)",
}


def _renamed(state: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


# - sizes -


def _shape(state: Mapping[str, Tensor], name: str, path: Path, dims: int) -> tuple[int, ...]:
    if name not in state:
        raise UserError(f"{path} lacks {name}", hint=HINT)
    shape = tuple(state[name].shape)
    if len(shape) != dims:
        raise UserError(f"{path}: {name} is {list(shape)}, not of {dims} dimensions", hint=HINT)
    return shape


def _number(args: Mapping[str, Any], name: str, path: Path, default: Any = None) -> Any:
    """The plain value `args[name]`, or `default`; UserError if it is missing and has no default."""
    value = args.get(name, default)
    if value is None and name not in args:
        raise UserError(f"{path}: its args have no {name}", hint=HINT)
    if not isinstance(value, (bool, int, float, str, type(None))):
        raise UserError(f"{path}: args.{name} is {type(value).__name__}", hint=HINT)
    return value


def _inner(args: Any, path: Path, *names: str) -> Mapping[str, Any]:
    for name in names:
        args = args.get(name) if isinstance(args, Mapping) else None
    if not isinstance(args, Mapping):
        raise UserError(f"{path}: its args have no {'.'.join(names)}", hint=HINT)
    return args


def _validated(cls: type[ArchT], path: Path, values: Mapping[str, Any]) -> ArchT:
    try:
        return cls.model_validate(values)
    except ValueError as error:
        raise UserError(f"{path}: its args do not fit {cls.__name__}: {error}", hint=HINT) from None


def _ta_tok_arch(args: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> TaTokArch:
    """TA-Tok's sizes, from its args, its teacher's config and, for the others, tensor shapes.

    The decoder has SigLIP 2's default number of heads, 12, which the shapes do not show.
    """
    regularizer = _inner(args, path, "bottleneck", "args", "regularizer")
    if regularizer.get("name") != "simvq":
        raise UserError(
            f"{path}: its codebook is {regularizer.get('name')!r}, not simvq", hint=HINT
        )
    book = _inner(regularizer, path, "args")
    encoder = _teacher(_number(args, "teacher", path), path)
    size = _number(args, "input_size", path, encoder.size_px)
    if size != encoder.size_px:
        raise UserError(
            f"{path}: input_size is {size}, but its teacher reads {encoder.size_px} px", hint=HINT
        )
    decoder = "decoder.vision_model."
    positions = _shape(state, decoder + "embeddings.position_embedding.weight", path, 2)[0]
    return _validated(
        TaTokArch,
        path,
        {
            "encoder": encoder.model_dump() | {"head": False},
            "select_layer": _number(args, "select_layer_id", path, -2),
            "num_codes": _number(book, "codebook_size", path),
            "embedding_width": _shape(state, "bottleneck.regularizer.embedding.weight", path, 2)[1],
            "code_width": _number(_inner(args, path, "bottleneck", "args"), "bottleneck_dim", path),
            "l2_normalized": _number(book, "l2_normalized", path),
            "stochastic": _number(book, "stochastic", path),
            "temperature": _number(book, "stochastic_temperature", path, 0.03),
            "decoder_layers": _number(args, "decoder_depth", path, 3),
            "decoder_mlp_width": _shape(
                state, decoder + "encoder.layers.0.mlp.fc1.weight", path, 2
            )[0],
            "decoder_side": round(positions**0.5),
        },
    )


def _teacher(teacher: Any, path: Path) -> EncoderArch:
    """The sizes of the teacher that a file names: SigLIP 2, or a config.json in a folder.

    The folder is next to the file and holds only the config.json. The name comes from the file,
    which is not trusted, so no other path is opened, no link is followed and nothing is downloaded.
    """
    if teacher == SIGLIP2:
        return EncoderArch()
    folder = path.parent / str(teacher)
    is_plain = isinstance(teacher, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", teacher)
    if not is_plain or folder.is_symlink() or not folder.is_dir():
        raise UserError(
            f"{path} names the teacher {str(teacher)[:80]!r}: neither {SIGLIP2} nor a plain folder "
            "next to the file",
            hint=f"put the teacher's config.json into a folder in {path.parent}",
        )
    names = sorted(entry.name for entry in folder.iterdir())
    config = folder / "config.json"
    if names != ["config.json"] or config.is_symlink() or not config.is_file():
        raise UserError(
            f"{folder}, the teacher of {path.name}, holds {', '.join(names[:4]) or 'nothing'}: it "
            "may hold a config.json and nothing else",
            hint=f"leave only the config.json in {folder}",
        )
    if config.stat().st_size > TEACHER_LIMIT:
        raise UserError(f"{config} has more than {TEACHER_LIMIT:,} bytes", hint=HINT)
    content = read_object(config, hint=HINT)
    try:
        vision = content.get("vision_config", content)
        values = {
            "size_px": vision["image_size"],
            "patch_px": vision["patch_size"],
            "width": vision["hidden_size"],
            "layers": vision["num_hidden_layers"],
            "heads": vision["num_attention_heads"],
            "mlp_width": vision["intermediate_size"],
        }
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{config} is not a SigLIP config: {error!r}", hint=HINT) from None
    return _validated(EncoderArch, config, values)


def _ar_dtok_arch(
    name: str, args: Mapping[str, Any], state: Mapping[str, Tensor], path: Path
) -> ArDtokArch:
    """AR-DTok's sizes; depth, heads and width are those of `name` in AR_SIZES, else of the args."""
    kind = _number(args, "model_type", path, "class_cond")
    if kind != "clip_cond":
        raise UserError(
            f"{path} is conditioned on {kind!r}; only features (clip_cond) are supported", hint=HINT
        )
    known = AR_SIZES.get(name)
    if known is None and not {"n_layer", "n_head", "dim"} <= set(args):
        raise UserError(
            f"{path} is named {name[:60]!r}: its size is unknown",
            hint=f"known: {', '.join(AR_SIZES)}",
        )
    layers, heads, width = known or (args["n_layer"], args["n_head"], args["dim"])
    num_positions = _shape(state, "abs_pe", path, 3)[1]
    num_codes = _number(args, "max_seq_len", path, 2048)
    condition = num_positions + 1 - num_codes if isinstance(num_codes, int) else 0
    if condition < 1 or condition != _number(args, "cls_token_num", path, condition):
        raise UserError(
            f"{path}: abs_pe has {num_positions} positions, expected one less than max_seq_len = "
            f"{num_codes} plus cls_token_num = {args.get('cls_token_num')}",
            hint=HINT,
        )
    return _validated(
        ArDtokArch,
        path,
        {
            "layers": layers,
            "heads": heads,
            "width": width,
            "kv_heads": _number(args, "n_kv_head", path, None) if "n_kv_head" in args else None,
            "multiple_of": _number(args, "multiple_of", path, 256),
            "ffn_multiplier": args.get("ffn_dim_multiplier"),
            "norm_eps": _number(args, "norm_eps", path, 1e-5),
            "condition_width": _number(args, "cond_dim", path, 1152),
            "vocab_size": _number(args, "vocab_size", path, 8192),
            "num_codes": num_codes,
            "max_condition": condition,
            "token_dropout": _number(args, "token_dropout_p", path, 0.1),
            "residual_dropout": _number(args, "resid_dropout_p", path, 0.1),
            "ffn_dropout": _number(args, "ffn_dropout_p", path, 0.1),
        },
    )


def _vqvae_arch(state: Mapping[str, Tensor], path: Path) -> Config:
    """The image VQ's sizes, all from tensor shapes: LlamaGen's file states none."""

    def multipliers(part: str) -> tuple[int, ...]:
        levels = _counted(state, rf"{part}\.conv_blocks\.(\d+)\.")
        return tuple(
            _shape(state, f"{part}.conv_blocks.{level}.res.0.conv1.weight", path, 4)[0] // channels
            for level in range(levels)
        )

    channels = max(1, _shape(state, "encoder.conv_in.weight", path, 4)[0])
    codes, width = _shape(state, "quantize.embedding.weight", path, 2)
    return _validated(
        VqvaeArch,
        path,
        {
            "channels": channels,
            "encoder_multipliers": multipliers("encoder"),
            "decoder_multipliers": multipliers("decoder")[::-1],
            "num_res_blocks": _counted(state, r"encoder\.conv_blocks\.0\.res\.(\d+)\."),
            "latent_channels": _shape(state, "encoder.conv_out.weight", path, 4)[0],
            "num_codes": codes,
            "code_dim": width,
        },
    )


def _counted(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers the pattern's group matches in the names of `state`."""
    numbers = {int(m[1]) for name in state if (m := re.match(pattern, name))}
    return len(numbers)
