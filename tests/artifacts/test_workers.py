import functools
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tarkit.artifacts.workers import (
    WINDOW,
    Report,
    default_readers,
    make_shards,
    mapping_workers,
)
from tarkit.errors import UserError
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


def widened(number: int) -> tuple[int, bytes]:
    """The process's number, and a result that no pipe holds whole."""
    return os.getpid(), bytes([number]) * 300_000


def dies_at_three(number: int) -> int:
    if number == 3:
        os._exit(7)
    if number == 100:
        raise UserError("a hundred is too many", hint="give fewer")
    return number


def test_workers_map_in_order_and_a_few_arguments_at_a_time() -> None:
    drawn: list[int] = []

    def arguments() -> Iterator[int]:
        for number in range(30):
            drawn.append(number)
            yield number

    with mapping_workers(widened, 2) as mapped:
        results = mapped(arguments())
        makers = set()
        for number in range(30):
            maker, result = next(results)
            makers.add(maker)
            assert result == bytes([number]) * 300_000
            assert len(drawn) <= number + 2 + 2 * WINDOW  # what waits does not fill the memory
        assert next(results, None) is None
        assert len(makers) == 2 and os.getpid() not in makers
        assert [result[:1] for _, result in mapped([7, 8, 9])] == [b"\7", b"\x08", b"\x09"]
    assert not multiprocessing.active_children()
    with mapping_workers(widened, 0) as mapped:
        assert next(mapped([1]))[0] == os.getpid()


def test_a_mapping_worker_that_dies_or_refuses_is_an_error() -> None:
    with (
        mapping_workers(dies_at_three, 2) as mapped,
        pytest.raises(UserError, match="a worker process ended"),
    ):
        list(mapped(range(20)))
    with (
        mapping_workers(dies_at_three, 2) as mapped,
        pytest.raises(UserError, match="a hundred is too many"),
    ):
        list(mapped([1, 2, 100, 4]))


def test_readers_are_for_gpus_and_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert default_readers("cpu") == 0
    assert default_readers("cuda") == 8  # of 15
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_readers("cuda") == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert default_readers("cuda") == 0
