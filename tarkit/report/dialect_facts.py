"""What is shown of a dialect: the words of codes, their neighbours, and those that tell most.

Source: paper Sec. 3.1 (C = E W: every code is the projection of one token of a language model).

Letters: K codes, N codes of a picture at one scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from tarkit.checkpoints.code_words import CodeWords
from tarkit.checkpoints.load import LoadedTaTok
from tarkit.models.table_rows import Neighbours, nearest_rows
from tarkit.report.blocks import CodeCell
from tarkit.report.code_usage import CodeUsage
from tarkit.vocab import Scale

NUM_NEIGHBOURS = 5


@dataclass(frozen=True)
class Dialect:
    """A codebook with its words and, where they are known, the usage of its codes."""

    ta_tok: LoadedTaTok
    words: CodeWords
    usage: CodeUsage | None = None

    @property
    def num_codes(self) -> int:
        return self.ta_tok.num_codes

    def cells(self, codes: Sequence[int]) -> list[CodeCell]:
        """What is shown of each of these codes."""
        both = self.neighbours(codes)
        return [
            CodeCell(
                word=self.words.words[code],
                about=self._about(code),
                before=self._near(both[0], place),
                after=self._near(both[1], place),
                shade=self._shade(code),
                dead=self.usage is not None and not self.usage.counts[code],
            )
            for place, code in enumerate(codes)
        ]

    @torch.no_grad()
    def neighbours(self, codes: Sequence[int]) -> tuple[Neighbours, Neighbours]:
        """The nearest codes of each of these by cosine: before projection (in E), and after (C)."""
        codebook = self.ta_tok.model.codebook
        asked = torch.tensor(codes, device=codebook.embedding.weight.device)
        before = nearest_rows(codebook.embedding.weight, asked, count=NUM_NEIGHBOURS)
        return before, nearest_rows(codebook.projected(), asked, count=NUM_NEIGHBOURS)

    def _about(self, code: int) -> str:
        token = self.words.token_ids[code]
        text = f"code {code}, " + (f"token {token}" if token >= 0 else "token not known")
        if self.usage is None:
            return text
        count = int(self.usage.counts[code])
        return f"{text}, {f'used {count:,} times' if count else 'never used'}"

    def _near(self, neighbours: Neighbours, place: int) -> str:
        pairs = zip(
            neighbours.rows[place].tolist(), neighbours.cosines[place].tolist(), strict=True
        )
        # A comma can be a word: pairs are apart by a wide space, and within by one that holds.
        return "\u2003".join(
            f"{self.words.words[code]}\u00a0{cosine:.2f}" for code, cosine in pairs
        )

    def _shade(self, code: int) -> float:
        if self.usage is None:
            return 0.0
        most = int(self.usage.counts.max())
        return math.log1p(int(self.usage.counts[code])) / math.log1p(most) if most else 0.0


@dataclass(frozen=True)
class PictureInCodes:
    """A picture with its codes at every scale."""

    picture: Image.Image
    codes: Mapping[Scale, np.ndarray]  # (N,) int64
    grid: int
    """The side of the encoder's grid, before pooling."""

    def covered(self, scale: Scale) -> float:
        """The share of the picture's side that the codes of a scale cover: 26 / 27 for 13 x 13."""
        return scale.side(self.grid) * int(scale) / self.grid

    def telling(self, usage: CodeUsage | None) -> list[tuple[int, float]]:
        """(code, weight) of every code of the picture, the most telling first.

        The weight is the mean over the scales of the code's share of the cells. With `usage` it is
        multiplied by ln((1 + P) / (1 + p)), where p of P pictures have the code (tf-idf): a code
        that every picture has tells nothing. Ties go to the lower code.
        """
        shares: dict[int, float] = {}
        for codes in self.codes.values():
            for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
                share = int(count) / len(codes) / len(self.codes)
                shares[int(code)] = shares.get(int(code), 0.0) + share
        if usage is not None:
            for code in shares:
                rarity = math.log((1 + usage.num_pictures) / (1 + int(usage.pictures[code])))
                shares[code] *= rarity
        return sorted(shares.items(), key=lambda item: (-item[1], item[0]))
