import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tarkit.errors import UserError, explained


def test_the_text_of_an_error_is_the_message_and_then_the_next_command() -> None:
    error = UserError("work/x has no shards", hint="tarkit curate render --out work/x")
    assert str(error) == "work/x has no shards\ntarkit curate render --out work/x"
    assert error.message == "work/x has no shards"
    assert str(UserError("alone")) == "alone"


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space", "free some"),
        (OSError(errno.EROFS, "Read-only file system", "a"), "a: Read-only", "another --out"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "a: Permission", "permissions"),
        (OSError(errno.EMFILE, "Too many open files", "a"), "a: Too many", "ulimit -n"),
        (OSError("Error writing bytes"), "Error writing bytes", ""),
        (OSError(errno.EXDEV, "Cross-device", "a", None, "b"), "a -> b: Cross-device", ""),
        (MemoryError(), "not enough memory", "batch_size"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "I/O error", "free"),
    ],
)
def test_what_the_machine_causes_is_a_sentence(error: Exception, message: str, hint: str) -> None:
    sentence = explained(error)
    assert sentence is not None
    assert sentence.message.startswith(message)
    assert hint in sentence.hint


def test_other_errors_keep_their_traceback() -> None:
    assert explained(RuntimeError("shape mismatch")) is None
    assert explained(BrokenPipeError(errno.EPIPE, "Broken pipe")) is None
    mistake = UserError("x")
    assert explained(mistake) is mistake


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    """A file stands where a folder is needed: unlike permissions, this also stops root."""
    (tmp_path / "file").write_text("")
    words = ["curate", "render", "--set", "count=2", "--out", str(tmp_path / "file" / "out")]
    command = [sys.executable, "-m", "tarkit.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Not a directory" in done.stderr


def test_memory_that_torch_cannot_have_is_a_sentence() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    fault = explained(error.value)
    assert fault is not None and fault.message.startswith("not enough memory: ")
