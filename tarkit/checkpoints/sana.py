"""SANA on disk: a folder of diffusers' SanaPipeline, of which three parts are read and written.

A published Dif-DTok is such a folder with `negative_prompt_embeds.pth` in it, and so is a trained
one. Each part is read by a class that is fixed here, from safetensors and strictly; other files and
classes that the folder names are neither loaded nor run.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tarkit.artifacts.digests import files_sha256
from tarkit.artifacts.files import read_object, whole_file, whole_folder
from tarkit.checkpoints.directory import CONFIG
from tarkit.checkpoints.from_transformers import check_sizes
from tarkit.checkpoints.hub import HUB_ID, NEGATIVE, SANA_PARTS, HubFile, cache_dir, cached
from tarkit.checkpoints.published_pth import read_tensor
from tarkit.errors import UserError
from tarkit.models.exact import without_autocast
from tarkit.models.pixel_range import signed

if TYPE_CHECKING:
    from diffusers import AutoencoderDC, SanaTransformer2DModel

MAX_SIZE_PX = 4096  # of the largest SANA; a config.json may state any size
SCHEDULERS = ("DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler")


def vae_downsampling(vae: AutoencoderDC) -> int:
    """Side of a picture in pixels over the side of its latents."""
    return int(2 ** (len(vae.config.encoder_block_out_channels) - 1))


@torch.no_grad()
def vae_latents(vae: AutoencoderDC, pixels: Tensor) -> Tensor:
    """uint8 (B, 3, S, S) -> the VAE's latents (B, C, h, w) in SANA's scale, in float32."""
    with without_autocast(pixels):
        encoded: Tensor = vae.encode(signed(pixels)).latent
    return encoded * float(vae.config.scaling_factor)


@dataclass(frozen=True)
class Sana:
    """The parts of a SANA that draw and are trained, without its text encoder."""

    transformer: SanaTransformer2DModel
    vae: AutoencoderDC
    scheduler: Any

    @property
    def downsampling(self) -> int:
        """Side of a picture in pixels over the side of its latents."""
        return vae_downsampling(self.vae)

    @property
    def condition_width(self) -> int:
        return int(self.transformer.config.caption_channels)

    @property
    def size_px(self) -> int:
        """Side of the pictures that it was trained on."""
        return int(self.transformer.config.sample_size * self.downsampling)

    def save(self, folder: Path, negative: Tensor) -> None:
        """Write the parts, each whole, and last the negative embeddings (M, W): done.

        A folder that has them is complete and left as it is.
        """
        if (folder / NEGATIVE).exists():
            return
        for name in SANA_PARTS:
            if not (folder / name).exists():
                with whole_folder(folder / name) as temporary:
                    getattr(self, name).save_pretrained(temporary)
        with whole_file(folder / NEGATIVE) as temporary:
            torch.save(negative.detach().cpu().clone(), temporary)


def find_sana(named: str) -> Path:
    """The folder of a SANA: a path, or a hub id in the hub's cache; UserError for neither."""
    folder = Path(named)
    if folder.is_dir():
        return folder
    if HUB_ID.fullmatch(named):
        config = cached(HubFile(named, "transformer/config.json"))
        if config is not None:
            return config.parent.parent
        patterns = " ".join(f"'{part}/*'" for part in SANA_PARTS)
        raise UserError(
            f"there is no folder {named}, and no SANA of that hub id in {cache_dir()}",
            hint=f"hf download {named} --include {patterns}",
        )
    raise UserError(f"no SANA {named!r}: neither a folder nor a hub id", hint="--sana DIR|HUB-ID")


def load_sana(folder: Path, dtype: torch.dtype, *, hint: str) -> Sana:
    """Load a folder in eval mode; `dtype` is for the transformer, the VAE is always float32.

    Raises UserError with `hint` when a part is missing or does not fit.
    """
    _require_diffusers()
    from diffusers import SanaTransformer2DModel

    absent = [name for name in SANA_PARTS if not (folder / name).exists()]
    if absent:
        raise UserError(f"{folder} is not a SANA: it lacks {', '.join(absent)}", hint=hint)
    sana = Sana(
        vae=load_vae(folder, hint=hint),
        transformer=_strict(SanaTransformer2DModel, folder / "transformer", dtype, hint),
        scheduler=_scheduler(folder / "scheduler", hint),
    )
    _check_sizes(sana, folder, hint)
    return sana


def load_vae(folder: Path, *, hint: str) -> AutoencoderDC:
    """The VAE of a SANA's folder, float32 and in eval mode; UserError with `hint` without one."""
    _require_diffusers()
    from diffusers import AutoencoderDC

    vae: AutoencoderDC = _strict(AutoencoderDC, folder / "vae", torch.float32, hint)
    return vae


def vae_sha256(folder: Path) -> str:
    """The identity of the VAE in a SANA's folder: of the names and bytes of its files."""
    return files_sha256(file for file in (folder / "vae").iterdir() if file.is_file())


def _require_diffusers() -> None:
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the diffusion de-tokenizer needs diffusers: {error}",
            hint="pip install 'tarkit[dif]'",
        ) from None


def read_negative(folder: Path, width: int, *, hint: str) -> Tensor:
    """The negative embeddings (M, W) of a Dif-DTok, float32; UserError for another width."""
    negative = read_tensor(folder / NEGATIVE).float()
    if negative.dim() != 2 or negative.shape[1] != width:
        raise UserError(
            f"{folder / NEGATIVE} is {list(negative.shape)}, expected a length and the "
            f"transformer's caption_channels {width}",
            hint=hint,
        )
    return negative


def copy_dif_dtok(folder: Path, out: Path) -> None:
    """Copy what a trained Dif-DTok draws with and its config.json to `out`, in place of another.

    Its trained parameters alone (model.safetensors) stay behind: they are in the transformer too.
    Raises UserError when the folder was not written to its end.
    """
    if not (folder / NEGATIVE).exists():
        raise UserError(
            f"{folder} is no whole Dif-DTok: it lacks {NEGATIVE}",
            hint=f"run the `tarkit train dif-dtok` command with --out {folder} again",
        )
    # First away with what marks a whole one.
    (out / NEGATIVE).unlink(missing_ok=True)
    for part in SANA_PARTS:
        if (out / part).exists():
            shutil.rmtree(out / part)
        with whole_folder(out / part) as temporary:
            shutil.copytree(folder / part, temporary, dirs_exist_ok=True)
    for file in (CONFIG, NEGATIVE):
        with whole_file(out / file) as temporary:
            shutil.copyfile(folder / file, temporary)


def _check_sizes(sana: Sana, folder: Path, hint: str) -> None:
    """Raises UserError when the parts do not fit each other, or for a size that no SANA has."""
    latents, transformer = sana.vae.config.latent_channels, sana.transformer.config
    if latents != transformer.in_channels:
        raise UserError(
            f"{folder}: the VAE has {latents} latent channels, "
            f"the transformer {transformer.in_channels}",
            hint=hint,
        )
    check_size_px(transformer.sample_size * sana.downsampling, folder, hint)


def check_size_px(size_px: Any, folder: Path, hint: str) -> None:
    """Raises UserError for a side of pictures that no SANA has."""
    if not isinstance(size_px, int) or size_px % 32 or not 0 < size_px <= MAX_SIZE_PX:
        raise UserError(
            f"{folder} would draw {size_px} px: expected a multiple of 32 up to {MAX_SIZE_PX}",
            hint=hint,
        )


def _strict(cls: Any, folder: Path, dtype: torch.dtype, hint: str) -> Any:
    """A diffusers model from its folder. Raises UserError that names the keys that do not fit."""
    try:
        model, loading_info = cls.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers raises exceptions of many types
        message = " ".join(str(error).split())[:400]
        raise UserError(f"{folder} is not a {cls.__name__}: {message}", hint=hint) from None
    faults = [f"missing {key}" for key in loading_info["missing_keys"]]
    faults += [f"unexpected {key}" for key in loading_info["unexpected_keys"]]
    faults += [f"misshaped {key}" for key in loading_info["mismatched_keys"]]
    if faults:
        more = f" and {len(faults) - 6} more" if len(faults) > 6 else ""
        raise UserError(
            f"{folder} does not match its config.json: {'; '.join(faults[:6])}{more}", hint=hint
        )
    return model.eval()


def _scheduler(folder: Path, hint: str) -> Any:
    """The scheduler that a folder names. Raises UserError when SANA is not used with it."""
    import diffusers

    file = folder / "scheduler_config.json"
    config = read_object(file, hint=hint)
    check_sizes(config, str(file), hint)
    name = config.get("_class_name")
    if name not in SCHEDULERS:
        raise UserError(
            f"{folder} names the scheduler {name!r}, expected {' or '.join(SCHEDULERS)}",
            hint=hint,
        )
    try:
        scheduler = getattr(diffusers, name).from_pretrained(folder, local_files_only=True)
        scheduler.set_timesteps(2)
        return scheduler
    except Exception as error:  # as above, for a value that the constructor refuses
        raise UserError(f"{folder} cannot make a {name}: {error}", hint=hint) from None
