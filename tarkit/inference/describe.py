"""`tarkit describe`: the answer of a model to a question about a picture."""

from __future__ import annotations

from pathlib import Path

from tarkit.errors import UserError
from tarkit.images import read_picture
from tarkit.inference.tar_model import Tar


def run(
    image: Path,
    question: str = "Describe the image.",
    *,
    model: str = "mini",
    max_tokens: int = 256,
    device: str = "cpu",
    precision: str = "float32",
) -> str:
    """The model's answer, decoded greedily.

    Raises UserError for a file that is not a picture, and an empty question.
    """
    if not question.strip():
        raise UserError("the question is empty", hint=f'tarkit describe {image} "what is it?"')
    picture = read_picture(image)
    tar = Tar.load(model, device=device, dtok=None, precision=precision)
    return tar.describe(picture, question, max_tokens=max_tokens)
