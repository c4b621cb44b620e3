"""`tarkit eval shapes`: a model on the drawn world, where every score is exact.

Items -> samples -> scores -> results. Suites: `geneval` (prompts drawn and judged), `pope`
(existence questions), `caption` (descriptions, parsed), `ceilings` (what scorer, image VQ and
codes of each scale do to true pictures), `codes` (usage and linear probes). What is made lies in
`out`: `samples/00000/0000.png` (prompt row, sample), `ceilings/NAME/00000.png`,
`answers/SUITE/00000.jsonl` (one file a batch), `codes.json`.

The same command again makes what is missing. Batches are those of the whole run and are made
whole, seeds are hashes of what they are for, so a killed run ends in the same bytes. Scores are
always taken anew from the samples; `score` does only that and needs no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tarkit.artifacts.files import write_whole
from tarkit.artifacts.manifest import begin_directory, read_manifest
from tarkit.errors import UserError
from tarkit.eval.benchmarks.shapes_items import (
    CEILINGS,
    PIXEL_VQ,
    SUITES,
    TRUTH,
    Job,
    Plan,
    Split,
    semantic,
)
from tarkit.eval.metrics.probe import probe
from tarkit.eval.metrics.shapes_captions import SceneCaptions, caption_results, compare_caption
from tarkit.eval.metrics.summaries import (
    PictureScores,
    QuestionScores,
    picture_results,
    question_results,
)
from tarkit.eval.metrics.yes_no import parse_yes_no
from tarkit.eval.outcome import Scored, score_row, write_outcome
from tarkit.eval.samples import Failure, make_answers, make_pictures, open_pictures, read_answers
from tarkit.images import resize, to_uint8
from tarkit.progress import Progress
from tarkit.scoring.geneval import Detection, check
from tarkit.scoring.shapes_detector import ShapesDetector
from tarkit.scoring.statistics import chance_floor, mismatches
from tarkit.scoring.tables import Table, show, tables
from tarkit.shapes.render import render
from tarkit.shapes.scene import COLOURS, SHAPES, Scene, scene_to_json
from tarkit.vocab import Scale

if TYPE_CHECKING:
    from tarkit.checkpoints.system import Sampling
    from tarkit.inference.detokenizers import ArDetokenizer
    from tarkit.inference.tar import Tar

DESCRIBE = "Describe the image."
MAX_ANSWER_TOKENS = 128
CAPTION_SHUFFLES = 5
CODES = "codes.json"

Row = dict[str, Any]

_Asked = tuple[Scene, int, str]  # a picture's scene and seed, and the question
_SHOWN = ("split", "n", "seed", "limit", "scale", "read_scale", "sampling", "answers", "batch_size")


def run(
    *,
    out: Path,
    model: str | Path = "mini",
    suites: Sequence[str] = SUITES,
    n: int = 1,
    seed: int = 0,
    scale: int | None = None,
    limit: int | None = None,
    split: Split = "test",
    batch_size: int = 16,
    sampling: Mapping[str, float | int] | None = None,
    retry_failed: bool = False,
    device: str = "cpu",
) -> Scored:
    """Evaluate a model; `limit` takes the first items of each suite, spread over its tasks.

    `sampling` changes single numbers of the model's own. `n` pictures are drawn of each geneval
    prompt, one of each ceiling. Raises UserError.
    """
    unknown = [name for name in suites if name not in SUITES]
    if unknown or not suites:
        raise UserError(f"unknown suite {', '.join(unknown)!r}: known are {', '.join(SUITES)}")
    if limit is not None and limit < 2:
        raise UserError(f"limit {limit}: chance needs two items to shuffle; give 2 or more")
    chosen = tuple(name for name in SUITES if name in suites)
    plan = Plan(suites=chosen, split=split, n=n, seed=seed, limit=limit)
    tar = load_tar(model, device)
    complete = tar.sampling.changed(sampling)
    drawn_at = Scale(scale) if scale is not None else tar.default_scale
    read_at = Scale(scale) if scale is not None else tar.read_scale
    begin_directory(
        out,
        "results",
        settings={
            **asdict(plan),
            "scale": int(drawn_at),
            "read_scale": int(read_at),
            "sampling": complete.model_dump(mode="json"),
            "answers": {"decoding": "greedy", "max_tokens": MAX_ANSWER_TOKENS},
            "batch_size": batch_size,
            "model": tar.fingerprints(),
            "items": plan.fingerprints(),
        },
    )
    _Maker(out, plan, tar, drawn_at, read_at, complete, batch_size, retry_failed).make()
    return score(out)


def load_tar(model: str | Path, device: str) -> Tar:
    # torch is imported here, so that re-scoring needs none of it.
    from tarkit.inference.tar import Tar

    return Tar.load(model, device=device)


# - samples -


@dataclass(frozen=True)
class _Maker:
    """Makes the samples that are missing, and nothing else."""

    out: Path
    plan: Plan
    tar: Tar
    scale: Scale
    read_scale: Scale
    sampling: Sampling
    batch_size: int
    retry_failed: bool

    def make(self) -> None:
        if "geneval" in self.plan.suites:
            self._write_prompts()
            self._pictures("geneval", self.plan.picture_files(self.out), self._imagine)
        if "pope" in self.plan.suites:
            questions = self.plan.questions()
            self._answers("pope", [(q.scene, q.seed, q.question) for q in questions])
        if "caption" in self.plan.suites:
            self._answers("caption", [(c.scene, c.seed, DESCRIBE) for c in self.plan.captions()])
        if "ceilings" in self.plan.suites:
            self._ceiling(TRUTH, self._truths)
            self._ceiling(PIXEL_VQ, self._through_vq)
            for scale in Scale:
                self._ceiling(semantic(scale), partial(self._through_codes, scale))
        if "codes" in self.plan.suites and not (self.out / CODES).exists():
            figures = {str(int(s)): _probe_codes(self.tar, self.plan, s) for s in Scale}
            write_whole(self.out / CODES, (json.dumps(figures, indent=1) + "\n").encode())

    def _write_prompts(self) -> None:
        """GenEval's metadata of each row, for any other scorer of the same pictures."""
        lines = [
            json.dumps({"row": row, "id": item.id, "column": item.column, **item.metadata})
            for row, item in enumerate(self.plan.prompts())
        ]
        write_whole(self.out / "samples" / "metadata.jsonl", ("\n".join(lines) + "\n").encode())

    def _imagine(self, jobs: Sequence[Job]) -> list[Image.Image]:
        return self.tar.imagine_many(
            [job.item.prompt for job in jobs],
            seeds=[job.seed for job in jobs],
            scale=self.scale,
            sampling=self.sampling,
        )

    def _truths(self, jobs: Sequence[Job]) -> list[Image.Image]:
        return [_drawn(*self.plan.truth(job.item)) for job in jobs]

    def _through_vq(self, jobs: Sequence[Job]) -> list[Image.Image]:
        return _through_vq(self.tar, self._truths(jobs))

    def _through_codes(self, scale: Scale, jobs: Sequence[Job]) -> list[Image.Image]:
        codes = self.tar.encode(self._truths(jobs), [scale])[scale]
        return self.tar.draw(codes, seeds=[job.seed for job in jobs], sampling=self.sampling)

    def _ceiling(self, name: str, make: Callable[[Sequence[Job]], Sequence[Image.Image]]) -> None:
        self._pictures(f"ceiling {name}", self.plan.ceiling_files(self.out, name), make)

    def _pictures(
        self,
        name: str,
        jobs: Sequence[tuple[Path, Job]],
        make: Callable[[Sequence[Job]], Sequence[Image.Image]],
    ) -> None:
        make_pictures(name, jobs, make, batch_size=self.batch_size, retry_failed=self.retry_failed)

    def _answers(self, name: str, asked: Sequence[_Asked]) -> None:
        def answer(batch: Sequence[_Asked]) -> list[str]:
            return self.tar.describe_many(
                [_drawn(scene, seed) for scene, seed, _ in batch],
                [question for *_, question in batch],
                scale=self.read_scale,
                max_tokens=MAX_ANSWER_TOKENS,
            )

        make_answers(
            name,
            self.out / "answers" / name,
            asked,
            answer,
            batch_size=self.batch_size,
            retry_failed=self.retry_failed,
        )


def _drawn(scene: Scene, seed: int) -> Image.Image:
    return Image.fromarray(render(scene, np.random.default_rng(seed)))


def _probe_codes(tar: Tar, plan: Plan, scale: Scale) -> dict[str, Any]:
    """What the codes of one scale hold: usage, and linear probes on pictures of one object.

    Shape and colour are read from the counts of a picture's codes, the place from their vectors.
    """
    import torch

    from tarkit.checkpoints.directory import read_config
    from tarkit.models.codebook import usage

    scenes = plan.lone_objects()
    codes = torch.cat(
        [
            tar.encode([_drawn(*each) for each in scenes[first : first + 64]], [scale])[scale].cpu()
            for first in range(0, len(scenes), 64)
        ]
    )
    codebook = tar.ta_tok.model.codebook
    with torch.no_grad():
        vectors = codebook.lookup(codes.to(tar.device)).cpu().numpy()
    counts = np.stack([np.bincount(row, minlength=tar.ta_tok.num_codes) for row in codes.numpy()])
    objects = [scene.objects[0] for scene, _ in scenes]
    shapes = np.array([SHAPES.index(each.shape) for each in objects])
    colours = np.array([COLOURS.index(each.colour) for each in objects])
    centres = np.array([(each.x, each.y) for each in objects])
    held_out = len(scenes) // 5
    kinds = probe(counts[:, None], shapes, colours, centres, held_out=held_out, ridge=1e-2)
    places = probe(vectors, shapes, colours, centres, held_out=held_out, ridge=1e-5)
    health = usage(codes, tar.ta_tok.num_codes)
    source = tar.places.ta_tok
    figures = read_config(source).get("figures", {}) if source.is_dir() else {}
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
    """Pixels -> the image VQ's codes -> pixels, at the size that AR-DTok draws."""
    import torch

    dtok: ArDetokenizer = tar.dtok  # type: ignore[assignment]  # what an evaluation loads
    sized = np.stack([to_uint8(resize(picture, dtok.size_px, "squash")) for picture in pictures])
    pixels = torch.from_numpy(sized).permute(0, 3, 1, 2).to(tar.device).float() / 255
    decoded = dtok.vqvae.decode(dtok.vqvae.encode(pixels))
    drawn = (decoded * 255).to(torch.uint8).permute(0, 2, 3, 1)  # truncated, as Tar.draw does
    return [Image.fromarray(array) for array in drawn.cpu().numpy()]


# - scores -


def score(out: Path) -> Scored:
    """Score what lies in `out` anew, without a model: scores.parquet, results.json, report.md."""
    manifest = read_manifest(out)
    if manifest["kind"] != "results" or "suites" not in manifest["settings"]:
        raise UserError(
            f"{out} holds {manifest['kind']}, not an evaluation on the drawn world",
            hint=f"tarkit eval shapes --out {out}",
        )
    settings = manifest["settings"]
    plan = Plan(**{field.name: settings[field.name] for field in fields(Plan)})
    if plan.fingerprints() != settings["items"]:
        raise UserError(
            f"{out} was made from other test lists than this version's; give another --out",
            hint="tarkit eval shapes --out DIR",
        )
    rows: list[Row] = []
    metrics: dict[str, Any] = {}
    if "geneval" in plan.suites:
        files = plan.picture_files(out)
        metrics["geneval@shapes"] = _judge(out, "geneval", files, rows, n=plan.n)
    if "pope" in plan.suites:
        metrics["pope@shapes"] = _score_questions(out, plan, settings["batch_size"], rows)
    if "caption" in plan.suites:
        metrics["caption@shapes"] = _score_captions(out, plan, settings["batch_size"], rows)
    if "ceilings" in plan.suites:
        for name in CEILINGS:
            files = plan.ceiling_files(out, name)
            metrics[f"ceiling_{name}@shapes"] = _judge(out, f"ceiling_{name}", files, rows)
    if "codes" in plan.suites:
        metrics["codes@shapes"] = json.loads((out / CODES).read_text())
    return _write(out, settings, metrics, rows)


def _judge(
    out: Path, suite: str, jobs: Sequence[tuple[Path, Job]], rows: list[Row], *, n: int = 1
) -> dict[str, Any]:
    """Detect and check every picture; prompts come one after the other, n pictures each."""
    detector = ShapesDetector()
    found: list[list[Detection]] = []
    correct, failed = [], []
    with Progress(f"score {suite}", total=len(jobs), unit="pictures") as progress:
        for (file, job), picture in zip(jobs, open_pictures([f for f, _ in jobs]), strict=True):
            detections = _detect(detector, picture)
            error = detections.reason if isinstance(detections, Failure) else None
            objects = [] if isinstance(detections, Failure) else detections
            verdict = check(job.item.metadata, objects)
            found.append(objects)
            correct.append(verdict.correct and error is None)
            failed.append(error is not None)
            rows.append(
                score_row(
                    suite,
                    job.item.task,
                    job.item.column,
                    job.item.id,
                    sample=job.sample,
                    seed=job.seed,
                    prompt=job.item.prompt,
                    file=file.relative_to(out).as_posix(),
                    correct=correct[-1],
                    clauses=list(verdict.clauses),
                    reason=verdict.reason if error is None else None,
                    detections=json.dumps([asdict(each) for each in objects]),
                    error=error,
                )
            )
            progress.advance(1, failed=int(failed[-1]))
    items = [job.item for _, job in jobs[::n]]

    def fulfils(prompt: int, picture: int) -> bool:
        return check(items[prompt].metadata, found[picture * n]).correct

    return picture_results(
        PictureScores(
            tasks=[item.task for item in items],
            columns=[item.column for item in items],
            correct=np.array(correct).reshape(-1, n),
            failed=np.array(failed).reshape(-1, n),
            chance=chance_floor(fulfils, len(items)),
        )
    )


def _detect(detector: ShapesDetector, picture: Image.Image | Failure) -> list[Detection] | Failure:
    if isinstance(picture, Failure):
        return picture
    try:
        return detector.detect(to_uint8(picture))
    except UserError as error:
        return Failure(error.message)


def _score_questions(out: Path, plan: Plan, batch_size: int, rows: list[Row]) -> dict[str, Any]:
    items = plan.questions()
    answers = read_answers(out / "answers" / "pope", len(items), batch_size=batch_size)
    said = [None if isinstance(answer, Failure) else answer for answer in answers]
    labels = [item.answer == "yes" for item in items]
    for item, text, answer in zip(items, said, answers, strict=True):
        rows.append(
            score_row(
                "pope",
                item.kind,
                item.column,
                item.id,
                seed=item.seed,
                prompt=item.question,
                answer=text,
                label=item.answer,
                correct=text is not None and parse_yes_no(text) == (item.answer == "yes"),
                error=answer.reason if isinstance(answer, Failure) else None,
            )
        )

    def right(question: int, other: int) -> bool:
        text = said[other]
        return text is not None and parse_yes_no(text) == labels[question]

    return question_results(
        QuestionScores(
            kinds=[item.kind for item in items],
            columns=[item.column for item in items],
            pictures=[item.group for item in items],
            answers=said,
            labels=labels,
            chance=chance_floor(right, len(items)),
        )
    )


def _score_captions(out: Path, plan: Plan, batch_size: int, rows: list[Row]) -> dict[str, Any]:
    items = plan.captions()
    answers = read_answers(out / "answers" / "caption", len(items), batch_size=batch_size)
    said = [None if isinstance(answer, Failure) else answer for answer in answers]
    counts = [compare_caption(t, item.scene) for t, item in zip(said, items, strict=True)]
    for item, text, answer, count in zip(items, said, answers, counts, strict=True):
        rows.append(
            score_row(
                "caption",
                "",
                item.column,
                item.id,
                seed=item.seed,
                prompt=DESCRIBE,
                answer=text,
                label=scene_to_json(item.scene),
                correct=bool(count.exact),
                reason=json.dumps(count._asdict()),
                error=answer.reason if isinstance(answer, Failure) else None,
            )
        )
    pairs = mismatches(len(items), shuffles=CAPTION_SHUFFLES)
    return caption_results(
        SceneCaptions(
            columns=[item.column for item in items],
            counts=counts,
            chance=[compare_caption(said[other], items[own].scene) for own, other in pairs],
            failed=[text is None for text in said],
        )
    )


def _write(
    out: Path, settings: Mapping[str, Any], metrics: Mapping[str, Any], rows: Sequence[Row]
) -> Scored:
    found = tables(metrics)
    report = _report(settings, found)
    show(found)
    write_outcome(out, metrics, settings=settings, report=report, rows=rows)
    return Scored(out, report, sum(row["error"] is not None for row in rows))


def _report(settings: Mapping[str, Any], found: Sequence[Table]) -> str:
    numbers = ", ".join(f"{name} {json.dumps(settings[name])}" for name in _SHOWN)
    model = ", ".join(f"{name} {digest[:12]}" for name, digest in settings["model"].items())
    numbers += f"; model {model}"
    return "\n".join(["# tarkit eval shapes\n", f"{numbers}\n", *(t.markdown() for t in found)])
