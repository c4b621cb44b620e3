"""What tests share: a plain terminal, one worker, no deprecated calls, and who reads which TOML."""

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tarkit.config import Config

# Behind the installed package, so that it is what is tested: worker processes of a test import
# the test's own module by its name.
sys.path.append(str(Path(__file__).resolve().parents[1]))

# Set before anything draws: width, colour and the number of workers differ by environment.
PLAIN = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100"}
PLACES = ("RANK", "WORLD_SIZE", "SLURM_STEP_ID", "SLURM_STEPID", "SLURM_ARRAY_TASK_ID")
os.environ.update(PLAIN)
# The tests' models are so small that a second thread costs more than it does.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLAIN.items():
        monkeypatch.setenv(name, value)
    for name in ("FORCE_COLOR", *PLACES):
        monkeypatch.delenv(name, raising=False)


class DeprecationLog(logging.Handler):
    """Keeps the lines in which a library calls something deprecated."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecated" in record.getMessage().lower():
            self.lines.append(record.getMessage())


@pytest.fixture(autouse=True)
def deprecation_log() -> Iterator[DeprecationLog]:
    """Fails a test in which a library logs that something is deprecated.

    Warnings of deprecation are errors already (pyproject.toml); transformers logs some instead.
    """
    handler = DeprecationLog()
    loggers = [logging.getLogger(name) for name in ("transformers", "diffusers", "accelerate")]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler
    for logger in loggers:
        logger.removeHandler(handler)
    assert not handler.lines, f"deprecated: {handler.lines}"


# The beginning of a file's name says whose numbers it holds: mllm_sft.toml is train mllm's.
CLASSES = {
    "vqvae": "tarkit.train.vqvae.VqvaeConfig",
    "encoder": "tarkit.train.encoder.EncoderConfig",
    "tokenizer": "tarkit.train.tokenizer.TokenizerConfig",
    "ar_dtok": "tarkit.train.ar_dtok.ArDtokConfig",
    "mllm": "tarkit.train.mllm.MllmConfig",
    "grpo": "tarkit.train.grpo.GrpoConfig",
    "lm": "tarkit.train.mllm.MllmConfig",
    "render": "tarkit.curate.render.RenderConfig",
    "ingest": "tarkit.curate.ingest.IngestConfig",
    "prompts": "tarkit.curate.prompts.PromptsConfig",
    "download": "tarkit.curate.download.DownloadConfig",
    "caption": "tarkit.curate.caption.CaptionConfig",
    "split": "tarkit.curate.split.SplitConfig",
    "synthesize": "tarkit.curate.synthesize.SynthesizeConfig",
    "judge": "tarkit.curate.judge.JudgeConfig",
    "score": "tarkit.curate.score.ScoreConfig",
    "engine": "tarkit.cli.engines.EngineConfig",
    "encode": "tarkit.encode.EncodeConfig",
    "chats": "tarkit.curate.chats.ChatsConfig",
    "assemble": "tarkit.checkpoints.assemble.AssembleConfig",
}


def _config_class(stem: str) -> type[Config]:
    """The Config that a TOML of this name is read with; the longest fitting name counts."""
    fitting = [name for name in CLASSES if stem == name or stem.startswith(f"{name}_")]
    assert fitting, f"{stem}.toml: no command reads it; known names: {', '.join(CLASSES)}"
    module, name = CLASSES[max(fitting, key=len)].rsplit(".", 1)
    found: type[Config] = getattr(importlib.import_module(module), name)
    return found


@pytest.fixture
def config_class() -> Callable[[str], type[Config]]:
    return _config_class
