"""Checkpoints: whole or not at all, the last few kept, bad ones passed over, old ones read."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tarkit.artifacts.digests import file_sha256
from tarkit.artifacts.manifest import MANIFEST
from tarkit.errors import UserError
from tarkit.train.came import Came
from tarkit.train.loop import train
from tarkit.train.loop_config import LoopConfig
from tarkit.train.state import Checkpoints, checkpoints_in


class Tied(nn.Module):
    """A table that is also the head, a matrix that is frozen, and one without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(5, 4)
        self.middle = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("count", torch.tensor(3))

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.frozen(self.middle(self.table(ids))))
        return out


def optimizers_of(model: Tied, kind: str) -> list[torch.optim.Optimizer]:
    trained = [p for p in model.parameters() if p.requires_grad]
    if kind == "came":
        return [Came(trained, lr=0.1)]
    if kind == "muon":
        hidden = [model.middle.weight, model.unused.weight]
        rest = [p for p in trained if all(p is not h for h in hidden)]
        return [torch.optim.AdamW(rest, lr=0.1), torch.optim.Muon(hidden, lr=0.1)]
    return [torch.optim.AdamW(trained, lr=0.1)]


def take_steps(model: Tied, optimizers: list[torch.optim.Optimizer], first: int, end: int) -> None:
    for step in range(first, end):
        ids = torch.tensor([0, step % 5])
        nn.functional.cross_entropy(model(ids), ids).backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.1
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["adamw", "came", "muon"])
def test_a_loaded_state_goes_on_as_the_one_that_was_saved(tmp_path: Path, kind: str) -> None:
    model = Tied()
    optimizers = optimizers_of(model, kind)
    checkpoints = Checkpoints(tmp_path, model, keep=2)
    take_steps(model, optimizers, 0, 3)
    checkpoints.save(3, optimizers)
    take_steps(model, optimizers, 3, 6)  # while the thread writes what was there after three
    checkpoints.settle()

    other = Tied()
    nn.init.ones_(other.middle.weight)
    others = optimizers_of(other, kind)
    assert Checkpoints(tmp_path, other, keep=2).load(others) == 3
    assert other.head.weight is other.table.weight
    # A parameter that had no gradient has no state, as before.
    assert all(other.unused.weight not in optimizer.state for optimizer in others)
    take_steps(other, others, 3, 6)
    for name, values in model.state_dict().items():
        assert torch.equal(values, other.state_dict()[name]), name


class Mean(torch.optim.Optimizer):
    """Keeps the mean of the weights of all steps, from the start, and changes none."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.0, "steps": 0})
        for weight in self.param_groups[0]["params"]:
            self.state[weight] = {"mean": weight.detach().clone()}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        (group,) = self.param_groups
        group["steps"] += 1
        for weight in group["params"]:
            self.state[weight]["mean"].lerp_(weight, 1 / group["steps"])


def test_an_optimizer_may_begin_with_a_state_and_count_its_steps(tmp_path: Path) -> None:
    def made() -> tuple[Tied, list[torch.optim.Optimizer]]:
        model = Tied()
        trained = [p for p in model.parameters() if p.requires_grad]
        return model, [torch.optim.AdamW(trained, lr=0.1), Mean(trained)]

    model, optimizers = made()
    take_steps(model, optimizers, 0, 3)
    checkpoints = Checkpoints(tmp_path, model, keep=2)
    checkpoints.save(3, optimizers)
    checkpoints.settle()
    other, others = made()
    assert Checkpoints(tmp_path, other, keep=2).load(others) == 3
    assert others[1].param_groups[0]["steps"] == 3
    take_steps(model, optimizers, 3, 6)
    take_steps(other, others, 3, 6)
    pairs = zip(optimizers[1].state.values(), others[1].state.values(), strict=True)
    assert all(torch.equal(one["mean"], two["mean"]) for one, two in pairs)


def state_of(out: Path) -> list[str]:
    return [path.name for path in checkpoints_in(out)]


def test_the_last_few_checkpoints_are_kept(tmp_path: Path) -> None:
    model = Tied()
    checkpoints = Checkpoints(tmp_path, model, keep=2)
    for done in (5, 10, 15):
        checkpoints.save(done, [], {"taken": 7.0})
    # The third is named when it is settled, and the first goes only then.
    assert state_of(tmp_path) == ["step-0000010", "step-0000005"]
    assert checkpoints.latest == tmp_path / "step-0000010"
    checkpoints.settle()
    assert state_of(tmp_path) == ["step-0000015", "step-0000010"]
    state = json.loads((tmp_path / "step-0000015/state.json").read_text())
    (file,) = (tmp_path / "step-0000015").glob("*.safetensors")
    sizes = {file.name: file.stat().st_size}
    rest = {"counters": {"taken": 7.0}, "group_steps": []}
    assert len(state.pop("state_sha256")) == 64
    assert state.pop("sha256") == {file.name: file_sha256(file)}
    assert state == {"step": 15, "processes": 1, "files": sizes, **rest}
    again = Checkpoints(tmp_path, model, keep=2)
    assert again.load([]) == 15 and again.counters == {"taken": 7.0}
    checkpoints.clear()
    assert list(tmp_path.iterdir()) == []


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def spoil(file: Path) -> None:
    """Write one number that is not finite into a file that is otherwise right."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    tensors["model.middle.weight"][2, 1] = float("inf")
    save_file(tensors, file, metadata)
    forget(file)


def forget(file: Path) -> None:
    """Remove the sha256 from a checkpoint, as older versions wrote it."""
    place = file.parent / "state.json"
    state = json.loads(place.read_text())
    del state["sha256"], state["state_sha256"]
    place.write_text(json.dumps(state | {"files": {file.name: file.stat().st_size}}))


def flip_a_bit(file: Path) -> None:
    """The lowest bit of the last number: another model, and nothing else shows it."""
    data = bytearray(file.read_bytes())
    data[-4] ^= 1
    file.write_bytes(data)


def set_step(value: Any) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        place = file.parent / "state.json"
        place.write_text(json.dumps(json.loads(place.read_text()) | {"step": value}))

    return write


def rename_a_tensor(file: Path) -> None:
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    (key,) = (key for key in metadata if "SHARDING" in key)
    sharding = json.loads(metadata[key])
    tensors = load_file(file)
    tensors["model.muddle.weight"] = tensors.pop("model.middle.weight")
    sharding["model.muddle.weight"] = sharding.pop("model.middle.weight")
    save_file(tensors, file, metadata | {key: json.dumps(sharding)})
    forget(file)


DAMAGES: dict[str, tuple[Any, str]] = {
    "cut": (cut, "is damaged: shard-.* has .* bytes, and had"),
    "gone": (lambda file: file.unlink(), "is damaged: .*No such file"),
    "bytes": (lambda file: file.write_bytes(bytes(file.stat().st_size)), "is damaged: "),
    "no state": (lambda file: (file.parent / "state.json").unlink(), "is damaged: .*No such file"),
    "a bit": (flip_a_bit, "is damaged: shard-.* has another sha256 than state.json records"),
    "no number": (set_step("x"), "is damaged: state.json is not as a training wrote it"),
    "another step": (set_step(3), "is damaged: state.json is not as a training wrote it"),
    "half a state": (lambda file: (file.parent / "state.json").write_text('{"st'), "is damaged: "),
    "not finite": (spoil, "holds numbers that are not finite: model.middle.weight"),
    "other": (rename_a_tensor, "is of another model: it lacks model.middle.weight"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_bad_checkpoint_is_passed_over(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage, reason = DAMAGES[name]
    model = Tied()
    optimizers = optimizers_of(model, "adamw")
    checkpoints = Checkpoints(tmp_path, model, keep=2)
    for done in (1, 2):
        take_steps(model, optimizers, done - 1, done)
        checkpoints.save(done, optimizers)
    checkpoints.settle()
    (file,) = (tmp_path / "step-0000002").glob("*.safetensors")
    damage(file)

    other = Tied()
    others = optimizers_of(other, "adamw")
    resumed = Checkpoints(tmp_path, other, keep=1)
    with caplog.at_level(logging.WARNING, "tarkit"):
        assert resumed.load(others) == 1
    (line,) = (record.message for record in caplog.records if record.name == "tarkit")
    assert line.startswith(f"{tmp_path}/step-0000002 ")
    assert line.endswith(f"; {tmp_path}/step-0000001 is resumed from instead")
    assert re.search(reason, line)
    take_steps(other, others, 1, 2)
    for key, values in model.state_dict().items():
        assert torch.equal(values, other.state_dict()[key])
    # What was passed over gives way to the step taken again.
    resumed.save(2, others)
    resumed.settle()
    assert state_of(tmp_path) == ["step-0000002"]
    assert Checkpoints(tmp_path, other, keep=1).load(others) == 2


def test_a_run_without_a_usable_checkpoint_does_not_begin_again(tmp_path: Path) -> None:
    model = Tied()
    checkpoints = Checkpoints(tmp_path, model, keep=2)
    for done in (1, 2):
        checkpoints.save(done, [])
    checkpoints.settle()
    for file in tmp_path.glob("step-*/*.safetensors"):
        cut(file)
    with pytest.raises(UserError, match="step-0000002 is damaged: .*step-0000001 is dam") as error:
        Checkpoints(tmp_path, model, keep=2).load([])
    assert error.value.hint == (
        f"give another --out, or remove {tmp_path} to begin again at step 0"
    )
    assert len(state_of(tmp_path)) == 2


def test_what_a_killed_process_has_half_written_goes(tmp_path: Path) -> None:
    model = Tied()
    checkpoints = Checkpoints(tmp_path, model, keep=2)
    checkpoints.save(1, [])
    checkpoints.settle()
    (tmp_path / ".step-0000002.tmp").mkdir()
    (tmp_path / ".step-0000002.tmp/shard-00001-model-00001-of-00001.safetensors").touch()
    assert Checkpoints(tmp_path, model, keep=2).load([]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]


def test_a_checkpoint_that_cannot_be_written_stops_the_training(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "state", Tied(), keep=2)
    checkpoints.save(1, [])
    checkpoints.settle()
    (tmp_path / "state/.step-0000002.tmp").touch()  # a file where the folder should be
    checkpoints.save(2, [])
    with pytest.raises(UserError, match="the checkpoint after step 2 could not be") as error:
        checkpoints.settle()
    assert error.value.hint.endswith(f"resumes from {tmp_path}/state/step-0000001")
    assert checkpoints.latest == tmp_path / "state/step-0000001"


# ---- in a training


class Fit:
    """Fits `Tied` to numbers of the step."""

    unused_parameters = True

    def __init__(self, stop: int = -1) -> None:
        self.model = Tied()
        self.stop = stop
        self.steps: list[int] = []
        self.finished = 0

    def batch(self, step: int, size: int, part: int, parts: int) -> Tensor:
        return (torch.arange(size * parts) + step)[part * size : (part + 1) * size] % 5

    def weight(self, batch: Tensor) -> float:
        return len(batch)

    def loss(self, model: nn.Module, batch: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        if step == self.stop:
            raise KeyboardInterrupt
        self.steps.append(step)
        return nn.functional.cross_entropy(model(batch), batch), {}

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        return {}

    def samples(self, step: int) -> None:
        return None

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        self.finished += 1
        return self.model, {"kind": "tied", "arch": {}}


SETTINGS = {"steps": 6, "batch_size": 4, "learning_rate": 0.1, "checkpoint_every": 2}


def fit(out: Path, task: Fit | None = None, *, start_option: str = "", **changes: Any) -> Fit:
    task = task or Fit()
    config = LoopConfig.model_validate(SETTINGS | changes)
    train(task, config, out=out, name="tied", parents={}, start_option=start_option)
    return task


def stopped(out: Path, at: int, **changes: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(out, Fit(at), **changes)


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def test_a_run_of_an_older_version_is_resumed(tmp_path: Path) -> None:
    fit(tmp_path / "whole")
    out = tmp_path / "old"
    # What the older version wrote: every setting in the manifest, and one file of two steps.
    stopped(out, 0)
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["settings"] |= {"log_every": 50, "checkpoint_every": 2, "sample_every": 1000}
    manifest["settings"] |= {"keep_every": None}
    (out / MANIFEST).write_text(json.dumps(manifest))
    stopped(tmp_path / "two", 2)
    model = Tied()
    groups = [[p for p in model.parameters() if p.requires_grad and p.dim() == 2]]
    groups.append([p for p in model.parameters() if p.requires_grad and p.dim() == 1])
    optimizer = torch.optim.AdamW(
        [{"params": group, "weight_decay": 0.0} for group in groups], lr=0.1, betas=(0.9, 0.95)
    )
    for group in optimizer.param_groups:
        group["base_lr"] = 0.1
    Checkpoints(tmp_path / "two/state", model, keep=2).load([optimizer])
    old = {"step": 2, "model": model.state_dict(), "optimizers": [optimizer.state_dict()]}
    (out / "state").mkdir(exist_ok=True)
    torch.save(old, out / "state/checkpoint.pt")

    assert fit(out, log_every=1).steps == [2, 3, 4, 5]
    assert weights(out) == weights(tmp_path / "whole")
    assert list((out / "state").iterdir()) == []


def test_the_old_checkpoint_goes_when_enough_new_ones_are_there(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").touch()
    checkpoints = Checkpoints(tmp_path, Tied(), keep=2)
    for done, left in (
        (3, ["step-0000003", "checkpoint.pt"]),
        (4, ["step-0000004", "step-0000003"]),
    ):
        checkpoints.save(done, [])
        checkpoints.settle()
        assert state_of(tmp_path) == left


def test_settings_that_change_no_result_may_change_in_a_run(tmp_path: Path) -> None:
    fit(tmp_path / "whole")
    out = tmp_path / "out"
    stopped(out, 3)
    free: dict[str, Any] = {
        "log_every": 1,
        "checkpoint_every": 3,
        "keep_checkpoints": 1,
        "sample_every": 2,
    }
    free |= {"keep_every": 4, "micro_batch_size": 2}
    assert free.keys() <= LoopConfig.free_keys()
    assert fit(out, **free).steps == [2, 2, 3, 3, 4, 4, 5, 5]
    assert (out / "steps/0000004/model.safetensors").exists()
    # Micro-batches are the same but for rounding.
    model, expected = (load_file(f / "model.safetensors") for f in (out, tmp_path / "whole"))
    assert all(torch.allclose(model[name], expected[name], atol=1e-6) for name in expected)
    # The manifest holds what decides the result, run.toml what the last start was told.
    assert not json.loads((out / MANIFEST).read_text())["settings"].keys() & free.keys()
    assert "checkpoint_every = 3" in (out / "run.toml").read_text()


def test_settings_that_decide_the_result_are_refused_with_what_to_do(tmp_path: Path) -> None:
    stopped(tmp_path, 5, keep_every=2)
    with pytest.raises(UserError, match="learning_rate: 0.1 there, 0.2 now.*another") as error:
        fit(tmp_path, learning_rate=0.2, log_every=1)
    assert "log_every" not in error.value.message
    keys = ", ".join(sorted(LoopConfig.free_keys()))
    assert error.value.hint == f"keys that may change in a run: {keys}"
    with pytest.raises(UserError) as error:
        fit(tmp_path, learning_rate=0.2, start_option="--lm")
    assert f"--out ANOTHER --lm {tmp_path}/steps/0000004 " in error.value.hint


def test_a_run_killed_after_its_last_step_only_finishes(tmp_path: Path) -> None:
    class Dies(Fit):
        def finish(self) -> tuple[nn.Module, dict[str, Any]]:
            raise MemoryError

    with pytest.raises(MemoryError):
        fit(tmp_path, Dies())
    assert state_of(tmp_path / "state")[0] == "step-0000006"
    again = fit(tmp_path)
    assert again.steps == [] and again.finished == 1
    fit(tmp_path / "whole")
    assert weights(tmp_path) == weights(tmp_path / "whole")


def test_a_model_that_was_to_be_kept_when_the_run_was_killed_is_kept(tmp_path: Path) -> None:
    class Dies(Fit):
        def finish(self) -> tuple[nn.Module, dict[str, Any]]:
            raise MemoryError

    with pytest.raises(MemoryError):
        fit(tmp_path, Dies(), keep_every=4)
    assert not (tmp_path / "steps/0000004/model.safetensors").exists()
    fit(tmp_path, keep_every=4)
    fit(tmp_path / "whole", keep_every=4)
    assert weights(tmp_path / "steps/0000004") == weights(tmp_path / "whole/steps/0000004")
