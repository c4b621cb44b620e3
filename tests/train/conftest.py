"""What the trainings' tests share: pictures, parts to start from, and an interrupted run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tarkit.train.metrics import OF_THE_MACHINE
from tests import parts


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards: 12 pictures to train on, one of another split and one that failed."""
    mixed: list[str | None] = ["train", "test", "train", "failed", None]
    splits: list[list[str | None]] = [["train"] * 5, mixed, ["train"] * 4]
    return parts.write_pictures(tmp_path_factory.mktemp("data") / "pictures", splits).path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The parts of a Tar, an encoder, and a language model of text alone ("lm")."""
    folder = tmp_path_factory.mktemp("models")
    return {
        **parts.save_parts(folder),
        "encoder": parts.save_encoder(folder / "encoder"),
        "lm": parts.save_mllm(folder / "lm", None),
    }


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Path:
    """Two shards with 9 rows of each of t2i, i2t and text, made with the tokenizer of `models`."""
    rows = parts.mixed_chats(9)
    out = tmp_path_factory.mktemp("chats") / "mixed"
    made_by = {"tokenizer_sha256": parts.sha256(models["tokenizer"])}
    return parts.write_chats(out, [rows[:15], rows[15:]], **made_by).path


class Stopped(Exception):
    """What stands for a killed process."""


Train = Callable[[Path], Path]
Interrupted = Callable[..., None]


def metrics(out: Path) -> list[dict[str, Any]]:
    """What was logged, without how fast it went."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not OF_THE_MACHINE.search(k)} for row in rows]


@pytest.fixture
def resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Interrupted:
    """Checks that a training stopped at steps and run again ends as one that was never stopped."""

    def check(task: type[Any], train: Train, *, stops: tuple[int, ...]) -> None:
        real = task.loss

        def moved(self: nn.Module) -> nn.Module:
            raise AssertionError("sheets and measures are made on the device of the training")

        monkeypatch.setattr(nn.Module, "cpu", moved)

        def steps_of(out: Path, *, stop: int | None) -> list[int]:
            """Train until the loss of step `stop`; which steps were taken."""
            steps: list[int] = []

            def loss(self: Any, model: Any, batch: Any, step: int) -> Any:
                if step == stop:
                    raise Stopped
                steps.append(step)
                return real(self, model, batch, step)

            with monkeypatch.context() as patch:
                patch.setattr(task, "loss", loss)
                train(out)
            return steps

        whole, stopped = train(tmp_path / "whole"), tmp_path / "stopped"
        for stop in stops:
            with pytest.raises(Stopped):
                steps_of(stopped, stop=stop)
            assert not (stopped / "model.safetensors").exists()
        resumed = steps_of(stopped, stop=None)
        # It went on from the checkpoint and did not begin again.
        assert 0 < resumed[0] <= stops[-1] < resumed[-1]
        for name in ("model.safetensors", "config.json", "run.toml", "manifest.json"):
            assert (whole / name).read_bytes() == (stopped / name).read_bytes(), name
        assert metrics(whole) == metrics(stopped)
        assert not list((stopped / "state").iterdir())

    return check
