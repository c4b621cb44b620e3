"""AR-DTok at work with a draft: greedily the same picture, misfits in words, batches by memory."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tarkit.checkpoints import assemble
from tarkit.checkpoints.directory import save_model
from tarkit.errors import UserError
from tarkit.inference import ar_detokenizer
from tarkit.inference.ar_detokenizer import ArDetokenizer
from tarkit.inference.tar_model import Tar
from tarkit.models.ar_dtok import ArDtok
from tests import parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("parts")
    given: dict[str, Any] = {**parts.save_parts(made)}
    return assemble.run(**given, out=made / "tar")


def draft_of(folder: Path, out: Path, **changes: Any) -> Path:
    """An AR-DTok of one layer, trained with the same models, with some facts changed."""
    config = json.loads((folder / "ar_dtok/config.json").read_text())
    trained_with = {name: config[name] for name in ("tokenizer_sha256", "vqvae_sha256")}
    trained_with |= {name: changes.pop(name) for name in list(changes) if name in trained_with}
    arch = parts.AR_DTOK.model_copy(update={"layers": 1, **changes})
    torch.manual_seed(1)
    model = ArDtok(arch)
    model.reset_parameters()
    facts = {"kind": "ar_dtok", "arch": arch.model_dump(mode="json"), **trained_with}
    save_model(out, model, facts)
    return out


def test_greedily_a_draft_changes_no_picture(folder: Path, tmp_path: Path) -> None:
    plain, drafted = Tar.load(folder), Tar.load(folder, draft=draft_of(folder, tmp_path / "draft"))
    codes = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    greedy = plain.sampling.changed({"dtok_temperature": 0.0})
    drawn = [tar.draw(codes, seeds=[0, 1], sampling=greedy) for tar in (plain, drafted)]
    assert [image.tobytes() for image in drawn[0]] == [image.tobytes() for image in drawn[1]]
    assert isinstance(drafted.dtok, ArDetokenizer)
    num_codes = drafted.dtok.ar_dtok.arch.num_codes
    # The first code of each picture comes from the condition's own pass.
    assert drafted.dtok.acceptance.codes == 2 * (num_codes - 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_codes": 9}, "has 9 codes a picture"),
        ({"vocab_size": 7}, "has 7 codes in its codebook"),
        ({"max_condition": 9}, "has 9 max_condition"),
        ({"tokenizer_sha256": "f" * 64}, "was trained with tokenizer ffffffffffff"),
        ({"vqvae_sha256": "e" * 64}, "was trained with vqvae eeeeeeeeeeee"),
    ],
)
def test_a_draft_of_another_kind_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        Tar.load(folder, draft=draft_of(folder, tmp_path / "draft", **changes))


def test_a_draft_does_not_go_with_diffusion(folder: Path) -> None:
    with pytest.raises(UserError, match="proposes codes to an AR-DTok alone"):
        Tar.load(folder, dtok="dif", draft=folder / "ar_dtok")


def test_batches_fit_into_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = Tar.load(folder)
    assert isinstance(tar.dtok, ArDetokenizer)
    codes = torch.arange(20).remainder(4).view(5, 4)
    together = tar.draw(codes, seeds=range(5))
    sizes: list[int] = []
    real = ar_detokenizer.sample_codes

    def counted(model: ArDtok, condition: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        sizes.append(len(condition))
        return real(model, condition, *args, **more)

    arch = tar.dtok.ar_dtok.arch
    positions = 4 + arch.num_codes
    # Two rows with guidance, keys and values of every layer, float32; a quarter holds two of them.
    picture = 2 * 2 * arch.layers * positions * arch.width * 4
    monkeypatch.setattr(ar_detokenizer, "sample_codes", counted)
    monkeypatch.setattr(ar_detokenizer, "total_memory", lambda device: 4 * 2.5 * picture)
    in_parts = tar.draw(codes, seeds=range(5))
    assert sizes == [2, 2, 1]
    assert [image.tobytes() for image in in_parts] == [image.tobytes() for image in together]
