"""`tarkit curate render`: draws the shapes world into an images artifact.

The rows hold captions, questions, pairs of similar pictures and triples. A group is a target
picture and up to two others. The `similar` one is another layout that the same words describe, for
I2I. The `reference` shows one object of the target alone, for TI2I: in the target's `template`,
`<image>` stands for that object. Shard i is a pure function of the settings and i: the seed of a
picture is the hash of the run's seed, the split and the picture's key, so that
`render(scene_from_json(row["scene"]), np.random.default_rng(row["seed"]))` draws it again.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pydantic

from tarkit.artifacts.artifact import Artifact, shard_names
from tarkit.artifacts.picture_tar import Blob
from tarkit.artifacts.plan import ShardPlan
from tarkit.artifacts.ranks import rank_and_world
from tarkit.artifacts.resume import pending_shards
from tarkit.artifacts.workers import Report, make_shards
from tarkit.config import Config, Seed, load_config
from tarkit.errors import UserError
from tarkit.images import png_bytes
from tarkit.progress import Progress
from tarkit.seeds import scene_seed
from tarkit.shapes import questions
from tarkit.shapes.captions import caption_g1, caption_g2, caption_placed, ti2i
from tarkit.shapes.prompts import caption_g0, caption_related, caption_reworded
from tarkit.shapes.render import render
from tarkit.shapes.sampling import sample_scene
from tarkit.shapes.scene import Scene, scene_to_json
from tarkit.shapes.scene_edits import alone, similar

Picture = tuple[dict[str, Any], Blob]


class CaptionWeights(Config):
    """How often the prompt of a picture is a caption of each kind; any scale."""

    g0: pydantic.NonNegativeFloat = 0.6
    g1: pydantic.NonNegativeFloat = 0.3
    g2: pydantic.NonNegativeFloat = 0.1
    placed: pydantic.NonNegativeFloat = 0.0
    """States where objects are in the picture; a G0 prompt where no such caption is possible."""
    related: pydantic.NonNegativeFloat = 0.0
    """A G0 prompt that states a relation; another G0 prompt where no relation holds."""
    reworded: pydantic.NonNegativeFloat = 0.0
    """A G0 prompt in other words: "a star above two crosses", "draw a ring to the left of ..."."""

    @pydantic.model_validator(mode="after")
    def _some(self) -> "CaptionWeights":
        if sum(self.model_dump().values()) <= 0:
            raise ValueError("one of g0, g1, g2, placed, related, reworded must be above 0")
        return self


class QuestionWeights(Config):
    """How often a question is of each kind (shapes/questions.py); any scale."""

    existence: pydantic.NonNegativeFloat = questions.SHARES["existence"]
    count: pydantic.NonNegativeFloat = questions.SHARES["count"]
    colour: pydantic.NonNegativeFloat = questions.SHARES["colour"]
    position: pydantic.NonNegativeFloat = questions.SHARES["position"]
    composition: pydantic.NonNegativeFloat = questions.SHARES["composition"]
    four_way: pydantic.NonNegativeFloat = questions.SHARES["four_way"]
    count_check: pydantic.NonNegativeFloat = questions.SHARES["count_check"]
    colour_check: pydantic.NonNegativeFloat = questions.SHARES["colour_check"]
    position_check: pydantic.NonNegativeFloat = questions.SHARES["position_check"]
    side_check: pydantic.NonNegativeFloat = questions.SHARES["side_check"]
    judgement: pydantic.NonNegativeFloat = questions.SHARES["judgement"]
    caption: pydantic.NonNegativeFloat = questions.SHARES["caption"]

    @pydantic.model_validator(mode="after")
    def _some(self) -> "QuestionWeights":
        if sum(self.model_dump().values()) <= 0:
            raise ValueError("one kind of question must be above 0")
        return self


class RenderConfig(Config):
    """`count` is the number of targets; similar pictures and references are added to them.

    The pictures of one split never depend on those of another: `split` is part of every seed.
    `num_workers` processes share the shards, 0 means one per core; it does not change the bytes.
    """

    count: pydantic.PositiveInt = 20_000
    shard_size: pydantic.PositiveInt = 1000
    seed: Seed = 0
    split: Literal["train", "test", "heldout"] = "train"
    similar_share: float = pydantic.Field(0.1, ge=0, le=1)
    reference_share: float = pydantic.Field(0.2, ge=0, le=1)
    captions: pydantic.NonNegativeInt = 2
    questions: pydantic.NonNegativeInt = 4
    prompt: CaptionWeights = CaptionWeights()
    question: QuestionWeights = QuestionWeights()
    num_workers: pydantic.NonNegativeInt = 0


@dataclass(frozen=True)
class RenderPlan(ShardPlan):
    """Draws `count` target pictures, with `limit` only the first ones."""

    kind = "images"

    @cached_property
    def settings(self) -> RenderConfig:
        settings = load_config(RenderConfig, self.config, self.overrides)
        if self.limit is None:
            return settings
        return settings.model_copy(update={"count": min(settings.count, self.limit)})

    @property
    def recorded(self) -> Mapping[str, Any]:
        recorded = self.settings.model_dump(exclude={"num_workers"})
        if not self.settings.prompt.reworded:
            # Artifacts that were begun before there were such prompts do not record their weight.
            del recorded["prompt"]["reworded"]
        return recorded

    @property
    def shards(self) -> Sequence[str]:
        return shard_names(-(-self.settings.count // self.settings.shard_size))

    @property
    def counts(self) -> Mapping[str, int]:
        return {"targets": self.settings.count}

    def make(self, artifact: Artifact) -> None:
        rank, world = rank_and_world()
        names = pending_shards(artifact, rank=rank, world=world)
        num_targets = sum(len(_targets(self.settings, name)) for name in names)
        job = functools.partial(_make_shard, artifact, self.settings)
        with Progress("render", total=num_targets, unit="targets") as progress:
            make_shards(job, names, num_workers=self.settings.num_workers, progress=progress)


def _targets(config: RenderConfig, name: str) -> range:
    first = int(name) * config.shard_size
    return range(min(config.shard_size, config.count - first))


# ---- pictures -----------------------------------------------------------------------------------


def _make_shard(artifact: Artifact, config: RenderConfig, name: str, report: Report) -> None:
    artifact.write_pictures(name, _shard(config, name, report))


def _shard(config: RenderConfig, name: str, report: Report) -> Iterator[Picture]:
    for index in _targets(config, name):
        yield from _group(config, f"{name}-{index:06d}")
        report(1, 0)


def _group(config: RenderConfig, key: str) -> Iterator[Picture]:
    """The target, then a similar picture and a reference where the seed says so."""
    rng = np.random.default_rng([scene_seed(config.seed, config.split, key), 1])
    scene = sample_scene(rng, split=config.split)
    has_similar = rng.random() < config.similar_share
    wants_reference = rng.random() < config.reference_share
    edit = ti2i(scene, rng, split=config.split) if wants_reference else None
    yield _picture(config, key, scene, template=edit[0] if edit else None)
    if has_similar:
        other = similar(scene, rng, split=config.split)
        yield _picture(config, f"{key}-1", other, parent=key, role="similar")
    if edit:
        lone = alone(edit[2], rng)
        yield _picture(config, f"{key}-2", lone, parent=key, role="reference")


def _picture(
    config: RenderConfig,
    key: str,
    scene: Scene,
    *,
    parent: str | None = None,
    role: str = "target",
    template: str | None = None,
) -> Picture:
    seed = scene_seed(config.seed, config.split, key)
    rng = np.random.default_rng([seed, 2])
    pixels = render(scene, np.random.default_rng(seed))
    height, width, _ = pixels.shape
    row = {
        "key": key,
        "parent_key": parent,
        "group": parent or key,
        "role": role,
        "split": config.split,
        "source": "shapes",
        "width": width,
        "height": height,
        "prompt": _caption(_random_level(config, rng), scene, rng, config),
        "captions": _captions(config, scene, rng),
        "qa": _questions(config, scene, rng),
        "template": template,
        "scene": scene_to_json(scene),
        "seed": seed,
        "licence": "CC0-1.0",
        "status": "ok",
        "error": None,
    }
    return row, ("png", png_bytes(pixels))


def _random_level(config: RenderConfig, rng: np.random.Generator) -> str:
    """A kind of caption, drawn with the weights of `config.prompt`."""
    weights = config.prompt.model_dump()
    shares = np.array(list(weights.values())) / sum(weights.values())
    return list(weights)[int(np.searchsorted(np.cumsum(shares), rng.random(), side="right"))]


def _caption(level: str, scene: Scene, rng: np.random.Generator, config: RenderConfig) -> str:
    if level == "placed" and (placed := caption_placed(scene, rng, split=config.split)):
        return placed
    if level == "related" and (related := caption_related(scene, rng, split=config.split)):
        return related
    if level == "reworded":
        return caption_reworded(scene, rng, split=config.split)
    if level in ("g0", "placed", "related"):
        return caption_g0(scene, rng, split=config.split)[0]
    if level == "g1":
        return caption_g1(scene, rng, split=config.split)
    return caption_g2(scene, rng, split=config.split)


def _captions(config: RenderConfig, scene: Scene, rng: np.random.Generator) -> list[str]:
    """A one-sentence caption (G1), a dense one (G2), a short one (G0), and so on in turn."""
    levels = [("g1", "g2", "g0")[number % 3] for number in range(config.captions)]
    return [_caption(level, scene, rng, config) for level in levels]


def _questions(
    config: RenderConfig, scene: Scene, rng: np.random.Generator
) -> list[dict[str, str]]:
    shares = config.question.model_dump()
    try:
        pairs = questions.questions(
            scene, rng, split=config.split, n=config.questions, shares=shares
        )
    except ValueError as error:
        raise UserError(
            f"a picture has too few questions of these kinds: {error}"[:300],
            hint=f"--set questions={config.questions - 1}, or more kinds in [question]",
        ) from None
    return [{"question": question, "answer": answer} for question, answer in pairs]
