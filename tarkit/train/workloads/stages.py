"""The costs of every trainer, by its name."""

from __future__ import annotations

from collections.abc import Callable

from tarkit.train.workloads.ar_dtok import ar_dtok
from tarkit.train.workloads.dif_dtok import dif_dtok
from tarkit.train.workloads.encoder import encoder
from tarkit.train.workloads.grpo import grpo
from tarkit.train.workloads.language import mllm
from tarkit.train.workloads.tokenizer import tokenizer
from tarkit.train.workloads.vqvae import vqvae
from tarkit.train.workloads.workload import Settings, Start, Workload

WORKLOADS: dict[str, Callable[[Settings, Start], Workload]] = {
    "encoder": encoder,
    "vqvae": vqvae,
    "tokenizer": tokenizer,
    "ar_dtok": ar_dtok,
    "dif_dtok": dif_dtok,
    "mllm": mllm,
    "grpo": grpo,
}
