"""Drawing from caches: the shared null condition, ragged pictures, recorded passes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tarkit.models.ar_decoding import CodeSampling, Decoding, cache_shape, sample_codes
from tarkit.models.ar_dtok import ArDtok, ArDtokArch

ARCH = ArDtokArch(
    layers=2,
    heads=2,
    width=16,
    multiple_of=8,
    condition_width=6,
    vocab_size=20,
    num_codes=9,
    max_condition=16,
)
CONDITION = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
CODES = torch.randint(20, (3, 9), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def model() -> ArDtok:
    torch.manual_seed(0)
    model = ArDtok(ARCH)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.5 if weight.dim() > 1 else 1.0))
    return model.eval()


@torch.no_grad()
def expected(model: ArDtok, guidance: float) -> Tensor:
    """Teacher-forced guided logits (3, 9, 20), the null condition read for every picture."""
    null = model.logits(torch.zeros_like(CONDITION), CODES)
    return null + (model.logits(CONDITION, CODES) - null) * guidance


def rehearsed(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """A recorded pass as a CUDA graph is one: the same inputs and the same result, in place."""
    result = run().clone()
    return lambda: None if result.copy_(run()) is None else None, result


@torch.no_grad()
@pytest.mark.parametrize("record", [None, rehearsed])
def test_pictures_at_different_places_extend_together(model: ArDtok, record: object) -> None:
    logits = expected(model, 3.0)
    decoding = Decoding(model, CONDITION, CodeSampling(guidance=3.0), record=record)  # type: ignore[arg-type]
    assert_close(decoding.first, logits[:, 0])
    assert_close(decoding.extend(CODES[:, :1], [0, 0, 0]), logits[:, 1:2])
    # Three codes at once, and then the first picture is behind the others.
    assert_close(decoding.extend(CODES[:, 1:4], [1, 1, 1]), logits[:, 2:5])
    starts = [2, 4, 3]
    read = torch.stack([CODES[row, start : start + 2] for row, start in enumerate(starts)])
    wanted = torch.stack([logits[row, s + 1 : s + 3] for row, s in enumerate(starts)])
    assert_close(decoding.extend(read, starts), wanted)
    # What was read in another place before is forgotten.
    wrong = (read + 1) % 20
    decoding.extend(wrong, starts)
    assert_close(decoding.extend(read, starts), wanted)


@torch.no_grad()
def test_codes_beyond_the_last_do_not_disturb_it(model: ArDtok) -> None:
    logits = expected(model, 3.0)
    decoding = Decoding(model, CONDITION, CodeSampling(guidance=3.0))
    decoding.extend(CODES[:, :6], [0, 0, 0])
    # The last prediction is that of code 8, from code 7; 8 and two more have no successor.
    read = torch.cat([CODES[:, 6:], CODES[:, :2]], dim=1)
    assert_close(decoding.extend(read, [6, 6, 6])[:, :2], logits[:, 7:])


@torch.no_grad()
def test_recorded_passes_draw_the_same_codes(
    model: ArDtok, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tarkit.models import ar_decoding

    def drawn() -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        return sample_codes(model, CONDITION, CodeSampling(guidance=2.0), generator=generators)

    plain = drawn()
    passes: list[tuple[int, int]] = []

    class Recorded(Decoding):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, record=rehearsed)  # type: ignore[arg-type]

        def extend(self, codes: Tensor, starts: object) -> Tensor:
            result = super().extend(codes, starts)  # type: ignore[arg-type]
            passes[:] = self._recorded
            return result

    monkeypatch.setattr(ar_decoding, "Decoding", Recorded)
    monkeypatch.setattr(ar_decoding, "LIVE_STEP", 4)
    assert torch.equal(drawn(), plain)
    # Passes read 4 + 1 to 4 + 8 positions: 8 and 12, in steps of 4.
    assert passes == [(1, 8), (1, 12)]


@torch.no_grad()
def test_the_null_condition_is_read_once(model: ArDtok) -> None:
    rows: list[int] = []
    handle = model.layers[0].register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    sample_codes(model, CONDITION, CodeSampling(guidance=2.0))
    handle.remove()
    # Three conditions and one row without, then 8 steps with both rows of three pictures.
    assert rows == [4] + [6] * 8


def test_the_shape_of_the_caches() -> None:
    # LP at 1024 px and scale 1, one picture with guidance: 2 rows of 729 + 4096 positions; keys
    # and values of 30 layers in float32 are 2.96 GB.
    shape = cache_shape(ArDtokArch(num_codes=4096), 729, 2)
    assert shape == (2, 40, 4825, 64)
    assert 30 * 4 * torch.Size(shape).numel() == 2_964_480_000
