"""The forms of products are measured once a machine, so that a seed stays the same codes."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from tarkit.checkpoints import product_forms
from tarkit.checkpoints.product_forms import use_machines_forms
from tarkit.models.skinny import MAX_ROWS


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The types that were measured, each time with another result."""
    calls: list[torch.dtype] = []

    def measure(dtype: torch.dtype) -> dict[str, list[str]]:
        calls.append(dtype)
        name = ("blocks", "turned", "linear")[len(calls) - 1]
        return {f"{str(dtype).removeprefix('torch.')} tall": [name] * MAX_ROWS}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(product_forms, "measure_forms", measure)
    monkeypatch.setattr(product_forms, "_measured", {})
    return calls


def forms_now(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> dict[str, list[str]]:
    """What a new process takes."""
    taken: dict[str, list[str]] = {}
    monkeypatch.setattr(product_forms, "_measured", {})
    monkeypatch.setattr(product_forms, "use_forms", taken.update)
    use_machines_forms([model])
    return taken


def test_the_first_measurement_holds(
    measured: list[torch.dtype], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(1024, 512)
    expected = {"float32 tall": ["blocks"] * MAX_ROWS}
    for _ in range(3):
        assert forms_now(monkeypatch, model) == expected
    assert measured == [torch.float32]
    # Another number of threads is another machine.
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    assert forms_now(monkeypatch, model) == {"float32 tall": ["turned"] * MAX_ROWS}
    assert len(list((tmp_path / "cache/tarkit/product_forms").iterdir())) == 2


def test_a_damaged_file_is_measured_again(
    measured: list[torch.dtype], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(1024, 512)
    forms_now(monkeypatch, model)
    (file,) = (tmp_path / "cache/tarkit/product_forms").iterdir()
    file.write_text('{"float32 tall": ["none"]}')
    for _ in range(2):
        assert forms_now(monkeypatch, model) == {"float32 tall": ["turned"] * MAX_ROWS}
    assert len(measured) == 2


def test_where_nothing_can_be_kept_it_is_said(
    measured: list[torch.dtype],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with caplog.at_level(logging.WARNING, logger="tarkit"):
        assert forms_now(monkeypatch, nn.Linear(1024, 512))
    assert "another run measures them again" in caplog.text


def test_a_small_model_has_nothing_measured(
    measured: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert forms_now(monkeypatch, nn.Linear(512, 512)) == {}
    assert measured == []
