"""How often each code of a codebook occurs in a tokens artifact.

Letters: K codes, R rows of a shard, N codes of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from tarkit.artifacts.artifact import Artifact
from tarkit.errors import UserError
from tarkit.progress import Progress


@dataclass(frozen=True)
class CodeUsage:
    """Counts over all scales that the artifact holds."""

    counts: np.ndarray  # (K,) int64, occurrences
    pictures: np.ndarray  # (K,) int64, pictures that have the code
    num_pictures: int


def read_usage(tokens: Artifact, *, num_codes: int, tokenizer_sha256: str) -> CodeUsage:
    """The usage of `num_codes` codes; failed rows have none.

    Raises UserError for tokens of another TA-Tok, an artifact with missing shards, or no picture.
    """
    made_by = str(tokens.settings["tokenizer_sha256"])
    if made_by != tokenizer_sha256:
        raise UserError(
            f"{tokens.path} holds codes of TA-Tok {made_by[:12]}, but this one is "
            f"{tokenizer_sha256[:12]}",
            hint="encode the pictures with this model: tarkit encode DIR --tokenizer MODEL "
            "--out DIR",
        )
    tokens.require_complete()
    columns = [name for name in tokens.schema.names if name.startswith("codes_")]
    counts, pictures = np.zeros(num_codes, np.int64), np.zeros(num_codes, np.int64)
    num_pictures = 0
    with Progress("dialect", total=len(tokens.shards), unit="shards") as progress:
        for shard in tokens.shards:
            table = tokens.read(shard, [*columns, "status"])
            table = table.filter(pc.equal(table["status"], "ok"))
            codes = np.concatenate(
                [
                    table[name].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
                    for name in columns
                ],
                axis=1,
            ).astype(np.int64)  # (R, N)
            if codes.size and codes.max() >= num_codes:
                file = tokens.shard_path(shard)
                raise UserError(
                    f"{file} has code {codes.max()} of a codebook of {num_codes}",
                    hint=f"tarkit verify {tokens.path}",
                )
            counts += np.bincount(codes.ravel(), minlength=num_codes)
            once = np.unique(codes + np.arange(len(codes))[:, None] * num_codes) % num_codes
            pictures += np.bincount(once, minlength=num_codes)
            num_pictures += table.num_rows
            progress.advance(1)
    if not num_pictures:
        raise UserError(
            f"{tokens.path} has no picture with codes", hint=f"tarkit inspect {tokens.path}"
        )
    return CodeUsage(counts, pictures, num_pictures)
