"""Shards to read: tars of small pictures with their captions."""

import io
import tarfile
from collections.abc import Sequence

import numpy as np

from tarkit.curate.sources.items import SourceItem
from tarkit.images import png_bytes


def tar_bytes(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def png(value: int) -> bytes:
    return png_bytes(np.full((16, 16, 3), value, np.uint8))


def shard(*numbers: int) -> bytes:
    members = []
    for n in numbers:
        members += [(f"{n:04d}.png", png(n)), (f"{n:04d}.txt", f"number {n}".encode())]
    return tar_bytes(*members)


def facts(items: Sequence[SourceItem]) -> list[tuple[str, tuple[str, ...], str | None]]:
    return [(item.name, item.captions, item.error) for item in items]
