"""A small SANA for the drawn world: its autoencoder is trained here, its transformer is not.

    python tiny_sana.py PICTURES OUT [STEPS]

PICTURES is an images artifact of 64 px. The autoencoder learns to give the pictures back by their
mean squared error. The transformer is written with random weights, for `tarkit train dif-dtok` with
`trained = "all"`. OUT has the layout of diffusers, and is written when all of it is done.
"""

import sys
from pathlib import Path

import diffusers
import torch

from tarkit.artifacts.artifact import open_artifact
from tarkit.artifacts.files import whole_folder
from tarkit.models.pixel_range import to_signed
from tarkit.train.loop import begin_training
from tarkit.train.loop_config import LoopConfig, rate_factor
from tarkit.train.streams import picture_stream

BATCH, RATE, CONDITION_WIDTH = 32, 2e-3, 128
LEVELS = {
    "channels": (16, 32, 64, 128),
    "layers": (0, 1, 1, 1),  # none at full resolution: a tenth of the time
    "multiscales": ((), (), (), ()),
}


def autoencoder() -> diffusers.AutoencoderDC:
    """8 x 8 latents of 16 channels for 64 px."""
    sides = {
        f"{side}_{name}": LEVELS[key]
        for side in ("encoder", "decoder")
        for name, key in (
            ("block_out_channels", "channels"),
            ("layers_per_block", "layers"),
            ("qkv_multiscales", "multiscales"),
        )
    }
    return diffusers.AutoencoderDC(latent_channels=16, **sides)


def transformer() -> diffusers.SanaTransformer2DModel:
    """Small, and with a table of positions, without which it learns places slowly."""
    return diffusers.SanaTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=6,
        num_attention_heads=4,
        attention_head_dim=32,
        num_cross_attention_heads=4,
        cross_attention_head_dim=32,
        cross_attention_dim=128,
        caption_channels=CONDITION_WIDTH,
        sample_size=8,
        interpolation_scale=1,
    )


def train(vae: diffusers.AutoencoderDC, pictures: Path, steps: int) -> None:
    """Trains in place, and sets the scaling factor that gives latents a variance of 1."""
    stream = picture_stream(open_artifact(pictures, "images"), seed=0)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = LoopConfig(steps=steps, batch_size=BATCH, learning_rate=RATE)
    for step in range(steps):
        batch = to_signed([row.pixels() for row in stream.batch(step, BATCH)])
        loss = (vae(batch).sample - batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = RATE * rate_factor(schedule, step)
        optimizer.step()
        if step % 50 == 0 or step + 1 == steps:
            psnr = -10 * torch.log10(loss.detach() / 4)
            print(f"autoencoder: step {step}, PSNR {float(psnr):.1f} dB", file=sys.stderr)
    rows = [stream[i].pixels() for i in range(256)]
    with torch.no_grad():
        std = vae.encode(to_signed(rows)).latent.std()
    vae.register_to_config(scaling_factor=float(1 / std))


def main(pictures: Path, out: Path, steps: int) -> None:
    if out.exists():
        return
    begin_training(0)
    vae = autoencoder()
    train(vae, pictures, steps)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0
    )
    with whole_folder(out) as folder:
        for name, part in {
            "vae": vae,
            "transformer": transformer(),
            "scheduler": scheduler,
        }.items():
            part.save_pretrained(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1500)
