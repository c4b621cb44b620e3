"""Splits are proved: what is stored, put back, is the prompt letter for letter."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarkit.artifacts.artifact import Artifact, begin_artifact
from tarkit.curate import ask
from tarkit.curate.ask import LOG, LanguageModel, Refused
from tarkit.curate.split import INSTRUCTION, PromptSplit, SplitPlan, split_of
from tarkit.errors import UserError
from tarkit.llm.base import LlmAnswer, LlmQuestion
from tarkit.vocab import IMAGE_MARK

PROMPT = "A photo of a red fox, sitting in the snow at dawn."


def answer(template: Any, phrase: Any) -> str:
    return json.dumps({"prompt": template, IMAGE_MARK: phrase})


def put_back(found: PromptSplit) -> str:
    assert found.template.count(IMAGE_MARK) == 1
    return found.template.replace(IMAGE_MARK, found.phrase)


@pytest.mark.parametrize(
    "text",
    [
        answer("A photo of <image>, sitting in the snow at dawn.", "a red fox"),
        # Article, case, spacing, punctuation: forgiven, and not stored.
        answer("a photo of  <image> sitting in snow at dawn", "Red fox."),
        answer("A photo of a <image>, sitting in the snow at dawn.", "red fox"),
        "Here it is:\n```json\n"
        + answer("A photo of <image>, sitting in the snow at dawn.", "a red fox")
        + "\n```\nI hope this helps {really}!",
        '{"prompt": "A photo of <image>, sitting in the snow at dawn.", "<image>": "a red fox",}',
        "{'prompt': 'A photo of <image>, sitting in the snow at dawn.', '<image>': 'a red fox'}",
    ],
)
def test_a_sound_answer_is_accepted_and_cut_from_the_prompt(text: str) -> None:
    found = split_of(PROMPT, text)
    assert found.template == "A photo of <image>, sitting in the snow at dawn."
    assert (found.phrase, found.repaired) == ("a red fox", False)


@pytest.mark.parametrize(
    "template",
    [
        "A picture of <image>, sitting in the snow.",  # other words
        "A photo of a red fox, sitting in the snow at dawn.",  # no placeholder
        "<image> of <image>, sitting in the snow at dawn.",  # two
    ],
)
def test_a_phrase_of_the_prompt_mends_a_template_that_does_not_prove(template: str) -> None:
    found = split_of(PROMPT, answer(template, "the snow"))
    assert found == PromptSplit(
        "A photo of a red fox, sitting in <image> at dawn.", "the snow", True
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I cannot do that.", "not JSON"),
        ("{", "not JSON"),
        ("[" * 5000 + "{}" + "]" * 5000, "other keys"),
        ('{"a":' * 5000 + "}" * 5000, "not JSON"),
        ('{"prompt": "A photo of <image>"}', "other keys"),
        (answer(["A"], "x"), "not texts"),
        (answer("A photo of <image>", "a blue whale"), "not in the prompt"),
        (answer("A photo of <image>", "..."), "no word"),
        (answer("<image>", PROMPT), "too little"),
        (answer("A <image>", "photo of a red fox sitting in the snow at dawn"), "too little"),
        (answer("x", "a <image>"), "contains <image>"),
    ],
)
def test_what_does_not_prove_is_refused(text: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        split_of(PROMPT, text)


def test_a_phrase_that_stands_twice_repairs_nothing_but_may_prove() -> None:
    prompt = "a cat beside a cat on a mat"
    with pytest.raises(Refused, match="2 times"):
        split_of(prompt, answer("a dog", "a cat"))
    found = split_of(prompt, answer("a cat beside <image> on a mat", "a cat"))
    assert found.template == "a cat beside <image> on a mat"


def test_words_of_unspaced_scripts_are_their_letters() -> None:
    found = split_of("一只红色的狐狸在雪地里", answer("<image>在雪地里", "一只红色的狐狸"))
    assert put_back(found) == "一只红色的狐狸在雪地里" and found.phrase == "一只红色的狐狸"


def test_a_prompt_with_a_mark_of_its_own_is_refused() -> None:
    with pytest.raises(Refused, match="itself contains"):
        split_of("a <image> of a cat", answer("a <image>", "a cat"))


TEXTS = st.text(alphabet="aA the, .-!é狐\n\"'{}", min_size=0, max_size=30)


@given(prompt=TEXTS, template=TEXTS, phrase=TEXTS, mark=st.booleans())
def test_whatever_is_accepted_proves(prompt: str, template: str, phrase: str, mark: bool) -> None:
    text = answer(template + (IMAGE_MARK if mark else ""), phrase)
    try:
        found = split_of(prompt, text)
    except Refused:
        return
    assert put_back(found) == prompt
    assert found.phrase and found.template != IMAGE_MARK


@given(st.text(max_size=60))
def test_any_answer_is_a_split_or_a_reason(text: str) -> None:
    try:
        assert put_back(split_of(PROMPT, text)) == PROMPT
    except Refused as why:
        assert str(why)


# ---- the command --------------------------------------------------------------------------------


class Fox:
    """Splits at the first try what is about a fox; at the second what is about a dog."""

    def __init__(self) -> None:
        self.questions: list[LlmQuestion] = []

    def answer(self, questions: Sequence[LlmQuestion]) -> list[LlmAnswer]:
        self.questions += questions
        return [self._one(question) for question in questions]

    def _one(self, question: LlmQuestion) -> LlmAnswer:
        prompt = question.text.removeprefix(INSTRUCTION)
        tries = sum(q.text == question.text for q in self.questions)
        animal = "a fox" if "fox" in prompt else "a dog"
        if animal == "a dog" and tries < 2:
            return LlmAnswer("no", num_prompt_tokens=5, num_tokens=1)
        text = answer(prompt.replace(animal, IMAGE_MARK), animal)
        return LlmAnswer(text, num_prompt_tokens=5, num_tokens=9)


@pytest.fixture
def fox(monkeypatch: pytest.MonkeyPatch) -> Fox:
    assistant = Fox()
    monkeypatch.setattr(ask, "load", lambda llm, **known: assistant)
    return assistant


@pytest.fixture
def prompts(tmp_path: Path) -> Artifact:
    artifact = begin_artifact(tmp_path / "prompts", "prompts", settings={}, shards=["00000"])
    texts = ["a photo of a fox", None, "a photo of a dog", "a photo of a whale"]
    rows = []
    for number, text in enumerate(texts):
        failed = artifact.failed_row(f"0-{number}", "no text", licence="MIT", source=f"f:{number}")
        ok = {"prompt": text, "status": "ok", "error": None}
        rows.append(failed if text is None else failed | ok)
    artifact.write("00000", rows)
    return artifact


def test_a_row_in_a_row_out_with_its_reason_and_its_cost(
    prompts: Artifact, fox: Fox, capsys: pytest.CaptureFixture[str]
) -> None:
    out = SplitPlan(prompts.path, out=prompts.path.parent / "out", llm=LanguageModel("m")).run()
    rows = out.rows("00000")
    assert [row["key"] for row in rows] == ["0-0", "0-1", "0-2", "0-3"]
    assert [row["template"] for row in rows] == [
        "a photo of <image>",
        None,
        "a photo of <image>",
        None,
    ]
    assert [row["phrase"] for row in rows] == ["a fox", None, "a dog", None]
    assert rows[3]["error"] == "the phrase is not in the prompt"
    assert {row["licence"] for row in rows} == {"MIT"} and rows[2]["source"] == "f:2"
    # One try for the fox, two for the dog, three for the whale; 5 tokens asked each time.
    log = [json.loads(line) for line in (out.path / LOG).read_text().splitlines()]
    assert {line["key"]: (line["tries"], line["prompt_tokens"]) for line in log} == {
        "0-0": (1, 5),
        "0-2": (2, 10),
        "0-3": (3, 15),
    }
    said = capsys.readouterr().err
    assert "split: 2 accepted as answered" in said
    assert "1 failed: the phrase is not in the prompt" in said


def test_small_models_are_asked_for_the_phrase_alone(
    prompts: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Parrot:
        def answer(self, questions: Sequence[LlmQuestion]) -> list[LlmAnswer]:
            assert all(len(question.examples) == 3 for question in questions)
            return [LlmAnswer(" ".join(q.text.split()[-2:]) + ".") for q in questions]

    monkeypatch.setattr(ask, "load", lambda llm, **known: Parrot())
    out = prompts.path.parent / "out"
    artifact = SplitPlan(
        prompts.path, out=out, llm=LanguageModel("m"), overrides=["style=phrase"]
    ).run()
    rows = artifact.rows("00000")
    # The whale's article goes with it, as the dog's and the fox's.
    assert [row["phrase"] for row in rows] == ["a fox", None, "a dog", "a whale"]
    assert rows[3]["template"] == "a photo of <image>"


def test_the_tries_of_a_row_have_seeds_of_their_own(prompts: Artifact, fox: Fox) -> None:
    SplitPlan(prompts.path, out=prompts.path.parent / "out", llm=LanguageModel("m")).run()
    assert len({question.seed for question in fox.questions}) == len(fox.questions) == 6


def test_a_finished_artifact_asks_nobody_and_a_retry_only_for_failures(
    prompts: Artifact, fox: Fox
) -> None:
    out = prompts.path.parent / "out"
    SplitPlan(prompts.path, out=out, llm=LanguageModel("m")).run()
    before = len(fox.questions)
    SplitPlan(prompts.path, out=out, llm=LanguageModel("m")).run()
    assert len(fox.questions) == before
    SplitPlan(prompts.path, out=out, llm=LanguageModel("m"), retry_failed=True).run()
    assert {q.text for q in fox.questions[before:]} == {INSTRUCTION + "a photo of a whale"}


def test_another_model_or_instruction_is_another_artifact(prompts: Artifact, fox: Fox) -> None:
    out = prompts.path.parent / "out"
    SplitPlan(prompts.path, out=out, llm=LanguageModel("m")).run()
    with pytest.raises(UserError, match="llm: m there, n now"):
        SplitPlan(prompts.path, out=out, llm=LanguageModel("n")).run()
    # How patiently a server is asked is no part of what it says.
    more = ["assistant.timeout_s=9", "assistant.retries=1"]
    SplitPlan(prompts.path, out=out, llm=LanguageModel("m"), overrides=more).run()


TEMPLATE, PHRASE = "a photo of <image> in the snow", "a red fox"
WHOLE = json.dumps({"prompt": TEMPLATE, "<image>": PHRASE})


@pytest.mark.parametrize(
    "answer",
    [
        WHOLE,
        f"Here is the result {{as asked}}:\n{WHOLE}",
        f'I may write {{"prompt": "x"}}, but: {WHOLE} {{that is it}}',
        f"```json\n{WHOLE}\n```",
        "As {asked}: " + WHOLE.replace('"}', '",}'),
        f"As {{asked}}: { ({'prompt': TEMPLATE, '<image>': PHRASE}) }",
    ],
)
def test_the_object_of_an_answer_is_found_among_other_braces(answer: str) -> None:
    split = split_of("a photo of a red fox in the snow", answer)
    assert (split.template, split.phrase) == (TEMPLATE, PHRASE)


def test_an_answer_of_braces_alone_is_refused_at_once() -> None:
    with pytest.raises(Refused, match="the answer is not JSON"):
        split_of("a photo of a red fox", "{" * 100_000)
    with pytest.raises(Refused, match="the answer has other keys"):
        split_of("a photo of a red fox", "{" * 50_000 + "}" * 50_000)
