"""`tarkit train tokenizer`: TA-Tok, whose codebook is projected from a language model's embeddings.

Source: paper Sec. 3.1, App. C.1 (losses of Eq. 3 and L_rec, scales drawn 2:1:1), Tables 7 and 8.
The encoder to start from is also the frozen teacher. Options beyond the paper: a whitened teacher,
a frozen encoder, and a projection that starts from the principal directions of the data.

Letters: B pictures, N codes of a picture at one scale, M features, K codes, W encoder width,
D code width, E width of an embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from torch import Tensor, nn

from tarkit.artifacts.artifact import open_artifact
from tarkit.artifacts.schema import NUM_CODES_MAX
from tarkit.checkpoints.embeddings import TokenEmbeddings, read_embeddings
from tarkit.checkpoints.hub import find_folder
from tarkit.checkpoints.load import load_encoder
from tarkit.config import Config, load_config
from tarkit.errors import UserError
from tarkit.models.codebook import (
    Representative,
    distinct_codes,
    representative_rows,
    usage,
    usage_of_counts,
)
from tarkit.models.encoder import VisionEncoder
from tarkit.models.pixel_range import to_signed
from tarkit.models.ta_tok import TaTok, TaTokArch, pool
from tarkit.seeds import training_seed
from tarkit.train.loop import begin_training, train
from tarkit.train.loop_config import PicturesConfig
from tarkit.train.processes import own_device, sum_over_processes
from tarkit.train.state import checkpoints_in
from tarkit.train.streams import (
    PictureRow,
    PictureStream,
    draw_scale,
    mixed_pictures,
    picture_parents,
    sized,
    source_names,
)
from tarkit.train.task import Amount, Figure, Mean, RowName
from tarkit.train.workloads.tokenizer import tokenizer as workload
from tarkit.train.workloads.workload import Start, flops_by_scale
from tarkit.vocab import Scale, ScaleOdds


class TaTokSizes(Config):
    """The sizes of TA-Tok that encoder and language model do not fix."""

    num_codes: int = Field(default=65536, ge=1, le=NUM_CODES_MAX)
    code_width: PositiveInt | None = None
    """None: the language model's width, so that codes can be its embeddings (paper Sec. 3.3)."""
    projection_bias: bool | None = None
    """Whether C = E W + b, as in the released model (None means so too), or C = E W (Eq. 1)."""
    l2_normalized: bool | None = None
    """Whether rows of C and features are normalised, so that the nearest code is the one of the
    largest cosine, as in the released model (None means so too), or not (paper Sec. 3.1). The
    paper's plain codebook has both options false, and `stochastic` too."""
    select_layer: int = -2
    stochastic: bool = True
    """Whether training draws codes from softmax(cosine / temperature), as the released model, or
    takes the nearest (paper Sec. 3.1)."""
    temperature: float = Field(default=0.03, gt=0)
    decoder_layers: PositiveInt = 3
    decoder_heads: PositiveInt = 12
    decoder_mlp_width: PositiveInt = 3072
    decoder_side: PositiveInt = 16


class TokenizerConfig(PicturesConfig):
    """Settings of TA-Tok's training; loss weights are the paper's (Table 8) unless noted."""

    LATER_KEYS = frozenset({"codebook_start"})

    sizes: TaTokSizes = TaTokSizes()
    scale_ratio: ScaleOdds = (2, 1, 1)
    """Odds of scales 1, 2, 3; each step draws one (App. C.1)."""
    representative: Representative = "far"
    codebook_start: Literal["lm", "random"] = "lm"
    """Where the codebook comes from. "lm": from rows of the language model's table (Sec. 3.1).
    "random": the conventional codebook of Table 9 (a) and (b), random unit rows of
    `sizes.code_width` values that are trained as they are, without a projection."""
    free_codebook: bool = False
    """Train the embeddings too, and not only their projection: the codebook then only starts from
    the language model's. Not in the paper; it shows what text alignment costs (Table 3)."""
    codebook: NonNegativeFloat = 1.0
    commitment: NonNegativeFloat = 0.25
    """Weight of Eq. 3's commitment half: 0.25 in the released file (the paper prints 1.0)."""
    reconstruction: NonNegativeFloat = 1.0
    freeze_encoder: bool = False
    whiten: NonNegativeFloat = 0.0
    """Teacher features are multiplied by their covariance to the power -whiten/2: 0 leaves them as
    they are, 1 gives every direction equal variance. Without it a common direction can dominate the
    cosine (in a prototype: .905 with colour at chance)."""
    whiten_floor: PositiveFloat = 1e-4
    """Variances below this share of the largest are raised to it before whitening: directions of
    small variance are mostly noise."""
    centre: float = 0.0
    """The origin of the teacher's features is mean - centre * (median - mean). Most positions are
    background. Around the plain mean the background lies near the origin, where a cosine measures
    only its noise, and codes are wasted on it."""
    start: Literal["linear", "data"] = "linear"
    """Start of the projection W: as any linear layer, or such that the rows of E W + b have the
    mean and covariance of the features."""
    start_rank: NonNegativeInt = 0
    """With `start = "data"`: number of principal directions of the features; 0 is all."""
    measure_pictures: PositiveInt = 512
    drop_copies: float = Field(default=1.0, gt=0)
    """After training, drop a code whose cosine with a more frequent code is at least this; at 1 all
    stay."""

    @model_validator(mode="after")
    def _some_loss_counts(self) -> TokenizerConfig:
        if not self.codebook + self.commitment + self.reconstruction:
            raise ValueError(
                "codebook, commitment and reconstruction are all 0: nothing is learned"
            )
        return self

    @model_validator(mode="after")
    def _a_random_codebook_starts_without_data(self) -> TokenizerConfig:
        if self.codebook_start == "random" and (self.start == "data" or self.free_codebook):
            raise ValueError(
                'codebook_start = "random" is trained without a projection: set start to "linear" '
                "and leave free_codebook out"
            )
        return self


class TokenizerBatch(NamedTuple):
    """Pictures, the scale of their step, and a seed for the codes of each."""

    pixels: Tensor  # (B, 3, size, size) in [-1, 1]
    scale: Scale
    seeds: list[int]  # B
    sources: Tensor | None = None  # (B,) int64, number of each picture's --images, where several


class TokenizerModel(nn.Module):
    """TA-Tok and its frozen teacher."""

    mean: Tensor
    whitener: Tensor

    def __init__(self, config: TokenizerConfig, encoder: VisionEncoder, table: Tensor) -> None:
        super().__init__()
        sizes = config.sizes
        arch = TaTokArch(
            encoder=encoder.arch.model_copy(update={"head": False}),
            embedding_width=table.shape[1],
            **{"code_width": table.shape[1], **sizes.model_dump(exclude_none=True)},
        )
        self.config = config
        self.ta_tok = TaTok(arch)
        own = self.ta_tok.encoder.state_dict()
        weights = {k: v.clone() for k, v in encoder.state_dict().items() if k in own}
        self.ta_tok.encoder.load_state_dict(weights)
        self.ta_tok.codebook.embedding.weight.data.copy_(table)
        is_random = config.codebook_start == "random"
        self.ta_tok.codebook.embedding.weight.requires_grad_(config.free_codebook or is_random)
        if is_random:
            _leave_as_it_is(self.ta_tok.codebook.embedding_proj)
        self.teacher = encoder.requires_grad_(False)
        if config.freeze_encoder:
            self.ta_tok.encoder.requires_grad_(False)
        width = encoder.arch.width
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("whitener", torch.eye(width))

    @torch.no_grad()
    def teacher_features(self, pixels: Tensor) -> Tensor:
        """Pixels in [-1, 1] -> the teacher's features (B, grid**2, W), before whitening."""
        return self.teacher.features(pixels, layer=self.config.sizes.select_layer)

    @torch.no_grad()
    def target(self, teacher_features: Tensor, scale: Scale) -> Tensor:
        """Features (B, grid**2, W) -> the decoder's target (B, N, W): centred, whitened, pooled."""
        return pool((teacher_features - self.mean) @ self.whitener, scale)

    @torch.no_grad()
    def start_from(self, pixels: Tensor) -> None:
        """Set mean, whitener and, with `start = "data"`, the projection from pictures' pixels."""
        config = self.config
        flat = self.teacher_features(pixels).flatten(0, 1)
        if config.whiten or config.centre:
            mean = flat.mean(0)
            self.mean.copy_(mean - config.centre * (flat.median(0).values - mean))
        if config.whiten:
            values, vectors = torch.linalg.eigh(torch.cov(flat.T))
            values = values.clamp(min=float(values.max()) * config.whiten_floor)
            power = values.pow(-config.whiten / 2)
            self.whitener.copy_(vectors * power @ vectors.T)
        if self.config.start == "data":
            features = self.ta_tok.features(pixels)
            z = torch.cat([self.ta_tok.project(features, s).flatten(0, 1) for s in Scale])
            self._cover(z)

    def _cover(self, z: Tensor) -> None:
        """Set W and b so that the rows of E W + b have the mean and covariance of z (M, D).

        Without b the covariance alone is theirs.
        """
        codebook = self.ta_tok.codebook
        rows = codebook.embedding.weight
        rank = self.config.start_rank or min(rows.shape[1], z.shape[1])
        row_values, row_vectors = torch.linalg.eigh(torch.cov(rows.T))
        z_values, z_vectors = torch.linalg.eigh(torch.cov(z.T))
        # eigh sorts ascending: the last `rank` directions carry the most.
        shrink = row_vectors[:, -rank:] * row_values[-rank:].clamp(min=1e-12).rsqrt()
        grow = (z_vectors[:, -rank:] * z_values[-rank:].clamp(min=0).sqrt()).T
        weight = shrink @ grow
        codebook.embedding_proj.weight.copy_(weight.T)
        if codebook.embedding_proj.bias is not None:
            codebook.embedding_proj.bias.copy_(z.mean(0) - rows.mean(0) @ weight)

    def forward(self, batch: TokenizerBatch) -> tuple[Tensor, Tensor, dict[str, float], Tensor]:
        """A batch -> the loss () at its scale, the codes (B, N), figures, and the cosines (B,).

        Reconstruction is one minus the mean cosine of decoded and target features.
        """
        config, pixels, scale = self.config, batch.pixels, batch.scale
        teacher_features = self.teacher_features(pixels)
        # A frozen encoder is the teacher: one pass serves both.
        features = teacher_features if config.freeze_encoder else self.ta_tok.features(pixels)
        out = self.ta_tok(features, scale, seeds=batch.seeds)
        target = self.target(teacher_features, scale)
        distances = 1 - F.cosine_similarity(out.features, target, dim=-1)  # (B, N)
        reconstruction = distances.mean()
        loss = (
            config.reconstruction * reconstruction
            + config.codebook * out.codebook_loss
            + config.commitment * out.commitment_loss
        )
        figures = {
            "cosine": 1 - float(reconstruction.detach()),
            "codebook": float(out.codebook_loss.detach()),
            "scale": int(scale),
            f"loss_by_scale/{int(scale)}": float(loss.detach()),
        }
        return loss, out.codes, figures, 1 - distances.detach().mean(1)


class TokenizerTask:
    """Reconstruction of the teacher's features of pictures; no text is used (App. C.1)."""

    def __init__(
        self,
        config: TokenizerConfig,
        stream: PictureStream,
        encoder: VisionEncoder,
        embeddings: TokenEmbeddings,
        *,
        sources: Mapping[Path, str] | None = None,
    ) -> None:
        """`sources`: the names of several images artifacts, by folder."""
        self.config = config
        self.stream = stream
        self.size_px = encoder.arch.size_px
        self.sources = {str(folder): name for folder, name in (sources or {}).items()}
        _require_fit(config, encoder, embedding_width=embeddings.table.shape[1])
        self.rows, table = _codebook_table(config, embeddings)
        self.model: TokenizerModel = TokenizerModel(config, encoder, table)
        # The encoder's layers above the one that is read.
        self.unused_parameters = not config.freeze_encoder
        self._step = -1
        self._codes: list[Tensor] = []  # of that step's micro-batches
        start = Start(encoder=encoder.arch, embedding_width=table.shape[1])
        self.costs = flops_by_scale(workload, config.model_dump(mode="json"), start)

    def start_from_data(self, device: torch.device) -> None:
        """Start whitening and projection from 256 pictures, where they do not start by themselves.

        A run that is resumed has them in its checkpoint.
        """
        config = self.config
        if config.whiten or config.centre or config.start == "data":
            rows = [self.stream[i] for i in range(min(256, self.stream.total))]
            self.model.to(device)
            self.model.start_from(self._pixels(rows).to(device))

    def _pixels(self, rows: Sequence[PictureRow]) -> Tensor:
        return to_signed([sized(row.pixels(), self.size_px) for row in rows])

    def batch(self, step: int, size: int, part: int, parts: int) -> TokenizerBatch:
        config = self.config
        rows = self.stream.batch(step, size, rank=part, world=parts)
        seeds = [
            training_seed(config.seed, step, place, "codes")
            for place in range(part * size, (part + 1) * size)
        ]
        scale = draw_scale(config.scale_ratio, config.seed, step)
        names = list(self.sources)
        sources = [names.index(row.name.source) for row in rows] if len(names) > 1 else None
        return TokenizerBatch(
            self._pixels(rows), scale, seeds, None if sources is None else torch.tensor(sources)
        )

    def weight(self, batch: TokenizerBatch) -> float:
        """Pictures: all of a step have as many codes."""
        return len(batch.pixels)

    def loss(
        self, model: nn.Module, batch: TokenizerBatch, step: int
    ) -> tuple[Tensor, dict[str, Figure]]:
        loss, codes, measured, cosines = model(batch)
        if step != self._step:
            self._codes.clear()  # of a step that was skipped
            self._step = step
        self._codes.append(codes)
        figures: dict[str, Figure] = {**measured}
        if batch.sources is not None:
            for number, name in enumerate(self.sources.values()):
                own = cosines[batch.sources == number]
                if len(own):
                    figures[f"cosine_by_source/{name}"] = Mean(float(own.mean()), len(own))
        positions = len(batch.pixels) * self.model.ta_tok.arch.encoder.grid**2
        return loss, figures | {
            "tokens_per_s": Amount(positions),
            "supervised_tokens_per_s": Amount(codes.numel()),
            **self.costs[batch.scale].amounts(len(batch.pixels)),
        }

    def row_names(self, batch: TokenizerBatch, first: int) -> list[RowName]:
        return [self.stream[first + i].name for i in range(len(batch.pixels))]

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        """Perplexity and usage of the step's codes."""
        codes = torch.cat(self._codes).flatten()
        self._codes.clear()
        counts = torch.bincount(codes, minlength=self.config.sizes.num_codes)
        health = usage_of_counts(sum_over_processes(counts))
        return {"perplexity": health.perplexity, "usage": health.used / len(counts)}

    def samples(self, step: int) -> Image.Image | None:
        return None

    @torch.no_grad()
    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        """Codebook health and reconstruction cosine of every scale, by argmax codes."""
        ta_tok, rows = self.model.ta_tok, self.rows
        codes, cosines = self._measure(ta_tok)
        before = torch.cat([c.flatten() for c in codes.values()])
        if self.config.drop_copies < 1:
            counts = torch.bincount(before, minlength=self.config.sizes.num_codes)
            codebook = ta_tok.codebook.projected().cpu()
            distinct = distinct_codes(codebook, counts, cosine=self.config.drop_copies)
            ta_tok = copy.deepcopy(ta_tok)  # training goes on with all codes
            ta_tok.keep_codes(distinct)
            ta_tok.to(self.model.mean.device)
            rows = None if rows is None else rows[distinct]
            codes, cosines = self._measure(ta_tok)
        every_code = torch.cat([c.flatten() for c in codes.values()])
        num_codes = ta_tok.arch.num_codes
        figures: dict[str, Any] = {"all_scales": _health(every_code, num_codes)}
        for scale in Scale:
            health = _health(codes[scale], num_codes)
            figures[f"scale_{int(scale)}"] = {**health, "cosine": round(cosines[scale], 5)}
        count = min(self.config.measure_pictures, self.stream.total)
        return ta_tok, {
            "kind": "ta_tok",
            "arch": ta_tok.arch.model_dump(mode="json"),
            **({} if rows is None else {"codebook_rows": rows.tolist()}),
            "figures": {
                **figures,
                "pictures": count,
                "before_dropping": _health(before, self.config.sizes.num_codes),
            },
        }

    def _measure(self, ta_tok: TaTok) -> tuple[dict[Scale, Tensor], dict[Scale, float]]:
        """Codes (B, N) of `measure_pictures` pictures, and their mean cosine, at every scale."""
        device = self.model.mean.device
        codes: dict[Scale, list[Tensor]] = {s: [] for s in Scale}
        cosines: dict[Scale, list[Tensor]] = {s: [] for s in Scale}
        count = min(self.config.measure_pictures, self.stream.total)
        for first in range(0, count, 32):
            pictures = [self.stream[i] for i in range(first, min(first + 32, count))]
            pixels = self._pixels(pictures).to(device)
            features = ta_tok.features(pixels)
            teacher_features = self.model.teacher_features(pixels)
            for scale in Scale:
                nearest = ta_tok.codebook.nearest(ta_tok.project(features, scale))
                target = self.model.target(teacher_features, scale)
                cosine = F.cosine_similarity(ta_tok.condition(nearest), target, dim=-1)
                codes[scale].append(nearest.cpu())
                cosines[scale].append(cosine.flatten().cpu())
        return (
            {scale: torch.cat(batches) for scale, batches in codes.items()},
            {scale: float(torch.cat(batches).mean()) for scale, batches in cosines.items()},
        )


def _codebook_table(
    config: TokenizerConfig, embeddings: TokenEmbeddings
) -> tuple[Tensor | None, Tensor]:
    """The table (K, E) that the codebook starts from, and its rows' ids (K,) in the language model.

    A random table has no ids. Raises UserError where the language model has too few words.
    """
    num_codes, table = config.sizes.num_codes, embeddings.table
    if config.codebook_start == "random":
        width = config.sizes.code_width or table.shape[1]
        return None, F.normalize(torch.randn(num_codes, width), dim=-1)
    usable = embeddings.used
    if len(usable) < num_codes:
        raise UserError(
            f"num_codes = {num_codes}, but only {len(usable)} rows of the language model's table "
            "are words (that its training text used, where it is known)",
            hint="an --lm that was trained on text of more words, or "
            f"--set sizes.num_codes={len(usable)}",
        )
    rows = usable[representative_rows(table[usable], num_codes, how=config.representative)]
    return rows, table[rows]


def _leave_as_it_is(projection: nn.Linear) -> None:
    """Make a square projection the identity, and frozen."""
    nn.init.eye_(projection.weight)
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
    projection.requires_grad_(False)


def _health(codes: Tensor, num_codes: int) -> dict[str, Any]:
    health = usage(codes, num_codes)
    return {"used": health.used, "dead": health.dead, "perplexity": round(health.perplexity, 2)}


def _require_fit(config: TokenizerConfig, encoder: VisionEncoder, *, embedding_width: int) -> None:
    """Raise UserError where the sizes do not fit the encoder and the language model."""
    arch, sizes = encoder.arch, config.sizes
    if arch.width % sizes.decoder_heads:
        fitting = max(n for n in range(1, sizes.decoder_heads) if arch.width % n == 0)
        raise UserError(
            f"decoder_heads = {sizes.decoder_heads} does not divide the encoder's width "
            f"{arch.width}",
            hint=f"--set sizes.decoder_heads={fitting}",
        )
    if not -arch.layers - 1 <= sizes.select_layer <= arch.layers:
        raise UserError(
            f"select_layer = {sizes.select_layer}, but the encoder has {arch.layers} layers: "
            f"{-arch.layers - 1} to {arch.layers}",
            hint="--set sizes.select_layer=-2",
        )
    directions = min(embedding_width, sizes.code_width or embedding_width)
    if config.start_rank > directions:
        raise UserError(
            f"start_rank = {config.start_rank}, but embeddings and codes have {directions} common "
            "directions",
            hint=f"--set start_rank={directions}",
        )


def run(
    config: Path | None,
    *,
    images: Sequence[Path],
    encoder: Path,
    lm: Path,
    out: Path,
    overrides: Sequence[str] = (),
) -> Path:
    """Train TA-Tok from a vision encoder and a language model; returns the model directory.

    `encoder`: a model directory, or a SigLIP of transformers; `lm`: any causal language model, or a
    safetensors file of it. Both may be hub ids in the local cache.
    """
    settings = load_config(TokenizerConfig, config, overrides)
    begin_training(settings.seed)
    encoder, lm = find_folder(encoder), find_folder(lm)
    artifacts = [open_artifact(path, "images") for path in images]
    stream = mixed_pictures(artifacts, settings.images_weights, seed=settings.seed)
    task = TokenizerTask(
        settings,
        stream,
        load_encoder(encoder),
        read_embeddings(lm),
        sources=source_names(images),
    )
    if not checkpoints_in(out / "state"):
        task.start_from_data(own_device())
    parents = picture_parents(images) | {"encoder": encoder, "lm": lm}
    return train(task, settings, out=out, name="tokenizer", parents=parents)
