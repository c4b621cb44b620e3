"""`tarkit assemble`: copies the four trained parts into one model directory."""

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
from tarkit.checkpoints.published_directory import PUBLISHED, write_published
from tarkit.checkpoints.sana import copy_dif_dtok
from tarkit.checkpoints.tar_config import AssembleConfig
from tarkit.config import load_config
from tarkit.errors import UserError


def run(
    *,
    mllm: Path,
    tokenizer: Path,
    ar_dtok: Path,
    vqvae: Path,
    out: Path,
    dif_dtok: Path | None = None,
    half_precision: bool = False,
    config: Path | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Copy the parts into `out`, with `half_precision` as float16; returns `out`.

    Tokenizer, AR-DTok and image VQ may be published files. A published AR-DTok does not say which
    tokenizer it was trained with, so that this is not compared. `dif_dtok` is a trained Dif-DTok
    that the model may draw with as well; it is copied as it is. The same parts may be assembled
    again, with other settings. Raises UserError when a part is unfinished, or was trained with
    another tokenizer or image VQ, and when `out` was begun with other parts: stopped between two,
    it would be a mixture of both.
    """
    settings = load_config(AssembleConfig, config, overrides)
    parts = {"mllm": mllm, "ta_tok": tokenizer, "ar_dtok": ar_dtok, "vqvae": vqvae}
    given = {**parts, "dif_dtok": dif_dtok} if dif_dtok else parts
    configs = {
        kind: {"sha256": remembered_sha256(path), PUBLISHED: path.name}
        if path.is_file()
        else read_config(path, kind)
        for kind, path in given.items()
    }
    tokenizer_sha256 = configs["ta_tok"]["sha256"]
    for kind in [kind for kind in configs if kind not in ("ta_tok", "vqvae")]:
        trained_with = configs[kind].get("tokenizer_sha256")
        is_silent = trained_with is None and PUBLISHED in configs[kind]
        if trained_with != tokenizer_sha256 and not is_silent:
            raise UserError(
                f"{given[kind]} was trained with tokenizer {str(trained_with)[:12]}, "
                f"{tokenizer} is {tokenizer_sha256[:12]}",
                hint="name the tokenizer that all were trained with",
            )
    _check_vqvae(configs, parts)
    for path in given.values():
        if not path.is_file():
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
        for name in (CONFIG, "run.toml", TOKENIZER, WEIGHTS):
            if (path / name).exists():
                with whole_file(out / kind / name) as copy:
                    shutil.copyfile(path / name, copy)
        if half_precision:
            half(out / kind)
    # A card that somebody has edited since is kept.
    write_once(out / CARD, _card(out, given).encode())
    description = {"kind": "tar", **settings.model_dump(mode="json")}
    write_whole(out / CONFIG, (json.dumps(description, indent=1) + "\n").encode())
    return out


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
