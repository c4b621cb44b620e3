"""`tarkit train grpo`: a model draws, its pictures are scored, and it draws more of the better.

Source: group relative policy optimization (Shao et al. 2024, DeepSeekMath, Sec. 4.1) on the codes
of pictures; the paper stops at supervised training. Each prompt is drawn as a group of pictures;
the advantage of one is how far its score lies above its group's mean, in standard deviations. Any
scorer of `tarkit curate score` can be the reward: the drawn world's own verdict, CLIP, one's own.
There is no penalty on the distance from the model begun with (the source's beta KL is left out);
chats learnt beside the pictures keep what it can do beside drawing. A group whose pictures all
score alike, or lack a score, teaches nothing and is not read. A step's log-probabilities are of all
its codes at once, (B, N, K) float32: `batch_size` over the processes is what memory bears.

Letters: B pictures, N codes of each.
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
from tarkit.checkpoints.system import Sampling
from tarkit.config import load_config
from tarkit.errors import UserError
from tarkit.images import contact_sheet
from tarkit.inference.tar import Tar
from tarkit.models.mllm import Packed, PackedLoss, code_log_probs
from tarkit.scoring.scorers import Plan, Scorer, Shown, checked, plan_scorer
from tarkit.train.chat_batches import (
    ChatBatchesConfig,
    ChatStreams,
    check_codes,
    described,
    packed_chats,
    weighted_loss,
)
from tarkit.train.loop import LoopConfig, begin_training, train
from tarkit.train.streams import Stream, seed_of
from tarkit.vocab import Scale, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


log = logging.getLogger("tarkit")


class GrpoConfig(LoopConfig, ChatBatchesConfig):
    """Numbers of learning from scored pictures; `batch_size` is the pictures a step learns from."""

    group: int = Field(default=8, ge=2)
    """Pictures of one prompt, compared with each other."""
    round_steps: PositiveInt = 1
    """Steps that learn from one round of drawing, each from its own prompts of it."""
    ratio_clip: float = Field(default=0.2, gt=0)
    """How far a code's probability may move from what it was drawn with and still be pushed on."""
    temperature: float = Field(default=1.0, gt=0)
    """Codes are drawn from, and learnt in, the softmax at this temperature, nothing cut off."""
    prompt_guidance: float = 1.0
    """Classifier-free guidance with which they are drawn and learnt, against an empty prompt,
    through whose logits no gradient flows. 1 is off."""
    guidance: float = 1.0
    """Of the de-tokenizer, which draws its likeliest pixels; 1 is off and twice as fast."""
    draw_size: PositiveInt = 64
    """Pictures drawn side by side."""
    chats_size: int = Field(default=0, ge=0)
    """Rows of `--chats` a step also learns from, over all processes."""
    chats_weight: float = Field(default=1.0, gt=0)
    """Weight of their loss; that of the pictures weighs 1."""

    @model_validator(mode="after")
    def _rounds_are_whole(self) -> GrpoConfig:
        if self.batch_size % self.group:
            raise ValueError(f"batch_size must be a multiple of group, {self.group}")
        for name in ("checkpoint_every", "keep_every"):
            steps = getattr(self, name)
            if steps and steps % self.round_steps:
                raise ValueError(f"{name} must be a multiple of round_steps, {self.round_steps}")
        return self


class Policy(PackedLoss):
    """The language model as what draws: one forward pass for pictures and chats."""

    def __init__(self, lm: PreTrainedModel, vocabulary: Vocabulary, config: GrpoConfig) -> None:
        super().__init__(lm)
        self.vocabulary = vocabulary
        self.config = config

    def of_codes(self, prompts: Sequence[Sequence[int]], codes: Tensor, scale: Scale) -> Tensor:
        """Log-probabilities (B, N) of codes (B, N) of a scale, as they are drawn."""
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
        """`of_codes`, and loss and target (M,) of the chats."""
        of_chats = None if chats is None else super().forward(chats)
        return self.of_codes(prompts, codes, scale), of_chats


class Step(NamedTuple):
    """What a step begins with."""

    prompts: list[str]
    """Of the whole round where the step begins one, else empty."""
    chats: Packed | None


class Round(NamedTuple):
    """Pictures of one round of drawing, groups one after the other."""

    prompts: list[list[int]]
    codes: Tensor  # (B, N) int64
    log_probs: Tensor  # (B, N), at the time of drawing; NaN where no step will ask for them
    advantages: Tensor  # (B,)
    figures: dict[str, float]


def advantages(scores: np.ndarray) -> np.ndarray:
    """Scores (G, S) of G groups -> the same less each group's mean, over its standard deviation.

    A group of one score, or with a picture that has none (NaN), teaches nothing: its rows are 0.
    """
    spread = scores.std(axis=1, keepdims=True)
    told = np.isfinite(spread) & (spread > 1e-8)
    centred = scores - scores.mean(axis=1, keepdims=True)
    return np.divide(centred, spread, out=np.zeros_like(scores), where=told)


def clipped_objective(
    log_probs: Tensor, drawn_with: Tensor, advantage: Tensor, clip: float
) -> tuple[Tensor, float]:
    """The loss of log-probabilities (B, N), and the share of codes whose push the clip stops.

    - mean min(r A, clamp(r, 1 - clip, 1 + clip) A) with r = p / p when drawn (Schulman et al. 2017,
    Eq. 7); `advantage` (B,) is the same for every code of a picture.
    """
    ratio = (log_probs - drawn_with).exp()
    push = advantage[:, None]
    free, held = ratio * push, ratio.clamp(1 - clip, 1 + clip) * push
    return -torch.minimum(free, held).mean(), float((held < free).float().mean())


class GrpoTask:
    """Rounds of drawing, scoring and learning."""

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
    ) -> None:
        if tar.mllm.vocabulary.visual is None:
            raise UserError(f"{tar.places.mllm} has no visual tokens and cannot draw")
        self.config = config
        self.tar = tar
        self.scorer = scorer
        self.plan = plan
        self.column = column
        self.vocabulary = tar.mllm.vocabulary
        self.streams = streams
        self.prompts = Stream([len(prompts)], lambda _: prompts, seed=seed_of(config.seed, "grpo"))
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
        self.unscored: set[str] = set()

    def batch(self, step: int, size: int, rank: int, world: int) -> Step:
        config = self.config
        number, within = divmod(step, config.round_steps)
        groups = 0 if within else config.round_steps * size // config.group
        prompts = self.prompts.batch(number, groups, rank=rank, world=world) if groups else []
        chats = None
        if self.streams is not None:
            rows = config.chats_size // world
            first = (step * world + rank) * rows
            chats = packed_chats(self.streams, config, self.vocabulary, first=first, size=rows)
        return Step([prompt for prompt in prompts for _ in range(config.group)], chats)

    @torch.no_grad()
    def _drawn(self, prompts: list[str], seed: int) -> Round:
        """A round: pictures of prompts, their scores, and what the model gave their codes."""
        tar, size = self.tar, self.config.draw_size
        device = tar.mllm.model.device
        tar.to(device)
        seeds = [seed_of(seed, place) >> 2 for place in range(len(prompts))]
        ids = [self.vocabulary.prompt(prompt, draw=tar.default_scale) for prompt in prompts]
        codes, values = list[Tensor](), list[float]()
        for at in range(0, len(prompts), size):
            now = slice(at, at + size)
            # In the precision in which the model will draw, whatever it learns in.
            with torch.autocast(device.type, enabled=False):
                drawn = tar.imagine_codes(prompts[now], seeds=seeds[now], sampling=self.sampling)
                pictures = tar.draw(drawn, seeds=seeds[now], sampling=self.sampling)
            values += self._scores(pictures, prompts[now])
            codes.append(drawn)
        every_code = torch.cat(codes)
        table = np.array(values).reshape(-1, self.config.group)
        gained = advantages(table)
        # The first step of a round learns with the very weights that drew it.
        later = len(prompts) // self.config.round_steps
        taught = [i for i in np.flatnonzero(gained).tolist() if i >= later]
        log_probs = torch.full(every_code.shape, math.nan, device=device)
        for at in range(0, len(taught), size):
            rows = taught[at : at + size]
            log_probs[rows] = self.model.of_codes(
                [ids[i] for i in rows], every_code[rows], tar.default_scale
            )
        torch.clear_autocast_cache()  # weights cast here have no gradient
        scored = table[np.isfinite(table).all(axis=1)]
        figures = {
            "groups_that_teach": float((gained != 0).any(axis=1).mean()),
            "unscored": float(np.isnan(table).mean()),
        }
        if len(scored):
            figures["reward"] = float(scored.mean())
            figures["reward_spread"] = float(scored.std(axis=1).mean())
        every = torch.from_numpy(gained.reshape(-1)).float().to(device)
        return Round(ids, every_code, log_probs, every, figures)

    def _scores(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """The reward of each picture, NaN where it has none; warned of once a prompt."""
        shown = [Shown(p, said) for p, said in zip(pictures, prompts, strict=True)]
        found = self.scorer.score(shown)
        if len(found) != len(shown):
            raise UserError(f"the scorer gave {len(found)} scores of {len(shown)} pictures")
        values = []
        for scores, prompt in zip(found, prompts, strict=True):
            one = checked(scores, self.plan.columns)
            if isinstance(one, str) and prompt not in self.unscored:
                self.unscored.add(prompt)
                log.warning("%r has no score and teaches nothing: %s", prompt, one)
            values.append(math.nan if isinstance(one, str) else one[self.column])
        return values

    def loss(self, model: nn.Module, batch: Step, step: int) -> tuple[Tensor, dict[str, float]]:
        config = self.config
        if batch.prompts:
            # Not in the background, as the next round must be drawn with what this one taught.
            model.eval()
            rank = int(torch.distributed.get_rank()) if torch.distributed.is_initialized() else 0
            self.round = self._drawn(batch.prompts, seed_of(config.seed, step, rank, "round"))
            model.train()
        assert self.round is not None
        drawn = self.round
        size = len(drawn.prompts) // config.round_steps
        first = step % config.round_steps * size
        pushes = drawn.advantages[first : first + size].tolist()
        # Where nothing teaches one picture is read all the same: processes step together.
        part = [first + i for i, push in enumerate(pushes) if push] or [first]
        log_probs, of_chats = model(
            [drawn.prompts[i] for i in part], drawn.codes[part], self.tar.default_scale, batch.chats
        )
        drawn_with = drawn.log_probs[part] if first and any(pushes) else log_probs.detach()
        loss, stopped = clipped_objective(
            log_probs, drawn_with, drawn.advantages[part], config.ratio_clip
        )
        # The loss is the mean over all of the step's pictures, the two figures are of those read.
        loss = loss * (len(part) / size)
        figures = drawn.figures | {"stopped": stopped, "nats": -float(log_probs.detach().mean())}
        if of_chats is not None:
            losses, targets = of_chats
            beside, told = weighted_loss(losses, targets, self.vocabulary, config.text_weight)
            loss, figures = loss + config.chats_weight * beside, figures | told
        return loss, figures

    def after_step(self, step: int, model: nn.Module) -> None:
        return None

    def samples(self, step: int) -> Image.Image | None:
        """What the model draws, as it draws by itself, of eight of the prompts."""
        self.tar.to("cpu")
        self.model.eval()
        prompts = [self.prompts[place] for place in range(8)]
        pictures = self.tar.imagine_many(prompts, seeds=range(8))
        return contact_sheet(pictures, prompts, columns=4, cell_px=96)

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        given = self.tar.mllm.config
        model, tokenizer = self.tar.mllm.model, given.get("tokenizer_sha256", self.tar.sha256)
        description = described(model, self.vocabulary, tokenizer=tokenizer, grid=self.tar.grid)
        return model, description | {"token_counts": given.get("token_counts")}


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
    """Train the language model of `model` by the scores of what it draws; returns its directory.

    `device` is the scorer's; the rest is where accelerate puts it. `column` says which of the
    scorer's numbers is the reward; needed only where it gives several.
    """
    settings = load_config(GrpoConfig, config, overrides)
    begin_training(settings.seed)
    plan = plan_scorer(scorer, scorer_model, option="--scorer-model")
    column = column or (plan.columns[0] if len(plan.columns) == 1 else "")
    if column not in plan.columns:
        raise UserError(
            f"the scorer {scorer} gives {', '.join(plan.columns)}, not {column or 'one number'}",
            hint=f"--column {plan.columns[0]}",
        )
    _, world = rank_and_world()
    if settings.batch_size % (world * settings.group) or settings.chats_size % world:
        groups = f"batch_size={world * settings.group}"
        raise UserError(
            f"batch_size = {settings.batch_size} is no whole groups of {settings.group} on each of "
            f"{world} processes, or chats_size = {settings.chats_size} does not divide by them",
            hint=f"--set {groups} --set chats_size={24 // world * world}",
        )
    if bool(chats) != bool(settings.chats_size):
        raise UserError(
            f"chats_size is {settings.chats_size} and --chats names {len(chats)} artifacts",
            hint="--set chats_size=24 with --chats DIR, or neither",
        )
    lines = read_prompts(prompts)
    tar = Tar.load(model)
    artifacts = [open_artifact(path, "chats") for path in chats]
    check_codes(artifacts, tar.ta_tok)
    task = GrpoTask(
        settings,
        tar,
        plan.load(device),
        plan,
        column=column,
        prompts=lines,
        streams=ChatStreams(artifacts, settings.ratio, settings.seed) if artifacts else None,
    )
    parents = {f"chats_{i}": path for i, path in enumerate(chats)}
    parents |= {"prompts": prompts, "lm": tar.places.mllm}
    reward = {"reward": {**plan.identity, "column": column}}
    drawn_by = {"drawn_by": tar.identities(), "scale": int(tar.default_scale)}
    return train(
        task,
        settings,
        out=out,
        name="grpo",
        parents=parents,
        files={TOKENIZER: tar.mllm.vocabulary.text.json},
        more=reward | drawn_by,
    )
