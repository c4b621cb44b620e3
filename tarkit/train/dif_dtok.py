"""`tarkit train dif-dtok`: a pretrained SANA learns to draw from TA-Tok's features.

Source: paper Sec. 3.2 (Eq. 5) and Sec. 4.1: TA-Tok's features take the place of the text
embeddings, and "cross attention and condition embedding layers" alone are trained; Table 8. The
paper prints no noise schedule. It is SANA's own (NVlabs/Sana, Sana_600M_img512.yaml and its flow
diffusion): sigma = i / 1000 for a logit-normal i, shifted; x = (1 - sigma) x0 + sigma noise; target
noise - x0.

Letters: B pictures, S side in pixels, C h w latents, n condition positions, M those of the negative
embeddings, W condition width, T training steps of the schedule (1000).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from tarkit.artifacts.artifact import open_artifact
from tarkit.artifacts.digests import file_sha256
from tarkit.checkpoints.directory import WEIGHTS, read_tensors
from tarkit.checkpoints.hub import NEGATIVE, SANA_PARTS
from tarkit.checkpoints.load import LoadedTaTok, load_ta_tok
from tarkit.checkpoints.sana import (
    Sana,
    check_size_px,
    find_sana,
    load_sana,
    read_negative,
    vae_sha256,
)
from tarkit.config import load_config
from tarkit.errors import UserError
from tarkit.images import contact_sheet
from tarkit.inference.dif_detokenizer import DifDetokenizer
from tarkit.models.pixel_range import from_unit
from tarkit.seeds import training_seed
from tarkit.train.code_batches import require_no_weights
from tarkit.train.condition_layers import DifDtok
from tarkit.train.dif_dtok_costs import DifDtokCosts
from tarkit.train.latent_batches import (
    LatentSource,
    PictureLatents,
    StoredLatents,
    TaTokInputs,
    require_latents,
)
from tarkit.train.loop import begin_training, train
from tarkit.train.loop_config import PicturesConfig
from tarkit.train.parameters import count_parameters
from tarkit.train.streams import mixed_pictures, picture_parents
from tarkit.train.task import Amount, Figure, Mean, RowName
from tarkit.vocab import Scale, ScaleOdds, drawn_scales

HINT = "--sana names a folder or hub id of a SANA in diffusers' layout"


class DifDtokConfig(PicturesConfig):
    """Settings of Dif-DTok's training. Defaults: paper, Table 8."""

    FREE_KEYS = frozenset({"sample_pictures", "sample_guidance", "sample_steps"})
    LATER_KEYS = frozenset({"trained"})

    optimizer: Literal["adamw", "muon", "came"] = "came"
    betas: tuple[float, float] | tuple[float, float, float] = (0.9, 0.999, 0.9999)
    schedule: Literal["cosine", "constant", "linear"] = "constant"
    warmup: float = 0.01
    clip: float = 0.1
    trained: Literal["condition", "all"] = "condition"
    """What is trained of SANA's transformer: cross-attention and condition embedding (Sec. 4.1), or
    all of it, for a SANA with random weights."""
    scale_ratio: ScaleOdds = (2, 1, 1)
    """Odds of scales 1, 2, 3; each picture of a step draws its own (App. C.1)."""
    condition_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of pictures whose condition is replaced by the negative embeddings, for classifier-free
    guidance (Table 8: token drop prob; SANA's class_dropout_prob is the same)."""
    logit_mean: float = 0.0
    """Mean of the normal number whose sigmoid is the time of the noise (SANA's recipe)."""
    logit_std: float = Field(default=1.0, ge=0)
    """Standard deviation of that number (SANA's recipe)."""
    flow_shift: float | None = Field(default=None, gt=0)
    """Shift s of the noise: s t / (1 + (s - 1) t); without it that of SANA's saved scheduler."""
    size_px: PositiveInt | None = None
    """Side of the pictures; without it the one that SANA was trained on."""
    sample_pictures: PositiveInt = 4
    sample_guidance: float = 4.0
    sample_steps: PositiveInt = 20

    @property
    def scales(self) -> list[Scale]:
        """The scales that are trained."""
        return drawn_scales(self.scale_ratio)


class DifBatch(NamedTuple):
    """Pictures of a step, and what each of them draws by itself."""

    inputs: TaTokInputs  # pictures (B, 3, s, s) uint8 at TA-Tok's size s, or codes
    targets: Tensor  # pictures (B, 3, S, S) uint8, or latents (B, C, h, w)
    noise: Tensor  # (B, C, h, w)
    sigma: Tensor  # (B,) share of noise in [0, 1)
    timestep: Tensor  # (B,) int64 in [0, T), that share as SANA reads it
    scales: Tensor  # (B,) int64, 1 to 3
    dropped: Tensor  # (B,) bool: the negative embeddings are the condition


class DifDtokTask:
    """Flow matching of the VAE's latents given TA-Tok's features of the same square picture."""

    unused_parameters = False

    def __init__(
        self,
        config: DifDtokConfig,
        source: LatentSource,
        ta_tok: LoadedTaTok,
        sana: Sana,
        negative: Tensor,
    ) -> None:
        """`sana` is changed: its transformer is trained in place. `negative`: (M, W)."""
        self.config = config
        self.source = source
        self.stream = source.stream
        self.ta_tok = ta_tok
        self.sana = sana
        self.negative = negative
        self.shift, self.num_times = noise_schedule(sana.scheduler)
        self.shift = config.flow_shift or self.shift
        sana.vae.requires_grad_(False)
        self.model = DifDtok(sana.transformer, trained=config.trained)
        self.scales = config.scales
        odds = np.asarray(config.scale_ratio, dtype=float)
        self.odds = odds / odds.sum()
        side = sana.size_px // sana.downsampling
        self.latent_shape = (int(sana.vae.config.latent_channels), side, side)
        self.costs = DifDtokCosts.of(
            sana.transformer,
            sana.vae,
            ta_tok.model.arch,
            size_px=sana.size_px,
            trains_all=config.trained == "all",
            from_images=isinstance(source, PictureLatents),
        )

    def batch(self, step: int, size: int, part: int, parts: int) -> DifBatch:
        """Every picture's numbers are drawn from the seed and its position in the stream."""
        rows = self.stream.batch(step, size, rank=part, world=parts)
        first = (step * parts + part) * size
        drawn = [self._draw(first + i) for i in range(size)]
        noise, normals, scales, dropped = zip(*drawn, strict=True)
        time = 1 / (1 + np.exp(-np.asarray(normals)))
        whole = np.minimum(np.floor(time * self.num_times), self.num_times - 1)
        sigma = shifted(whole / self.num_times, self.shift)
        inputs, targets = self.source.read(rows)
        return DifBatch(
            inputs=inputs,
            targets=targets,
            noise=torch.from_numpy(np.stack(noise)),
            sigma=torch.from_numpy(sigma.astype(np.float32)),
            # Whole steps, as SANA was trained and as its schedulers give them.
            timestep=torch.from_numpy((sigma * self.num_times).astype(np.int64)),
            scales=torch.tensor(scales),
            dropped=torch.tensor(dropped),
        )

    def _draw(self, position: int) -> tuple[np.ndarray, float, int, bool]:
        """(noise, the normal number of its time, scale, dropped) of a position of the stream."""
        rng = np.random.default_rng(training_seed(self.config.seed, position, "dif-dtok"))
        scale = int(rng.choice(3, p=self.odds)) + 1
        dropped = bool(rng.random() < self.config.condition_dropout)
        normal = rng.normal(self.config.logit_mean, self.config.logit_std)
        return rng.standard_normal(self.latent_shape, dtype=np.float32), normal, scale, dropped

    def weight(self, batch: DifBatch) -> float:
        """Pictures: all have as many latents."""
        return len(batch.targets)

    def loss(
        self, model: nn.Module, batch: DifBatch, step: int
    ) -> tuple[Tensor, dict[str, Figure]]:
        """Mean squared error of the velocity: every element of every picture weighs the same."""
        latents = self.source.latents(batch.targets)
        condition, mask = self.condition(batch.inputs, batch.scales, batch.dropped)
        weight = batch.sigma[:, None, None, None]
        noised = (1 - weight) * latents + weight * batch.noise
        predicted = model(noised, condition, mask, batch.timestep)
        errors = (predicted.to(latents.dtype) - (batch.noise - latents)).square()
        loss = errors.mean()
        tokens = float(mask.sum(1).float().mean())
        figures: dict[str, Figure] = {
            **self._work(batch, tokens),
            "sigma": float(batch.sigma.mean()),
            "condition_tokens": tokens,
            "dropped": float(batch.dropped.float().mean()),
        }
        of_pictures = errors.detach().flatten(1).mean(1)
        for scale in self.scales:
            own = of_pictures[batch.scales == int(scale)]
            if len(own):
                figures[f"loss_by_scale/{int(scale)}"] = Mean(float(own.mean()), len(own))
        return loss, figures

    def _work(self, batch: DifBatch, tokens: float) -> dict[str, Figure]:
        """The FLOPs of a pass whose pictures have `tokens` condition positions on average."""
        costs, grid, frozen = self.costs, self.ta_tok.grid, 0.0
        drawn = batch.scales.tolist()
        present = [scale for scale in Scale if int(scale) in drawn]
        for scale, dropped in zip(drawn, batch.dropped.tolist(), strict=True):
            frozen += costs.frozen_flops(0 if dropped else Scale(scale).num_codes(grid), present)
        trained = len(drawn) * costs.sana.training_flops(costs.positions, tokens)
        return {"flops_per_s": Amount(trained + frozen), "float32_flops_per_s": Amount(frozen)}

    @torch.no_grad()
    def condition(
        self, inputs: TaTokInputs, scales: Tensor, dropped: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pictures or codes of B rows, scales (B,) and dropped (B,) -> features (B, n, W) and their
        mask (B, n).

        Rows that are shorter than the longest end in positions that the mask leaves out.
        """
        device = scales.device
        self.ta_tok.model.to(device)
        present = [scale for scale in Scale if bool((scales == int(scale)).any())]
        with torch.autocast(device.type, enabled=False):
            codes = self.source.codes(inputs, present)
            rows: list[Tensor] = [self.negative.to(device)] * len(scales)
            for scale in present:
                own = ((scales == int(scale)) & ~dropped).nonzero()[:, 0]
                if len(own):
                    features = self.ta_tok.condition(codes[scale][own])
                    for row, feature in zip(own.tolist(), features, strict=True):
                        rows[row] = feature
        mask = [torch.ones(len(row), dtype=torch.int16, device=row.device) for row in rows]
        pad = nn.utils.rnn.pad_sequence
        return pad(rows, batch_first=True), pad(mask, batch_first=True)

    def row_names(self, batch: DifBatch, first: int) -> list[RowName]:
        return [self.stream[first + i].name for i in range(len(batch.targets))]

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        return {}

    def samples(self, step: int) -> Image.Image:
        """Pictures of the stream, and each drawn from its codes at every scale that is trained."""
        self.model.eval()
        config, device = self.config, self.sana.transformer.device
        count = config.sample_pictures
        examples = self.source.examples(count, device)
        cells, captions = list(examples.pictures), [examples.caption] * count
        self.sana.vae.to(device)
        drawer = DifDetokenizer.of(self.sana, self.negative)
        kept = torch.zeros(count, dtype=torch.bool, device=device)
        for scale in self.scales:
            condition, _ = self.condition(
                examples.inputs, torch.full_like(kept, int(scale), dtype=torch.int64), kept
            )
            pixels = drawer.draw(
                condition,
                guidance=config.sample_guidance,
                steps=config.sample_steps,
                generators=[torch.Generator().manual_seed(i) for i in range(count)],
            )
            cells += [Image.fromarray(a) for a in from_unit(pixels)]
            captions += [f"{condition.shape[1]} codes"] * count
        return contact_sheet(cells, captions, columns=count, cell_px=128)

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        trained, parameters = count_parameters(self.model)
        arch = {
            key: value
            for key, value in self.sana.transformer.config.items()
            if not key.startswith("_")
        }
        return self.model, {
            "kind": "dif_dtok",
            "arch": arch,
            "tokenizer_sha256": self.ta_tok.sha256,
            "figures": {"trained_parameters": trained, "parameters": parameters},
        }


def shifted(time: np.ndarray, shift: float) -> np.ndarray:
    """Times in [0, 1] -> shares of noise in [0, 1]: a shift above 1 trains more on much noise."""
    return shift * time / (1 + (shift - 1) * time)


def noise_schedule(scheduler: Any) -> tuple[float, int]:
    """(shift, T) of a saved scheduler; UserError for one that is not of flow matching.

    A DPM-Solver names the shift flow_shift, and an Euler scheduler shift.
    """
    config = scheduler.config
    euler = config.get("flow_shift") is None
    if (config.get("use_dynamic_shifting") or euler and config.get("shift") is None) or not (
        euler or config.get("use_flow_sigmas")
    ):
        raise UserError(
            f"SANA's saved {type(scheduler).__name__} has no fixed flow shift", hint=HINT
        )
    return float(config["shift" if euler else "flow_shift"]), int(config["num_train_timesteps"])


def fit_condition(sana: Sana, width: int) -> bool:
    """Give SANA a new first layer of the condition embedding where its width is not `width`.

    Returns whether it did. SANA reads text embeddings of 2304; all other weights fit and stay. The
    new layer starts as SANA starts that layer: weights of standard deviation 0.02, bias 0.
    """
    if sana.condition_width == width:
        return False
    projection = sana.transformer.caption_projection
    old = projection.linear_1
    new = nn.Linear(width, old.out_features, dtype=old.weight.dtype)
    nn.init.normal_(new.weight, std=0.02)
    nn.init.zeros_(new.bias)
    projection.linear_1 = new
    sana.transformer.register_to_config(caption_channels=width)
    return True


def fit_size(sana: Sana, size_px: int | None, folder: Path) -> None:
    """Make SANA one of pictures of `size_px`; UserError where its weights are tied to a size."""
    if size_px is None or size_px == sana.size_px:
        return
    check_size_px(size_px, folder, "--set size_px=512")
    side, rest = divmod(size_px, sana.downsampling)
    if rest or sana.transformer.config.interpolation_scale is not None:
        raise UserError(
            f"{folder} draws {sana.size_px} px and cannot draw size_px = {size_px}"
            + (
                f": no multiple of {sana.downsampling}" if rest else ": it has a table of positions"
            ),
            hint="leave size_px out, or name a SANA of that size",
        )
    sana.transformer.register_to_config(sample_size=side)


def load_start(
    folder: Path, ta_tok: LoadedTaTok, size_px: int | None = None
) -> tuple[Sana, Tensor]:
    """The SANA to train, fitted to a TA-Tok, and its negative embeddings (M, W).

    A Dif-DTok keeps the negative embeddings that it was trained with. For a SANA of text they are
    zeros, the null condition of AR-DTok too: every position is then the same key and value, so
    their number changes nothing and they serve every scale. There are as many as codes at scale 1,
    where the published program needs both conditions to be of one length.
    """
    sana = load_sana(folder, torch.float32, hint=HINT)
    width = ta_tok.model.arch.encoder.width
    if fit_condition(sana, width) or not (folder / NEGATIVE).exists():
        negative = torch.zeros(ta_tok.grid**2, width)
    else:
        negative = read_negative(folder, width, hint=HINT)
    fit_size(sana, size_px, folder)
    return sana, negative


def publish(
    folder: Path, sana: Sana, negative: Tensor, *, trained: Literal["condition", "all"]
) -> None:
    """Write the parts of a Dif-DTok into the model directory of its trained parameters."""
    model = DifDtok(sana.transformer, trained=trained)
    model.load_state_dict(read_tensors(folder / WEIGHTS))
    sana.save(folder, negative)


def _fingerprints(folder: Path) -> Mapping[str, str]:
    """sha256 of every file of a SANA's parts, by its name in the folder."""
    files = [file for part in SANA_PARTS for file in sorted((folder / part).iterdir())]
    return {str(file.relative_to(folder)): file_sha256(file) for file in files if file.is_file()}


def run(
    config: Path | None,
    *,
    tokenizer: Path,
    sana: str,
    out: Path,
    images: Sequence[Path] = (),
    tokens: Sequence[Path] = (),
    overrides: Sequence[str] = (),
) -> Path:
    """Train the diffusion de-tokenizer; returns the model directory.

    `tokens`: tokens artifacts with a VAE's latents, from which it is trained, or `images`: images
    artifacts, which are mixed by weight and encoded as they come. `sana`: a folder or a hub id in
    the hub's cache, of a SANA or a Dif-DTok. The directory holds the trained parameters
    (model.safetensors) and a whole Dif-DTok in the published layout, and so does each one that
    `keep_every` asked for, after the last step. Raises UserError unless just one of `tokens` and
    `images` is there, and where sizes or models do not fit.
    """
    from accelerate import PartialState

    if bool(tokens) == bool(images):
        raise UserError(
            "Dif-DTok is trained from --tokens or from --images: name one of the two",
            hint="tarkit train dif-dtok --help",
        )
    settings = load_config(DifDtokConfig, config, overrides)
    begin_training(settings.seed)
    folder = find_sana(sana)
    ta_tok = load_ta_tok(tokenizer)
    start, negative = load_start(folder, ta_tok, settings.size_px)
    parents = {"tokenizer": tokenizer, "sana": folder}
    more: dict[str, Any] = {"sana": _fingerprints(folder)}
    source: LatentSource
    if images:
        artifacts = [open_artifact(path, "images") for path in images]
        stream = mixed_pictures(artifacts, settings.images_weights, seed=settings.seed)
        source = PictureLatents(stream, ta_tok, start)
        parents |= picture_parents(images)
    else:
        source = _stored_latents(tokens, settings, ta_tok, start, folder)
        parents |= {f"tokens_{i}": path for i, path in enumerate(tokens)}
        # The order of the rows follows from their number, which a repaired artifact changes.
        more |= {"rows": source.stream.total, "failed_rows": sum(source.num_failed.values())}
    task = DifDtokTask(settings, source, ta_tok, start, negative)
    path = train(
        task,
        settings,
        out=out,
        name="dif-dtok",
        parents=parents,
        more={**more, "flow_shift": task.shift},
    )
    if PartialState().is_main_process:
        for weights in [*sorted((out / "steps").glob(f"*/{WEIGHTS}")), out / WEIGHTS]:
            publish(weights.parent, start, negative, trained=settings.trained)
    return path


def _stored_latents(
    tokens: Sequence[Path],
    settings: DifDtokConfig,
    ta_tok: LoadedTaTok,
    sana: Sana,
    folder: Path,
) -> StoredLatents:
    """The latents in tokens artifacts; UserError where they are not those that are trained on."""
    require_no_weights(settings)
    artifacts = [open_artifact(path, "tokens") for path in tokens]
    for artifact in artifacts:
        require_latents(
            artifact,
            scales=settings.scales,
            tokenizer_sha256=ta_tok.sha256,
            vae_sha256=vae_sha256(folder),
            size_px=sana.size_px,
        )
    return StoredLatents(artifacts, settings.scales, sana, seed=settings.seed)
