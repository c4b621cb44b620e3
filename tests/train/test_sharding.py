"""Sharded training: two processes that each hold a part do what one process does alone.

Run by torchrun as a module, it does the checks named on its command line in each process.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.testing import assert_close

from tarkit.config import load_config
from tarkit.errors import UserError
from tarkit.train.guard import Guard
from tarkit.train.launch import join_processes
from tarkit.train.loop_config import LoopConfig
from tarkit.train.optimizers import make_optimizers, weight_rms
from tarkit.train.parallelism import Parallelism
from tarkit.train.sharded_tensors import is_split, local, whole, whole_values
from tarkit.train.sharding import FullySharded
from tarkit.train.state import Checkpoints
from tarkit.train.weight_average import averaged_weights

CAME_BETAS = (0.9, 0.999, 0.9999)
ROWS = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(5))


def settings(**changes: Any) -> LoopConfig:
    small = {"steps": 8, "batch_size": 6, "learning_rate": 0.01, "sharding": "full"}
    return LoopConfig.model_validate(small | changes)


class Block(nn.Module):
    """Shapes that two processes cannot halve, and one with a single row."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, 7)
        self.down = nn.Linear(7, 5)
        self.gain = nn.Parameter(torch.ones(1, 5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(self.up(x).tanh()) * self.gain
        return out


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 5, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.unused = nn.Linear(3, 3)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(1)
        for block in self.blocks:
            x = block(x)
        out: Tensor = (self.frozen(x) * self.scale).pow(2).mean()
        return out


def train_alone(net: Net, config: LoopConfig, steps: range, optimizers: list[Any]) -> list[float]:
    """Steps of one process on all rows; norms of the gradients."""
    norms = []
    for _ in steps:
        net(ROWS.to(net.scale.dtype)).backward()
        norms.append(float(nn.utils.clip_grad_norm_(net.parameters(), config.clip)))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return norms


def train_shared(shared: Parallelism, steps: range, optimizers: list[Any]) -> list[float]:
    """The same steps on this process's half of the rows, row by row."""
    norms = []
    for _ in steps:
        mine = ROWS[shared.rank * 3 : shared.rank * 3 + 3].to(torch.get_default_dtype())
        for number, row in enumerate(mine.split(1), 1):
            with shared.exchange(last=number == 3):
                (shared.model(row) / 3).backward()
        norms.append(shared.clip(shared.config.clip))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return norms


def shared_net(config: LoopConfig) -> Parallelism:
    shared = join_processes(config, unused_parameters=False)
    shared.prepare(Net())
    return shared


def guard_of(shared: Parallelism, folder: Path) -> Guard:
    task: Any = None  # which only names rows
    checkpoints = Checkpoints(folder / "state", shared.trained, keep=1)
    return Guard(task, shared.config, shared.accelerator, checkpoints, out=folder, rows=3)


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"weight_decay": 0.1, "ema": 0.9},
    "came": {"optimizer": "came", "betas": CAME_BETAS, "weight_decay": 0.1},
}


def check_optimizer(name: str, folder: Path) -> None:
    """Weights and norms are those of one process, also after a checkpoint, in either direction.

    In float64: CAME scales the rounding of float32 up to whole steps.
    """
    config = settings(clip=0.5, **OPTIMIZERS[name])
    torch.set_default_dtype(torch.float64)
    alone, state = Net(), folder / name
    optimizers = make_optimizers(alone, config)
    norms = train_alone(alone, config, range(4), optimizers)
    shared = shared_net(config)
    split = make_optimizers(shared.trained, config)
    assert_close(train_shared(shared, range(4), split), norms, rtol=1e-9, atol=0)
    require_equal(shared.trained, alone)
    assert weight_rms(shared.trained) == pytest.approx(weight_rms(alone), rel=1e-12)
    parameters = dict(shared.trained.named_parameters())
    assert [n for n, p in parameters.items() if not is_split(p)] == ["scale"]
    held = {n: local(p).numel() for n, p in parameters.items()}
    assert held["patches.weight"] == (3 if shared.is_main else 2) * 48
    assert held["blocks.0.gain"] == (5 if shared.is_main else 0)

    checkpoints = Checkpoints(state, shared.trained, keep=1)
    checkpoints.save(4, split)
    checkpoints.settle()
    checkpoints.wait_for_all()
    norms = train_alone(alone, config, range(4, 7), optimizers)
    # Two processes save, and one goes on; or two others.
    other = Net()
    others = make_optimizers(other, config)
    assert Checkpoints(state, other, keep=1).load(others) == 4
    assert_close(train_alone(other, config, range(4, 7), others), norms, rtol=1e-9, atol=0)
    require_equal(other, alone)
    again = shared_net(config)
    resumed = make_optimizers(again.trained, config)
    assert Checkpoints(state, again.trained, keep=1).load(resumed) == 4
    assert_close(train_shared(again, range(4, 7), resumed), norms, rtol=1e-9, atol=0)
    require_equal(again.trained, alone)
    with averaged_weights(resumed), averaged_weights(optimizers):
        require_equal(again.trained, alone)
        again.collect()
        if again.is_main:
            require_equal(again.whole, alone)  # type: ignore[attr-defined]


def require_equal(net: nn.Module, alone: nn.Module) -> None:
    expected = alone.state_dict()
    for name, values in net.state_dict().items():
        assert_close(whole(values), expected[name], rtol=0, atol=1e-9, msg=name)


def check_values(name: str, folder: Path) -> None:
    """A weight can be changed whole; one that is not finite is named by both processes."""
    shared = shared_net(settings())
    net: Any = shared.trained
    with whole_values(net.patches.weight) as weights:
        assert weights.shape == (5, 3, 4, 4)
        weights[4] = 7.0
    weights = whole(net.patches.weight)
    assert torch.equal(weights[4], torch.full((3, 4, 4), 7.0))
    assert torch.equal(weights[:4], Net().patches.weight[:4])
    guard = guard_of(shared, folder)
    guard.require_finite_weights(net, 2)
    with whole_values(net.blocks[1].up.weight) as weights:
        weights[0, 0] = torch.inf  # in the part of the main process
    with pytest.raises(UserError, match=r"blocks\.1\.up\.weight after the update of step 3 is inf"):
        guard.require_finite_weights(net, 2)


def check_precision(name: str, folder: Path) -> None:
    """With bf16, blocks alone are computed from bf16 weights; sums and masters are float32."""
    config = settings(precision="bf16")
    shared, seen = shared_net(config), {}

    def look(module: Any, inputs: Any) -> None:
        weight = module.up.weight if isinstance(module, Block) else module.patches.weight
        seen[isinstance(module, Block)] = (weight.dtype, inputs[0].dtype)

    net: Any = shared.trained
    net.register_forward_pre_hook(look)
    net.blocks[0].register_forward_pre_hook(look)
    # Each row alone moves a gradient by less than bf16 tells apart, next to the sum of the others.
    for number, row in enumerate(ROWS.split(1), 1):
        with shared.exchange(last=number == 6), shared.autocast():
            loss = shared.model(row)
        loss.backward()
        # Each pass leaves a part of its gradients alone.
        assert net.blocks[0].up.weight.grad.to_local().shape == (4 if shared.is_main else 3, 5)
    assert seen[True][0] == torch.bfloat16
    assert seen[False][0] == torch.float32
    assert loss.dtype == torch.float32
    for parameter in net.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is None or parameter.grad.dtype == torch.float32
    alone: Any = Net()
    for row in ROWS.split(1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = alone(row)
        loss.backward()
    got, expected = (whole(n.blocks[0].up.weight.grad) for n in (net, alone))
    assert float((got - expected).norm() / expected.norm()) < 0.01
    # A sum in bf16 would have no more than 8 bits.
    assert not torch.equal(got, got.bfloat16().float())


CHECKS = {**dict.fromkeys(OPTIMIZERS, check_optimizer)}
CHECKS |= {"values": check_values, "precision": check_precision}


def test_two_processes_that_hold_halves_do_what_one_does_alone(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--module"]
    plain = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE")}
    done = subprocess.run(
        [sys.executable, *launch, __name__, str(tmp_path), *CHECKS],
        env={**plain, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("right") == 2 * len(CHECKS)


def test_the_whole_model_is_on_the_device_for_as_long_as_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = FullySharded(Accelerator(cpu=True), settings())
    shared.whole = net = Net()
    values = [*net.parameters(), *net.buffers()]
    on_cpu = [value.data_ptr() for value in values]
    rooms = len(values)

    def to(values: Tensor, device: torch.device) -> Tensor:
        """A device with room for some tensors."""
        nonlocal rooms
        if not rooms:
            raise torch.OutOfMemoryError
        rooms -= 1
        return values.clone()

    monkeypatch.setattr(Tensor, "to", to)
    with shared.own_model_on_device() as fits:
        assert fits
        assert not {value.data_ptr() for value in values} & set(on_cpu)
    assert [value.data_ptr() for value in values] == on_cpu
    rooms = 3
    with shared.own_model_on_device() as fits:
        assert not fits
        assert [value.data_ptr() for value in values] == on_cpu
    monkeypatch.undo()
    rows = net(ROWS)
    rows.backward()  # nothing of it has stayed elsewhere


def test_sharding_without_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match="this process was not started by it") as error:
        join_processes(settings(), unused_parameters=False)
    assert "torchrun --nproc-per-node" in str(error.value.hint)


def test_muon_is_refused(tmp_path: Path) -> None:
    numbers = ["steps=1", "batch_size=1", "learning_rate=0.1", "optimizer=muon", "sharding=full"]
    with pytest.raises(UserError, match="Muon orthogonalises whole matrices"):
        load_config(LoopConfig, None, numbers)


def main(folder: Path, *names: str) -> None:
    for name in names:
        torch.set_default_dtype(torch.float32)
        AcceleratorState._reset_state()  # it holds the precision of the first
        CHECKS[name](name, folder)
        print(f"{name} right", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
