"""The client against a server that misbehaves: every question gets an answer or a reason."""

import base64
import gzip
import io
import json
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("openai", reason="pip install 'tarkit[caption]'")

from tarkit.errors import UserError
from tarkit.images import decode
from tarkit.llm.base import AssistantConfig, LlmAnswer, LlmQuestion
from tarkit.llm.load import load
from tests.llm.stub_server import said, serving

QUICK = AssistantConfig(timeout_s=2.0, retries=2, batch_size=4)


def answers(*replies: object, config: AssistantConfig = QUICK, n: int = 1) -> list[LlmAnswer]:
    with serving(*replies) as stub:
        assistant = load("m", config=config, server=stub.url)
        return assistant.answer([LlmQuestion(f"q{i}", seed=i) for i in range(n)])


def test_only_the_answer_comes_back() -> None:
    text = "<think>\nIs it round?\n</think>\n\na ring<|im_end|>"
    assert answers(said(text))[0].text == "a ring"


def test_a_refusal_of_the_model_is_a_reason() -> None:
    message = {"role": "assistant", "content": "A red", "refusal": "I cannot go on."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    (answer,) = answers((200, json.dumps({"choices": [choice]}).encode()))
    assert answer.error == "the model refused: I cannot go on." and not answer.text


def test_a_server_is_sent_the_picture_that_is_encoded() -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # on its side
    picture = Image.new("RGB", (8, 4), "red")
    picture.paste("blue", (0, 0, 4, 4))
    picture.save(buffer, "JPEG", exif=exif, quality=95)
    questions = [LlmQuestion("q", 5, buffer.getvalue()), LlmQuestion("q", 5, b"no picture")]
    with serving(said("x")) as stub:
        sound, damaged = load("m", config=QUICK, server=stub.url).answer(questions)
    (body,) = stub.asked
    url = body["messages"][0]["content"][1]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as sent:
        assert np.array_equal(np.asarray(sent), np.asarray(decode(buffer.getvalue())))
    assert sound.text == "x" and "the picture cannot be shown: not a picture" in str(damaged.error)


def test_an_answer_comes_back_with_what_it_cost() -> None:
    assert answers(said("a ring")) == [LlmAnswer("a ring", num_prompt_tokens=7, num_tokens=3)]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (said(""), "the answer is empty"),
        (said(None), "the answer is empty"),
        (said({"a": 1}), "the answer is empty"),
        (said("so long", finish="length"), "the answer is cut off"),
        (said("A red", finish="content_filter"), "the answer is not whole: the server ended it"),
        (said("A red", finish="abort"), "the answer is not whole: the server ended it"),
        (said("<think>A red square"), "the answer is thinking that does not end"),
        (said("x" * 200_000), "the answer is too long"),
        ((200, b'{"choices": []}'), "the server's answer has no choices"),
        ((200, b'{"error": "x"}'), "the server's answer has no choices"),
        ((200, b"{not json"), "the server's answer cannot be read"),
        ((200, b"<html>sign in</html>"), "the server's answer"),
        ((400, b'{"error": "no such model"}'), "the server refused with 400"),
        ((500, b"oops"), "the server refused with 500"),
        ((429, b"slow down"), "the server refused with 429"),
    ],
)
def test_what_cannot_be_used_has_its_reason(reply: object, reason: str) -> None:
    (answer,) = answers(reply)
    assert answer.text == "" and answer.error is not None and answer.error.startswith(reason)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_asked_again(status: int) -> None:
    # Two failures, two retries: the third request is answered.
    assert answers((status, b"busy"), (status, b"busy"), said("a ring"))[0].text == "a ring"


def test_a_server_that_drips_for_ever_is_left() -> None:
    (answer,) = answers("drip", config=AssistantConfig(timeout_s=0.4, retries=0))
    assert answer.error == "the server gave no answer: 0.4 s"


def test_nobody_at_the_address_is_a_reason() -> None:
    assistant = load(
        "m", config=AssistantConfig(retries=0, timeout_s=5), server="http://127.0.0.1:9/v1"
    )
    (answer,) = assistant.answer([LlmQuestion("q", seed=0)])
    assert answer.error is not None and answer.error.startswith("the server cannot be reached")


def test_answers_stay_with_their_questions() -> None:
    def echo(body: dict[str, object]) -> tuple[int, bytes]:
        messages = json.loads(json.dumps(body["messages"]))
        return said(messages[0]["content"].upper())

    found = answers(echo, n=20)
    assert [answer.text for answer in found] == [f"Q{i}" for i in range(20)]


def test_a_picture_and_every_number_are_sent() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "JPEG")
    with serving(said("x")) as stub:
        load("m", config=QUICK, server=stub.url).answer([LlmQuestion("q", 5, buffer.getvalue())])
    (body,) = stub.asked
    text, picture = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "q"}
    assert picture["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")
    assert (body["seed"], body["max_tokens"], body["model"]) == (5, 512, "m")
    assert (body["temperature"], body["top_p"]) == (0.7, 0.9)


def test_shown_turns_stand_before_the_question() -> None:
    with serving(said("x")) as stub:
        question = LlmQuestion("q", 5, examples=(("a", "b"), ("c", "d")))
        load("m", config=QUICK, server=stub.url).answer([question])
    messages = stub.asked[0]["messages"]
    assert [m["content"] for m in messages] == ["a", "b", "c", "d", "q"]
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2 + ["user"]


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(UserError, match="is not an http:// or https:// address"):
        load("m", config=QUICK, server="localhost:8000")


# ---- servers that are not trusted


def test_a_redirect_is_not_followed() -> None:
    with serving(said("secret")) as other:
        with serving((307, b"", {"Location": f"{other.url}/chat/completions"})) as stub:
            assistant = load("m", config=QUICK, server=stub.url)
            (answer,) = assistant.answer([LlmQuestion("q", seed=0)])
        assert not other.asked
    assert answer.error is not None and answer.error.startswith("the server refused with 307")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ((200, b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "cannot be read"),
        ((200, b"9" * 10_000), "the server's answer"),
        ((200, b'"' + b"a" * (5 << 20) + b'"'), "more than 4194304 bytes"),
        (said("half \ud800 of a pair"), "it has half of a surrogate pair"),
        ((200, gzip.compress(b" " * (64 << 20)), {"Content-Encoding": "gzip"}), "is compressed"),
        ((200, b"\xff\xfe\x00"), "the server's answer"),
    ],
)
def test_a_hostile_answer_is_a_reason(reply: object, reason: str) -> None:
    config = AssistantConfig(timeout_s=5.0, retries=0)
    first, second = answers(reply, reply, config=config, n=2)
    assert first.text == second.text == ""
    assert first.error is not None and reason in first.error


def test_endless_bytes_stop_at_the_bound() -> None:
    config = AssistantConfig(timeout_s=20.0, retries=0)
    began = time.monotonic()
    (answer,) = answers("endless", config=config)
    assert answer.error is not None and "more than 4194304 bytes" in answer.error
    assert time.monotonic() - began < 15


def test_a_count_that_is_none_counts_as_zero() -> None:
    status, body = said("a ring")[:2]
    reply = json.loads(body) | {"usage": {"prompt_tokens": 10**30, "completion_tokens": -1}}
    (answer,) = answers((status, json.dumps(reply).encode()))
    assert answer == LlmAnswer("a ring")


def test_the_key_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    (answer,) = answers((401, b'{"error": {"message": "wrong key sk-secret"}}'))
    assert answer.error is not None
    assert "sk-secret" not in answer.error
    assert "wrong key ***" in answer.error
