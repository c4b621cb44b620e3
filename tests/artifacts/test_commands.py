"""The record of commands: order, repetition, and lines that are damaged."""

import json
import logging
from pathlib import Path

import pytest

from tarkit.artifacts.commands import COMMANDS, append_command, read_commands

FIRST = ["tarkit", "encode", "work/a picture", "--out", "work/tökens"]
SECOND = ["tarkit", "encode", "work/a picture", "--out", "work/tökens", "--retry-failed"]


def test_commands_come_back_oldest_first(tmp_path: Path) -> None:
    assert read_commands(tmp_path) == []
    append_command(tmp_path, FIRST, "0.1.0")
    append_command(tmp_path, SECOND, "0.1.0")
    assert read_commands(tmp_path) == [FIRST, SECOND]
    line = (tmp_path / COMMANDS).read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(line) == {"argv": FIRST, "version": "0.1.0"}


def test_the_last_command_is_not_recorded_again(tmp_path: Path) -> None:
    for argv, version in (
        (FIRST, "0.1.0"),
        (FIRST, "0.1.0"),  # equal to the last line
        (FIRST, "0.2.0"),  # another version
        (SECOND, "0.2.0"),
        (FIRST, "0.2.0"),  # equal to a line before the last
    ):
        append_command(tmp_path, argv, version)
    assert read_commands(tmp_path) == [FIRST, FIRST, SECOND, FIRST]


def test_damaged_lines_are_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = ["{", "7", '{"argv": "tarkit"}', '{"argv": [1]}', '{"argv": []}', "[" * 100_000]
    (tmp_path / COMMANDS).write_bytes("\n".join(damaged).encode() + b'\n\n\xff\n{"argv": ["ta')
    append_command(tmp_path, FIRST, "0.1.0")
    with caplog.at_level(logging.WARNING, logger="tarkit"):
        assert read_commands(tmp_path) == [FIRST]
    # Lines 1 to 6 and 8 and 9; 7 is blank.
    numbers = [message.split(":")[1].split(" ")[0] for message in caplog.messages]
    assert numbers == ["1", "2", "3", "4", "5", "6", "8", "9"]


def test_a_line_separator_in_a_word_does_not_end_the_line(tmp_path: Path) -> None:
    argv = ["tarkit", "generate", "a ring\u2028and a\nsquare"]
    append_command(tmp_path, argv, "0.1.0")
    assert read_commands(tmp_path) == [argv]
