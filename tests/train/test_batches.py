"""Reading ahead: the same batches by a thread and by workers, which end with their training."""

import math
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tarkit.errors import UserError
from tarkit.train.batch_workers import BatchPart, read_part, without_networks
from tarkit.train.batches import step_batches
from tarkit.train.mllm import MllmTask
from tarkit.train.task import MakesPasses
from tests.train import test_ar_dtok, test_encoder, test_mllm, test_tokenizer, test_vqvae
from tests.train.numbers_task import CONFIG, Numbers, die, refuse, stumble


def steps_of(
    task: Any, *, workers: int, rank: int = 0, world: int = 1, rows: int = 2, first: int = 0
) -> list[tuple[int, list[tuple[Any, float]]]]:
    processes: Any = SimpleNamespace(rank=rank, world=world, device=torch.device("cpu"))
    config = CONFIG.model_copy(update={"workers": workers})
    return list(step_batches(task, config, processes, first=first, rows=rows))


def rows_of(steps: list[tuple[int, list[tuple[Any, float]]]]) -> list[list[int]]:
    return [[i for batch, _ in batches for i in batch["row"].tolist()] for _, batches in steps]


def test_a_thread_reads_the_rows_of_each_step_for_each_process() -> None:
    whole = rows_of(steps_of(Numbers(), workers=0))
    assert whole == [list(range(4 * step, 4 * step + 4)) for step in range(5)]
    ranks = [rows_of(steps_of(Numbers(), workers=0, rank=r, world=2, rows=1)) for r in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole
    assert rows_of(steps_of(Numbers(), workers=0, first=3)) == whole[3:]


def test_workers_bring_the_same_batches_in_order() -> None:
    by_thread, by_workers = (steps_of(Numbers(), workers=n, first=1) for n in (0, 2))
    assert [step for step, _ in by_workers] == [1, 2, 3, 4]
    for (_, expected), (_, batches) in zip(by_thread, by_workers, strict=True):
        for (a, a_weight), (b, b_weight) in zip(expected, batches, strict=True):
            assert torch.equal(a["row"], b["row"]) and torch.equal(a["noise"], b["noise"])
            assert a_weight == b_weight
            assert b["threads"] == 1  # of each worker


@pytest.mark.slow
def test_a_workers_refusal_is_the_same_sentence() -> None:
    for workers in (0, 1):
        with pytest.raises(UserError) as error:
            steps_of(Numbers(fault=refuse), workers=workers, first=3)
        assert error.value.message == "row 7 of step 3 is torn"
        assert error.value.hint == "tarkit inspect it"


@pytest.mark.slow
def test_what_else_goes_wrong_in_a_worker_is_named() -> None:
    with pytest.raises(ZeroDivisionError, match="at step 3"):
        steps_of(Numbers(fault=stumble), workers=1, first=3)
    with pytest.raises(UserError, match=r"a worker process that read batches has ended") as error:
        steps_of(Numbers(fault=die), workers=1, first=3)
    assert "workers=0" in error.value.hint
    with pytest.raises(UserError, match="cannot read in worker processes") as error:
        steps_of(Numbers(fault=lambda step: None), workers=1)
    assert error.value.hint == "--set workers=0"


SCRIPT = """
import sys, time
from types import SimpleNamespace
import torch
from tests.train.numbers_task import CONFIG, Numbers
from tarkit.train.batches import step_batches

if __name__ == "__main__":
    processes = SimpleNamespace(rank=0, world=1, device=torch.device("cpu"))
    config = CONFIG.model_copy(update={"workers": 2, "steps": 10**6})
    try:
        for step, _ in step_batches(Numbers(), config, processes, first=0, rows=2):
            if step == 3:
                print("reading", flush=True)
            time.sleep(0.05)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def children(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    parents = {int(s.split()[0]): int(s.rpartition(")")[2].split()[1]) for s in stats}
    own = [child for child, parent in parents.items() if parent == pid]
    return own + [grandchild for child in own for grandchild in children(child)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_training(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "reads.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    with subprocess.Popen(
        [sys.executable, str(script)], env=environment, cwd=root, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    ) as training:  # fmt: skip
        assert training.stdout is not None and training.stdout.readline() == "reading\n"
        workers = children(training.pid)
        assert len(workers) >= 2
        if number == signal.SIGINT:  # a terminal sends it to all of them
            os.killpg(training.pid, number)
        else:
            training.kill()
        _, errors = training.communicate(timeout=60)
        assert training.returncode == (130 if number == signal.SIGINT else -number)
        assert "Traceback" not in errors
    ends = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers):
        assert time.monotonic() < ends, "a worker is still there"
        time.sleep(0.1)


# ---- the trainings


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in a batch, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for part in value for t in tensors(part)] if isinstance(value, list | tuple) else []


def tasks(pictures: Path, chats: Path, models: dict[str, Path]) -> dict[str, Any]:
    return {
        "vqvae": test_vqvae.task(pictures),
        "encoder": test_encoder.task(pictures, grounding=1.0),
        "tokenizer": test_tokenizer.task(pictures, models),
        "ar_dtok": test_ar_dtok.task(pictures, models),
        "mllm": test_mllm.task(chats, models, models["lm"]),
    }


def test_a_worker_gets_no_network_and_makes_the_same_batches(
    pictures: Path, chats: Path, models: dict[str, Path]
) -> None:
    for name, task in tasks(pictures, chats, models).items():
        pickled = without_networks(task)
        assert len(pickled) < 100_000, name
        copy = pickle.loads(pickled)
        for part in (BatchPart(0, 4, 0, 1), BatchPart(7, 2, 1, 2)):
            expected, read = tensors(read_part(task, part)), tensors(read_part(copy, part))
            assert len(expected) == len(read) > 0, name
            assert all(torch.equal(a, b) for a, b in zip(expected, read, strict=True)), name


# ---- passes of packed chats


def chats_of(task: MllmTask, **changes: Any) -> Any:
    task.config = task.config.model_copy(update=changes)
    return task


def test_the_packs_of_a_step_are_the_same_for_any_split(
    chats: Path, models: dict[str, Path]
) -> None:
    made = test_mllm.task(chats, models, models["lm"])
    whole = made.batch(3, 12, 0, 1)
    num_rows = len(whole.ids)
    assert num_rows > 2
    for parts in (2, 3, 4, 6, 12):
        shares = [made.batch(3, 12 // parts, part, parts) for part in range(parts)]
        for tensor, expected in zip(zip(*shares, strict=True), whole, strict=True):
            # A part without a row has one of padding, which is narrower.
            rows = [row for row in tensor if row.shape[1] == expected.shape[1]]
            assert torch.equal(torch.cat(rows), expected)
        sizes = [int((share.chats >= 0).any(1).sum()) for share in shares]
        assert sum(sizes) == num_rows and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_pass_holds_as_many_packed_rows_as_fit(
    chats: Path, models: dict[str, Path], world: int
) -> None:
    made = test_mllm.task(chats, models, models["lm"], micro_batch_tokens=300)  # 2 rows of 128
    assert isinstance(made, MakesPasses)
    for step in range(4):
        whole = made.batch(step, 24, 0, 1)
        ranks = [made.passes(step, 24 // world, rank, world) for rank in range(world)]
        # Rows per process, rounded up, in passes of two; every process takes as many.
        num_passes = math.ceil(math.ceil(len(whole.ids) / world) / 2)
        assert [len(passes) for passes in ranks] == [num_passes] * world
        every_pass = [p for passes in ranks for p in passes]
        assert max(len(p.ids) for p in every_pass) <= 2
        rows = [p.ids for p in every_pass if bool((p.chats >= 0).any())]
        assert torch.equal(torch.cat(rows), whole.ids)
