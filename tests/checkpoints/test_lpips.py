"""The weights of LPIPS: two published files, or one, and what is refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tarkit.checkpoints.lpips import load_lpips
from tarkit.errors import UserError
from tarkit.models.lpips import Lpips

SMALL = ((4, 4), (4, 4), (8, 8, 8), (8, 8, 8), (8, 8, 8))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tarkit.models.lpips.BLOCKS", SMALL)


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return Lpips().state_dict()


def of(state: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith(start)}


def test_the_two_published_files_are_read_as_they_are(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    vgg, heads = tmp_path / "vgg16.pth", tmp_path / "vgg.pth"
    # As the published files are: the old format, and VGG16's classifier, which has no use here.
    classifier = {"classifier.0.weight": torch.zeros(2, 2)}
    torch.save(of(state, "features") | classifier, vgg, _use_new_zipfile_serialization=False)
    torch.save(of(state, "lin"), heads, _use_new_zipfile_serialization=False)
    for files in ([vgg, heads], [heads, vgg]):
        loaded = load_lpips(files)
        assert not loaded.training
        assert all(torch.equal(v, state[k]) for k, v in loaded.state_dict().items())


def test_one_safetensors_file_does_as_well(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "lpips.safetensors")
    loaded = load_lpips([tmp_path / "lpips.safetensors"])
    assert all(torch.equal(v, state[k]) for k, v in loaded.state_dict().items())


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this ran",))


def refused(state: dict[str, Tensor], folder: Path) -> Iterator[tuple[list[Path], str]]:
    """Files, and what is said of them."""
    vgg = folder / "vgg16.pth"
    torch.save(of(state, "features"), vgg)
    yield [vgg], "vgg16.pth: no weights of LPIPS: missing lin0.model.1.weight; missing lin1"
    yield [vgg, vgg], "vgg16.pth holds features.0.bias, which a file before it holds too"
    yield [folder / "gone.pth"], "there is no file .*gone.pth"
    narrow = folder / "narrow.pth"
    torch.save(state | {"lin0.model.1.weight": torch.ones(1, 3, 1, 1)}, narrow)
    yield [narrow], r"lin0.model.1.weight is \[1, 3, 1, 1\], expected \[1, 4, 1, 1\]"
    harmful, words = folder / "harmful.pth", folder / "words.pth"
    torch.save({"features.0.weight": Harmful()}, harmful)
    yield [harmful], "harmful.pth is refused"
    torch.save({"features.0.weight": "no tensor"}, words)
    yield [words], "words.pth is not a file of named tensors"


def test_other_files_are_refused_in_a_sentence(
    state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for files, message in refused(state, tmp_path):
        with pytest.raises(UserError, match=message) as error:
            load_lpips(files)
        assert error.value.hint
    assert "this ran" not in capsys.readouterr().out
