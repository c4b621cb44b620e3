"""AR-DTok at work: TA-Tok's decoded features condition image-VQ codes, which become pixels.

Source: paper Sec. 3.2. Each picture has its own random generator, so it depends only on its own
codes and seed. With a draft, a small AR-DTok, the codes are drawn speculatively: the same
distribution with fewer steps of the large model (models/speculative.py).

B: pictures, N: image tokens, W: width of the features, S: side of a picture in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tarkit.checkpoints.directory import read_config
from tarkit.checkpoints.load import load_ar_dtok, load_vqvae
from tarkit.checkpoints.product_forms import use_machines_forms
from tarkit.errors import UserError
from tarkit.inference.memory import total_memory
from tarkit.models.ar_decoding import CodeSampling, cache_shape, sample_codes
from tarkit.models.ar_dtok import ArDtok
from tarkit.models.skinny import use_products
from tarkit.models.speculative import Acceptance, sample_codes_speculatively
from tarkit.models.vqvae import Vqvae
from tarkit.terminal import print_note

# Part of the device's memory that the caches of one batch, or the pixels of one, may take.
SHARE_OF_MEMORY = 0.25
# Largest tensors of the image VQ's decoder that are alive together.
DECODER_TENSORS = 4


@dataclass(frozen=True)
class ArDetokenizer:
    """AR-DTok and the image VQ whose codes it writes."""

    ar_dtok: ArDtok
    vqvae: Vqvae
    draft: ArDtok | None = None
    acceptance: Acceptance = field(default_factory=Acceptance)
    """What became of the draft's proposals, in all pictures since it was loaded."""

    @classmethod
    def load(
        cls,
        ar_dtok: Path,
        vqvae: Path,
        dtype: torch.dtype = torch.float32,
        *,
        draft: Path | None = None,
        int8: bool = False,
    ) -> ArDetokenizer:
        """Load them; `dtype` and `int8` are for both AR-DToks, the image VQ is always float32.

        Raises UserError when the image VQ has another number of codes, or the draft draws other
        codes, from other conditions, or at another resolution.
        """
        loaded = cls(
            load_ar_dtok(ar_dtok, dtype),
            load_vqvae(vqvae),
            None if draft is None else load_ar_dtok(draft, dtype),
        )
        vocab_size, num_codes = loaded.ar_dtok.arch.vocab_size, loaded.vqvae.arch.num_codes
        if vocab_size != num_codes:
            raise UserError(
                f"{ar_dtok} has vocab_size {vocab_size}, but {vqvae} has {num_codes} codes",
                hint="name parts that belong together",
            )
        if draft is not None and loaded.draft is not None:
            _check_draft(draft, loaded.draft, ar_dtok, loaded.ar_dtok)
        for model in loaded._ar_dtoks():
            use_products(model, int8=int8)
        return loaded

    @property
    def condition_width(self) -> int:
        """W, the width of the features that it reads."""
        return self.ar_dtok.arch.condition_width

    @property
    def size_px(self) -> int:
        """S, the side of the pictures that it draws."""
        return math.isqrt(self.ar_dtok.arch.num_codes) * self.vqvae.arch.downsampling

    def to(self, device: str | torch.device) -> None:
        for model in (*self._ar_dtoks(), self.vqvae):
            model.to(device)
        use_machines_forms(self._ar_dtoks())
        self.vqvae.decoder.lay_out()

    def draw(
        self,
        condition: Tensor,
        *,
        guidance: float,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """Features (B, N, W) -> pixels (B, 3, S, S) in [0, 1], as many at once as memory holds."""
        sampling = CodeSampling(guidance, temperature, top_k, top_p)
        budget = SHARE_OF_MEMORY * total_memory(condition.device)
        n, dtype = condition.shape[1], self.ar_dtok.abs_pe.dtype
        together = max(1, int(budget / self._cache_bytes(n, sampling)))
        codes = []
        for start in range(0, len(condition), together):
            rows = slice(start, start + together)
            own = generators[rows] if generators is not None else None
            codes.append(self._codes(condition[rows].to(dtype), sampling, own))
        decoded = max(1, int(budget / self._decoder_bytes()))
        return torch.cat([self.vqvae.decode(part) for part in torch.cat(codes).split(decoded)])

    def _codes(
        self,
        condition: Tensor,
        sampling: CodeSampling,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        if self.draft is None:
            return sample_codes(self.ar_dtok, condition, sampling, generator=generators)
        return sample_codes_speculatively(
            self.ar_dtok,
            self.draft,
            condition,
            sampling,
            acceptance=self.acceptance,
            generator=generators,
        )

    def _ar_dtoks(self) -> list[ArDtok]:
        return [model for model in (self.ar_dtok, self.draft) if model is not None]

    def _cache_bytes(self, n: int, sampling: CodeSampling) -> float:
        """Keys and values of one picture with n condition positions, of all layers."""
        return sum(
            model.arch.layers
            * math.prod(cache_shape(model.arch, n, sampling.rows_per_picture))
            * model.abs_pe.element_size()
            for model in self._ar_dtoks()
        )

    def _decoder_bytes(self) -> float:
        """Memory that the pixels of one picture take while they are decoded, in float32."""
        arch = self.vqvae.arch
        widest = arch.channels * arch.decoder_multipliers[0]
        return DECODER_TENSORS * 4 * widest * (self.size_px / arch.unshuffle) ** 2


def note_acceptance(detokenizer: object) -> None:
    """Print what became of a draft's proposals; nothing for a de-tokenizer that had none."""
    if isinstance(detokenizer, ArDetokenizer) and detokenizer.acceptance.passes:
        found = detokenizer.acceptance
        print_note(
            f"draft: {found.rate:.0%} of its tested codes were kept, {found.mean_length:.1f} codes "
            "per pass of the large model"
        )


def _check_draft(draft_path: Path, draft: ArDtok, path: Path, model: ArDtok) -> None:
    """Raises UserError where a draft cannot propose codes for the model."""
    sizes = {
        "codes a picture": "num_codes",
        "codes in its codebook": "vocab_size",
        "condition_width": "condition_width",
        "max_condition": "max_condition",
    }
    for words, name in sizes.items():
        own, needed = getattr(draft.arch, name), getattr(model.arch, name)
        if own != needed:
            raise UserError(
                f"the draft {draft_path} has {own} {words}, but {path} has {needed}",
                hint="tarkit train ar-dtok CONFIG.toml --tokenizer DIR --vqvae DIR --tokens DIR "
                f"--set arch.{name}={needed} --out DIR",
            )
    own_config, config = (
        read_config(place) if place.is_dir() else {} for place in (draft_path, path)
    )
    for part in ("tokenizer", "vqvae"):
        own_sha, sha = own_config.get(f"{part}_sha256"), config.get(f"{part}_sha256")
        if None not in (own_sha, sha) and own_sha != sha:
            raise UserError(
                f"the draft {draft_path} was trained with {part} {str(own_sha)[:12]}, but {path} "
                f"with {str(sha)[:12]}",
                hint=f"name a draft that was trained with the same --{part}",
            )
