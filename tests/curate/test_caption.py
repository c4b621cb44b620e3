"""Captions: three examples a row, the answer as one line, the unusable with its reason."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tarkit.artifacts.artifact import Artifact, begin_artifact
from tarkit.curate import ask
from tarkit.curate.ask import LanguageModel
from tarkit.curate.caption import CaptionPlan
from tarkit.errors import UserError
from tarkit.images import png_bytes
from tarkit.llm.base import LlmAnswer, LlmQuestion

EXAMPLES = [f"an oil painting of {count} ships" for count in "two three four five six".split()]


class Seer:
    """Says the given texts in turn, the last one again and again."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.questions: list[LlmQuestion] = []

    def answer(self, questions: Sequence[LlmQuestion]) -> list[LlmAnswer]:
        self.questions += questions
        return [LlmAnswer(self._next()) for _ in questions]

    def _next(self) -> str:
        return self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]


@pytest.fixture
def pictures(tmp_path: Path) -> Artifact:
    artifact = begin_artifact(tmp_path / "pictures", "images", settings={}, shards=["00000"])
    rows: list[dict[str, Any]] = []
    blobs: list[tuple[str, bytes] | None] = []
    for number in range(3):
        row = artifact.failed_row(f"0-{number}", "torn", source=f"{number}.png", licence="MIT")
        if number != 1:
            row |= {"status": "ok", "error": None, "role": "target"}
        rows.append(row)
        pixels = np.full((8, 8, 3), number, np.uint8)
        blobs.append(None if number == 1 else ("png", png_bytes(pixels)))
    artifact.write_pictures("00000", zip(rows, blobs, strict=True))
    return artifact


def run(
    pictures: Artifact, seer: Seer, monkeypatch: pytest.MonkeyPatch, **known: Any
) -> list[dict[str, Any]]:
    monkeypatch.setattr(ask, "load", lambda llm, **_: seer)
    folder = pictures.path.parent
    examples = folder / "examples.txt"
    examples.write_text("\n".join(EXAMPLES))
    options: dict[str, Any] = {"examples": examples, "llm": LanguageModel("m")} | known
    return CaptionPlan(pictures.path, out=folder / "out", **options).run().rows("00000")


def test_each_picture_gets_its_prompt_and_keeps_where_it_is_from(
    pictures: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    seer = Seer('"A ring,\n  on  slate."', "A heart.")
    rows = run(pictures, seer, monkeypatch)
    assert [row["prompt"] for row in rows] == ["A ring, on slate.", None, "A heart."]
    assert [row["error"] for row in rows] == [None, "its images row failed: torn", None]
    assert [row["source"] for row in rows] == ["0.png", "1.png", "2.png"]
    assert {row["licence"] for row in rows} == {"MIT"}
    assert [question.blob for question in seer.questions] == [
        blob for _, blob in pictures.read_images("00000") if blob
    ]


def test_three_examples_are_drawn_by_the_seed_and_the_row(
    pictures: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    seer = Seer("no", "A heart.")
    run(pictures, seer, monkeypatch)
    for question in seer.questions:
        shown = [text for text in EXAMPLES if text in question.text]
        assert len(shown) == 3
    asked = [question.text for question in seer.questions]
    again = Seer("no", "A heart.")
    out = pictures.path.parent / "again"
    monkeypatch.setattr(ask, "load", lambda llm, **_: again)
    CaptionPlan(
        pictures.path, out=out, llm=LanguageModel("m"), examples=out.parent / "examples.txt"
    ).run()
    assert [question.text for question in again.questions] == asked


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("...", "the answer has no word"),
        (EXAMPLES[2], "the answer copies an example"),
        ("a <image> of a cat", "the answer contains <image>"),
    ],
)
def test_an_answer_that_cannot_be_used_is_asked_for_again(
    pictures: Artifact, monkeypatch: pytest.MonkeyPatch, said: str, reason: str
) -> None:
    seer = Seer(said)
    rows = run(pictures, seer, monkeypatch)
    assert [row["error"] for row in rows] == [reason, "its images row failed: torn", reason]
    assert len(seer.questions) == 2 * 3  # two pictures, three tries


def test_a_short_caption_has_a_limit_and_no_examples(
    pictures: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    seer = Seer("one two three four", "a red ring")
    short = ["style=short", "max_words=3"]
    rows = run(pictures, seer, monkeypatch, examples=None, overrides=short)
    assert [row["prompt"] for row in rows] == ["a red ring", None, "a red ring"]
    assert "at most 3 words" in seer.questions[0].text
    with pytest.raises(UserError, match="takes no examples"):
        run(pictures, seer, monkeypatch, overrides=short)


def test_too_few_examples_are_an_error(pictures: Artifact, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("a\nb\nb\n")
    with pytest.raises(UserError, match="has 2 different prompts"):
        CaptionPlan(
            pictures.path, out=tmp_path / "o", llm=LanguageModel("m"), examples=tmp_path / "two.txt"
        ).run()


def test_a_prompt_is_worded_anew_without_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = begin_artifact(tmp_path / "pictures", "images", settings={}, shards=["00000"])
    prompts = ["red fox", "red fox", "red fox", "Red fox.", None]
    rows = [
        artifact.failed_row(f"0-{n}", "", prompt=prompt, role="target")
        | {"status": "ok", "error": None}
        for n, prompt in enumerate(prompts)
    ]
    blob = ("png", png_bytes(np.zeros((8, 8, 3), np.uint8)))
    artifact.write_pictures("00000", zip(rows, [blob] * len(rows), strict=True))
    seer = Seer("A fox that is red.", "A blue fox.", "the " * 30 + "red fox", "red fox")
    options = {"examples": None, "overrides": ["style=rewrite", "assistant.tries=1"]}
    made = run(artifact, seer, monkeypatch, **options)
    assert [row["prompt"] for row in made] == ["A fox that is red.", None, None, None, None]
    assert [row["error"] for row in made[1:]] == [
        "the answer loses words of the prompt: red",
        "the answer is too long: 32 words",
        "the answer is the prompt itself",
        "it has no prompt",
    ]
    assert len(seer.questions) == 4, "nothing is asked about no prompt"
    assert all(question.blob is None for question in seer.questions)
    assert seer.questions[0].text.endswith("red fox")
