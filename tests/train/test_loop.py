"""The training loop: the rate by hand, resume at every step, what is logged."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from tarkit.errors import UserError
from tarkit.train import ar_dtok, encoder, grpo, loop, mllm, tokenizer, vqvae
from tarkit.train.loop import train
from tarkit.train.loop_config import LoopConfig, rate_factor
from tarkit.train.state import checkpoints_in


def settings(**changes: Any) -> LoopConfig:
    small = {"steps": 8, "batch_size": 4, "learning_rate": 0.1, "checkpoint_every": 3}
    return LoopConfig.model_validate(small | {"log_every": 1} | changes)


# ---- the rate


def test_the_rate_rises_in_a_line_and_falls_by_its_schedule() -> None:
    # Ten steps, two of them warm-up: a half and the whole; then eighths of the way down.
    config = settings(steps=10, warmup=0.2, schedule="linear")
    expected = [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert [rate_factor(config, step) for step in range(10)] == pytest.approx(expected)
    config = settings(steps=10, warmup=0.2, schedule="constant")
    assert [rate_factor(config, step) for step in range(10)] == pytest.approx([0.5] + [1] * 9)
    # The last four of ten steps fall in a line: 4/4, 3/4, 2/4, 1/4.
    config = settings(steps=10, warmup=0.2, schedule="constant", cooldown=0.4)
    expected = [0.5] + [1] * 6 + [3 / 4, 2 / 4, 1 / 4]
    assert [rate_factor(config, step) for step in range(10)] == pytest.approx(expected)
    # As long as it has not begun to fall, the rate does not know how long the run will be.
    assert rate_factor(settings(schedule="constant", cooldown=0.4, warmup=0.0, steps=99), 5) == 1
    config = settings(steps=10, warmup=0.2)
    assert config.schedule == "cosine"
    # Half way down, at step 2 + 4: (1 + cos 90) / 2; a quarter: (1 + cos 45) / 2.
    assert rate_factor(config, 6) == pytest.approx(0.5)
    assert rate_factor(config, 4) == pytest.approx(0.8535534)
    assert rate_factor(settings(warmup=0.0), 0) == 1.0


# ---- training


class Line:
    """Fits a line to noise that is drawn inside the loss, as dropout would."""

    unused_parameters = False

    def __init__(self, *, bad_step: int = -1) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, 1)
        self.bad_step = bad_step
        self.stop = -1
        self.steps: list[int] = []
        self.rates: list[float] = []

    def batch(self, step: int, size: int, part: int, parts: int) -> Tensor:
        return torch.arange(size * 3.0).view(size, 3) / 10 + step

    def weight(self, batch: Tensor) -> float:
        return len(batch)

    def loss(self, model: nn.Module, batch: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        if step == self.stop:
            raise KeyboardInterrupt
        self.steps.append(step)
        loss = (model(batch + torch.randn(batch.shape) * 0.1) - 1).pow(2).mean()
        return loss * (float("nan") if step == self.bad_step else 1.0), {"step_figure": step}

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            model.bias.add_(torch.randn(1) * 0.01)  # type: ignore[operator]
        return {}

    def samples(self, step: int) -> Image.Image:
        torch.rand(step)  # must not disturb the steps' own numbers
        return Image.new("RGB", (4, 4))

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        return self.model, {"kind": "line", "arch": {}}


def fit(out: Path, task: Line | None = None, **changes: Any) -> Path:
    return train(task or Line(), settings(**changes), out=out, name="line", parents={})


def stop_at(out: Path, step: int, **changes: Any) -> None:
    task = Line()
    task.stop = step
    with pytest.raises(KeyboardInterrupt):
        fit(out, task, **changes)


def saved(out: Path) -> tuple[int, dict[str, Tensor]]:
    """The step and the tensors of a run's newest checkpoint."""
    newest = checkpoints_in(out / "state")[0]
    (file,) = newest.glob("*.safetensors")
    return int(newest.name.removeprefix("step-")), load_file(file)


def bytes_of(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_stopped_at_any_step_ends_with_the_same_bytes(tmp_path: Path, optimizer: str) -> None:
    whole = fit(tmp_path / "whole", optimizer=optimizer)
    for step in range(8):
        out = tmp_path / f"stopped_{step}"
        stop_at(out, step, optimizer=optimizer)
        task = Line()
        fit(out, task, optimizer=optimizer)
        # Checkpoints are written after steps 0..2 and 0..5.
        assert task.steps == list(range(step // 3 * 3, 8))
        assert bytes_of(out) == bytes_of(whole)


def test_steps_logged_after_the_checkpoint_are_logged_once(tmp_path: Path) -> None:
    log = tmp_path / "out/metrics.jsonl"
    stop_at(tmp_path / "out", 2)  # before the first checkpoint
    assert len(log.read_text().splitlines()) == 2
    stop_at(tmp_path / "out", 5)
    with log.open("a") as file:
        file.write('{"step": 6, "lo')  # what a killed process leaves
    fit(tmp_path / "out")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["step_figure"] for row in rows] == list(range(8))
    always = {"step", "loss", "grad_norm", "weight_rms", "rate"}
    always |= {"step_s", "data_wait_s", "rows_per_s", "peak_process_memory_gb"}
    assert rows[0].keys() == always | {"step_figure"}


def test_looking_and_saving_change_no_weight(tmp_path: Path) -> None:
    plain = fit(tmp_path / "plain", checkpoint_every=100)
    watched = fit(tmp_path / "watched", checkpoint_every=1, sample_every=1, log_every=3)
    assert bytes_of(plain) == bytes_of(watched)
    assert [p.name for p in (plain / "samples").iterdir()] == ["0000008.png"]
    assert len(list((watched / "samples").iterdir())) == 8
    assert [json.loads(x)["step"] for x in (watched / "metrics.jsonl").open()] == [3, 6, 8]
    # The weights come last and the checkpoint goes.
    assert not list((watched / "state").iterdir())


def test_a_seed_decides_every_steps_noise(tmp_path: Path) -> None:
    one, two = fit(tmp_path / "one"), fit(tmp_path / "two", seed=1)
    first, second = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert first.keys() == second.keys() == {"weight", "bias"}
    assert not torch.equal(first["weight"], second["weight"])


def test_a_finished_directory_is_left_as_it_is(tmp_path: Path) -> None:
    out = fit(tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    task = Line()
    assert fit(out, task) == out
    assert task.steps == []
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before


def test_other_settings_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    files = {"tokenizer.json": "one"}
    train(Line(), settings(), out=tmp_path, name="line", parents={}, files=files)
    assert (tmp_path / "tokenizer.json").read_text() == "one"
    other = {"tokenizer.json": "two"}
    with pytest.raises(UserError, match=r"learning_rate: 0.1 there, 0.2 now.*another --out"):
        train(
            Line(), settings(learning_rate=0.2), out=tmp_path, name="line", parents={}, files=other
        )
    assert (tmp_path / "tokenizer.json").read_text() == "one"


def test_a_loss_that_is_no_number_ends_the_run_with_its_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss of step 5 is nan.*step-0000003") as error:
        fit(tmp_path / "late", Line(bad_step=4))
    assert "lower learning_rate (now 0.1)" in error.value.hint
    step, tensors = saved(tmp_path / "late")
    assert step == 3 and tensors["model.weight"].isfinite().all()
    with pytest.raises(UserError, match="loss of step 2 is nan; the last good state is not yet"):
        fit(tmp_path / "early", Line(bad_step=1))


class Explodes(Line):
    """A finite loss whose gradient at a step is no number: the root of 0 has an infinite slope."""

    def loss(self, model: nn.Module, batch: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        loss = (model(batch) - 1).pow(2).mean()
        if step == self.bad_step:
            loss = loss + (self.model.weight.sum() * 0).sqrt()
        return loss, {}


class Breaks(Line):
    """Its weights are no numbers after a step whose loss and gradient are finite."""

    def __init__(self, *, bad_step: int) -> None:
        super().__init__()
        self.breaking_step = bad_step

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        if step == self.breaking_step:
            self.model.weight.data[0, 1] = float("nan")
        return {}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Explodes, "gradient norm of step 8 is nan"),
        (Line, "loss of step 8 is nan"),
        (Breaks, "largest value of weight after the update of step 8 is nan"),
    ],
)
def test_a_last_step_that_is_no_number_saves_no_model(
    tmp_path: Path, task: type[Line], message: str
) -> None:
    with pytest.raises(UserError, match=rf"{message}; the last good state is .*step-0000006"):
        fit(tmp_path, task(bad_step=7))
    assert not (tmp_path / "model.safetensors").exists()
    assert saved(tmp_path)[0] == 6


@pytest.mark.parametrize("task", [Line, Explodes, Breaks])
def test_no_checkpoint_is_overwritten_by_weights_that_are_no_numbers(
    tmp_path: Path, task: type[Line]
) -> None:
    # The sixth step is the one after which the second checkpoint is due.
    with pytest.raises(UserError, match="step 6 is nan"):
        fit(tmp_path, task(bad_step=5))
    step, tensors = saved(tmp_path)
    assert step == 3
    assert all(values.isfinite().all() for values in tensors.values())


def test_a_resumed_run_may_read_other_micro_batches(tmp_path: Path) -> None:
    stop_at(tmp_path, 5)
    task = Line()
    fit(tmp_path, task, micro_batch_size=2)
    assert task.steps == [3, 3, 4, 4, 5, 5, 6, 6, 7, 7]


def test_micro_batches_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    for micro, hint in ((3, 2), (5, 4)):
        with pytest.raises(UserError, match="does not divide the 4 rows of a step") as error:
            fit(tmp_path / "out", micro_batch_size=micro)
        assert error.value.hint == f"--set micro_batch_size={hint}"
    assert not (tmp_path / "out").exists()


def test_numbers_that_make_no_run_are_refused() -> None:
    for key in ("steps", "batch_size", "log_every", "checkpoint_every", "sample_every"):
        with pytest.raises(ValueError, match=f"{key}\n.*greater than 0"):
            settings(**{key: 0})


def test_processes_that_would_each_train_alone_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Alone(Pair):
        num_processes, process_index, is_main_process = 1, 0, True

    monkeypatch.setattr("accelerate.Accelerator", Alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="started 2 processes, but accelerate trains with 1"):
        fit(tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Pair:
    """Stands for accelerate in the second of two processes."""

    num_processes, process_index, is_main_process = 2, 1, False
    device = torch.device("cpu")

    def __init__(self, **settings: Any) -> None:
        pass


def small_numbers_kept_after(statement: str) -> int:
    """How many of 2^20 numbers of 1e-40 are kept by four threads of a process with a statement."""
    program = (
        f"import torch, tarkit.train.loop as loop; {statement}; torch.set_num_threads(4);"
        "x = torch.full((1 << 20,), 1e-30) * 1e-10; print(int((x != 0).sum()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_numbers_too_small_for_a_normal_float_are_zero_on_every_thread_of_a_training() -> None:
    assert small_numbers_kept_after("loop.begin_training(0)") == 0


def test_importing_the_loop_changes_no_number() -> None:
    assert small_numbers_kept_after("pass") == 1 << 20


def test_a_training_begins_with_its_seed() -> None:
    loop.begin_training(5)
    one = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(one, torch.rand(3))


class Begun(Exception):
    """Raised in place of what would begin a training."""


GONE = Path("gone")
RUNS: dict[Any, dict[str, Any]] = {
    vqvae: {"images": GONE},
    encoder: {"images": GONE},
    tokenizer: {"images": GONE, "encoder": GONE, "lm": GONE},
    ar_dtok: {"images": GONE, "tokenizer": GONE, "vqvae": GONE},
    mllm: {"chats": [GONE]},
    grpo: {"model": "gone", "prompts": GONE, "scorer": "gone"},
}


@pytest.mark.parametrize("trainer", RUNS, ids=lambda module: module.__name__.split(".")[-1])
def test_every_trainer_begins_before_it_reads_anything(
    trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    def begin_training(seed: int) -> None:
        seeds.append(seed)
        raise Begun

    monkeypatch.setattr(trainer, "begin_training", begin_training)
    numbers = ("steps=1", "batch_size=8", "learning_rate=0.1", "seed=7")
    with pytest.raises(Begun):
        trainer.run(None, **RUNS[trainer], out=tmp_path / "out", overrides=numbers)
    assert seeds == [7]


def test_a_batch_that_does_not_divide_by_the_processes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.Accelerator", Pair)
    with pytest.raises(UserError, match="batch_size = 5 does not divide by 2 processes") as error:
        fit(tmp_path / "out", batch_size=5)
    assert error.value.hint == "--set batch_size=4"


def test_models_are_kept_along_the_way_and_disturb_nothing(tmp_path: Path) -> None:
    plain = fit(tmp_path / "plain")
    kept = fit(tmp_path / "kept", keep_every=3)
    assert bytes_of(kept) == bytes_of(plain)
    # Of 8 steps after the 3rd and the 6th; what the 8th leaves is the model itself.
    assert sorted(path.name for path in (kept / "steps").iterdir()) == ["0000003", "0000006"]
    assert bytes_of(kept / "steps" / "0000003") != bytes_of(kept / "steps" / "0000006")
