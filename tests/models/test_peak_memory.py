"""The memory of a model by its tensors on the meta device."""

import torch
from torch import nn

from tarkit.models.encoder import EncoderArch, VisionEncoder
from tarkit.models.peak_memory import on_meta, peak_bytes


def test_the_peak_counts_what_is_held_at_once() -> None:
    def run() -> None:
        first = torch.empty(1000)  # 4,000 bytes
        second = first + 1  # 8,000 together
        del first
        view = second.view(10, 100)  # the same storage
        view.mul_(2)
        third = torch.cat([view, view])  # 4,000 + 8,000
        del second, view, third
        torch.empty(1500)

    assert peak_bytes(run) == 12_000


def test_what_was_there_before_is_not_counted() -> None:
    weight = torch.empty(100, 1000, device="meta")
    assert peak_bytes(lambda: weight @ torch.empty(1000, 1)) == 4000 + 400


def test_a_copy_on_the_meta_device_takes_no_memory_and_the_model_stays() -> None:
    layer = nn.Linear(3, 2)
    copied, name = on_meta((layer, "one"), [layer])
    assert name == "one" and copied.weight.is_meta and not layer.weight.is_meta
    assert copied(torch.empty(5, 3, device="meta")).shape == (5, 2)


def test_an_encoder_keeps_no_hidden_state_but_the_last() -> None:
    def peak(layers: int) -> int:
        arch = EncoderArch(size_px=32, patch_px=8, width=16, layers=layers, heads=2, mlp_width=32)
        with torch.device("meta"):
            encoder = VisionEncoder(arch)
        return peak_bytes(lambda: encoder.features(torch.empty(2, 3, 32, 32)))

    assert peak(2) == peak(8)
