"""What Dif-DTok is trained on: codes and latents from tokens artifacts, or pictures as they come.

Source: paper Sec. 3.2: TA-Tok's codes are the condition, the latents of SANA's VAE what is drawn.
`tarkit encode --sana` stores both, and training then runs no encoder. A small set of pictures can
do without: the device of the training encodes each batch.

Letters: B pictures, n condition positions, s and S sides in pixels of TA-Tok's and SANA's pictures,
C h w latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tarkit.artifacts.artifact import Artifact
from tarkit.checkpoints.load import LoadedTaTok
from tarkit.checkpoints.sana import Sana, vae_latents
from tarkit.errors import UserError
from tarkit.models.pixel_range import channels_first, from_unit, signed
from tarkit.train.code_batches import (
    CodesRow,
    StoredRows,
    require_encoded_by,
    require_scales,
)
from tarkit.train.streams import PictureRow, PictureStream, Stream, sized
from tarkit.vocab import Scale

TaTokInputs = Tensor | dict[Scale, Tensor]
"""Pictures (B, 3, s, s) uint8, or their codes (B, n) int64 of each scale."""


class LatentExamples(NamedTuple):
    """Pictures for a sample sheet, and what TA-Tok reads of them."""

    pictures: list[Image.Image]
    caption: str
    inputs: TaTokInputs


class LatentSource(Protocol):
    """What the training needs to know of where its codes and latents come from."""

    @property
    def stream(self) -> PictureStream | Stream[Any]:
        """The rows in training's order."""

    def read(self, rows: Sequence[Any]) -> tuple[TaTokInputs, Tensor]:
        """Inputs and targets of a step, as far as the CPU makes them; in a background thread."""

    def codes(self, inputs: TaTokInputs, scales: Sequence[Scale]) -> dict[Scale, Tensor]:
        """TA-Tok's codes (B, n) at each of `scales`, on the device of the inputs."""

    def latents(self, targets: Tensor) -> Tensor:
        """Latents (B, C, h, w) in SANA's scale, float32, on the device of the targets."""

    def examples(self, count: int, device: torch.device) -> LatentExamples:
        """The first pictures of the stream, with their inputs on `device`."""


class PictureLatents:
    """Pictures, encoded on the device when a step comes to them."""

    def __init__(self, stream: PictureStream, ta_tok: LoadedTaTok, sana: Sana) -> None:
        self.stream = stream
        self.ta_tok = ta_tok
        self.sana = sana

    def read(self, rows: Sequence[PictureRow]) -> tuple[Tensor, Tensor]:
        """Every picture squashed to both models' sizes, uint8."""
        raw = [row.pixels() for row in rows]
        return (
            channels_first([sized(a, self.ta_tok.size_px) for a in raw]),
            channels_first([sized(a, self.sana.size_px) for a in raw]),
        )

    def codes(self, inputs: TaTokInputs, scales: Sequence[Scale]) -> dict[Scale, Tensor]:
        assert isinstance(inputs, Tensor)
        return self.ta_tok.encode_scales(signed(inputs) * 0.5 + 0.5, scales)

    def latents(self, targets: Tensor) -> Tensor:
        return vae_latents(self.sana.vae.to(targets.device), targets)

    def examples(self, count: int, device: torch.device) -> LatentExamples:
        inputs, targets = self.read([self.stream[i] for i in range(count)])
        pictures = [Image.fromarray(a) for a in targets.permute(0, 2, 3, 1).numpy()]
        return LatentExamples(pictures, "original", inputs.to(device))


class StoredLatents(StoredRows):
    """Codes and latents, as `encode` stored them; there are no pictures, so the VAE draws them."""

    def __init__(
        self, artifacts: Sequence[Artifact], scales: Sequence[Scale], sana: Sana, *, seed: int
    ) -> None:
        super().__init__(artifacts, scales, "latents", seed=seed)
        self.sana = sana
        side = sana.size_px // sana.downsampling
        self.shape = (int(sana.vae.config.latent_channels), side, side)

    def read(self, rows: Sequence[CodesRow]) -> tuple[dict[Scale, Tensor], Tensor]:
        codes = {
            scale: torch.from_numpy(np.stack([row.codes[scale] for row in rows]).astype(np.int64))
            for scale in self.columns
            if scale is not None
        }
        latents = torch.from_numpy(np.stack([row.codes[None] for row in rows]))
        return codes, latents.view(len(rows), *self.shape)

    def codes(self, inputs: TaTokInputs, scales: Sequence[Scale]) -> dict[Scale, Tensor]:
        assert not isinstance(inputs, Tensor)
        return {scale: inputs[scale] for scale in scales}

    def latents(self, targets: Tensor) -> Tensor:
        return targets

    @torch.no_grad()
    def examples(self, count: int, device: torch.device) -> LatentExamples:
        codes, latents = self.read([self.stream[i] for i in range(count)])
        vae = self.sana.vae.to(device)
        drawn = vae.decode(latents.to(device) / float(vae.config.scaling_factor)).sample
        pictures = [Image.fromarray(a) for a in from_unit((drawn * 0.5 + 0.5).clamp(0, 1))]
        inputs = {scale: numbers.to(device) for scale, numbers in codes.items()}
        return LatentExamples(pictures, "VAE", inputs)


def require_latents(
    artifact: Artifact,
    *,
    scales: Sequence[Scale],
    tokenizer_sha256: str,
    vae_sha256: str,
    size_px: int,
) -> None:
    """Raises UserError unless tokens hold what a Dif-DTok of `size_px` is trained on."""
    path, settings = artifact.path, artifact.settings
    if "latent_side" not in settings:
        raise UserError(
            f"{path} has no latents of a VAE (column latents)",
            hint="tarkit encode IMAGES --tokenizer T --sana S "
            f"--set latent_size_px={size_px} --out DIR stores them",
        )
    require_encoded_by(artifact, tokenizer_sha256, {"--sana": ("vae_sha256", vae_sha256)})
    if settings["latent_size_px"] != size_px:
        raise UserError(
            f"{path} has latents of pictures of {settings['latent_size_px']} px, and pictures of "
            f"{size_px} px are trained on",
            hint=f"--set size_px={settings['latent_size_px']}, or latents of another "
            "latent_size_px",
        )
    require_scales(artifact, scales)
