"""Pictures to codes and back: every scale beside the original, and what failed is listed."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tarkit.artifacts.artifact import begin_artifact
from tarkit.checkpoints.tar_config import Sampling
from tarkit.errors import UserError
from tarkit.images import png_bytes
from tarkit.inference import describe, reconstruct
from tarkit.vocab import Scale


class GreyTar:
    """Codes are the picture's grey; a drawing has grey + 50 x scale and the seed in green."""

    dtok = None
    grid = 4
    scales = tuple(Scale)
    sampling = Sampling()
    sha256 = "0" * 64

    def encode(
        self, images: Sequence[Image.Image], scales: Sequence[Scale]
    ) -> dict[Scale, torch.Tensor]:
        greys = [int(np.asarray(image)[0, 0, 0]) for image in images]
        return {s: torch.tensor([[grey] * s.num_codes(4) for grey in greys]) for s in scales}

    def draw(
        self, codes: torch.Tensor, *, seeds: Sequence[int], sampling: Sampling
    ) -> list[Image.Image]:
        assert sampling == Sampling()
        scale = Scale.of(codes.shape[1], self.grid)
        return [
            Image.new("RGB", (8, 8), (int(row[0]) + 50 * int(scale), seed, 0))
            for row, seed in zip(codes, seeds, strict=True)
        ]

    def describe(self, image: Image.Image, question: str, *, max_tokens: int) -> str:
        return f"{question} {image.size} {max_tokens}"


@pytest.fixture(autouse=True)
def tar(monkeypatch: pytest.MonkeyPatch) -> None:
    for verb in (reconstruct, describe):
        monkeypatch.setattr(verb, "Tar", SimpleNamespace(load=lambda name, **how: GreyTar()))


def write(path: Path, grey: int) -> Path:
    path.write_bytes(png_bytes(np.full((8, 8, 3), grey, np.uint8)))
    return path


def cell(sheet: Path, column: int, row: int) -> tuple[int, ...]:
    """The middle pixel of a cell: 160 px cells, 6 px margins, three caption lines of 14 px."""
    with Image.open(sheet) as picture:
        x, y = 6 + column * 166 + 80, 6 + row * (160 + 3 * 14 + 6) + 80
        return tuple(int(value) for value in np.asarray(picture)[y, x])


def test_a_row_is_the_original_and_the_three_scales(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.png", 10), write(tmp_path / "b.png", 20)]
    done = reconstruct.run(files, out=tmp_path / "new/sheet.png", seed=3)
    assert (done.num_pictures, done.failed) == (2, {})
    # Drawings of picture r: its grey + 50 x scale, seed 3 + r.
    assert [cell(done.path, column, 0) for column in range(4)] == [
        *((10, 10, 10), (60, 3, 0), (110, 3, 0), (160, 3, 0)),
    ]
    assert [cell(done.path, column, 1) for column in range(4)] == [
        *((20, 20, 20), (70, 4, 0), (120, 4, 0), (170, 4, 0)),
    ]


def test_what_cannot_be_read_is_listed_and_nothing_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    write(folder / "a.png", 10)
    (folder / "b.png").write_text("no picture")
    write(folder / "c.png", 20)
    done = reconstruct.run([folder, tmp_path / "gone.png"], out=tmp_path / "sheet.png")
    assert done.num_pictures == 2
    assert list(done.failed) == [str(folder / "b.png"), str(tmp_path / "gone.png")]
    assert "not a picture" in done.failed[str(folder / "b.png")]
    assert "there is no picture" in done.failed[str(tmp_path / "gone.png")]


def test_an_images_artifact_gives_its_pictures_by_key(tmp_path: Path) -> None:
    artifact = begin_artifact(tmp_path / "im", "images", settings={}, shards=["00000"])
    row = dict.fromkeys(artifact.schema.names) | {"role": "target", "status": "ok"}
    rows = [row | {"key": "00000-000000"}, artifact.failed_row("00000-000001", "torn")]
    blob = png_bytes(np.full((8, 8, 3), 30, np.uint8))
    artifact.write_pictures("00000", zip(rows, [("png", blob), None], strict=True))
    done = reconstruct.run([tmp_path / "im"], out=tmp_path / "sheet.png")
    assert done.failed == {"00000-000001": "torn"}
    assert cell(done.path, 1, 0) == (80, 0, 0)


def test_the_limit_takes_the_first_pictures(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.png", n) for n in range(3)]
    assert reconstruct.run(files, out=tmp_path / "sheet.png", limit=2).num_pictures == 2


def test_nothing_readable_is_an_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(UserError, match=r"none of the pictures can be read: .*a\.png.*not a pict"):
        reconstruct.run([tmp_path / "a.png"], out=tmp_path / "sheet.png")


def test_describe_asks_the_question_of_the_picture(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", 10)
    assert describe.run(path, "What is it?", max_tokens=9) == "What is it? (8, 8) 9"
    assert describe.run(path) == "Describe the image. (8, 8) 256"
    with pytest.raises(UserError, match=r"there is no picture .*b\.png \(did you mean a\.png\?\)"):
        describe.run(tmp_path / "b.png")
