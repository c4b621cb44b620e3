"""The table of stages: the commands of a finetuning in their order, and what each of them makes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FAILED_ROWS = 3
"""The exit status of a command that is finished, and lists failed rows with their reasons."""


@dataclass(frozen=True)
class Stage:
    """One command of tarkit; run again, it goes on from where it was stopped."""

    name: str
    words: Sequence[str]
    """The command without `tarkit`."""
    fails_rows: bool = False
    """Whether the next stages go on without rows that failed."""
    makes: Path | None = None
    """The folder of a training, whose time is foretold."""

    @property
    def line(self) -> str:
        """The command for a shell."""
        return shlex.join(["tarkit", *self.words])


def stages_of(
    model: str, *, images: Path, captions: Path, out: Path, is_own: bool
) -> tuple[Stage, ...]:
    """The commands that finetune `model` on `images` into `out`, and compare both models.

    With `is_own` its image VQ and its de-tokenizer are trained on too: those of a small model know
    only what they were trained on. The published ones draw any picture, and stay as they are.
    """

    def config(name: str) -> list[str]:
        return ["--config", str(out / "settings" / f"{name}.toml")]

    def train(part: str, words: Sequence[str]) -> Stage:
        toml = out / "settings" / f"{part}.toml"
        command = ["train", part.replace("_", "-"), str(toml), *words, "--out", str(out / part)]
        return Stage(part, command, makes=out / part)

    pictures, tokens, chats = (str(out / name) for name in ("pictures", "tokens", "chats"))
    tar, page = str(out / "tar"), str(out / "page")
    before, after = str(out / "drawn_before"), str(out / "drawn_after")
    held_out = ["--prompts", pictures, "--split", "test", "--seed", "0"]
    vqvae, ar_dtok = (str(out / part) if is_own else model for part in ("vqvae", "ar_dtok"))
    own = (
        train("vqvae", ["--images", pictures, "--start", model]),
        train(
            "ar_dtok",
            ["--images", pictures, "--tokenizer", model, "--vqvae", vqvae, "--start", model],
        ),
    )
    parts = ["--tokenizer", model, "--ar-dtok", ar_dtok, "--vqvae", vqvae]
    assembled = ["assemble", "--mllm", str(out / "mllm"), *parts]
    return (
        Stage(
            "pictures",
            ["curate", "ingest", str(images), "--captions", str(captions)]
            + [*config("ingest"), "--out", pictures],
            fails_rows=True,
        ),
        Stage(
            "tokens", ["encode", pictures, "--tokenizer", model, "--out", tokens], fails_rows=True
        ),
        Stage("chats", ["curate", "chats", tokens, "--out", chats], fails_rows=True),
        *(own if is_own else ()),
        train("mllm", ["--chats", chats, "--lm", model, *parts]),
        Stage("tar", [*assembled, *(config("assemble") if is_own else ()), "--out", tar]),
        Stage("before", ["generate", *held_out, "--model", model, "--out", before]),
        Stage("after", ["generate", *held_out, "--model", tar, "--out", after]),
        Stage(
            "describe",
            ["describe", f"{after}/00000/0000.png", "--model", tar, "--max-tokens", "64"],
        ),
        Stage(
            "page",
            ["compare", before, after, "--images", pictures, "--split", "test"]
            + ["--features-of", model, "--out", page],
        ),
    )


def script_of(stages: Sequence[Stage]) -> str:
    """The stages as a script of bash."""
    lines = [
        "#!/usr/bin/env bash",
        "# Made by `tarkit finetune`. Its settings are in the folder settings/; edit both as you",
        "# like. Every command goes on where it was stopped.",
        "set -euo pipefail",
        "# Exit status 3: some rows failed, each with its reason; training leaves them out.",
        f'rows() {{ "$@" || [ $? -eq {FAILED_ROWS} ]; }}',
        "",
    ]
    lines += [f"rows {stage.line}" if stage.fails_rows else stage.line for stage in stages]
    return "\n".join(lines) + "\n"
