"""Artifacts that stand beside another, shard by shard and key by key: captions, scores."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from tarkit.artifacts.artifact import Artifact
from tarkit.errors import UserError


class Joined:
    """`main` with the artifacts beside it, of whose rows each has the key of one of its own.

    What is made from it is made again when a shard of any of them has changed.
    """

    def __init__(self, main: Artifact, beside: Sequence[Artifact]) -> None:
        self.main, self._beside = main, tuple(beside)
        for other in beside:
            pictures = [a.parents["images"] for a in (main, other) if "images" in a.parents]
            if len({parent["manifest_sha256"] for parent in pictures}) > 1:
                named = " and ".join(parent["path"] for parent in pictures)
                raise UserError(
                    f"{other.path} was made of other pictures than {main.path}: {named}",
                    hint=f"tarkit inspect {other.path}",
                )

    def shard_sha256(self, name: str) -> str:
        """Of the shard and of those beside it; of the shard's own file where there are none."""
        own = self.main.shard_sha256(name)
        if not self._beside:
            return own
        all_of_them = [own, *(other.shard_sha256(name) for other in self._beside)]
        return hashlib.sha256("\n".join(all_of_them).encode()).hexdigest()


def by_key(artifact: Artifact, name: str, columns: Sequence[str]) -> Mapping[str, dict[str, Any]]:
    """Rows of a shard by key, with `columns`, status and error."""
    rows = artifact.rows(name, ["key", *columns, "status", "error"])
    return {row["key"]: row for row in rows}


def row_of(found: Mapping[str, dict[str, Any]], key: str, artifact: Artifact) -> dict[str, Any]:
    """The row of a key; UserError where there is none."""
    if key not in found:
        raise UserError(
            f"{artifact.path} has no row {key}: it was made of other pictures, or of fewer",
            hint=f"tarkit inspect {artifact.path}",
        )
    return found[key]
