"""Nothing of ours calls what transformers, diffusers, accelerate or torch have deprecated.

In every test a warning of deprecation is an error (pyproject.toml), and a logged line of it fails
(conftest.py). Here: the model that the package embeds, in this process and as a command.
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import logging as transformers_logging

from tarkit.inference.tar_model import Tar

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def lines_are_logged_again() -> None:
    """transformers logs such a line once a process; an earlier test must not have used it up."""
    transformers_logging.warning_once.cache_clear()


def test_the_embedded_model_draws_and_reads_without_deprecated_calls(deprecation_log: Any) -> None:
    tar = Tar.load("mini")
    picture = tar.imagine("a red circle", seed=0)
    assert isinstance(picture, Image.Image)
    assert tar.describe(picture, max_tokens=4)
    assert deprecation_log.lines == []


def test_a_deprecated_call_that_is_logged_would_be_noticed(deprecation_log: Any) -> None:
    assert BaseModelOutputWithPast().past_key_values is None
    assert len(deprecation_log.lines) == 1 and "deprecated" in deprecation_log.lines[0]
    deprecation_log.lines.clear()


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning, PendingDeprecationWarning])
def test_a_deprecated_call_that_is_warned_of_would_be_noticed(category: type[Warning]) -> None:
    with pytest.raises(category):
        warnings.warn("it is deprecated", category, stacklevel=1)


def test_a_command_prints_nothing_of_deprecated_calls(tmp_path: Path) -> None:
    # Python hides most such warnings from users; here all are printed.
    environment = {**os.environ, "PYTHONWARNINGS": "always", "PYTHONPATH": str(ROOT)}
    words = ["generate", "a red circle", "--model", "mini", "--out", str(tmp_path / "out.png")]
    done = subprocess.run(
        [sys.executable, "-m", "tarkit.cli", *words],
        capture_output=True,
        text=True,
        env={**environment, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.png").exists()
    assert "deprecated" not in done.stderr.lower() and "Warning" not in done.stderr, done.stderr
