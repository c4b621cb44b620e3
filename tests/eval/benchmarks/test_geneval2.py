"""GenEval 2 from its file to Soft-TIFA's figures, by hand, with a judge that obeys."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tarkit.artifacts.manifest import begin_directory
from tarkit.errors import UserError
from tarkit.eval import export, prepare, score
from tarkit.eval.benchmarks.geneval2 import answer_forms, read_geneval2
from tarkit.eval.run import open_run
from tarkit.llm.base import LlmQuestion
from tests.llm.stub_server import serving
from tests.llm.tiny import save_seer

TWO_CUPS: dict[str, Any] = {
    "prompt": "two red cups",
    "atom_count": 3,
    "vqa_list": [
        ["How many cups are in the image?", "two"],
        ["Are the cups red?", "Yes"],
        ["Are there any cups in the image?", "Yes"],
    ],
    "skills": ["count", "attribute", "object"],
}
A_FOX: dict[str, Any] = {  # "a" is asked for, and is no atom
    "prompt": "a fox",
    "atom_count": 1,
    "vqa_list": [["How many foxes are there?", "one"], ["Is there a fox?", "Yes"]],
    "skills": ["count", "object"],
}
CHANCES = {
    "How many cups are in the image?": 0.25,
    "Are the cups red?": 0.5,
    "Are there any cups in the image?": 1.0,
    "How many foxes are there?": 0.04,
    "Is there a fox?": 1.0,
}
NAME = "softtifa-judge"


class StubJudge:
    """Answers with the probability of `chances`; `asked` holds what came in."""

    def __init__(self, chances: dict[str, float | None]) -> None:
        self.chances = chances
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def first_token_probabilities(
        self, questions: Sequence[LlmQuestion], forms: Sequence[tuple[str, ...]]
    ) -> list[float]:
        found = []
        for question, spellings in zip(questions, forms, strict=True):
            assert question.blob is not None
            if question.text.startswith("How many cups are there?"):  # tried before it is asked
                found.append(0.0)
                continue
            self.asked.append((question.text, spellings))
            chance = self.chances[question.text.removesuffix(" Answer in one word.")]
            if chance is None:
                raise UserError("the judge sleeps")
            found.append(chance)
        return found


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "geneval2_data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def drawn(folder: Path, *, n: int = 1) -> Path:
    data = written(folder, TWO_CUPS, A_FOX)
    run = folder / "run"
    prepare.run("geneval2", out=run, data=data, n=n)
    begin_directory(run / "samples", "samples", settings={})
    for one in open_run(run).pictures():
        file = run / "samples" / one.file
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (one.row * 80, one.sample * 80, 9)).save(file)
    return run


def judged(monkeypatch: pytest.MonkeyPatch, run: Path, chances: Any, **options: Any) -> Any:
    judge = StubJudge(chances)
    monkeypatch.setattr("tarkit.llm.load.load", lambda *_, **__: judge)
    done = score.run(run, scorer="softtifa", model="some/judge", **options)
    results = json.loads((done.path / "results.json").read_text())
    assert done.path.name == f"geneval2@{NAME}"
    return results["metrics"][f"geneval2@{NAME}"], judge


def test_both_means_are_over_a_prompts_questions_and_then_over_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, judge = judged(monkeypatch, drawn(tmp_path), CHANCES)
    # Cups: (1/4 + 1/2 + 1) / 3 = 7/12 and (1/4 * 1/2 * 1)^(1/3) = 1/2.
    # Fox: (1/25 + 1) / 2 = 13/25 and (1/25)^(1/2) = 1/5.
    assert found["soft_tifa_am"]["value"] == pytest.approx((7 / 12 + 13 / 25) / 2)
    assert found["soft_tifa_gm"]["value"] == pytest.approx((1 / 2 + 1 / 5) / 2)
    # Two prompts redrawn: none, one or both are the fox.
    low, high = found["soft_tifa_gm"]["low"], found["soft_tifa_gm"]["high"]
    assert (low, high) == (pytest.approx(1 / 5), pytest.approx(1 / 2))
    skills = {name: each["value"] for name, each in found["skills_am"].items()}
    assert skills == pytest.approx({"attribute": 0.5, "count": (0.25 + 0.04) / 2, "object": 1.0})
    atoms = {name: each["value"] for name, each in found["atom_counts_gm"].items()}
    assert atoms == pytest.approx({"1": 0.2, "3": 0.5})
    assert (found["coverage"], found["zero_share"], found["num_questions"]) == (1.0, 0.0, 5)
    assert judge.asked[0] == (
        "How many cups are in the image? Answer in one word.",
        ("two", "Two", "2", " two", " Two", " 2"),
    )


def test_pictures_of_a_prompt_are_averaged_after_their_geometric_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = drawn(tmp_path, n=2)
    first, _ = judged(monkeypatch, run, CHANCES)
    folder = run / "scores" / f"geneval2@{NAME}" / "answers"
    rows = [json.loads(line) for line in (folder / "00000.jsonl").read_text().splitlines()]
    rows[0]["answer"] = "0.0"  # the first picture of the cups has no chance to hold two
    (folder / "00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, judge = judged(monkeypatch, run, CHANCES)
    assert not judge.asked  # the answers lie there
    # Of the cups (0 + 1/2) / 2 = 1/4, of the fox 1/5.
    assert first["soft_tifa_gm"]["value"] == pytest.approx((1 / 2 + 1 / 5) / 2)
    assert found["soft_tifa_gm"]["value"] == pytest.approx((1 / 4 + 1 / 5) / 2)
    assert found["zero_share"] == pytest.approx(1 / 10)
    rows[0]["answer"] = "1.5"
    (folder / "00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"'1\.5', which is no probability"):
        judged(monkeypatch, run, CHANCES)


def test_a_question_without_an_answer_scores_0_and_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = drawn(tmp_path)
    with pytest.raises(UserError, match="20.0% of .* the judge sleeps"):
        judged(monkeypatch, run, CHANCES | {"Are the cups red?": None})
    found, _ = judged(monkeypatch, run, CHANCES, allow_missing=True)
    assert found["coverage"] == pytest.approx(0.8)
    assert found["skills_am"]["attribute"]["value"] == 0
    assert found["atom_counts_gm"]["3"]["value"] == 0
    found, _ = judged(monkeypatch, run, CHANCES, retry_failed=True)
    assert found["coverage"] == 1 and found["skills_am"]["attribute"]["value"] == 0.5


def test_a_judge_without_a_token_for_an_answer_is_refused_before_it_is_asked(
    tmp_path: Path,
) -> None:
    run, judge = drawn(tmp_path), save_seer(tmp_path / "judge")  # whose tokens are single bytes
    with pytest.raises(UserError, match="no single token for the answer 'yes'"):
        score.run(run, scorer="softtifa", model=str(judge))
    assert not (run / "scores").exists()


def test_a_judge_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scored by softtifa with a judge that sees"):
        score.run(drawn(tmp_path), scorer="softtifa")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"skills": ["count"]}, "has 3 questions and 1 skills"),
        ({"vqa_list": [["Is it?", ""]] * 3}, r"no \[question, answer\] of two texts: \['Is it\?'"),
        ({"vqa_list": [["Is it?", "very red"]] * 3}, "answer of more than one word: 'very red'"),
        ({"vqa_list": []}, "lacks a vqa_list"),
        ({"atom_count": 4}, "atom_count 4, which does not match 3 questions, 1 of them of count"),
        ({"atom_count": 1}, "atom_count 1, which does not match"),
        ({"atom_count": True}, "atom_count True"),
        ({"skills": "count"}, "lacks a list of skills"),
        ({"prompt": " "}, "lacks a prompt"),
    ],
)
def test_a_line_of_another_form_is_refused(
    tmp_path: Path, change: dict[str, Any], fault: str
) -> None:
    file = written(tmp_path, A_FOX, TWO_CUPS | change)
    with pytest.raises(UserError, match=rf"geneval2_data.jsonl:2 .*{fault}"):
        read_geneval2(file, None)


def test_only_number_words_have_digits() -> None:
    assert answer_forms("Yes") == ("yes", "Yes", " yes", " Yes")
    assert "10" in answer_forms("ten") and "7" in answer_forms("Seven")


def test_the_publishers_program_gets_a_picture_of_every_prompt(tmp_path: Path) -> None:
    out = export.run(drawn(tmp_path / "one"), out=tmp_path / "out", layout="geneval2-json")
    files = json.loads((out / "image_paths.json").read_text())
    assert list(files) == ["two red cups", "a fox"]
    assert all(Image.open(out / file).size == (32, 32) for file in files.values())
    with pytest.raises(UserError, match="takes one picture of each prompt"):
        run = drawn(tmp_path / "two", n=2)
        export.run(run, out=tmp_path / "no", layout="geneval2-json")


def test_a_served_judge_is_asked_for_logprobs(tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="pip install 'tarkit[caption]'")
    run = drawn(tmp_path)
    listed = {"Yes": 0.5, " yes": 0.25, "two": 0.125, "yesterday": 0.0625}
    top = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in listed.items()]
    place = {"token": "Yes", "logprob": math.log(0.5), "bytes": None, "top_logprobs": top}
    message = {"role": "assistant", "content": "Yes"}
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    sound = 200, json.dumps({"choices": [choice | {"logprobs": {"content": [place]}}]}).encode()
    with serving(sound) as stub:
        done = score.run(run, scorer="softtifa", model="judge", server=stub.url)
        assert len(stub.asked) == 3 + 5  # one, two and yes are tried first
        assert stub.asked[1]["logprobs"] is True and stub.asked[1]["max_tokens"] == 1
    found = json.loads((done.path / "results.json").read_text())["metrics"][f"geneval2@{NAME}"]
    # Yes is 1/2 + 1/4; two 1/8; "one" is not listed: 0 of 5 questions, and so is the fox's mean.
    skills = {name: each["value"] for name, each in found["skills_am"].items()}
    assert skills == pytest.approx({"attribute": 0.75, "count": 0.125 / 2, "object": 0.75})
    assert found["atom_counts_gm"]["1"]["value"] == 0 and found["zero_share"] == 0.2
    with serving((200, json.dumps({"choices": [choice]}).encode())) as stub:
        with pytest.raises(UserError, match="the server gives no logprobs"):
            score.run(run, scorer="softtifa", model="other", server=stub.url)
        assert len(stub.asked) == 1  # not once for every question
