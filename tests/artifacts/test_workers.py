import functools
import os
from pathlib import Path

import pytest

from tarkit.artifacts.workers import Report, make_shards
from tarkit.progress import Progress


def note(folder: Path, name: str, report: Report) -> None:
    """Writes the process's number under the shard's name; pictures 1 of 3 failed."""
    (folder / name).write_text(str(os.getpid()))
    report(2, 0)
    report(1, 1)


def die(name: str, report: Report) -> None:
    os._exit(7)


def shown() -> Progress:
    return Progress("test", total=None, unit="pictures")


def test_every_worker_makes_every_nth_shard_and_reports_add_up(tmp_path: Path) -> None:
    names = ["00000", "00001", "00002"]
    with shown() as progress:
        make_shards(functools.partial(note, tmp_path), names, num_workers=2, progress=progress)
    makers = [(tmp_path / name).read_text() for name in names]
    assert makers[0] == makers[2] != makers[1] and str(os.getpid()) not in makers
    assert (progress.done, progress.failed) == (3 * 3, 3)


def test_one_worker_or_one_shard_stays_in_this_process(tmp_path: Path) -> None:
    with shown() as progress:
        job = functools.partial(note, tmp_path)
        make_shards(job, ["00000", "00001"], num_workers=1, progress=progress)
        make_shards(job, ["00002"], num_workers=0, progress=progress)
        make_shards(job, [], num_workers=2, progress=progress)
    assert {file.read_text() for file in tmp_path.iterdir()} == {str(os.getpid())}
    assert (progress.done, progress.failed) == (9, 3)


def test_a_worker_that_dies_is_an_error_and_not_a_shard_less() -> None:
    with shown() as progress, pytest.raises(RuntimeError, match="ended with code 7"):
        make_shards(die, ["00000", "00001"], num_workers=2, progress=progress)
