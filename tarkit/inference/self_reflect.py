"""Self-reflect: a model draws several pictures of a prompt and keeps the one it judges best.

Source: paper Sec. 4.3 and Tables 2 and 10, which give neither the number of pictures, nor the
question, nor the rule; this is tarkit's own protocol. A judge reads TA-Tok codes: those that the
model wrote, and then only the picture that is kept is ever drawn, or those of the drawn pictures,
which tell of the de-tokenizer's errors too. `yes` is P(yes) to "does this image match ...?"; `gain`
is how much likelier the codes are after the prompt than after none, which needs no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from tarkit.checkpoints.system import Sampling
from tarkit.errors import UserError
from tarkit.inference.tar import Tar
from tarkit.seeds import sample_seed
from tarkit.vocab import Scale, judgement_question

JudgeName = Literal["yes", "gain"]
Medium = Literal["codes", "pixels"]
JUDGES: tuple[JudgeName, ...] = get_args(JudgeName)

ACCEPTED = {"yes": 0.5, "gain": 0.0}
"""Above it a judge says yes: a probability, and nats a code."""


@dataclass(frozen=True)
class Reflection:
    """How one picture is chosen among up to `n`; with `until_yes` the first that is accepted."""

    n: int
    by: JudgeName = "gain"
    on: Medium = "pixels"
    until_yes: bool = False


def reflection_of(n: int, by: str, on: str, until_yes: bool) -> Reflection:
    """A reflection of names that a user gave; raises UserError for those that are none."""
    judges: dict[str, JudgeName] = {name: name for name in JUDGES}
    media: dict[str, Medium] = {name: name for name in get_args(Medium)}
    if by not in judges or on not in media:
        raise UserError(f"no judge {by} on {on}: yes or gain, on codes or pixels")
    return Reflection(n, judges[by], media[on], until_yes)


@dataclass(frozen=True)
class Choice:
    """What is kept of a prompt: codes (N,), the seed to draw them with, the judge's score.

    `number` is that of the candidate, `tried` how many there were.
    """

    codes: Tensor
    seed: int
    score: float
    number: int
    tried: int


def candidate_seed(seed: int, number: int) -> int:
    """The seed of a picture's candidate; the first has the picture's own."""
    if number == 0:
        return seed
    return sample_seed(seed, "candidate", number)


def judge(tar: Tar, codes: Tensor, prompts: Sequence[str], by: JudgeName) -> list[float]:
    """How well the pictures whose codes (B, N) are given show their prompts."""
    if by == "yes":
        return tar.yes_probability(codes, [judgement_question(prompt) for prompt in prompts])
    return tar.prompt_gain(codes, prompts)


def reading_scale(tar: Tar, by: JudgeName, drawn_at: Scale) -> Scale:
    """The scale at which a judge reads drawn pictures.

    P(yes) reads at `read_scale`; the gain compares with how they were drawn, so at that scale.
    """
    return tar.read_scale if by == "yes" else drawn_at


def best_of(
    tar: Tar,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    how: Reflection,
    scale: Scale | None = None,
    sampling: Sampling | None = None,
    images: Sequence[Sequence[Image.Image]] | None = None,
) -> list[Choice]:
    """The best of `how.n` candidates of each prompt; of equal ones the first.

    With `how.until_yes` candidates are drawn one after the other, and a prompt is done when the
    judge says yes (`ACCEPTED`) to one; where it says so to none, the best is kept.
    """
    n, by, until_yes = how.n, how.by, how.until_yes
    if n < 1 or by not in JUDGES:
        raise UserError(f"best of {n} by {by!r}: n is 1 or more, judges are {', '.join(JUDGES)}")
    found: list[Choice | None] = [None] * len(prompts)
    for number in range(n):
        places = [i for i, best in enumerate(found) if not (until_yes and _accepted(best, by))]
        if not places:
            break
        drawn_by = [candidate_seed(seeds[i], number) for i in places]
        codes = tar.imagine_codes(
            [prompts[i] for i in places],
            seeds=drawn_by,
            scale=scale,
            images=[images[i] for i in places] if images else None,
            sampling=sampling,
        )
        seen = codes
        if how.on == "pixels":
            pictures = tar.draw(codes, seeds=drawn_by, sampling=sampling)
            read_at = reading_scale(tar, by, scale or tar.default_scale)
            seen = tar.encode(pictures, [read_at])[read_at]
        scores = judge(tar, seen, [prompts[i] for i in places], by)
        for i, row, seed, score in zip(places, codes, drawn_by, scores, strict=True):
            best = found[i]
            if best is None or score > best.score:
                best = Choice(row, seed, score, number, number + 1)
            found[i] = Choice(best.codes, best.seed, best.score, best.number, number + 1)
    return [choice for choice in found if choice is not None]


def draw(
    tar: Tar, choices: Sequence[Choice], *, sampling: Sampling | None = None
) -> list[Image.Image]:
    """The pictures that were kept."""
    codes = torch.stack([choice.codes for choice in choices])
    return tar.draw(codes, seeds=[choice.seed for choice in choices], sampling=sampling)


def _accepted(best: Choice | None, by: JudgeName) -> bool:
    return best is not None and best.score > ACCEPTED[by]
