"""Writes large artifacts of tiny rows: python FILE chats|images OUT ROWS [TOKENIZER_SHA256].

They are written as every artifact is, in shards of the default size, and are as valid. They show
what the start of a training costs.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tarkit.artifacts.artifact import Artifact, begin_artifact, shard_plan
from tarkit.artifacts.schema import CHATS, CODE_LISTS, MESSAGES
from tarkit.artifacts.workers import Report, make_shards
from tarkit.images import png_bytes
from tarkit.progress import Progress
from tarkit.vocab import Scale
from tests import parts

SHARD_ROWS = 1000  # as `tarkit curate ingest` and what follows from it
TASKS = ("t2i", "i2t", "t2i", "i2t", "text")  # the ratio of Table 8


def chats_table(shard: int, num_rows: int) -> pa.Table:
    """Chats as those of `parts.mixed_chats`; every hundredth is of the test split."""
    numbers = np.arange(num_rows)
    task = np.array(TASKS)[numbers % len(TASKS)]
    caption = np.array(parts.CAPTIONS)[numbers % len(parts.CAPTIONS)].astype(object)
    text, reads = task == "text", task == "i2t"
    first = np.where(reads, "<image>\nWhat is this?", caption)
    second = np.where(reads, caption, "<image>")
    # A text is one message of the assistant, the others a question and an answer.
    messages, roles = np.stack([first, second], 1), np.full((num_rows, 2), "user", object)
    roles[:, 1] = "assistant"
    roles[text, 0] = "assistant"
    there = np.ones((num_rows, 2), bool)
    there[text, 1] = False
    codes = [
        pa.ListArray.from_arrays(
            np.arange(num_rows - text.sum() + 1, dtype=np.int32) * length,
            pa.array(np.repeat(numbers[~text] % parts.K, length).astype(np.uint16)),
        )
        for length in (scale.num_codes(parts.GRID) for scale in Scale)
    ]
    columns = {
        "key": [f"{shard:05d}-{i:06d}" for i in numbers],
        "task": task,
        "split": np.where(numbers % 100 == 99, "test", "train"),
        "messages": pa.ListArray.from_arrays(
            pa.array(np.concatenate([[0], np.cumsum(2 - text)]).astype(np.int32)),
            pa.StructArray.from_arrays(
                [pa.array(roles[there]), pa.array(messages[there])],
                fields=list(MESSAGES.value_type),
            ),
        ),
        "images": pa.ListArray.from_arrays(
            pa.array(np.concatenate([[0], np.cumsum(~text)]).astype(np.int32)),
            pa.StructArray.from_arrays(codes, fields=list(CODE_LISTS)),
        ),
        "status": ["ok"] * num_rows,
        "error": pa.nulls(num_rows, pa.string()),
    }
    return pa.table(columns, schema=CHATS)


def write_chats_shard(artifact: Artifact, name: str, report: Report) -> None:
    artifact.write(name, chats_table(int(name), artifact.counts[name]))
    report(artifact.counts[name], 0)


def write_images_shard(artifact: Artifact, name: str, report: Report) -> None:
    blob = ("png", png_bytes(np.full((16, 16, 3), int(name) % 256, np.uint8)))
    blank = dict.fromkeys(artifact.schema.names)
    known: dict[str, Any] = {"role": "target", "source": "x", "width": 16, "height": 16}
    rows = [
        blank
        | known
        | {
            "key": f"{name}-{i:06d}",
            "split": "test" if i % 100 == 99 else "train",
            "prompt": parts.CAPTIONS[i % len(parts.CAPTIONS)],
            "status": "ok",
        }
        for i in range(artifact.counts[name])
    ]
    artifact.write_pictures(name, ((row, blob) for row in rows))
    report(len(rows), 0)


def write(kind: str, out: Path, num_rows: int, **settings: Any) -> Artifact:
    """A complete artifact of `num_rows` chats or images."""
    plan = shard_plan(num_rows, SHARD_ROWS)
    artifact = begin_artifact(out, kind, settings=settings, shards=plan)
    shard = {"chats": write_chats_shard, "images": write_images_shard}[kind]
    with Progress(kind, total=num_rows, unit="rows") as progress:
        make_shards(partial(shard, artifact), artifact.missing(), num_workers=1, progress=progress)
    return artifact


if __name__ == "__main__":
    kind_, out_, rows_, *made_by_ = sys.argv[1:]
    made_by = {"tokenizer_sha256": made_by_[0]} if made_by_ else {}
    write(kind_, Path(out_), int(rows_), **made_by)
