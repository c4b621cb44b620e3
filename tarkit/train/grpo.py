"""`tarkit train grpo`: reinforcement learning of the language model from scores of its pictures.

Source: group relative policy optimization (Shao et al. 2024, DeepSeekMath, Sec. 4.1), applied to
the codes of pictures; the Tar paper stops at supervised training. The model draws a group of
pictures of each prompt. The advantage of a picture is its score minus the mean score of its group,
in standard deviations of the group. Any scorer of `tarkit curate score` can be the reward. The
source's KL penalty on the distance from the first model is left out; training on chats in the same
steps can preserve the model's other abilities. A group gives no gradient, and is skipped, where all
scores are equal or one is missing. A step computes the log-probabilities of all its codes at once,
(B, N, K) float32: memory limits `batch_size` divided by the number of processes.

Letters: B pictures, N codes of a picture, K codes, G groups, S pictures of a group, M supervised
tokens of chats.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from tarkit.artifacts.artifact import open_artifact
from tarkit.artifacts.prompt_files import read_prompts
from tarkit.artifacts.ranks import rank_and_world
from tarkit.checkpoints.directory import TOKENIZER
from tarkit.checkpoints.hub import find
from tarkit.checkpoints.representation import TEXT_ALIGNED
from tarkit.checkpoints.tar_config import Sampling
from tarkit.config import load_config
from tarkit.errors import UserError
from tarkit.images import contact_sheet
from tarkit.inference.ar_detokenizer import ArDetokenizer
from tarkit.inference.tar_model import Tar
from tarkit.models.mllm import Packed, PackedLoss, code_log_probs
from tarkit.scoring.scorers import Plan, Scorer, Shown, checked, plan_scorer
from tarkit.seeds import training_seed
from tarkit.train.chat_batches import (
    ChatBatchesConfig,
    ChatStreams,
    TooLongChats,
    check_codes,
    check_scales,
    model_description,
    packed_chats,
    require_fitting,
    rows_of_part,
    supervision,
    weighted_loss,
)
from tarkit.train.grpo_costs import DtokCosts, PolicyCosts
from tarkit.train.loop import begin_training, train
from tarkit.train.loop_config import LoopConfig
from tarkit.train.processes import num_processes, sum_over_processes
from tarkit.train.streams import Stream
from tarkit.train.task import Amount, Figure, Mean
from tarkit.train.workloads.language import LanguageCosts, language_costs
from tarkit.vocab import Scale, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


log = logging.getLogger("tarkit")


class GrpoConfig(LoopConfig, ChatBatchesConfig):
    """Settings of the training; `batch_size` is the number of pictures of a step."""

    group: int = Field(default=8, ge=2)
    """Pictures of one prompt, whose scores are compared."""
    round_steps: PositiveInt = 1
    """Steps that share one round of drawing; each uses its own part of the round's prompts."""
    ratio_clip: float = Field(default=0.2, gt=0)
    """Epsilon of the clipped objective: how far the probability ratio of a code may move from 1."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the softmax over codes, in drawing and in training; no top-k or top-p."""
    prompt_guidance: float = 1.0
    """Classifier-free guidance against an empty prompt, in drawing and in training; 1 is off. No
    gradient flows through the logits of the empty prompt."""
    guidance: float = 1.0
    """Classifier-free guidance of the de-tokenizer, which draws greedily; 1 is off, and twice as
    fast."""
    draw_size: PositiveInt = 64
    """Pictures drawn in one batch."""
    chats_size: int = Field(default=0, ge=0)
    """Rows of `--chats` in a step, over all processes."""
    chats_weight: float = Field(default=1.0, gt=0)
    """Weight of the loss on chats; the loss on pictures weighs 1."""

    def resumable_after(self, done: int) -> bool:
        """Not within a round: its pictures are no part of a checkpoint."""
        return done % self.round_steps == 0

    @model_validator(mode="after")
    def _rounds_are_whole(self) -> GrpoConfig:
        if self.batch_size % self.group:
            raise ValueError(f"batch_size must be a multiple of group, {self.group}")
        if self.micro_batch_size not in (None, self.batch_size):
            raise ValueError(
                "micro_batch_size splits a step, but the pictures of a round are drawn and scored "
                "together: leave it out, and use more processes where memory is short"
            )
        if self.sharding == "full":
            raise ValueError(
                'sharding = "full" splits the model among processes, but train grpo draws with a '
                "model that is whole on each: leave it out, and use larger GPUs"
            )
        for name in ("checkpoint_every", "keep_every"):
            steps = getattr(self, name)
            if steps and steps % self.round_steps:
                raise ValueError(f"{name} must be a multiple of round_steps, {self.round_steps}")
        return self


class Policy(PackedLoss):
    """The language model as a policy over codes: one forward pass for pictures and chats."""

    def __init__(self, lm: PreTrainedModel, vocabulary: Vocabulary, config: GrpoConfig) -> None:
        super().__init__(
            lm, chunk_tokens=config.loss_chunk_tokens, attention=config.packed_attention
        )
        self.vocabulary = vocabulary
        self.config = config

    def code_log_probs(
        self, prompts: Sequence[Sequence[int]], codes: Tensor, scale: Scale
    ) -> Tensor:
        """Natural log-probabilities (B, N) of codes (B, N) of a scale, as they are drawn."""
        visual = self.vocabulary.visual
        assert visual is not None
        return code_log_probs(
            self.lm,
            prompts,
            codes,
            visual=visual,
            temperature=self.config.temperature,
            guidance=self.config.prompt_guidance,
            unguided=[self.vocabulary.prompt("", draw=scale)] * len(prompts),
        )

    def forward(  # type: ignore[override]
        self,
        prompts: Sequence[Sequence[int]],
        codes: Tensor,
        scale: Scale,
        chats: Packed | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """`code_log_probs`, and loss (M,) and target (M,) of the supervised tokens of chats."""
        chat_losses = None if chats is None else super().forward(chats)
        return self.code_log_probs(prompts, codes, scale), chat_losses


class GrpoBatch(NamedTuple):
    """The data of one step."""

    prompts: list[str]
    """The prompts of a whole round, for the step that begins it; else empty."""
    seeds: list[int]
    """One of each of those pictures, by its place in the round."""
    chats: Packed | None


class Round(NamedTuple):
    """Pictures of one round of drawing, group after group."""

    prompts: list[list[int]]  # B prompts as token ids
    codes: Tensor  # (B, N) int64
    log_probs: Tensor  # (B, N), when drawn; NaN where no step needs them
    advantages: Tensor  # (B,)
    figures: dict[str, Figure]


def advantages(scores: np.ndarray) -> np.ndarray:
    """Scores (G, S) -> advantages (G, S): score minus group mean, over group standard deviation.

    They are 0 in a group of equal scores, and in one with a missing score (NaN). Source: Shao et
    al. 2024, Sec. 4.1.
    """
    spread = scores.std(axis=1, keepdims=True)
    informative = np.isfinite(spread) & (spread > 1e-8)
    centred = scores - scores.mean(axis=1, keepdims=True)
    return np.divide(centred, spread, out=np.zeros_like(scores), where=informative)


def clipped_objective(
    log_probs: Tensor, old_log_probs: Tensor, advantage: Tensor, clip: float
) -> tuple[Tensor, float]:
    """The loss () of log-probabilities (B, N), and the share of codes that the clip holds back.

    -mean min(r A, clamp(r, 1 - clip, 1 + clip) A), where r is the probability over that at the time
    of drawing (Schulman et al. 2017, Eq. 7). The advantage (B,) is the same for all codes of a
    picture.
    """
    ratio = (log_probs - old_log_probs).exp()
    advantage = advantage[:, None]
    free, clipped = ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage
    return -torch.minimum(free, clipped).mean(), float((clipped < free).float().mean())


class GrpoTask:
    """Draws and scores the pictures of a round, then descends on them over the round's steps."""

    unused_parameters = False

    def __init__(
        self,
        config: GrpoConfig,
        tar: Tar,
        scorer: Scorer,
        plan: Plan,
        *,
        column: str,
        prompts: Sequence[str],
        streams: ChatStreams | None,
        too_long: Path | None = None,
    ) -> None:
        """`too_long`: the file that lists the chats which are left out, longer than a row."""
        if tar.mllm.vocabulary.visual is None:
            raise UserError(f"{tar.places.mllm} has no visual tokens and cannot draw")
        self.config = config
        self.tar = tar
        self.scorer = scorer
        self.plan = plan
        self.column = column
        self.vocabulary = tar.mllm.vocabulary
        self.streams = streams
        self.too_long = TooLongChats(too_long)
        if streams is not None:
            require_fitting(streams, config, self.vocabulary, size=config.chats_size)
        self.prompts = Stream(
            [len(prompts)], lambda _: prompts, seed=training_seed(config.seed, "grpo")
        )
        self.sampling = Sampling(
            temperature=config.temperature,
            top_k=0,
            top_p=1.0,
            prompt_guidance=config.prompt_guidance,
            guidance=config.guidance,
            dtok_temperature=0.0,
        )
        self.model = Policy(tar.mllm.model, self.vocabulary, config)
        self.round: Round | None = None
        self.chat_costs = language_costs(tar.mllm.model.config)
        self.costs = _costs(config, tar, self.chat_costs)
        self.unscored: set[str] = set()

    def batch(self, step: int, size: int, part: int, parts: int) -> GrpoBatch:
        config = self.config
        prompts, seeds = list[str](), list[int]()
        if step % config.round_steps == 0:
            seed = training_seed(config.seed, step, 0, "round")
            for later in range(config.round_steps):
                groups = self.prompts.batch(
                    step + later, size // config.group, rank=part, world=parts
                )
                prompts += [prompt for prompt in groups for _ in range(config.group)]
                first = (later * parts + part) * size
                seeds += [training_seed(seed, place) >> 2 for place in range(first, first + size)]
        chats = None
        if self.streams is not None:
            packed = packed_chats(
                self.streams,
                config,
                self.vocabulary,
                first=step * config.chats_size,
                size=config.chats_size,
                too_long=self.too_long if part == 0 else None,
            )
            chats = rows_of_part(packed, part, parts, length=config.length)
        return GrpoBatch(prompts, seeds, chats)

    def weight(self, batch: GrpoBatch) -> float:
        """Pictures of a step: every process has as many."""
        return self.config.batch_size / num_processes()

    @torch.no_grad()
    def _draw_round(self, prompts: list[str], seeds: list[int]) -> Round:
        """Draw a picture of each prompt and score it; `log_probs` are filled for later steps."""
        device = self.tar.mllm.model.device
        self.tar.to(device)
        codes, scores = self._drawn_and_scored(prompts, seeds)
        table = np.array(scores).reshape(-1, self.config.group)
        gains = advantages(table)
        ids = [self.vocabulary.prompt(prompt, draw=self.tar.default_scale) for prompt in prompts]
        # The first step of a round learns with the very weights that drew it.
        later = len(prompts) // self.config.round_steps
        log_probs = torch.full(codes.shape, math.nan, device=device)
        needed = [i for i in np.flatnonzero(gains).tolist() if i >= later]
        for at in range(0, len(needed), self.config.draw_size):
            rows = needed[at : at + self.config.draw_size]
            log_probs[rows] = self.model.code_log_probs(
                [ids[i] for i in rows], codes[rows], self.tar.default_scale
            )
        torch.clear_autocast_cache()  # weights cast here have no gradient
        gain = torch.from_numpy(gains.reshape(-1)).float().to(device)
        return Round(ids, codes, log_probs, gain, _round_figures(table, gains))

    def _drawn_and_scored(
        self, prompts: Sequence[str], seeds: Sequence[int]
    ) -> tuple[Tensor, list[float]]:
        """A picture for each prompt and seed: codes (B, N), and scores, NaN where there is none."""
        tar, size = self.tar, self.config.draw_size
        codes, scores = list[Tensor](), list[float]()
        for at in range(0, len(prompts), size):
            now = slice(at, at + size)
            # In the precision in which the model will draw, whatever it is trained in.
            with torch.autocast(tar.mllm.model.device.type, enabled=False):
                codes.append(
                    tar.imagine_codes(prompts[now], seeds=seeds[now], sampling=self.sampling)
                )
                pictures = tar.draw(codes[-1], seeds=seeds[now], sampling=self.sampling)
            scores += self._scores(pictures, prompts[now])
        return torch.cat(codes), scores

    def _scores(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """The reward of each picture; NaN where it has none, with one warning per prompt."""
        rows = self.scorer.score([Shown(p, q) for p, q in zip(pictures, prompts, strict=True)])
        if len(rows) != len(pictures):
            raise UserError(f"the scorer gave {len(rows)} scores of {len(pictures)} pictures")
        rewards = []
        for row, prompt in zip(rows, prompts, strict=True):
            scores = checked(row, self.plan.columns)
            if isinstance(scores, str) and prompt not in self.unscored:
                self.unscored.add(prompt)
                log.warning("%r has no score and is skipped: %s", prompt, scores)
            rewards.append(math.nan if isinstance(scores, str) else scores[self.column])
        return rewards

    def loss(
        self, model: nn.Module, batch: GrpoBatch, step: int
    ) -> tuple[Tensor, dict[str, Figure]]:
        config = self.config
        draws = bool(batch.prompts)
        if draws:
            # Not in the background, as a round must be drawn with what the one before has taught.
            model.eval()
            self.round = self._draw_round(batch.prompts, batch.seeds)
            model.train()
        current = self.round
        assert current is not None
        size = len(current.prompts) // config.round_steps
        first = step % config.round_steps * size
        gains = current.advantages[first : first + size].tolist()
        teaching = [first + i for i, gain in enumerate(gains) if gain]
        # Without any, one picture is read all the same: processes step together.
        part = teaching or [first]
        log_probs, chat_losses = model(
            [current.prompts[i] for i in part],
            current.codes[part],
            self.tar.default_scale,
            batch.chats,
        )
        old_log_probs = current.log_probs[part] if first and any(gains) else log_probs.detach()
        loss, stopped = clipped_objective(
            log_probs, old_log_probs, current.advantages[part], config.ratio_clip
        )
        # The loss is the mean over all of the step's pictures, the two figures over those that
        # teach.
        loss = loss * (len(part) / size)
        figures: dict[str, Figure] = {
            **current.figures,
            **self._work(current, part, batch.chats if chat_losses else None, draws=draws),
            "supervised_tokens_per_s": Amount(log_probs.numel()),
            "stopped": Mean(stopped, len(teaching)),
            "nats": Mean(-float(log_probs.detach().mean()), len(teaching)),
        }
        if chat_losses is not None and batch.chats is not None:
            losses, targets = chat_losses
            chat_loss, chat_figures = weighted_loss(
                losses, targets, self.vocabulary, config.text_weight
            )
            # The mean over the supervised tokens of all processes, which have different numbers.
            own = supervision(batch.chats, self.vocabulary, config.text_weight)
            total = float(sum_over_processes(torch.tensor(own, dtype=torch.float64)))
            share = own / total * num_processes() if total else 0.0
            loss = loss + config.chats_weight * (chat_loss * share)
            figures |= chat_figures
        return loss, figures

    def _work(
        self, current: Round, part: Sequence[int], chats: Packed | None, *, draws: bool
    ) -> dict[str, Figure]:
        """The FLOPs of a step that learns from the pictures `part` of a round, and from chats.

        `draws`: whether it drew the round.
        """
        if self.costs is None or self.chat_costs is None:
            return {}
        num_codes, drawing = current.codes.shape[1], 0.0
        if draws:
            drawing = sum(self.costs.drawing(len(p), num_codes) for p in current.prompts)
        flops = drawing + sum(self.costs.learning(len(current.prompts[i]), num_codes) for i in part)
        if draws:
            read = (~current.log_probs[:, 0].isnan()).nonzero()[:, 0].tolist()
            flops += sum(self.costs.reading(len(current.prompts[i]), num_codes) for i in read)
        if chats is not None:
            is_token = chats.chats >= 0
            squares = ((2 * chats.positions + 1) * is_token).sum()
            supervised = (chats.labels != self.vocabulary.IGNORED).sum()
            counts = torch.stack([is_token.sum(), squares, supervised]).tolist()
            flops += self.chat_costs.flops(*counts)
        return {"flops_per_s": Amount(flops), "float32_flops_per_s": Amount(drawing)}

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        return {}

    def samples(self, step: int) -> Image.Image | None:
        """Pictures of eight of the prompts, drawn with the model's own sampling settings."""
        self.tar.to(self.tar.mllm.model.device)
        self.model.eval()
        prompts = [self.prompts[place] for place in range(8)]
        pictures = self.tar.imagine_many(prompts, seeds=range(8))
        return contact_sheet(pictures, prompts, columns=4, cell_px=96)

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        config = self.tar.mllm.config
        description = model_description(
            self.tar.mllm.model,
            self.vocabulary,
            tokenizer_sha256=config.get("tokenizer_sha256", self.tar.sha256),
            grid=self.tar.grid,
        )
        return self.tar.mllm.model, description | {"token_counts": config.get("token_counts")}


def _costs(config: GrpoConfig, tar: Tar, language: LanguageCosts | None) -> PolicyCosts | None:
    """What a picture costs; None where the costs of a part are not known."""
    visual = tar.mllm.vocabulary.visual
    if language is None or visual is None or not isinstance(tar.dtok, ArDetokenizer):
        return None
    head = visual.num_codes * language.stack.width
    dtok = DtokCosts.of(tar.dtok.ar_dtok.arch, tar.dtok.vqvae.arch, tar.ta_tok.model.arch)
    guided = config.prompt_guidance != 1
    return PolicyCosts(language.stack, head, guided, dtok, config.guidance != 1)


def _round_figures(scores: np.ndarray, gains: np.ndarray) -> dict[str, Figure]:
    """What to log of scores (G, S) and advantages (G, S): shares, mean reward and its spread."""
    figures: dict[str, Figure] = {
        "groups_that_teach": float((gains != 0).any(axis=1).mean()),
        "unscored": float(np.isnan(scores).mean()),
    }
    complete = scores[np.isfinite(scores).all(axis=1)]
    if len(complete):
        figures["reward"] = Mean(float(complete.mean()), len(complete))
        figures["reward_spread"] = Mean(float(complete.std(axis=1).mean()), len(complete))
    return figures


def _reward_column(scorer: str, plan: Plan, column: str | None) -> str:
    """The scorer's column that is the reward; UserError where it is unknown or ambiguous."""
    name = column or (plan.columns[0] if len(plan.columns) == 1 else "")
    if name not in plan.columns:
        raise UserError(
            f"the scorer {scorer} gives {', '.join(plan.columns)}, not {name or 'one number'}",
            hint=f"--column {plan.columns[0]}",
        )
    return name


def _check_sizes(config: GrpoConfig, world: int, *, num_chats: int) -> None:
    """Raise UserError where a step does not divide by the processes, or chats and size disagree."""
    if config.batch_size % (world * config.group) or config.chats_size % world:
        groups = f"batch_size={world * config.group}"
        raise UserError(
            f"batch_size = {config.batch_size} is no whole groups of {config.group} on each of "
            f"{world} processes, or chats_size = {config.chats_size} does not divide by them",
            hint=f"--set {groups} --set chats_size={24 // world * world}",
        )
    if bool(num_chats) != bool(config.chats_size):
        raise UserError(
            f"chats_size is {config.chats_size} and --chats names {num_chats} artifacts",
            hint="--set chats_size=24 with --chats DIR, or neither",
        )


def places_of(model: str) -> tuple[Path | None, Path | None, Path | None, Path | None]:
    """Language model, TA-Tok, AR-DTok and image VQ of a model; none where it cannot be found."""
    try:
        places = find(model)
    except UserError:
        return None, None, None, None
    return places.mllm, places.ta_tok, places.ar_dtok, places.vqvae


def run(
    config: Path | None,
    *,
    model: str,
    prompts: Path,
    scorer: str,
    scorer_model: str | None = None,
    column: str | None = None,
    chats: Sequence[Path] = (),
    out: Path,
    device: str = "cpu",
    overrides: Sequence[str] = (),
) -> Path:
    """Train the language model of `model` by the scores of its pictures; returns the directory.

    `device` is the scorer's; accelerate chooses the device of the rest. `column`: which of the
    scorer's numbers is the reward, needed only where it gives several.
    """
    settings = load_config(GrpoConfig, config, overrides)
    begin_training(settings.seed)
    plan = plan_scorer(scorer, scorer_model, option="--scorer-model")
    column = _reward_column(scorer, plan, column)
    _, world = rank_and_world()
    _check_sizes(settings, world, num_chats=len(chats))
    lines = read_prompts(prompts)
    tar = Tar.load(model)
    if tar.representation != TEXT_ALIGNED:
        raise UserError(
            f"{model} draws with pixel codes (representation {tar.representation}), and train grpo "
            "rewards pictures of a text-aligned model alone",
            hint="name a text-aligned model, such as mini, with --model",
        )
    artifacts = [open_artifact(path, "chats") for path in chats]
    check_codes(artifacts, tar.ta_tok)
    check_scales(artifacts, settings)
    task = GrpoTask(
        settings,
        tar,
        plan.load(device),
        plan,
        column=column,
        prompts=lines,
        streams=ChatStreams(artifacts, settings.ratio, settings.seed) if artifacts else None,
        too_long=out / "too_long.jsonl",
    )
    parents = {f"chats_{i}": path for i, path in enumerate(chats)}
    parents |= {"prompts": prompts, "lm": tar.places.mllm}
    more = {
        "reward": {**plan.identity, "column": column},
        "drawn_by": tar.identities(),
        "scale": int(tar.default_scale),
    }
    return train(
        task,
        settings,
        out=out,
        name="grpo",
        parents=parents,
        files={TOKENIZER: tar.mllm.vocabulary.text.json},
        more=more,
    )
