"""Trainings on data at URLs: the same to the bit as on local data, and little of it fetched."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tarkit.artifacts.remote import local_path
from tarkit.config import write_toml
from tarkit.train import mllm, vqvae
from tarkit.train.batch_workers import BatchPart, read_part, without_networks
from tarkit.train.mllm import MllmConfig, MllmTask
from tarkit.train.vqvae import VqvaeConfig
from tests import parts
from tests.bucket import Uses, new_bucket
from tests.train import test_mllm, test_vqvae
from tests.train.conftest import Stopped, metrics
from tests.train.test_batches import tensors
from tests.train.test_mllm import SETTINGS

NUM_SHARDS = 120  # of a row of each task, so that a few steps read dozens of them
MOST_FETCHED = NUM_SHARDS // 2


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Uses:
    return new_bucket(tmp_path, monkeypatch)


def shards_fetched(bucket: Uses) -> set[str]:
    return {name for name in bucket.requests("fetch") if name.endswith((".parquet", ".tar"))}


def stopped_at(step: int, train: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until the loss of a step, which stands for a killed process."""
    real = MllmTask.loss

    def loss(self: Any, model: Any, batch: Any, number: int) -> Any:
        if number == step:
            raise Stopped
        return real(self, model, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(MllmTask, "loss", loss)
        with pytest.raises(Stopped):
            train()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_mllm_from_urls_is_that_from_folders_also_when_stopped(
    workers: int,
    models: dict[str, Path],
    tmp_path: Path,
    bucket: Uses,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = parts.mixed_chats(NUM_SHARDS)
    made_by = {"tokenizer_sha256": parts.sha256(models["tokenizer"])}
    shards = [rows[3 * i : 3 * i + 3] for i in range(NUM_SHARDS)]
    chats = parts.write_chats(tmp_path / "chats", shards, **made_by).path
    config = MllmConfig(**SETTINGS | {"steps": 3, "checkpoint_every": 1, "workers": workers})
    file = tmp_path / "mllm.toml"
    file.write_text(write_toml(config))
    urls = {
        name: bucket.put(path, f"data/{name}")
        for name, path in {
            "chats": chats,
            "tokenizer": models["tokenizer"],
            "lm": models["lm"],
        }.items()
    }

    def train(out: str, **inputs: Path) -> Path:
        tokenizer, lm = inputs["tokenizer"], inputs["lm"]
        return mllm.run(
            file, chats=[inputs["chats"]], tokenizer=tokenizer, lm=lm, out=tmp_path / out
        )

    def from_urls() -> Path:
        return train("remote", **{name: local_path(url) for name, url in urls.items()})

    local = train("local", chats=chats, tokenizer=models["tokenizer"], lm=models["lm"])
    if workers == 0:
        stopped_at(0, from_urls, monkeypatch)
        assert 0 < len(shards_fetched(bucket)) <= MOST_FETCHED < NUM_SHARDS
        stopped_at(2, from_urls, monkeypatch)
    remote = from_urls()
    assert (remote / "model.safetensors").read_bytes() == (local / "model.safetensors").read_bytes()
    assert metrics(remote) == metrics(local)
    assert len(shards_fetched(bucket)) <= MOST_FETCHED
    manifest = (remote / "manifest.json").read_text()
    assert all(f'"path": "{url}"' in manifest for url in urls.values())
    assert str(tmp_path / "cache") not in "".join(
        path.read_text(errors="replace") for path in remote.iterdir() if path.is_file()
    )


def test_an_image_vq_from_a_url_is_that_from_a_folder(
    pictures: Path, tmp_path: Path, bucket: Uses
) -> None:
    url = bucket.put(pictures, "pictures")
    file = tmp_path / "vqvae.toml"
    settings: dict[str, Any] = {
        "arch": parts.VQVAE,
        "steps": 2,
        "batch_size": 2,
        "learning_rate": 1e-3,
    }
    file.write_text(write_toml(VqvaeConfig(**settings)))
    trained = [
        vqvae.run(file, images=[images], out=tmp_path / name)
        for name, images in (("local", pictures), ("remote", local_path(url)))
    ]
    weights = [(path / "model.safetensors").read_bytes() for path in trained]
    assert weights[0] == weights[1]


def test_what_a_worker_process_is_given_reads_from_urls(
    pictures: Path, chats: Path, models: dict[str, Path], bucket: Uses
) -> None:
    """The task as it is sent to a worker; the slow test above trains with real ones."""
    for name, folder, task_of in (
        ("chats", chats, lambda path: test_mllm.task(path, models, models["lm"])),
        ("pictures", pictures, test_vqvae.task),
    ):
        sent = without_networks(task_of(local_path(bucket.put(folder, name))))
        part = BatchPart(7, 2, 1, 2)
        expected, read = (
            tensors(read_part(t, part)) for t in (task_of(folder), pickle.loads(sent))
        )
        assert len(expected) == len(read) > 0
        assert all(torch.equal(a, b) for a, b in zip(expected, read, strict=True)), name
        assert any(shard.startswith(f"{name}/") for shard in shards_fetched(bucket))
