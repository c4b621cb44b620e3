"""What a step of `train vqvae` costs."""

from __future__ import annotations

from tarkit.errors import UserError
from tarkit.models.vqvae import Vqvae, VqvaeArch
from tarkit.train.costs import TRAINED, conv_flops, conv_kept_bytes
from tarkit.train.workloads.workload import Kept, Settings, Start, Workload, bytes_of, on_meta


def vqvae(settings: Settings, start: Start) -> Workload:
    """Reconstruction of pixels. Raises UserError without the pictures' size."""
    size = settings["size_px"] or start.size_px
    if size is None:
        raise UserError(
            "the image VQ trains on pictures as they are: how large are they?", hint="--size 256"
        )
    model: Vqvae = on_meta(Vqvae, VqvaeArch.model_validate(settings["arch"]))
    arch, c = model.arch, bytes_of(settings)
    omitted = ["LPIPS"] * (settings["perceptual"] > 0)
    omitted += ["the alignment with captions"] * (settings["alignment"] is not None)
    omitted += ["the discriminator"] * (settings["discriminator_from"] is not None)
    if size % arch.downsampling:
        raise UserError(
            f"--size {size} does not divide by {arch.downsampling}, the side of a code in pixels",
            hint=f"--size {size // arch.downsampling * arch.downsampling or arch.downsampling}",
        )
    codes = (size // arch.downsampling) ** 2
    bits = 4 * arch.latent_channels * arch.code_dim * codes
    forward = conv_flops(model.encoder, size) + conv_flops(model.decoder, size) + bits

    def kept(rows: int) -> Kept:
        convs = rows * conv_kept_bytes(model, size, c)
        pixels = 3 * 4 * 3 * rows * size**2  # picture, reconstruction, their difference
        # What checkpointing of its levels saves is not counted.
        return Kept(convs + pixels, convs + pixels, 4 * rows * codes * arch.num_codes)

    return Workload(
        unit="pictures",
        model=model,
        tokens=codes,
        flops=TRAINED * forward + 2 * arch.num_codes * arch.code_dim * codes,
        block_flops=forward - bits,
        kept=kept,
        read_bytes=start.picture_bytes,
        assumptions=(
            f"{start.picture_bytes / 1e3:g} kB a picture on the disk",
            *((f"not counted: {' and '.join(omitted)}",) * bool(omitted)),
        ),
    )
