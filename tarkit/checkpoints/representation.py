"""How a language model sees pictures: the representations that the paper compares (Sec. 4.3).

    text-aligned  TA-Tok's codes, read and written; a de-tokenizer draws (the paper's own)
    vq            pixel codes of an image VQ, read and written; the image VQ draws
    separate      reads features of a vision encoder, writes pixel codes of an image VQ (Janus)
    hybrid        as vq, with an image VQ that was also trained to match captions (UniTok)

The config.json of a language model names it; a text-aligned one, and a published one, does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from tarkit.errors import UserError

Representation = Literal["text-aligned", "vq", "separate", "hybrid"]
TEXT_ALIGNED: Representation = "text-aligned"

PARTS: Mapping[Representation, tuple[str, ...]] = {
    "text-aligned": ("ta_tok",),
    "vq": ("vqvae",),
    "separate": ("vqvae", "encoder"),
    "hybrid": ("vqvae",),
}
"""The parts of an assembled model that read and write pictures, beside its language model."""


def representation_of(config: Mapping[str, Any], path: Path) -> Representation:
    """The representation that a language model's config.json names; UserError for no known one."""
    name = config.get("representation", TEXT_ALIGNED)
    if name not in PARTS:
        raise UserError(
            f"{path} has the representation {str(name)!r:.40}; known are "
            f"{', '.join(get_args(Representation))}",
            hint=f"tarkit inspect {path}",
        )
    known: Representation = name
    return known
