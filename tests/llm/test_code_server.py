"""Codes from a server that speaks vLLM's protocol, and from servers that do not."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="pip install 'tarkit[caption]'")

from tarkit.errors import UserError
from tarkit.eval import generate as eval_generate
from tarkit.eval import prepare
from tarkit.inference import generate
from tarkit.inference.tar_model import Tar
from tarkit.llm.code_server import CodeServer
from tarkit.vocab import Scale, VisualVocabulary
from tests.llm.stub_server import Stub, completed, drawn, serving

VISUAL = VisualVocabulary(first_id=40, num_codes=16)
FIRST = VISUAL.first_code
UNGUIDED = {"prompt_guidance": 1.0}
PROMPTS = [[3, 40, 42], [9, 8, 40, 42]]


def codes(stub: Stub, **changes: Any) -> list[list[int]]:
    settings: dict[str, Any] = {"temperature": 0.8, "top_k": 7, "top_p": 0.9, "seeds": [5, 6]}
    server = CodeServer(stub.url, timeout_s=2.0, retries=1)
    return server.generate_codes(PROMPTS, visual=VISUAL, num_codes=4, **settings | changes)


def test_ids_go_out_and_codes_come_back() -> None:
    with serving(drawn) as stub:
        first, again = codes(stub), codes(stub)
    assert first == again and [len(row) for row in first] == [4, 4] and first[0] != first[1]
    assert all(0 <= code < 16 for row in first for code in row)
    body = min(stub.asked, key=lambda asked: asked["seed"])
    assert body == {
        **{"model": "stub", "prompt": [3, 40, 42], "seed": 5, "temperature": 0.8, "top_p": 0.9},
        **{"top_k": 7, "max_tokens": 4, "min_tokens": 4, "ignore_eos": True},
        **{"return_token_ids": True, "allowed_token_ids": list(range(FIRST, FIRST + 16))},
    }


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (completed([FIRST] * 3), "has 3 tokens, not 4"),
        (completed([FIRST] * 5), "has 5 tokens, not 4"),
        (completed([FIRST, FIRST, FIRST, FIRST + 16]), "tokens that are no codes"),
        (completed([FIRST, FIRST, FIRST, FIRST - 1]), "tokens that are no codes"),
        (completed([FIRST, FIRST, FIRST, float(FIRST)]), "tokens that are no codes"),
        (completed([True] * 4), "tokens that are no codes"),
        (completed(["1"] * 4), "tokens that are no codes"),
        (completed(None), "no token_ids: it needs vLLM"),
        ((200, b'{"choices": []}'), "no choices"),
        ((200, b"[" * 100_000), "cannot be read|no choices"),
        ((404, b"{}"), "the server refused with 404"),
        ("drip", "gave no answer: 2 s"),
        ("endless", "more than 4194304 bytes"),
    ],
)
def test_any_other_answer_is_a_reason(reply: Any, reason: str) -> None:
    with serving(reply) as stub, pytest.raises(UserError, match=reason):
        codes(stub)


def test_no_server_or_several_models_are_refused_before_anything_is_drawn() -> None:
    with serving(drawn, models=["a", "b"]) as stub, pytest.raises(UserError, match="2 models"):
        CodeServer(stub.url)
    with pytest.raises(UserError, match="cannot be reached"):
        CodeServer(stub.url, retries=0)
    with pytest.raises(UserError, match="is not an http:// or https:// address"):
        CodeServer("ftp://host")


def test_a_picture_of_the_servers_codes(tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    with serving(drawn) as stub:
        generate.run("a red ring", out=out, server=stub.url, scale=3, sampling=UNGUIDED)
        with pytest.raises(UserError, match=r"no logits, which guidance by the prompt \(2\)"):
            generate.run("a ring", out=out, server=stub.url, sampling={"prompt_guidance": 2.0})
    tar = Tar.load("mini", dtok=None)
    visual = tar.mllm.vocabulary.visual
    assert visual is not None
    body = stub.asked[0]
    assert body["prompt"] == tar.mllm.vocabulary.prompt("a red ring", draw=Scale.THIRD)
    assert body["allowed_token_ids"][0] == visual.first_code
    record = json.loads((tmp_path / "out.png.jsonl").read_text())
    assert out.exists() and record["drawn_by"] == "server"


def test_a_bad_answer_is_one_failed_picture_of_a_run(tmp_path: Path) -> None:
    run = prepare.run("geneval", out=tmp_path / "run", n=1, limit=3)

    def sometimes(body: dict[str, Any]) -> Any:
        return completed([0]) if body["prompt"] == bad else drawn(body)

    tar = Tar.load("mini")
    bad = tar.mllm.vocabulary.prompt(run.items[1].prompt, draw=tar.default_scale)
    with serving(sometimes) as stub:
        eval_generate.run(run.path, server=stub.url, sampling=UNGUIDED)
    assert len(list(run.path.rglob("*.png"))) == 2
    (error,) = run.path.rglob("*.error")
    assert "has 1 tokens, not" in error.read_text()
