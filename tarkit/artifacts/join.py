"""Artifacts joined shard by shard and key by key: images or codes with their captions, scores."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from tarkit.artifacts.artifact import Artifact
from tarkit.errors import UserError


class Joined:
    """`main` with other artifacts that have rows with the same keys.

    A shard that was made from them is made again when a shard of any of them has changed. Raises
    UserError when `main` and another were made from different pictures.
    """

    def __init__(self, main: Artifact, others: Sequence[Artifact]) -> None:
        self.main, self._others = main, tuple(others)
        for other in others:
            pictures = [a.parents["images"] for a in (main, other) if "images" in a.parents]
            if len({parent["manifest_sha256"] for parent in pictures}) > 1:
                named = " and ".join(parent["path"] for parent in pictures)
                raise UserError(
                    f"{other.path} was made from other pictures than {main.path}: {named}",
                    hint=f"tarkit inspect {other.path}",
                )

    def shard_sha256(self, name: str) -> str:
        """sha256 of the shards of all artifacts; of the file alone where there is only `main`."""
        own = self.main.shard_sha256(name)
        if not self._others:
            return own
        digests = [own, *(other.shard_sha256(name) for other in self._others)]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def by_key(artifact: Artifact, name: str, columns: Sequence[str]) -> Mapping[str, dict[str, Any]]:
    """Rows of a shard by key, with `columns`, status and error."""
    rows = artifact.rows(name, ["key", *columns, "status", "error"])
    return {row["key"]: row for row in rows}


def row_of(rows: Mapping[str, dict[str, Any]], key: str, artifact: Artifact) -> dict[str, Any]:
    """The row of a key; UserError that names `artifact` if there is none."""
    if key not in rows:
        raise UserError(
            f"{artifact.path} has no row {key}: it was made from other pictures, or from fewer",
            hint=f"tarkit inspect {artifact.path}",
        )
    return rows[key]
