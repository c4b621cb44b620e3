"""commands.jsonl: what is appended, what is read back, several writers at once."""

import json
import multiprocessing
from pathlib import Path

import pytest

from tarkit.artifacts.commands import COMMANDS, append_command, read_commands
from tarkit.config import provenance

ENCODE = ["tarkit", "encode", "pictures", "--out", "o"]
# A space, a line feed, a letter outside ASCII and a byte that is not UTF-8, as sys.argv holds it.
ODD = ["tarkit", "generate", "two rings\nof \u91d1", "--out", "\udcff"]


def test_commands_are_read_back_in_their_order(tmp_path: Path) -> None:
    for argv in (ENCODE, ODD, ENCODE):
        append_command(tmp_path, argv)
    assert read_commands(tmp_path) == [ENCODE, ODD, ENCODE]


def test_a_line_holds_the_words_and_the_version(tmp_path: Path) -> None:
    append_command(tmp_path, ENCODE)
    (line,) = (tmp_path / COMMANDS).read_text().splitlines()
    assert json.loads(line) == {"argv": ENCODE, "version": provenance()["tarkit"]}


def test_the_same_command_again_adds_nothing(tmp_path: Path) -> None:
    append_command(tmp_path, ENCODE)
    before = (tmp_path / COMMANDS).read_bytes()
    append_command(tmp_path, ENCODE)
    assert (tmp_path / COMMANDS).read_bytes() == before


def test_a_folder_without_commands_has_none(tmp_path: Path) -> None:
    assert read_commands(tmp_path) == []


def test_a_line_that_was_cut_off_is_left_out_and_the_next_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / COMMANDS).write_text('{"argv": ["tarkit", "enc')
    append_command(tmp_path, ENCODE)
    assert (tmp_path / COMMANDS).read_bytes().count(b"\n") == 2
    assert read_commands(tmp_path) == [ENCODE]
    assert "commands.jsonl:1 is not a command" in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        *('["tarkit"]', "{}", '{"argv": "tarkit"}', '{"argv": [1]}', "3", "[" * 100_000),
        *('{"argv": ["a\\u0000b"]}', '{"argv": ["\\ud800"]}'),
    ],
)
def test_a_line_of_another_form_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str
) -> None:
    (tmp_path / COMMANDS).write_text(line + "\n")
    append_command(tmp_path, ENCODE)
    assert read_commands(tmp_path) == [ENCODE]
    assert "commands.jsonl:1 is not a command" in caplog.text


def test_a_password_in_a_url_is_not_written_down(tmp_path: Path) -> None:
    append_command(tmp_path, ["tarkit", "--server", "http://me:se:cret@host:8000/v1"])
    assert read_commands(tmp_path) == [["tarkit", "--server", "http://me:***@host:8000/v1"]]


def test_a_command_of_several_processes_is_read_as_one(tmp_path: Path) -> None:
    line = json.dumps({"argv": ENCODE, "version": "0"})
    (tmp_path / COMMANDS).write_text(f"{line}\n{line}\n")
    assert read_commands(tmp_path) == [ENCODE]


def _append_many(folder: Path, name: str) -> None:
    for number in range(50):
        append_command(folder, ["tarkit", name * 5000, str(number)])


def test_processes_at_once_do_not_mix_their_lines(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_many, args=(tmp_path, name)) for name in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    commands = read_commands(tmp_path)
    # Each process' 50 commands in its own order.
    for name in "abc":
        numbers = [argv[2] for argv in commands if argv[1] == name * 5000]
        assert numbers == [str(number) for number in range(50)]
    assert len(commands) == 150
