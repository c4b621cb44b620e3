"""`tarkit assemble`: copies the trained parts of a model into one model directory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tarkit.artifacts.card import CARD, NOT_KNOWN, trained_on, write_card
from tarkit.artifacts.digests import remembered_sha256
from tarkit.artifacts.files import whole_file, write_once, write_whole
from tarkit.artifacts.manifest import MANIFEST, begin_directory
from tarkit.checkpoints.directory import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    half,
    read_config,
    require_recorded_weights,
)
from tarkit.checkpoints.load import load_reading_encoder
from tarkit.checkpoints.published_directory import PUBLISHED, write_published
from tarkit.checkpoints.representation import TEXT_ALIGNED, Representation, representation_of
from tarkit.checkpoints.sana import copy_dif_dtok
from tarkit.checkpoints.siglip import is_siglip
from tarkit.checkpoints.stored_tensors import indexed_files
from tarkit.checkpoints.tar_config import ASSEMBLE, AssembleConfig
from tarkit.config import load_config
from tarkit.errors import UserError
from tarkit.vocab import Scale


def run(
    *,
    mllm: Path,
    vqvae: Path,
    out: Path,
    tokenizer: Path | None = None,
    ar_dtok: Path | None = None,
    dif_dtok: Path | None = None,
    encoder: Path | None = None,
    half_precision: bool = False,
    config: Path | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Copy the parts into `out`, with `half_precision` as float16; returns `out`.

    A text-aligned model has a tokenizer and an AR-DTok; one that draws with pixel codes has none.
    With separate encoders `encoder` reads pictures; a SigLIP is copied as it is.
    Tokenizer, AR-DTok and image VQ may be published files. A published AR-DTok does not say which
    tokenizer it was trained with, so that this is not compared. `dif_dtok` is a trained Dif-DTok
    that the model may draw with as well; it is copied as it is. The same parts may be assembled
    again, with other settings. Raises UserError when a part is unfinished, or was trained with
    another tokenizer or image VQ, and when `out` was begun with other parts: stopped between two,
    it would be a mixture of both.
    """
    settings = load_config(AssembleConfig, config, overrides)
    representation = representation_of(read_config(mllm, "mllm"), mllm)
    named = {"mllm": mllm, "ta_tok": tokenizer, "ar_dtok": ar_dtok, "vqvae": vqvae}
    named["encoder"] = encoder
    _check_named({**named, "dif_dtok": dif_dtok}, representation)
    _check_scales(settings, representation)
    parts = {kind: path for kind, path in named.items() if path}
    given = {**parts, "dif_dtok": dif_dtok} if dif_dtok else parts
    codes_of = "ta_tok" if representation == TEXT_ALIGNED else "vqvae"
    configs = {
        kind: {"sha256": remembered_sha256(path), PUBLISHED: path.name}
        if path.is_file()
        else read_config(path, None if is_siglip(path) else kind)
        for kind, path in given.items()
    }
    if encoder is not None:
        configs["encoder"]["sha256"] = _encoder_sha256(encoder, configs["mllm"], mllm)
    tokenizer_sha256 = configs[codes_of]["sha256"]
    for kind in [kind for kind in configs if kind in ("mllm", "ar_dtok", "dif_dtok")]:
        trained_with = configs[kind].get("tokenizer_sha256")
        is_silent = trained_with is None and PUBLISHED in configs[kind]
        if trained_with != tokenizer_sha256 and not is_silent:
            raise UserError(
                f"{given[kind]} was trained with tokenizer {str(trained_with)[:12]}, "
                f"{given[codes_of]} is {tokenizer_sha256[:12]}",
                hint="name the tokenizer that all were trained with",
            )
    if "ar_dtok" in parts:
        _check_vqvae(configs, parts)
    for path in given.values():
        if not path.is_file() and not is_siglip(path):
            require_recorded_weights(path)
    identities = {kind: each["sha256"] for kind, each in configs.items()}
    copied = {"sha256": identities, "half_precision": half_precision}
    if not (out / MANIFEST).exists():
        (out / CONFIG).unlink(missing_ok=True)  # complete again only with these parts
    begin_directory(out, "tar", settings=copied, parents=given)
    if dif_dtok:
        copy_dif_dtok(dif_dtok, out / "dif_dtok")
    for kind, path in parts.items():
        if path.is_file():
            write_published(path, out / kind)
        for name in (CONFIG, "run.toml", TOKENIZER, WEIGHTS, *_more_weights(path)):
            if (path / name).exists():
                with whole_file(out / kind / name) as copy:
                    shutil.copyfile(path / name, copy)
        if half_precision and not is_siglip(path):
            half(out / kind)
    # A card that somebody has edited since is kept.
    write_once(out / CARD, _card(out, given).encode())
    description = {"kind": "tar", **settings.model_dump(mode="json")}
    write_whole(out / CONFIG, (json.dumps(description, indent=1) + "\n").encode())
    return out


NEEDED: Mapping[Representation, tuple[str, ...]] = {
    "text-aligned": ("ta_tok", "ar_dtok"),
    "separate": ("encoder",),
}
"""The parts that a model needs beside its language model and image VQ."""
OPTIONS = {
    "ta_tok": "--tokenizer",
    "ar_dtok": "--ar-dtok",
    "dif_dtok": "--dif-dtok",
    "encoder": "--encoder",
}


def _check_scales(settings: AssembleConfig, representation: Representation) -> None:
    """Raise UserError for a scale that the representation does not have."""
    if representation == TEXT_ALIGNED:
        return
    scales = {"default_scale": settings.default_scale}
    if settings.read_scale and representation != "separate":
        scales["read_scale"] = settings.read_scale
    for name, scale in scales.items():
        if scale is not Scale.FULL:
            raise UserError(
                f"{name} = {int(scale)}: pixel codes have scale 1 alone", hint=f"--set {name}=1"
            )


def _encoder_sha256(encoder: Path, config: Mapping[str, Any], mllm: Path) -> str:
    """The identity of the encoder; UserError where the language model learned another one."""
    reader = config.get("reader")
    layer = reader.get("layer") if isinstance(reader, dict) else None
    found = load_reading_encoder(encoder, layer=layer if type(layer) is int else -1)
    if found.facts() != reader:
        trained_with = reader.get("encoder_sha256") if isinstance(reader, dict) else None
        raise UserError(
            f"{mllm} was trained with encoder {str(trained_with)[:12]}, {encoder} is "
            f"{found.sha256[:12]}",
            hint="name the encoder that the language model was trained with",
        )
    return found.sha256


def _more_weights(path: Path) -> list[str]:
    """The weights files of a SigLIP in several parts, with their index; of other models none."""
    parts = [file.name for file in indexed_files(path)] if is_siglip(path) else []
    return [*parts, f"{WEIGHTS}.index.json"] if parts else []


def _check_named(named: Mapping[str, Path | None], representation: Representation) -> None:
    """Raise UserError for a part that the representation needs, or that it does not use."""
    needed = NEEDED.get(representation, ())
    optional = ("dif_dtok",) if representation == TEXT_ALIGNED else ()
    for kind, option in OPTIONS.items():
        path = named[kind]
        if path is None and kind in needed:
            raise UserError(
                f"{named['mllm']} is {representation}: it needs {option}",
                hint=ASSEMBLE if representation == TEXT_ALIGNED else f"{option} DIR",
            )
        if path is not None and kind not in (*needed, *optional):
            raise UserError(
                f"{named['mllm']} has the representation {representation}, which does not use "
                f"{option} {path}",
                hint=f"leave {option} out",
            )


def _card(out: Path, parts: Mapping[str, Path]) -> str:
    """The card of an assembled model: how to use it, and what each part was trained on."""
    from huggingface_hub import ModelCardData

    data = []
    for kind, path in parts.items():
        lines = [] if path.is_file() else trained_on(path)
        data.append(f"{kind}: `{path.name}`" + ("" if lines else f", {NOT_KNOWN}"))
        data += [f"  {line}" for line in lines]
    text = (
        f"# {out.resolve().name}\n\nA model of tarkit that reads and draws pictures, assembled of "
        f"{', '.join(parts)}.\n\n```\n"
        "tarkit generate 'a photo of a bench' --model DIR --out bench.png\n```"
    )
    return write_card(ModelCardData(library_name="tarkit", tags=["tar"]), text, data)


def _check_vqvae(configs: Mapping[str, dict[str, Any]], parts: Mapping[str, Path]) -> None:
    """Refuse an image VQ other than the one whose codes the de-tokenizer learned."""
    trained_with, vqvae_sha256 = configs["ar_dtok"].get("vqvae_sha256"), configs["vqvae"]["sha256"]
    if trained_with not in (None, vqvae_sha256):
        raise UserError(
            f"{parts['ar_dtok']} was trained with image VQ {str(trained_with)[:12]}, "
            f"{parts['vqvae']} is {vqvae_sha256[:12]}",
            hint="name the image VQ that the de-tokenizer was trained with",
        )
