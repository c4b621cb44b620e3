"""What tests share: an environment, no deprecated calls, and which config reads which TOML."""

import importlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tarkit.config import Config

# Behind the installed package, so that it is what is tested: worker processes of a test import
# the test's own module by its name.
sys.path.append(str(Path(__file__).resolve().parents[1]))

# An environment of the suite's own, set before anything is imported that reads it: where tests run
# must not decide what they find. tests/test_environment.py varies it on purpose.
FIXED = {
    **{"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100", "LINES": "40"},
    **{"TZ": "UTC", "LC_ALL": "C.UTF-8", "LANG": "C.UTF-8"},
}
UNSET = ("FORCE_COLOR", "PYTHONHASHSEED", "OPENAI_API_KEY", "LANGUAGE", "WDS_SECURE")
UNSET_PREFIXES = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "DIFFUSERS_", "ACCELERATE_", "TARKIT_")
# Of one worker among several: a test that wants them sets them.
PLACES = ("RANK", "WORLD_SIZE", "SLURM_STEP_ID", "SLURM_STEPID", "SLURM_ARRAY_TASK_ID")
# Names the programs and sizes that tests marked slow need, and so is kept.
KEPT = ("TARKIT_LMMS_PYTHON", "TARKIT_IMG2DATASET", "TARKIT_GROWTH")

for name in list(os.environ):
    if name in (*UNSET, *PLACES) or (name.startswith(UNSET_PREFIXES) and name not in KEPT):
        del os.environ[name]
os.environ.update(FIXED)
time.tzset()
os.umask(0o022)
# The tests' models are so small that a second thread costs more than it does.
os.environ["OMP_NUM_THREADS"] = "1"

# A busy machine must not decide.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """What a test leaves in the environment does not reach the next one."""
    before, mask = dict(os.environ), os.umask(0o022)
    yield
    os.umask(mask)
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


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
    "dif_dtok": "tarkit.train.dif_dtok.DifDtokConfig",
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
    "findings": "tarkit.report.findings.FindingsConfig",
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
