"""`tarkit eval shapes` with a stand-in that draws and tells the truth, or fails as it is told."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tarkit.checkpoints.tar_config import Sampling
from tarkit.errors import UserError
from tarkit.eval import shapes
from tarkit.eval.shapes_items import CEILINGS, SUITES, ShapesPlan
from tarkit.scoring.shapes_detector import ShapesDetector
from tarkit.scoring.statistics import COLOR_POSITION, TASKS
from tarkit.shapes.grammar import plural, with_article
from tarkit.shapes.questions import DESCRIBE
from tarkit.shapes.render import render
from tarkit.shapes.scene import SHAPES, relations
from tarkit.shapes.scene_edits import scene_for
from tarkit.shapes.suites import geneval_suite
from tarkit.vocab import Scale

# All that a stand-in without a codebook can take; tests/test_chain.py probes a real one.
PAINTED = tuple(suite for suite in SUITES if suite != "codes")
NUMBERS = ("", "", "two", "three", "four", "five")


class Painter:
    """Has the methods of `Tar` that an evaluation calls; draws what a prompt asks for.

    `fails_on` is a prompt or question it cannot do; `dies_after` calls it is killed.
    """

    sampling = Sampling()
    default_scale = Scale.HALF
    read_scale = Scale.FULL
    scales = tuple(Scale)
    representation = "text-aligned"
    device = torch.device("cpu")

    def __init__(
        self, path: Path, *, fails_on: str | None = None, dies_after: int | None = None
    ) -> None:
        self.weights = "weights"
        self.dtok = SimpleNamespace(size_px=64, vqvae=PerfectVq())
        self.fails_on, self.calls_left = fails_on, dies_after
        self.read_at: set[Scale] = set()
        self.known = {item.prompt: item.metadata for item in geneval_suite()}
        self.asked: list[str] = []

    def fingerprints(self) -> dict[str, str]:
        return {"model.safetensors": self.weights}

    def _meets(self, texts: Sequence[str]) -> None:
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise KeyboardInterrupt
        self.asked += texts
        if self.fails_on in texts or self.fails_on == "all":
            raise RuntimeError("out of paint")

    def imagine_many(
        self, prompts: Sequence[str], *, seeds: Sequence[int], scale: Scale, sampling: Sampling
    ) -> list[Image.Image]:
        self._meets(prompts)
        pictures = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            rng = np.random.default_rng(seed)
            pictures.append(Image.fromarray(render(scene_for(self.known[prompt], rng), rng)))
        return pictures

    def describe_many(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        scale: Scale,
        max_tokens: int,
    ) -> list[str]:
        self._meets(questions)
        self.read_at.add(scale)
        return [answer(image, text) for image, text in zip(images, questions, strict=True)]

    def encode(
        self, images: Sequence[Image.Image], scales: Sequence[Scale]
    ) -> dict[Scale, Sequence[Image.Image]]:
        return dict.fromkeys(scales, images)

    def draw(self, codes: Sequence[Image.Image], **_: Any) -> list[Image.Image]:
        self._meets([])
        return list(codes)


class PerfectVq:
    """An image VQ that keeps every pixel as its own code; 8 px a code only by name."""

    arch = SimpleNamespace(downsampling=8)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[1:] == (3, 64, 64) and 0 <= images.min() <= images.max() <= 1
        return images

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes


def answer(image: Image.Image, question: str) -> str:
    """What a perfect model would say, from the detector's view of the picture."""
    found = ShapesDetector().detect(np.asarray(image))
    if question != DESCRIBE:
        (asked,) = [shape for shape in SHAPES if shape in question]
        return "Yes" if asked in {each.cls for each in found} else "No."
    groups = Counter((str(each.colour), each.cls) for each in found)
    if len(found) == 2 and len(groups) == 2:
        a, b = found
        from tarkit.scoring.geneval import relations_between

        held = sorted(relations_between(a.box, b.box))
        if held:
            names = [with_article(f"{each.colour} {each.cls}") for each in found]
            return f"a photo of {names[0]} {held[0]} {names[1]}"
    words = [
        with_article(f"{colour} {shape}")
        if count == 1
        else f"{NUMBERS[count]} {colour} {plural(shape)}"
        for (colour, shape), count in groups.items()
    ]
    return "a photo of " + " and ".join(words)


@pytest.fixture
def painter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Painter:
    made = Painter(tmp_path / "model")
    monkeypatch.setattr(shapes, "load_tar", lambda model, device: made)
    return made


def results(out: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((out / "results.json").read_text())
    return document


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out / "scores.parquet").to_pylist()
    return found


def contents(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def test_a_model_that_draws_and_tells_the_truth_scores_1_everywhere(
    painter: Painter, tmp_path: Path
) -> None:
    done = shapes.run(out=tmp_path / "out", suites=PAINTED, limit=42, n=2)
    metrics = results(done.path)["metrics"]
    drawn = metrics["geneval@shapes"]
    assert drawn["over"] == list(TASKS)
    # The mean of six tasks has the variance of a plain mean over `effective` prompts, and all of n
    # prompts succeed with a probability of .025 where each does with .025^(1/n).
    counts = [drawn["tasks"][task]["num_prompts"] for task in TASKS]
    effective = len(counts) ** 2 / sum(1 / count for count in counts)
    low = pytest.approx(0.025 ** (1 / effective))
    assert drawn["overall"] == {"value": 1.0, "low": low, "high": 1.0, "num_prompts": 37}
    assert drawn["tasks"][COLOR_POSITION]["value"] == 1.0
    assert drawn["any_of_n"]["value"] == drawn["micro"]["value"] == 1.0
    assert drawn["clauses_am"] == drawn["clauses_gm"] == drawn["micro"]
    assert (drawn["num_prompts"], drawn["num_pictures"], drawn["coverage"]) == (42, 84, 1.0)
    assert drawn["chance"]["overall"] < 0.25
    assert set(drawn["columns"]) == {"seen", "heldout", "extrapolation"}
    for name in CEILINGS:
        assert metrics[f"ceiling_{name}@shapes"]["overall"]["value"] == 1.0
    asked = metrics["pope@shapes"]
    assert asked["all"]["accuracy"]["value"] == asked["all"]["f1"]["value"] == 1.0
    assert set(asked["kinds"]) == {"random", "popular", "adversarial"}
    assert 0.3 < asked["all"]["chance"] < 0.7
    told = metrics["caption@shapes"]
    assert told["all"]["exact"]["value"] == told["all"]["f1"]["value"] == 1.0
    assert told["all"]["background"] == 0.0  # the stand-in does not speak of it
    assert told["chance"]["exact"] < 0.1
    # 42 prompts x 2, 42 questions, 42 captions, 42 prompts x 5 ceilings
    found = rows(done.path)
    assert len(found) == 84 + 42 + 42 + 210
    assert all(row["correct"] and row["error"] is None for row in found)
    assert painter.read_at == {Scale.FULL}  # where it draws at half
    assert done.num_failed == 0
    assert done.report == (done.path / "report.md").read_text()
    assert f"| **overall** | 1.000 [{0.025 ** (1 / effective):.3f}, 1.000] (37) |" in done.report


@pytest.mark.parametrize("dies_after", [1, 9])
def test_a_killed_evaluation_run_again_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_after: int
) -> None:
    def evaluate(out: Path, painter: Painter) -> None:
        monkeypatch.setattr(shapes, "load_tar", lambda model, device: painter)
        shapes.run(out=out, suites=PAINTED, limit=6, batch_size=3)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    evaluate(whole, Painter(tmp_path / "model"))
    with pytest.raises(KeyboardInterrupt):
        evaluate(killed, Painter(tmp_path / "model", dies_after=dies_after))
    assert not (killed / "results.json").exists()
    evaluate(killed, Painter(tmp_path / "model"))
    assert contents(killed) == contents(whole)
    # and nothing is made twice: a third run asks the model for nothing
    idle = Painter(tmp_path / "model", dies_after=0)
    evaluate(killed, idle)
    assert contents(killed) == contents(whole)


def test_a_picture_that_is_lost_is_made_again_in_its_own_batch(
    painter: Painter, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shapes.run(out=out, suites=["geneval"], limit=8, batch_size=3)
    before = contents(out)
    (out / "samples" / "00004" / "0000.png").unlink()
    painter.asked.clear()
    shapes.run(out=out, suites=["geneval"], limit=8, batch_size=3)
    assert contents(out) == before
    # batches of 3: row 4 is in the second, which is made whole
    prompts = ShapesPlan(suites=("geneval",), split="test", n=1, seed=0, limit=8).prompts()
    assert painter.asked == [item.prompt for item in prompts[3:6]]


def test_a_failed_picture_is_a_row_scored_0_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    plan = ShapesPlan(suites=("geneval",), split="test", n=1, seed=0, limit=10)
    bad = plan.prompts()[2]
    broken = Painter(tmp_path / "model", fails_on=bad.prompt)
    monkeypatch.setattr(shapes, "load_tar", lambda model, device: broken)
    done = shapes.run(out=out, suites=["geneval"], limit=10, batch_size=4)
    assert done.num_failed == 1
    (failed,) = [row for row in rows(out) if row["error"]]
    assert failed["item"] == bad.id
    assert failed["error"] == "RuntimeError: out of paint"
    assert failed["correct"] is False
    drawn = results(out)["metrics"]["geneval@shapes"]
    assert drawn["coverage"] == pytest.approx(0.9)
    assert drawn["num_pictures"] == 10
    # it stays so until it is asked for
    whole = Painter(tmp_path / "model")
    monkeypatch.setattr(shapes, "load_tar", lambda model, device: whole)
    assert shapes.run(out=out, suites=["geneval"], limit=10, batch_size=4).num_failed == 1
    again = shapes.run(out=out, suites=["geneval"], limit=10, batch_size=4, retry_failed=True)
    assert again.num_failed == 0
    assert results(out)["metrics"]["geneval@shapes"]["micro"]["value"] == 1.0


def test_a_model_that_fails_on_everything_is_an_error_and_not_a_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Painter(tmp_path / "model", fails_on="all")
    monkeypatch.setattr(shapes, "load_tar", lambda model, device: broken)
    for suite in ("geneval", "pope"):
        out = tmp_path / suite
        with pytest.raises(UserError, match="all 4 .* failed, the first with: .*out of paint"):
            shapes.run(out=out, suites=[suite], limit=4)
        assert not list(out.rglob("*.error")) and not list(out.rglob("0*.jsonl"))


def test_samples_are_scored_again_without_a_model(
    painter: Painter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shapes.run(out=out, suites=["geneval"], limit=10)
    monkeypatch.setattr(shapes, "load_tar", lambda *_: pytest.fail("a model was loaded"))
    before = contents(out)
    shapes.score(out)
    assert contents(out) == before
    # one picture blank, one of a size the scorer cannot take, one no picture: 7 of 10 are right
    Image.new("RGB", (64, 64), (140, 140, 140)).save(out / "samples" / "00000" / "0000.png")
    Image.new("RGB", (100, 64)).save(out / "samples" / "00001" / "0000.png")
    (out / "samples" / "00002" / "0000.png").write_bytes(b"not a picture")
    assert shapes.score(out).num_failed == 2
    found = rows(out)
    assert [row["correct"] for row in found] == [False] * 3 + [True] * 7
    assert found[0]["reason"].startswith("expected at least")
    assert "100 x 64" in found[1]["error"]
    assert results(out)["metrics"]["geneval@shapes"]["coverage"] == pytest.approx(0.8)


def test_samples_that_are_missing_cannot_be_scored(painter: Painter, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shapes.run(out=out, suites=["geneval"], limit=4)
    (out / "samples" / "00001" / "0000.png").unlink()
    with pytest.raises(UserError, match="00001/0000.png has not been made"):
        shapes.score(out)


def test_a_damaged_manifest_is_a_sentence(painter: Painter, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shapes.run(out=out, suites=["geneval"], limit=4)
    manifest = json.loads((out / "manifest.json").read_text())
    for name, value in (("batch_size", 0), ("model", None), ("n", 10**9), ("suites", "geneval")):
        changed = manifest | {"settings": manifest["settings"] | {name: value}}
        (out / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=f"is not a manifest of this kind: {name}"):
            shapes.score(out)


def test_other_settings_in_the_same_folder_are_refused(painter: Painter, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shapes.run(out=out, suites=["geneval"], limit=4)
    with pytest.raises(UserError, match="sampling.temperature: 1.0 there, 0.5 now"):
        shapes.run(out=out, suites=["geneval"], limit=4, sampling={"temperature": 0.5})
    painter.weights = "other weights"
    with pytest.raises(UserError, match="model"):
        shapes.run(out=out, suites=["geneval"], limit=4)


def test_the_whole_sampling_and_every_fingerprint_are_recorded(
    painter: Painter, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shapes.run(out=out, suites=["geneval"], limit=4, sampling={"top_k": 7}, scale=3, seed=5)
    document = results(out)
    settings = document["settings"]
    assert settings["sampling"] == {**Sampling().model_dump(mode="json"), "top_k": 7}
    assert (settings["scale"], settings["seed"], settings["split"]) == (3, 5, "test")
    assert settings["read_scale"] == 3  # a scale that is asked for is that of everything
    assert settings["model"] == painter.fingerprints()
    assert set(settings["items"]) == {"geneval", "heldout.json"}
    assert document["versions"]["tarkit"]


def test_the_grid_of_samples_comes_with_genevals_metadata(painter: Painter, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shapes.run(out=out, suites=["geneval"], limit=4)
    lines = (out / "samples" / "metadata.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert len(lines) == 4
    assert first["row"] == 0 and {"tag", "include", "prompt"} <= set(first)


def test_validation_asks_other_prompts_than_test(painter: Painter, tmp_path: Path) -> None:
    test = ShapesPlan(suites=("geneval",), split="test", n=1, seed=0, limit=None)
    validation = ShapesPlan(suites=("geneval",), split="validation", n=1, seed=0, limit=None)
    shared = {i.prompt for i in test.prompts()} & {i.prompt for i in validation.prompts()}
    assert len(shared) == 12  # single_object has only the twelve shapes to name
    assert not {q.scene for q in test.questions()} & {q.scene for q in validation.questions()}


def test_every_beginning_of_a_suite_holds_its_tasks_in_proportion() -> None:
    plan = ShapesPlan(suites=SUITES, split="test", n=1, seed=0, limit=49)
    whole = ShapesPlan(suites=SUITES, split="test", n=1, seed=0, limit=None)
    # 490 prompts, a tenth: each task has a tenth of its prompts, give or take one a column
    counts = Counter(item.task for item in plan.prompts())
    for task, count in Counter(item.task for item in whole.prompts()).items():
        assert abs(counts[task] - count / 10) <= 2, task
    assert plan.prompts() == whole.prompts()[:49]


def test_a_seed_is_a_hash_of_what_it_is_for() -> None:
    plan = ShapesPlan(suites=SUITES, split="test", n=2, seed=3, limit=4)
    digest = hashlib.blake2b(b"3|geneval|colors-100|1", digest_size=6).digest()
    assert plan.seed_of("geneval", "colors-100", 1) == int.from_bytes(digest, "big")
    seeds = [job.seed for _, job in plan.picture_files(Path("out"))]
    assert len(set(seeds)) == 8
    shorter = ShapesPlan(suites=("geneval",), split="test", n=1, seed=3, limit=2)
    assert [job.seed for _, job in shorter.picture_files(Path("out"))] == seeds[0:4:2]


def test_truths_of_the_ceilings_fulfil_their_prompts() -> None:
    plan = ShapesPlan(suites=SUITES, split="test", n=1, seed=0, limit=30)
    for item in plan.prompts():
        scene, seed = plan.truth(item)
        assert plan.truth(item) == (scene, seed)
        if item.task == "position":
            asked, target = item.metadata["include"][1], item.metadata["include"][0]
            by_shape = {each.shape: each for each in scene.objects}
            held = relations(by_shape[asked["class"]], by_shape[target["class"]])
            assert asked["position"][0] in held


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"suites": ["geneval", "mme"]}, "unknown suite 'mme'"), ({"limit": 1}, "limit 1")],
)
def test_unknown_suites_and_limits_are_refused(
    painter: Painter, tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        shapes.run(out=tmp_path / "out", **wrong)


def test_a_folder_that_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        shapes.score(tmp_path / "nothing")
