"""Products of a few rows: every form is the same product, and the table decides which is taken."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from tarkit.models import skinny
from tarkit.models.skinny import FORMS, MAX_ROWS, Int8Linear, SkinnyLinear, product, use_products

LARGE = (1024, 512)  # 2^19 weights


@pytest.fixture(autouse=True)
def no_forms_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skinny, "_forms", {})


def values(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 16, 32])
@pytest.mark.parametrize("shape", [(96, 40), (40, 96), (50, 30)])
def test_every_form_is_the_product(name: str, rows: int, shape: tuple[int, int]) -> None:
    x, weight = values(rows, shape[1]), values(*shape)
    exact = (x.double() @ weight.double().T).float()
    assert_close(FORMS[name](x, weight), exact, rtol=1e-5, atol=1e-5)


def all_rows(name: str) -> dict[str, list[str]]:
    return {"float32 tall": [name] * MAX_ROWS}


@torch.no_grad()
def test_the_table_decides_by_rows_shape_and_type(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for name, form in list(FORMS.items()):

        def spy(x: torch.Tensor, weight: torch.Tensor, form=form, name=name) -> torch.Tensor:  # type: ignore[no-untyped-def]
            taken.append(name)
            return form(x, weight)

        monkeypatch.setitem(FORMS, name, spy)
    weight = values(*LARGE)
    skinny.use_forms({"float32 tall": ["linear", "turned", *["blocks"] * (MAX_ROWS - 2)]})
    for rows in (1, 2, 3, MAX_ROWS, MAX_ROWS + 1):
        product(values(rows, 512), weight)
    # One row is linear, and so are 33, which no table has.
    assert taken == ["turned", "blocks", "blocks"]
    taken.clear()
    product(values(2, 1024), weight.T.contiguous())  # wide: the table has none
    product(values(2, 512).double(), weight.double())
    product(values(2, 256), values(1024, 256))  # small
    with torch.enable_grad():
        product(values(2, 512), weight)
    product(values(0, 512), weight)
    assert taken == []
    # Rows are counted over all leading axes.
    assert product(values(1, 2, 512), weight).shape == (1, 2, 1024)
    assert taken == ["turned"]


@torch.no_grad()
@pytest.mark.parametrize("name", FORMS)
def test_a_layer_computes_what_it_did(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 1024), nn.Sequential(nn.GELU(), nn.Linear(1024, 512)))
    x = values(2, 2, 512)
    expected, keys = model(x), list(model.state_dict())
    use_products(model)
    use_products(model)  # a second time changes nothing
    assert type(model[0]) is SkinnyLinear and list(model.state_dict()) == keys
    skinny.use_forms({"float32 tall": [name] * MAX_ROWS, "float32 wide": [name] * MAX_ROWS})
    assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_a_gradient_flows_through_a_layer() -> None:
    layer = nn.Sequential(nn.Linear(512, 1024))
    use_products(layer)
    skinny.use_forms(all_rows("blocks"))
    layer(values(2, 512)).sum().backward()
    assert_close(layer[0].weight.grad, values(2, 512).sum(0).expand(1024, 512))


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 7, MAX_ROWS, 40])
def test_int8_weights_are_within_half_a_step(rows: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(256, 512)
    layer = Int8Linear(linear)
    step = linear.weight.abs().amax(1) / 127
    kept = layer.int8 * layer.scale[:, None]
    assert bool(((kept - linear.weight).abs() <= step[:, None] * 0.501).all())
    assert layer.int8.dtype == torch.int8 and int(layer.int8.abs().amax(1).min()) == 127
    x = values(rows, 256)
    expected = F.linear(x, kept, linear.bias)
    # bfloat16 has 8 bits; many rows are multiplied in float32.
    loose = 0.03 if rows <= MAX_ROWS else 1e-5
    assert_close(layer(x), expected, rtol=loose, atol=loose)
    assert layer(x.view(1, rows, 256)).shape == (1, rows, 512)


def test_int8_is_for_large_layers_alone() -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 255))
    use_products(model, int8=True)
    assert [type(layer) for layer in model] == [Int8Linear, SkinnyLinear]


def test_this_machines_forms_are_a_table() -> None:
    forms = skinny.measure_forms(torch.float32)
    assert set(forms) == {"float32 tall", "float32 wide"} and skinny.are_forms(forms)
    bad: list[object] = [None, [], {"float32 tall": ["linear"]}]
    names: list[object] = ["other", [], 1]
    bad += [{"float32 tall": [name] * MAX_ROWS} for name in names]
    assert not any(map(skinny.are_forms, bad))
