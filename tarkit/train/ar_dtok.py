"""`tarkit train ar-dtok`: a transformer that predicts image-VQ codes from TA-Tok's features.

Source: paper Sec. 3.2, Eq. 4; scales drawn as for the tokenizer, and resolutions trained one after
another, 256, 512 and 1024 px, each from the last (App. C.1); Table 8.

Letters: B pictures, n condition positions, N image-VQ codes, C condition width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from tarkit.artifacts.artifact import open_artifact
from tarkit.checkpoints.directory import read_config
from tarkit.checkpoints.load import (
    START_SHA256,
    LoadedTaTok,
    load_ar_dtok,
    load_ta_tok,
    load_vqvae,
    model_sha256,
)
from tarkit.config import load_config
from tarkit.errors import UserError
from tarkit.images import contact_sheet
from tarkit.models.ar_decoding import CodeSampling, sample_codes
from tarkit.models.ar_dtok import ArDtok, ArDtokArch, resize_positions
from tarkit.models.exact import exact_float32
from tarkit.models.pixel_range import from_unit_truncated
from tarkit.models.vqvae import Vqvae
from tarkit.train.code_batches import (
    Codes,
    CodeSource,
    PictureCodes,
    SizedPixels,
    StoredCodes,
    require_codes,
    require_no_weights,
)
from tarkit.train.loop import begin_training, train
from tarkit.train.loop_config import PicturesConfig
from tarkit.train.streams import draw_scale, mixed_pictures, picture_parents
from tarkit.train.task import Amount, Figure, RowName
from tarkit.train.workloads.ar_dtok import ar_dtok as workload
from tarkit.train.workloads.workload import Start, flops_by_scale
from tarkit.vocab import Scale, ScaleOdds, drawn_scales


class ArDtokConfig(PicturesConfig):
    """Settings of AR-DTok's training."""

    FREE_KEYS = frozenset({"sample_guidance", "remember"})
    LATER_KEYS = frozenset({"square", "start_tokenizer"})

    arch: ArDtokArch = ArDtokArch()
    scale_ratio: ScaleOdds = (2, 1, 1)
    """Odds of scales 1, 2, 3; each step draws one (App. C.1)."""
    condition_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of pictures whose condition is set to zero, for classifier-free guidance (Table 8:
    token drop prob, as for Dif-DTok; released arguments: class_dropout_prob). Dropout of single
    values within the network is `arch.token_dropout`."""
    sample_guidance: float = 1.5
    start_tokenizer: Literal["same", "any"] = "same"
    """The tokenizer that --start was trained with: "same" as --tokenizer, or "any". What AR-DTok
    reads are features that the tokenizer decodes, and two tokenizers that learned the features of
    one encoder decode nearly the same."""
    square: Literal["crop"] | None = None
    """How --images become square: "crop" keeps the middle square; by default the whole picture is
    squashed. It holds for both models; with --tokens the encoder's own setting does."""
    remember: NonNegativeInt = 200_000
    """Pictures of --images whose codes are kept in memory (0.6 kB each in miniature), so that later
    epochs run neither encoder. When it is full, it is emptied."""

    @property
    def scales(self) -> list[Scale]:
        """The scales that are trained."""
        return drawn_scales(self.scale_ratio)


class DtokBatch(NamedTuple):
    """A step's pictures: their codes, or their pixels where those are yet to be encoded."""

    scale: Scale
    codes: Codes | SizedPixels
    dropped: Tensor  # (B,) bool: set the condition to zero


class ArDtokTask:
    """Cross-entropy of image-VQ codes given TA-Tok's features of the same square picture."""

    unused_parameters = False

    def __init__(
        self,
        config: ArDtokConfig,
        source: CodeSource,
        ta_tok: LoadedTaTok,
        vqvae: Vqvae,
        *,
        vqvae_sha256: str,
        start: Path | None = None,
        vqvae_start_sha256: str | None = None,
    ) -> None:
        """`start`: an AR-DTok that was trained with `vqvae`, or with the one that it went on from.

        Those have the sha256 `vqvae_sha256` and `vqvae_start_sha256`.
        """
        self.config = config
        self.source = source
        self.stream = source.stream
        self.ta_tok = ta_tok
        self.vqvae = vqvae
        self.vqvae_sha256 = vqvae_sha256
        # The encoders, which --images need in the first epoch, do not count.
        costs = Start(tokenizer=ta_tok.model.arch, vqvae=vqvae.arch)
        self.costs = flops_by_scale(workload, config.model_dump(mode="json"), costs)
        self.model: ArDtok
        if start is None:
            self.model = ArDtok(config.arch)
            self.model.reset_parameters()
        else:
            tokenizer = ta_tok.sha256 if config.start_tokenizer == "same" else None
            self.model = _start_from(
                start, config.arch, tokenizer, (vqvae_sha256, vqvae_start_sha256)
            )

    def batch(self, step: int, size: int, part: int, parts: int) -> DtokBatch:
        rows = self.stream.batch(step, size, rank=part, world=parts)
        scale = draw_scale(self.config.scale_ratio, self.config.seed, step)
        rng = np.random.default_rng([self.config.seed, step, 0])
        # Drawn for the whole step, so that a row's number depends on its place alone.
        numbers = rng.random(size * parts)[part * size : (part + 1) * size]
        dropped = torch.from_numpy(numbers < self.config.condition_dropout)
        return DtokBatch(scale, self.source.read(rows), dropped)

    def weight(self, batch: DtokBatch) -> float:
        """Pictures: all have as many codes."""
        return len(batch.dropped)

    def loss(
        self, model: nn.Module, batch: DtokBatch, step: int
    ) -> tuple[Tensor, dict[str, Figure]]:
        codes = self.source.codes(batch.codes)
        condition = self._condition(codes[batch.scale])
        condition = condition.masked_fill(batch.dropped[:, None, None], 0.0)
        loss = model(condition, codes[None])
        count, read, drawn = len(condition), condition.shape[1], codes[None].shape[1]
        return loss, {
            "condition_tokens": read,
            f"loss_by_scale/{int(batch.scale)}": float(loss.detach()),
            "tokens_per_s": Amount(count * (read + drawn - 1)),
            "supervised_tokens_per_s": Amount(count * drawn),
            **self.costs[batch.scale].amounts(count),
        }

    def row_names(self, batch: DtokBatch, first: int) -> list[RowName]:
        return [self.stream[first + i].name for i in range(len(batch.dropped))]

    def _condition(self, codes: Tensor) -> Tensor:
        """TA-Tok's decoded features (B, n, C) of its codes (B, n), on their device in float32."""
        self.ta_tok.model.to(codes.device)
        with exact_float32(codes.device):
            return self.ta_tok.condition(codes)

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        return {}

    def samples(self, step: int) -> Image.Image:
        """Eight pictures, and each drawn again, greedily, from its codes at every scale."""
        self.model.eval()
        device = self.model.abs_pe.device
        examples = self.source.examples(8, device)
        cells = examples.pictures
        captions = [examples.caption] * 8
        self.vqvae.to(device)
        for scale in self.config.scales:
            condition = self._condition(examples.codes[scale])
            sampling = CodeSampling(guidance=self.config.sample_guidance, temperature=0.0)
            codes = sample_codes(self.model, condition, sampling)
            cells += [Image.fromarray(a) for a in from_unit_truncated(self.vqvae.decode(codes))]
            captions += [f"{condition.shape[1]} codes"] * 8
        return contact_sheet(cells, captions, columns=8, cell_px=96)

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        return self.model, {
            "kind": "ar_dtok",
            "arch": self.config.arch.model_dump(mode="json"),
            "tokenizer_sha256": self.ta_tok.sha256,
            "vqvae_sha256": self.vqvae_sha256,
        }


def _require_fit(arch: ArDtokArch, ta_tok: LoadedTaTok, vqvae: Vqvae) -> None:
    """Raises UserError where the sizes are not those of the tokenizer and the image VQ."""
    required = {
        "vocab_size": vqvae.arch.num_codes,
        "condition_width": ta_tok.model.arch.encoder.width,
        "max_condition": ta_tok.grid**2,
    }
    wrong = [
        f"{k} = {getattr(arch, k)} (is {v})" for k, v in required.items() if getattr(arch, k) != v
    ]
    if wrong:
        flags = " ".join(f"--set arch.{k}={v}" for k, v in required.items())
        raise UserError(
            f"arch does not fit the tokenizer and the image VQ: {', '.join(wrong)}",
            hint=flags,
        )
    if arch.side**2 != arch.num_codes:
        raise UserError(
            f"arch.num_codes = {arch.num_codes} is not a square number: pictures are square",
            hint=f"--set arch.num_codes={arch.side**2}",
        )


def _start_from(
    start: Path, arch: ArDtokArch, ta_tok_sha256: str | None, vqvae_sha256s: tuple[str, str | None]
) -> ArDtok:
    """The AR-DTok at `start`, its position table resized to the `num_codes` of `arch`.

    `ta_tok_sha256`: None takes one of any tokenizer. `vqvae_sha256s`: the image VQ, and the one
    that its training went on from, whose codes mean nearly the same. UserError where it has other
    codes or other sizes. A published file does not say which models it was trained with.
    """
    config = read_config(start, "ar_dtok") if start.is_dir() else {}
    fitting_models = {"vqvae": vqvae_sha256s}
    if ta_tok_sha256 is not None:
        fitting_models = {"tokenizer": (ta_tok_sha256, None), **fitting_models}
    for part, fitting in fitting_models.items():
        trained_with = config.get(f"{part}_sha256")
        if config and (trained_with is None or trained_with not in fitting):
            raise UserError(
                f"{start} was trained with {part} {str(trained_with)[:12]}, "
                f"--{part} is {fitting[0][:12]}",
                hint=f"name the --{part} it was trained with, or leave --start out"
                + (", or --set start_tokenizer=any" if part == "tokenizer" else ""),
            )
    trained = load_ar_dtok(start)
    wrong = [
        f"{name} = {configured} (is {there})"
        for (name, configured), (_, there) in zip(arch, trained.arch, strict=True)
        if configured != there and name != "num_codes"
    ]
    if wrong:
        raise UserError(
            f"arch is not that of {start}: {', '.join(wrong)}",
            hint=f"give the arch of {start}/config.json, or leave --start out",
        )
    state = trained.state_dict()
    state["abs_pe"] = resize_positions(
        state["abs_pe"], max_condition=arch.max_condition, num_codes=arch.num_codes
    )
    model = ArDtok(arch)
    model.load_state_dict(state)
    return model


def run(
    config: Path | None,
    *,
    tokenizer: Path,
    vqvae: Path,
    out: Path,
    images: Sequence[Path] = (),
    tokens: Sequence[Path] = (),
    start: Path | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Train the autoregressive de-tokenizer; returns the model directory.

    `tokens`: tokens artifacts with image-VQ codes, from which it is trained, or `images`: images
    artifacts, mixed by weight, whose pictures are encoded as they come. `start`: a trained AR-DTok
    to start from, in place of random weights, of the same or of another resolution. Raises
    UserError unless just one of `tokens` and `images` is there, and where sizes or models do not
    fit.
    """
    if bool(tokens) == bool(images):
        raise UserError(
            "AR-DTok is trained from --tokens or from --images: name one of the two",
            hint="tarkit train ar-dtok --help",
        )
    settings = load_config(ArDtokConfig, config, overrides)
    begin_training(settings.seed)
    ta_tok, image_vq = load_ta_tok(tokenizer), load_vqvae(vqvae)
    vqvae_sha256 = model_sha256(vqvae, "vqvae")
    _require_fit(settings.arch, ta_tok, image_vq)
    parents = {"tokenizer": tokenizer, "vqvae": vqvae} | ({"start": start} if start else {})
    more: dict[str, Any] = {}
    source: CodeSource
    if images:
        artifacts = [open_artifact(path, "images") for path in images]
        source = PictureCodes(
            mixed_pictures(artifacts, settings.images_weights, seed=settings.seed),
            settings.scales,
            ta_tok,
            image_vq,
            vq_size_px=settings.arch.side * image_vq.arch.downsampling,
            square=settings.square,
            remember=settings.remember,
        )
        parents |= picture_parents(images)
    else:
        source = _stored_codes(tokens, settings, ta_tok, image_vq, vqvae_sha256)
        parents |= {f"tokens_{i}": path for i, path in enumerate(tokens)}
        # The order of the rows follows from their number, which a repaired artifact changes.
        more = {"rows": source.stream.total, "failed_rows": sum(source.num_failed.values())}
    task = ArDtokTask(
        settings,
        source,
        ta_tok,
        image_vq,
        vqvae_sha256=vqvae_sha256,
        start=start,
        vqvae_start_sha256=read_config(vqvae).get(START_SHA256) if vqvae.is_dir() else None,
    )
    return train(
        task,
        settings,
        out=out,
        name="ar-dtok",
        parents=parents,
        more=more,
        start_option="--start",
    )


def _stored_codes(
    tokens: Sequence[Path],
    settings: ArDtokConfig,
    ta_tok: LoadedTaTok,
    vqvae: Vqvae,
    vqvae_sha256: str,
) -> StoredCodes:
    """The codes in tokens artifacts; UserError where they are not those that are trained on."""
    if settings.square:
        raise UserError(
            f"square = {settings.square!r} is for --images; `tarkit encode` made the pictures of "
            "--tokens square",
            hint="leave square out, or encode the pictures with --set square=crop",
        )
    require_no_weights(settings)
    artifacts = [open_artifact(path, "tokens") for path in tokens]
    for artifact in artifacts:
        require_codes(
            artifact,
            scales=settings.scales,
            num_codes=settings.arch.num_codes,
            tokenizer_sha256=ta_tok.sha256,
            vqvae_sha256=vqvae_sha256,
        )
    return StoredCodes(artifacts, settings.scales, vqvae, seed=settings.seed)
