"""The time until a command begins to work: help, imports, the first picture of `mini`.

Each run is a new process, as a user starts it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

from tarkit.bench.case import BenchSettings, Case

IMPORT_MODEL = "from transformers import Qwen2ForCausalLM"


def cases(settings: BenchSettings) -> Iterator[Case]:
    for words in (["--help"], ["train", "--help"], ["generate", "--help"]):
        yield Case(
            name=f"tarkit {' '.join(words)}",
            ours=command(words),
            # What a command line of Typer takes that has no command yet.
            against={"stock": _python("import typer, typer.rich_utils")},
        )
    picture = settings.folder / "first.png"
    yield Case(
        name="first picture of mini",
        ours=command(["generate", "a photo of a red circle", "--out", str(picture)]),
        # No program with this model class starts faster.
        against={"stock": _python(IMPORT_MODEL), "torch alone": _python("import torch")},
    )


def command(words: Sequence[str]) -> Callable[[], None]:
    """A run of tarkit's command line in a new process. Raises CalledProcessError where it fails."""
    return _run([sys.executable, "-m", "tarkit.cli", *words])


def _python(code: str) -> Callable[[], None]:
    return _run([sys.executable, "-c", code])


def _run(words: Sequence[str]) -> Callable[[], None]:
    environment = {**os.environ, "NO_COLOR": "1"}

    def way() -> None:
        subprocess.run(words, check=True, capture_output=True, env=environment)

    return way
