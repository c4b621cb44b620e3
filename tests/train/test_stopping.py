"""A training that is stopped by a signal or killed goes on as if nothing had happened.

The trainings run in processes of their own, which a server forks that has imported torch already.
"""

import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tarkit.cli.command import guarded
from tarkit.train.loop import begin_training, train
from tarkit.train.loop_config import LoopConfig
from tarkit.train.metrics import OF_THE_MACHINE
from tarkit.train.processes import num_processes
from tarkit.train.state import Checkpoints, checkpoints_in

NUM_KILLS = int(os.environ.get("KILLS", "50"))
SETTINGS = {"steps": 40, "batch_size": 4, "learning_rate": 0.01, "log_every": 1}
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [__name__, "accelerate", "torch._dynamo", "torch.distributed.fsdp", "torch.utils.tensorboard"]
)


class Slow:
    """Fits rows that the step decides; a step and the last measures take their time."""

    unused_parameters = False

    def __init__(self, out: Path, pause_s: float) -> None:
        self.model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
        self.out = out
        self.pause_s = pause_s

    def batch(self, step: int, size: int, part: int, parts: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        rows = torch.rand(size * parts, 4, generator=generator)
        return rows[part * size : (part + 1) * size]

    def weight(self, batch: Tensor) -> float:
        return len(batch)

    def loss(self, model: nn.Module, batch: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        with self.out.with_suffix(".steps").open("a") as file:
            file.write(".")
        time.sleep(self.pause_s)
        loss = (model(batch).squeeze(1) - batch.prod(1)).pow(2).mean()
        return loss, {"rows": float(batch.double().mean())}

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        return {}

    def samples(self, step: int) -> None:
        return None

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        self.out.with_suffix(".finishing").touch()
        time.sleep(5 * self.pause_s)
        return self.model, {"kind": "slow", "arch": {}}


class Way(NamedTuple):
    """Which processes train together, and how they share the model."""

    world: int
    sharding: Literal["none", "full"] = "none"


ONE, DDP, FSDP2 = Way(1), Way(2), Way(2, "full")
NAMES = {ONE: "1", DDP: "2", FSDP2: "FSDP2"}
PLACES = ("training", "writing", "finishing")
CHANGES = {"2 -> 1", "1 -> 2", "FSDP2 -> 1", "1 -> FSDP2"}


def trained(out: Path, pause_s: float, every: int, way: Way, environment: dict[str, str]) -> None:
    """What a training process does, as the command line would."""
    os.environ.update(environment)
    sys.stderr = out.with_suffix(f".{environment.get('RANK', 0)}.err").open("w")
    begin_training(0)
    task = Slow(out, pause_s)
    config = LoopConfig.model_validate(
        SETTINGS | {"checkpoint_every": every, "sharding": way.sharding}
    )

    def run() -> int:
        out.with_suffix(".begun").touch()
        train(task, config, out=out, name="slow", parents={})
        return 0

    sys.exit(guarded(run, ["train"]))


def environments(world: int) -> list[dict[str, str]]:
    """What torchrun would set in each process."""
    if world == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**common, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(world)]


def start(out: Path, way: Way = ONE, *, pause_s: float = 0.0, every: int = 7) -> list[Any]:
    """The processes of a training."""
    for suffix in (".steps", ".begun", ".finishing"):
        out.with_suffix(suffix).unlink(missing_ok=True)
    processes = [
        FORKED.Process(target=trained, args=(out, pause_s, every, way, environment))
        for environment in environments(way.world)
    ]
    for process in processes:
        process.start()
    return processes


def join(processes: Sequence[ForkServerProcess]) -> list[int | None]:
    """How the processes ended; those that hang are killed, which is no ending that is expected."""
    for process in processes:
        process.join(300)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def wait_for(condition: Any, processes: Sequence[ForkServerProcess]) -> None:
    end = time.monotonic() + 300
    while not condition() and all(process.is_alive() for process in processes):
        assert time.monotonic() < end
        time.sleep(0.001)


def log_of(out: Path) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text().splitlines() if out.exists() else []
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if not OF_THE_MACHINE.search(k)} for row in rows]


def num_steps(out: Path) -> int:
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def size_of(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def step_of(out: Path) -> int:
    """The step of the newest checkpoint."""
    return int(checkpoints_in(out / "state")[0].name.removeprefix("step-"))


def require_equal(out: Path, whole: Path, *, to: float = 0.0) -> None:
    """The rows read, the figures logged and the final weights are those of the whole run."""
    logs = log_of(out), log_of(whole)
    assert [row["step"] for row in logs[0]] == list(range(1, 41))
    for row, expected in zip(*logs, strict=True):
        assert row == pytest.approx(expected, abs=to, rel=to)
    model, expected = (load_file(folder / "model.safetensors") for folder in (out, whole))
    for name, values in expected.items():
        assert torch.allclose(model[name], values, atol=to, rtol=0), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert join(start(out)) == [0]
    return out


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_in_progress(
    tmp_path: Path, whole: Path, number: int, status: int
) -> None:
    out = tmp_path / "out"
    (process,) = start(out, pause_s=0.05, every=1000)
    wait_for(lambda: num_steps(out) >= 3, [process])
    os.kill(process.pid, number)
    assert join([process]) == [status]
    done = num_steps(out)
    assert done < 40 and step_of(out) == done
    error = out.with_suffix(".0.err").read_text()
    if status == 0:
        assert f"stopped after step {done}; the same command goes on from here\n" in error
    else:
        assert f"saved after step {done}\n" in error
        assert "stopped; the same command continues from here:\ntarkit train" in error
    assert join(start(out)) == [0]
    require_equal(out, whole)


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (process,) = start(out, pause_s=5, every=1)
    wait_for(out.with_suffix(".steps").exists, [process])
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)  # the same press, passed on by torchrun
    time.sleep(1)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    assert join([process]) == [130]
    assert num_steps(out) == 0 and not checkpoints_in(out / "state")


def test_a_signal_after_the_last_step_ends_at_once_and_loses_nothing(
    tmp_path: Path, whole: Path
) -> None:
    out = tmp_path / "out"
    (process,) = start(out, pause_s=0.05, every=1000)
    wait_for(out.with_suffix(".finishing").exists, [process])
    os.kill(process.pid, signal.SIGTERM)
    assert join([process]) == [0]
    assert step_of(out) == 40 and not (out / "model.safetensors").exists()
    assert join(start(out)) == [0]
    require_equal(out, whole)


def test_processes_that_share_a_training_stop_after_the_same_step(
    tmp_path: Path, whole: Path
) -> None:
    # Two processes, of which only the second is told; then one, and then two again.
    out = tmp_path / "out"
    pair = start(out, DDP, pause_s=0.05, every=1000)
    wait_for(lambda: num_steps(out) >= 3, pair)
    os.kill(pair[1].pid, signal.SIGTERM)
    assert join(pair) == [0, 0]
    first = step_of(out)
    assert first == num_steps(out) < 40
    (process,) = start(out, pause_s=0.05, every=1000)
    wait_for(lambda: num_steps(out) >= first + 3, [process])
    os.kill(process.pid, signal.SIGTERM)
    assert join([process]) == [0]
    assert first + 3 <= step_of(out) < 40
    assert join(start(out, DDP)) == [0, 0]
    require_equal(out, whole, to=1e-5)


def killed(out: Path, rng: random.Random, *, ways: Sequence[Way]) -> Counter[str]:
    """Train to the end with kills at random instants; how many there were, by where they came.

    Each start is in one of the ways, and counted by the one before it, from which it goes on.
    """
    places: Counter[str] = Counter()
    before: Way | None = None
    steps, finishing = out.with_suffix(".steps"), out.with_suffix(".finishing")
    while not (out / "model.safetensors").exists():
        way = rng.choice(ways)
        if before and way != before and checkpoints_in(out / "state"):
            places[f"{NAMES[before]} -> {NAMES[way]}"] += 1
        before = way
        processes = start(out, way, pause_s=0.004, every=3)
        wait_for(out.with_suffix(".begun").exists, processes)
        # After some of its own steps, so that the runs advance however slow the machine is.
        count = rng.randint(0, 14)
        wait_for(lambda: finishing.exists() or size_of(steps) >= count, processes)  # noqa: B023
        if finishing.exists() and rng.random() < 0.7:
            join(processes)
            continue
        time.sleep(rng.uniform(0, 0.05))
        number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        alive = [process for process in processes if process.is_alive()]
        for process in alive:
            os.kill(process.pid, number)
        join(processes)
        if alive:
            writing = any((out / "state").glob(".step-*.tmp"))
            place = "finishing" if finishing.exists() else "writing" if writing else "training"
            places[place] += 1
    return places


def test_kills_at_random_instants_change_nothing(tmp_path: Path, whole: Path) -> None:
    places = killed(tmp_path / "out", random.Random(0), ways=[ONE])
    assert places.total() >= 2
    require_equal(tmp_path / "out", whole)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_kills_of_one_process_and_of_two_change_nothing(tmp_path: Path, whole: Path) -> None:
    rng = random.Random(1)
    places: Counter[str] = Counter()
    runs = 0
    while sum(places[place] for place in PLACES) < NUM_KILLS or not CHANGES <= places.keys():
        ways = [ONE] if runs % 3 == 2 else [ONE, DDP, FSDP2]
        out = tmp_path / f"out_{runs}"
        places += killed(out, rng, ways=ways)
        require_equal(out, whole, to=0.0 if ways == [ONE] else 1e-5)
        runs += 1
    kills = sum(places[place] for place in PLACES)
    print(f"{kills} kills of {runs} runs ({dict(places)}): rows, figures and weights equal")


# ---- shards


def sharded(folder: Path, environment: dict[str, str], first: int, end: int, shards: bool) -> None:
    """Take steps, after those of a checkpoint, and write the next."""
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    os.environ.update(environment)
    if environment:
        distributed.init_process_group("gloo")
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    if shards:
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    checkpoints = Checkpoints(folder, model, keep=9)
    assert checkpoints.load([optimizer]) == first
    for step in range(first, end):
        optimizer.param_groups[0]["lr"] = 0.1
        # Every process reads the same rows: half of twice the gradient is the gradient.
        rows = torch.rand(4, 5, generator=torch.Generator().manual_seed(step))
        model(rows).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    checkpoints.save(end, [optimizer])
    checkpoints.settle()
    if environment:
        assert num_processes() == int(environment["WORLD_SIZE"])
        distributed.destroy_process_group()


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """Model and optimizer of the newest checkpoint, read by one process."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    assert Checkpoints(folder, model, keep=9).load([optimizer]) == 6
    states = {
        f"{number}.{key}": value
        for number, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }
    return model.state_dict() | states


def test_shards_of_two_processes_and_the_whole_of_one_are_read_as_each_other(
    tmp_path: Path,
) -> None:
    def steps(name: str, first: int, end: int, *, world: int) -> None:
        processes = [
            FORKED.Process(target=sharded, args=(tmp_path / name, each, first, end, world > 1))
            for each in environments(world)
        ]
        for process in processes:
            process.start()
        assert join(processes) == [0] * world

    steps("one", 0, 6, world=1)
    steps("from_shards", 0, 3, world=2)
    # Of the matrices' 6 and 3 rows, the first has 3 and 2 and the second 3 and 1.
    names = [file.name for file in (tmp_path / "from_shards/step-0000003").glob("*.safetensors")]
    assert sorted(name[:11] for name in names) == ["shard-00001", "shard-00002"]
    steps("from_shards", 3, 6, world=1)
    steps("to_shards", 0, 3, world=1)
    steps("to_shards", 3, 6, world=2)
    expected = tensors_in(tmp_path / "one")
    assert len(expected) == 4 + 3 * 4
    for name in ("from_shards", "to_shards"):
        tensors = tensors_in(tmp_path / name)
        assert tensors.keys() == expected.keys()
        for key, values in expected.items():
            assert torch.equal(tensors[key], values), (name, key)
