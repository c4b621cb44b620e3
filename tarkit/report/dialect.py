"""`tarkit dialect`: the words behind the codes of a picture, or of a whole codebook.

Source: paper Sec. 3.1: C = E W, so every code is the projection of one token's embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from tarkit.artifacts.artifact import open_artifact
from tarkit.artifacts.files import write_whole
from tarkit.checkpoints.code_words import LM_HINT, CodeWords, read_code_words
from tarkit.checkpoints.directory import CONFIG, read_config
from tarkit.checkpoints.hub import find, find_language_model
from tarkit.checkpoints.load import LoadedTaTok, load_ta_tok
from tarkit.errors import UserError
from tarkit.images import png_bytes, read_picture, require_own_png, to_uint8
from tarkit.models.pixel_range import to_unit
from tarkit.report.code_usage import read_usage
from tarkit.report.dialect_facts import Dialect, PictureInCodes
from tarkit.report.dialect_page import codebook_page, picture_page
from tarkit.report.dialect_sheet import dialect_sheet
from tarkit.report.html import render
from tarkit.vocab import Scale


@dataclass(frozen=True)
class DialectResult:
    """Where the page or sheet is, and the words of the codebook that it shows."""

    path: Path
    words: CodeWords


def run(
    image: Path | None,
    *,
    out: Path,
    model: str = "mini",
    lm: Path | None = None,
    tokens: Path | None = None,
    device: str = "cpu",
) -> DialectResult:
    """Write a page (.html) of a picture or of a codebook, or a sheet (.png) of a picture.

    `model` is a model or a TA-Tok alone; `lm` is the language model that TA-Tok was trained with,
    by default the model's own. `tokens` is an artifact that says how often each code is used.
    Raises UserError for a picture that cannot be read, a codebook whose tokens cannot be found,
    and where `out` is something else.
    """
    _require_out(out, is_picture=image is not None)
    picture = None if image is None else read_picture(image)
    ta_tok_path, own_lm = _parts(model)
    lm_path = own_lm if lm is None else find_language_model(lm)
    if lm_path is None:
        raise UserError(f"{model} is a TA-Tok alone, without a language model", hint=LM_HINT)
    ta_tok = load_ta_tok(ta_tok_path)
    words = read_code_words(
        ta_tok_path,
        ta_tok.model.codebook.embedding.weight,
        lm_path,
        compare=lm is not None,
    )
    usage = None
    if tokens is not None:
        artifact = open_artifact(tokens, "tokens")
        usage = read_usage(artifact, num_codes=ta_tok.num_codes, tokenizer_sha256=ta_tok.sha256)
    ta_tok.model.to(device)
    dialect = Dialect(ta_tok, words, usage)
    if picture is None or image is None:
        _write_page(out, render(codebook_page(dialect, model=model)))
        return DialectResult(out, words)
    shown = _encoded(ta_tok, picture)
    if out.suffix.lower() == ".png":
        _write_sheet(out, dialect_sheet(dialect, shown, name=image.name), image, ta_tok)
    else:
        _write_page(out, render(picture_page(dialect, shown, name=image.name, model=model)))
    return DialectResult(out, words)


def _parts(model: str) -> tuple[Path, Path | None]:
    """TA-Tok and the language model of a model; of a TA-Tok alone there is no language model."""
    path = Path(model)
    is_alone = path.is_file() or (
        (path / CONFIG).is_file() and read_config(path).get("kind") == "ta_tok"
    )
    if is_alone:
        return path, None
    places = find(model, dtok=None)
    if places.ta_tok is None:
        raise UserError(
            f"{model} has no TA-Tok: its codes are pixels, which are no words",
            hint="name a text-aligned model, such as mini",
        )
    return places.ta_tok, places.mllm


def _encoded(ta_tok: LoadedTaTok, picture: Image.Image) -> PictureInCodes:
    device = next(ta_tok.model.parameters()).device
    pixels = ta_tok.sized(to_unit([to_uint8(picture)], device), "pil-bicubic")
    with torch.no_grad():
        codes = ta_tok.encode_scales(pixels, list(Scale))
    return PictureInCodes(
        picture, {scale: rows[0].cpu().numpy() for scale, rows in codes.items()}, ta_tok.grid
    )


def _require_out(out: Path, *, is_picture: bool) -> None:
    if out.is_dir():
        raise UserError(
            f"--out {out} is a folder; give the name of a page in it",
            hint=f"--out {out / 'dialect.html'}",
        )
    suffix = out.suffix.lower()
    if suffix != ".html" and not (suffix == ".png" and is_picture):
        kinds = ".html or .png" if is_picture else ".html (.png is for a picture)"
        raise UserError(
            f"--out {out}: the name must end in {kinds}", hint=f"--out {out.with_suffix('.html')}"
        )


def _write_page(out: Path, page: str) -> None:
    """Raises UserError where `out` exists and is another file."""
    data = page.encode()
    if out.exists() and out.read_bytes() != data:
        raise UserError(f"--out {out} exists and is another page", hint="give another --out")
    write_whole(out, data)


def _write_sheet(out: Path, sheet: Image.Image, image: Path, ta_tok: LoadedTaTok) -> None:
    text = {"image": str(image), "tokenizer_sha256": ta_tok.sha256}
    require_own_png(out, text)
    write_whole(out, png_bytes(sheet, text))
