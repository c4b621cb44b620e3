"""The samples of an evaluation on the drawn world: what a model draws, answers and encodes.

Makes what is missing and nothing else. Files, in the folder of the evaluation:

    samples/00000/0000.png      prompt row, sample
    ceilings/NAME/00000.png     prompt row
    answers/SUITE/00000.jsonl   one file a batch
    codes.json

Batches are those of the whole run and are made whole, and seeds are hashes of a sample's names, so
a run that was killed ends in the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tarkit.artifacts.files import write_whole
from tarkit.checkpoints.representation import TEXT_ALIGNED
from tarkit.eval.metrics.probe import probe
from tarkit.eval.sample_files import make_answers, make_pictures
from tarkit.eval.shapes_items import PIXEL_VQ, TRUTH, ShapesPicture, ShapesPlan, semantic
from tarkit.images import resize, to_uint8
from tarkit.shapes.questions import DESCRIBE
from tarkit.shapes.render import render
from tarkit.shapes.scene import COLOURS, SHAPES, Scene
from tarkit.vocab import Scale

if TYPE_CHECKING:
    from tarkit.checkpoints.tar_config import Sampling
    from tarkit.inference.ar_detokenizer import ArDetokenizer
    from tarkit.inference.tar_model import Tar

MAX_ANSWER_TOKENS = 128
CODES = "codes.json"

SceneQuestion = tuple[Scene, int, str]
"""A scene, the seed of its background, and a question about its picture."""


@dataclass(frozen=True)
class ShapesSamples:
    """The samples of a plan that a model makes in `out`; `scale` draws and `read_scale` reads."""

    out: Path
    plan: ShapesPlan
    tar: Tar
    scale: Scale
    read_scale: Scale
    sampling: Sampling
    batch_size: int
    retry_failed: bool

    def make(self) -> None:
        """Make the samples of the plan's suites that are missing.

        With `retry_failed` those that failed or are damaged are made again. Raises UserError where
        not a single sample of a suite can be made.
        """
        if "geneval" in self.plan.suites:
            self._write_prompts()
            self._make_pictures("geneval", self.plan.picture_files(self.out), self._draw_prompts)
        if "pope" in self.plan.suites:
            items = self.plan.questions()
            self._make_answers("pope", [(item.scene, item.seed, item.question) for item in items])
        if "caption" in self.plan.suites:
            scenes = self.plan.captions()
            self._make_answers("caption", [(item.scene, item.seed, DESCRIBE) for item in scenes])
        if "ceilings" in self.plan.suites:
            self._make_ceiling(TRUTH, self._draw_truths)
            self._make_ceiling(PIXEL_VQ, self._truths_through_vq)
            for scale in self.tar.scales if self.tar.representation == TEXT_ALIGNED else ():
                self._make_ceiling(semantic(scale), partial(self._truths_through_codes, scale))
        if "codes" in self.plan.suites and not (self.out / CODES).exists():
            figures = {str(int(s)): probe_codes(self.tar, self.plan, s) for s in self.tar.scales}
            write_whole(self.out / CODES, (json.dumps(figures, indent=1) + "\n").encode())

    def _write_prompts(self) -> None:
        """GenEval's metadata of each row, for any other scorer of the same pictures."""
        lines = [
            json.dumps({"row": row, "id": item.id, "column": item.column, **item.metadata})
            for row, item in enumerate(self.plan.prompts())
        ]
        write_whole(self.out / "samples" / "metadata.jsonl", ("\n".join(lines) + "\n").encode())

    def _draw_prompts(self, pictures: Sequence[ShapesPicture]) -> list[Image.Image]:
        return self.tar.imagine_many(
            [each.item.prompt for each in pictures],
            seeds=[each.seed for each in pictures],
            scale=self.scale,
            sampling=self.sampling,
        )

    def _draw_truths(self, pictures: Sequence[ShapesPicture]) -> list[Image.Image]:
        return [_render(*self.plan.truth(each.item)) for each in pictures]

    def _truths_through_vq(self, pictures: Sequence[ShapesPicture]) -> list[Image.Image]:
        return _through_vq(self.tar, self._draw_truths(pictures))

    def _truths_through_codes(
        self, scale: Scale, pictures: Sequence[ShapesPicture]
    ) -> list[Image.Image]:
        codes = self.tar.encode(self._draw_truths(pictures), [scale])[scale]
        return self.tar.draw(codes, seeds=[each.seed for each in pictures], sampling=self.sampling)

    def _make_ceiling(
        self, name: str, make: Callable[[Sequence[ShapesPicture]], Sequence[Image.Image]]
    ) -> None:
        self._make_pictures(f"ceiling {name}", self.plan.ceiling_files(self.out, name), make)

    def _make_pictures(
        self,
        name: str,
        files: Sequence[tuple[Path, ShapesPicture]],
        make: Callable[[Sequence[ShapesPicture]], Sequence[Image.Image]],
    ) -> None:
        make_pictures(name, files, make, batch_size=self.batch_size, retry_failed=self.retry_failed)

    def _make_answers(self, name: str, questions: Sequence[SceneQuestion]) -> None:
        def answer(batch: Sequence[SceneQuestion]) -> list[str]:
            return self.tar.describe_many(
                [_render(scene, seed) for scene, seed, _ in batch],
                [question for *_, question in batch],
                scale=self.read_scale,
                max_tokens=MAX_ANSWER_TOKENS,
            )

        make_answers(
            name,
            self.out / "answers" / name,
            questions,
            answer,
            batch_size=self.batch_size,
            retry_failed=self.retry_failed,
        )


def _render(scene: Scene, seed: int) -> Image.Image:
    return Image.fromarray(render(scene, np.random.default_rng(seed)))


def probe_codes(tar: Tar, plan: ShapesPlan, scale: Scale) -> dict[str, Any]:
    """What the codes of one scale hold: usage, and linear probes on pictures of one object.

    Shape and colour are read from the counts of a picture's codes, the place from their vectors.
    """
    import torch

    from tarkit.checkpoints.directory import read_config
    from tarkit.models.codebook import usage

    scenes = plan.lone_objects()
    codes = torch.cat(
        [
            tar.encode([_render(*each) for each in scenes[first : first + 64]], [scale])[
                scale
            ].cpu()
            for first in range(0, len(scenes), 64)
        ]
    )
    num_codes = tar.tokenizer.num_codes
    with torch.no_grad():
        vectors = tar.tokenizer.vectors(codes.to(tar.device)).cpu().numpy()
    counts = np.stack([np.bincount(row, minlength=num_codes) for row in codes.numpy()])
    objects = [scene.objects[0] for scene, _ in scenes]
    shapes = np.array([SHAPES.index(each.shape) for each in objects])
    colours = np.array([COLOURS.index(each.colour) for each in objects])
    centres = np.array([(each.x, each.y) for each in objects])
    held_out = len(scenes) // 5
    kinds = probe(counts[:, None], shapes, colours, centres, held_out=held_out, ridge=1e-2)
    places = probe(vectors, shapes, colours, centres, held_out=held_out, ridge=1e-5)
    health = usage(codes, num_codes)
    source = tar.places.ta_tok
    figures = read_config(source).get("figures", {}) if source and source.is_dir() else {}
    return {
        "num_codes": codes.shape[1],
        "num_pictures": len(scenes),
        "shape": kinds.shape,
        "colour": kinds.colour,
        "position_px": places.position_px,
        "used": health.used,
        "perplexity": health.perplexity,
        "trained": figures.get(f"scale_{int(scale)}", {}),
    }


def _through_vq(tar: Tar, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pixels -> the image VQ's codes -> pixels, at the size that the model draws."""
    from tarkit.models.pixel_range import from_unit_truncated, to_unit

    if tar.representation != TEXT_ALIGNED:
        codes = tar.encode(pictures, [Scale.FULL])[Scale.FULL]
        return tar.draw(codes, seeds=range(len(pictures)))
    dtok: ArDetokenizer = tar.dtok  # type: ignore[assignment]  # what an evaluation loads
    sized = [to_uint8(resize(picture, dtok.size_px, "squash")) for picture in pictures]
    decoded = dtok.vqvae.decode(dtok.vqvae.encode(to_unit(sized, tar.device)))
    return [Image.fromarray(array) for array in from_unit_truncated(decoded)]
