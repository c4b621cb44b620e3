"""Judgements: what is asked, what counts as an answer, and the exact verdicts of shapes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tarkit.artifacts.artifact import Artifact, begin_artifact, open_artifact
from tarkit.cli.app import app
from tarkit.curate import ask
from tarkit.curate.ask import LanguageModel, Refused
from tarkit.curate.judge import JudgePlan, LanguageModelJudge
from tarkit.curate.render import RenderPlan
from tarkit.curate.shapes_judge import ExactJudge
from tarkit.errors import UserError
from tarkit.images import png_bytes
from tarkit.llm.base import LlmAnswer, LlmQuestion
from tarkit.scoring.geneval import check
from tarkit.scoring.scorers import Shown, plan_scorer
from tarkit.scoring.shapes_detector import ShapesDetector
from tarkit.shapes.prompts import clauses_of, g0_captions
from tarkit.shapes.sampling import sample_scene
from tarkit.shapes.scene import satisfies

SEER = LanguageModelJudge(LanguageModel("m"))


class Judge:
    """Says the given texts in turn."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.questions = list(texts), list[LlmQuestion]()

    def answer(self, questions: Sequence[LlmQuestion]) -> list[LlmAnswer]:
        self.questions += questions
        return [LlmAnswer(self.texts.pop(0)) for _ in questions]


def pictures_of(folder: Path, prompts: Sequence[str | None], **known: Any) -> Artifact:
    artifact = begin_artifact(folder, "images", settings={}, shards=["00000"])
    rows = [
        artifact.failed_row(f"0-{n}", "", prompt=prompt, role="target", licence="MIT", **known)
        | {"status": "ok", "error": None}
        for n, prompt in enumerate(prompts)
    ]
    blob = ("png", png_bytes(np.full((64, 64, 3), 235, np.uint8)))
    artifact.write_pictures("00000", zip(rows, [blob] * len(rows), strict=True))
    return artifact


def test_a_judge_says_yes_or_no_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = pictures_of(tmp_path / "pictures", ["a fox", "a cup", "a car", "a dog", None])
    seer = Judge("Yes, there is a fox.", '"No": it is\n a plate.', "Maybe.", "no. " + "x" * 401)
    monkeypatch.setattr(ask, "load", lambda llm, **_: seer)
    rows = JudgePlan(pictures.path, out=tmp_path / "out", judge=SEER).run().rows("00000")
    assert [(row["verdict"], row["reason"]) for row in rows[:2]] == [
        ("yes", "there is a fox."),
        ("no", "it is a plate."),
    ]
    assert [row["error"] for row in rows[2:]] == [
        "the answer does not begin with yes or no",
        "the reason is too long: 401 characters",
        "it has no prompt to be judged against",
    ]
    assert rows[0]["prompt"] == "a fox" and rows[0]["licence"] == "MIT"
    assert "made from the prompt: a fox\n" in seer.questions[0].text
    assert all(question.blob for question in seer.questions) and len(seer.questions) == 4


def test_mismatched_pictures_are_judged_against_another_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [f"a fox and {n} cups" for n in range(400)]
    pictures = pictures_of(tmp_path / "pictures", prompts)
    monkeypatch.setattr(ask, "load", lambda llm, **_: Judge(*["yes"] * 400))
    rows = (
        JudgePlan(
            pictures.path,
            out=tmp_path / "out",
            judge=SEER,
            overrides=["mismatched=0.25"],
        )
        .run()
        .rows("00000")
    )
    moved = sum(row["prompt"] != prompt for row, prompt in zip(rows, prompts, strict=True))
    # 400 x .25 = 100 with a standard deviation of sqrt(400 x .25 x .75) = 8.7; five of them.
    assert abs(moved - 100) < 44
    assert {row["prompt"] for row in rows} <= set(prompts)


def test_exact_verdicts_of_drawn_scenes(tmp_path: Path) -> None:
    pictures = RenderPlan(
        out=tmp_path / "pictures", overrides=["count=150", "shard_size=400"]
    ).run()
    own = JudgePlan(pictures.path, out=tmp_path / "own", judge=ExactJudge()).run().rows("00000")
    judged = [row for row in own if row["status"] == "ok"]
    assert len(judged) > 100 and {row["verdict"] for row in judged} == {"yes"}
    moved = (
        JudgePlan(
            pictures.path, out=tmp_path / "moved", judge=ExactJudge(), overrides=["mismatched=1"]
        )
        .run()
        .rows("00000")
    )
    verdicts = Counter(row["verdict"] for row in moved if row["status"] == "ok")
    assert verdicts["no"] > 5 * verdicts["yes"], "a prompt seldom fits another's picture"


def test_a_prompt_asks_what_its_own_record_does() -> None:
    rng = np.random.default_rng(5)
    compared = 0
    for _ in range(300):
        scene, other = sample_scene(rng, split="train"), sample_scene(rng, split="train")
        for metadata in g0_captions(scene, split="train"):
            try:
                asked = clauses_of(metadata["prompt"])
            except Refused as why:
                assert str(why) == "the prompt names a shape twice"
                continue
            assert satisfies(scene, asked)
            if metadata["tag"] != "single_object":
                assert satisfies(other, asked) == satisfies(other, metadata), metadata
                compared += 1
    assert compared > 300


def test_pictures_without_a_scene_are_looked_at(tmp_path: Path) -> None:
    pictures = pictures_of(tmp_path / "pictures", ["a photo of a red ring", "a fox"])
    rows = JudgePlan(pictures.path, out=tmp_path / "out", judge=ExactJudge()).run().rows("00000")
    blank = np.full((64, 64, 3), 235, np.uint8)
    found = check(clauses_of("a photo of a red ring"), ShapesDetector().detect(blank))
    assert (rows[0]["verdict"], rows[0]["reason"]) == ("no", found.reason)
    assert rows[1]["error"] == "the prompt names no shape of the drawn world"


@pytest.mark.parametrize("words", [[], ["--llm", "m", "--exact"]])
def test_one_judge_is_named(tmp_path: Path, words: list[str]) -> None:
    command = ["curate", "judge", str(tmp_path), "--out", str(tmp_path / "out"), *words]
    done = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert done.exit_code == 1 and "either --llm or" in done.stderr


def test_the_command_line_picks_the_shapes_judge(tmp_path: Path) -> None:
    pictures = pictures_of(tmp_path / "pictures", ["a photo of a red ring"])
    command = ["curate", "judge", str(pictures.path), "--out", str(tmp_path / "out"), "--exact"]
    assert CliRunner().invoke(app, [*command, "--device", "cpu"]).exit_code == 0
    judgements = open_artifact(tmp_path / "out", "judgements")
    assert judgements.settings["judge"] == "exact" and judgements.settings["assistant"] is None
    assert judgements.rows("00000")[0]["verdict"] == "no"


@pytest.mark.parametrize(
    ("prompt", "unread"),
    [
        ("a photo of a small red circle", "small"),
        ("a photo of a red circle and a dog", "dog"),
        ("a photo of a red circle left of the middle", "middle"),
        ("a photo without a red circle", "without"),
        ("a photo of a red circle on a dark background", "dark"),
    ],
)
def test_a_prompt_that_says_more_than_is_judged_has_no_verdict(prompt: str, unread: str) -> None:
    with pytest.raises(UserError, match=f"knows nothing of: {unread}$"):
        clauses_of(prompt)
    one = Shown(Image.new("RGB", (64, 64), "gray"), prompt)
    assert plan_scorer("shapes", None).load("cpu").score([one]) == [
        f"the verdict knows nothing of: {unread}"
    ]


def test_a_background_is_judged_by_the_scene_alone() -> None:
    prompt = "a photo of a red circle on a noisy background"
    assert clauses_of(prompt)["background"] == "noisy"
    one = Shown(Image.new("RGB", (64, 64), "gray"), prompt)
    assert plan_scorer("shapes", None).load("cpu").score([one]) == [
        "a picture's background is not judged"
    ]
