"""The fastest forms of products on this machine (`models/skinny.py`), measured once and remembered.

They lie in the user's cache folder, by processor, threads, version of torch, type of numbers and
known forms, so that a seed draws the same codes in the next process. Another machine, or the same
one after the file has been deleted, may take other forms: its logits differ in the last digits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from tarkit.artifacts.files import write_once, write_whole
from tarkit.models.skinny import FORMS, MIN_WEIGHTS, Forms, are_forms, measure_forms, use_forms

log = logging.getLogger("tarkit")

_measured: dict[Path, Forms] = {}


def use_machines_forms(modules: Iterable[nn.Module]) -> None:
    """Take this machine's fastest forms for products with the large weights of these modules.

    Nothing is measured for modules on a GPU or without a large weight.
    """
    dtypes = {
        weight.dtype
        for module in modules
        for weight in module.parameters()
        if weight.dim() == 2 and weight.numel() >= MIN_WEIGHTS and weight.device.type == "cpu"
    }
    forms: dict[str, list[str]] = {}
    for dtype in sorted(dtypes, key=str):
        if dtype.is_floating_point:
            forms |= _forms(dtype)
    if forms:
        use_forms(forms)


def _forms(dtype: torch.dtype) -> Forms:
    file = _cache_file(dtype)
    if file not in _measured:
        _measured[file] = _recall(file) or _kept(file, measure_forms(dtype))
    return _measured[file]


def _cache_file(dtype: torch.dtype) -> Path:
    facts = (_processor(), torch.get_num_threads(), torch.__version__, str(dtype), *FORMS)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    return base / "tarkit" / "product_forms" / f"{name}.json"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _recall(file: Path) -> Forms | None:
    """What an earlier process kept; None where it is not there or not readable."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept and are_forms(kept):
            return dict(kept)
    return None


def _kept(file: Path, forms: Forms) -> Forms:
    """Keep forms for later processes; returns those of the process that was the first to do so."""
    data = json.dumps(dict(forms), indent=1).encode()
    try:
        if write_once(file, data):
            return forms
        if first := _recall(file):
            return first
        write_whole(file, data)  # in the place of a damaged file
    except OSError as error:
        log.warning(
            "the fastest forms of products cannot be kept (%s): another run measures them again, "
            "and where it takes others its logits differ in the last digits",
            error,
        )
    return forms
