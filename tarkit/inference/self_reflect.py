"""Self-reflect: a model draws several pictures of a prompt and keeps the one it judges best.

Source: paper Sec. 4.3 and Tables 2 and 10. They give neither the number of pictures, nor the
question, nor the rule of choice, so this protocol is tarkit's own. A judge reads TA-Tok codes. On
`codes` these are the codes that the model wrote, and only the kept picture is decoded. On `pixels`
they are the codes of the decoded pictures, which also show the errors of the de-tokenizer.
The judge `yes` is P(yes) to "does this image match ...?". The judge `gain` is how much likelier the
codes are after the prompt than without it, which needs no training.

N: image tokens. B: pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from tarkit.checkpoints.tar_config import Sampling
from tarkit.errors import UserError
from tarkit.inference.tar_model import Tar
from tarkit.seeds import sample_seed
from tarkit.vocab import Scale, judgement_question

JudgeName = Literal["yes", "gain"]
Medium = Literal["codes", "pixels"]
JUDGES: tuple[JudgeName, ...] = get_args(JudgeName)

ACCEPTED = {"yes": 0.5, "gain": 0.0}
"""A judge accepts a score above this value: a probability for yes, nats per code for gain."""


@dataclass(frozen=True)
class Reflection:
    """How to choose one of `n` candidates; with `until_yes` the first that the judge accepts."""

    n: int
    by: JudgeName = "gain"
    on: Medium = "pixels"
    until_yes: bool = False


def reflection_of(n: int, by: str, on: str, until_yes: bool) -> Reflection:
    """A reflection by a judge and a medium that a user named; UserError for an unknown name."""
    judges: dict[str, JudgeName] = {name: name for name in JUDGES}
    media: dict[str, Medium] = {name: name for name in get_args(Medium)}
    if by not in judges or on not in media:
        raise UserError(f"the judge {by} on {on} is unknown: give yes or gain, on codes or pixels")
    return Reflection(n, judges[by], media[on], until_yes)


@dataclass(frozen=True)
class BestCandidate:
    """The kept candidate of a prompt: codes (N,), the seed to decode them with, the judge's score.

    `number` is its place among the candidates, from 0; `tried` is how many were judged.
    """

    codes: Tensor
    seed: int
    score: float
    number: int
    tried: int


def candidate_seed(seed: int, number: int) -> int:
    """The seed of candidate `number` of a picture; candidate 0 has the picture's own seed."""
    if number == 0:
        return seed
    return sample_seed(seed, "candidate", number)


def judge(tar: Tar, codes: Tensor, prompts: Sequence[str], by: JudgeName) -> list[float]:
    """A score for each picture, by its codes (B, N): how well it shows its prompt."""
    if by == "yes":
        return tar.yes_probability(codes, [judgement_question(prompt) for prompt in prompts])
    return tar.prompt_gain(codes, prompts)


def reading_scale(tar: Tar, by: JudgeName, drawing_scale: Scale) -> Scale:
    """The scale at which a judge reads decoded pictures.

    `yes` reads at the model's `read_scale`; `gain` reads at the scale they were drawn at, because
    it scores the codes as the model would write them. A model that reads features judges by `yes`
    from the pictures that codes are drawn as.
    """
    return tar.read_scale if by == "yes" and tar.reader is None else drawing_scale


def best_of(
    tar: Tar,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    reflection: Reflection,
    scale: Scale | None = None,
    sampling: Sampling | None = None,
    images: Sequence[Sequence[Image.Image]] | None = None,
) -> list[BestCandidate]:
    """The best of `reflection.n` candidates of each prompt; of equal ones the first.

    With `until_yes` a prompt gets further candidates only until the judge accepts one (`ACCEPTED`);
    when it accepts none, the best is kept. Raises UserError for n below 1 or an unknown judge.
    """
    n, by, until_yes = reflection.n, reflection.by, reflection.until_yes
    if n < 1 or by not in JUDGES:
        raise UserError(f"best of {n} by {by!r}: n is 1 or more, judges are {', '.join(JUDGES)}")
    candidates: list[BestCandidate | None] = [None] * len(prompts)
    for number in range(n):
        open_prompts = [
            i for i, best in enumerate(candidates) if not (until_yes and _accepted(best, by))
        ]
        if not open_prompts:
            break
        candidate_seeds = [candidate_seed(seeds[i], number) for i in open_prompts]
        codes = tar.imagine_codes(
            [prompts[i] for i in open_prompts],
            seeds=candidate_seeds,
            scale=scale,
            images=[images[i] for i in open_prompts] if images else None,
            sampling=sampling,
        )
        judged_codes = codes
        if reflection.on == "pixels":
            pictures = tar.draw(codes, seeds=candidate_seeds, sampling=sampling)
            judging_scale = reading_scale(tar, by, scale or tar.default_scale)
            judged_codes = tar.encode(pictures, [judging_scale])[judging_scale]
        scores = judge(tar, judged_codes, [prompts[i] for i in open_prompts], by)
        for i, row, seed, score in zip(open_prompts, codes, candidate_seeds, scores, strict=True):
            best = candidates[i]
            if best is None or score > best.score:
                best = BestCandidate(row, seed, score, number, number + 1)
            candidates[i] = replace(best, tried=number + 1)
    return [best for best in candidates if best is not None]


def draw(
    tar: Tar, candidates: Sequence[BestCandidate], *, sampling: Sampling | None = None
) -> list[Image.Image]:
    """The pictures of kept candidates."""
    codes = torch.stack([candidate.codes for candidate in candidates])
    return tar.draw(codes, seeds=[candidate.seed for candidate in candidates], sampling=sampling)


def _accepted(best: BestCandidate | None, by: JudgeName) -> bool:
    return best is not None and best.score > ACCEPTED[by]
