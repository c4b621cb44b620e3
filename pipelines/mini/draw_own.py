"""Draws pictures of training prompts with a model, each with its prompt in a .txt of its name.

    python draw_own.py MODEL PICTURES OUT COUNT WORKER NUM_WORKERS

A judge must learn to refuse the model's wrong pictures: `tarkit curate ingest OUT` reads them, and
`tarkit curate judge --exact` decides which are right. WORKER is a number from 0; each worker uses
every NUM_WORKERS-th shard and draws COUNT pictures.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from tarkit import Tar
from tarkit.artifacts.artifact import open_artifact

BATCH_SIZE = 64


def main(model: str, pictures: str, out: str, count: str, worker: str, num_workers: str) -> None:
    torch.set_num_threads(1)
    number = int(worker)
    source = open_artifact(Path(pictures), "images")
    prompts = [
        row["prompt"]
        for name in source.shards[number :: int(num_workers)]
        for row in source.rows(name, ["prompt", "role", "status"])
        if row["prompt"] and row["role"] == "target" and row["status"] == "ok"
    ]
    rng = np.random.default_rng(100 + number)
    chosen = [prompts[index] for index in rng.permutation(len(prompts))[: int(count)]]
    tar = Tar.load(model)
    folder = Path(out) / worker
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(chosen), BATCH_SIZE):
        if (folder / f"{min(start + BATCH_SIZE, len(chosen)) - 1:06d}.png").exists():
            continue  # drawn by an interrupted run
        batch = chosen[start : start + BATCH_SIZE]
        seeds = [number * 10**6 + start + place for place in range(len(batch))]
        for place, picture in enumerate(tar.imagine_many(batch, seeds=seeds)):
            (folder / f"{start + place:06d}.txt").write_text(batch[place])
            picture.save(folder / f"{start + place:06d}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
