"""Bad steps: what is listed, skipped and stopped, and that a resumed run decides alike."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tarkit.errors import UserError
from tarkit.train.loop import train
from tarkit.train.loop_config import LoopConfig
from tarkit.train.state import checkpoints_in
from tarkit.train.task import RowName


class Constant:
    """The loss of step s is losses[s], and its gradient 1."""

    unused_parameters = False

    def __init__(self, losses: Mapping[int, float], *, stop: int = -1) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.losses = losses
        self.stop = stop
        self.ended: list[int] = []

    def batch(self, step: int, size: int, part: int, parts: int) -> Tensor:
        return torch.ones(size, 1) * part

    def row_names(self, batch: Tensor, first: int) -> list[RowName]:
        return [RowName("data", f"row-{first + i}") for i in range(len(batch))]

    def weight(self, batch: Tensor) -> float:
        return len(batch)

    def loss(self, model: nn.Module, batch: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        if step == self.stop:
            raise KeyboardInterrupt
        slope = model(torch.ones(1, 1)).sum()
        bad = self.losses.get(step, 1.0)
        # Of two passes, the second alone is bad.
        loss = bad if float(batch[0, 0]) == 1 else 1.0 + step % 2 * 0.01
        return slope - slope.detach() + loss, {}

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        self.ended.append(step)
        return {}

    def samples(self, step: int) -> None:
        return None

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        return self.model, {"kind": "constant", "arch": {}}


def fit(out: Path, task: Constant, **changes: Any) -> Path:
    small: dict[str, Any] = {"steps": 12, "batch_size": 4, "micro_batch_size": 2}
    small |= {"learning_rate": 0.1, "log_every": 1, "checkpoint_every": 3, "spike_window": 4}
    config = LoopConfig.model_validate(small | changes)
    return train(task, config, out=out, name="constant", parents={})


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def weight(out: Path) -> float:
    return float(load_file(out / "model.safetensors")["weight"])


NAN = {6: float("nan")}


def test_a_loss_that_is_not_finite_names_the_rows_of_its_pass(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss of step 7 is nan.*bad_rows\.jsonl") as error:
        fit(tmp_path, Constant(NAN))
    assert error.value.hint.startswith("--set on_nonfinite=skip")
    # Step 7 has rows 24 to 27; the first pass, with rows 24 and 25, was well.
    reason = {"step": 7, "reason": "loss of step 7 is nan", "loss": None, "source": "data"}
    bad = lines(tmp_path / "bad_rows.jsonl")
    assert bad == [reason | {"key": "row-26"}, reason | {"key": "row-27"}]


def test_the_run_that_stopped_is_resumed_with_the_step_skipped(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="loss of step 7"):
        fit(out, Constant(NAN))
    task = Constant(NAN)
    fit(out, task, on_nonfinite="skip")
    # The same as a run that always skipped; the rows are listed once.
    assert weight(out) == weight(fit(tmp_path / "whole", Constant(NAN), on_nonfinite="skip"))
    assert [line["key"] for line in lines(out / "bad_rows.jsonl")] == ["row-26", "row-27"]
    assert task.ended == [7, 8, 9, 10, 11]
    rows = lines(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[6]["loss"] is None and rows[6]["skipped_steps"] == 1 == rows[11]["skipped_steps"]


def test_a_skipped_step_changes_no_weight_and_no_state_of_the_optimizer(tmp_path: Path) -> None:
    # With AdamW and one gradient, always 1, every step moves the weight by its rate alone.
    plain = {"schedule": "constant", "warmup": 0.0, "weight_decay": 0.0}
    all_taken = weight(fit(tmp_path / "taken", Constant({}), **plain))
    some = weight(fit(tmp_path / "some", Constant(NAN), on_nonfinite="skip", **plain))
    assert some == pytest.approx(all_taken * 11 / 12, rel=1e-5)


class Steep(Constant):
    """The gradient is not finite where the loss is."""

    def loss(self, model: nn.Module, batch: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        loss, figures = super().loss(model, batch, step)
        if step == 6:
            loss = loss + (self.model.weight.sum() * 0).sqrt()
        return loss, figures


def test_a_gradient_that_is_not_finite_names_all_rows_of_the_step(tmp_path: Path) -> None:
    fit(tmp_path, Steep({}), on_nonfinite="skip")
    bad = lines(tmp_path / "bad_rows.jsonl")
    assert [line["key"] for line in bad] == [f"row-{i}" for i in range(24, 28)]
    assert {line["reason"] for line in bad} == {"gradient norm of step 7 is nan"}
    assert [line["loss"] for line in bad] == [1.0] * 4


# ---- spikes


def test_a_spike_is_a_loss_far_above_its_running_mean(tmp_path: Path) -> None:
    # The step's loss is the mean of two passes: 1 or 1.005 but for the step with 1.2, 1.1 in all.
    for number, (deviations, spikes) in enumerate({30.0: 1, 1e4: 0}.items()):
        out = tmp_path / str(number)
        spiky = {"on_spike": "skip", "spike_deviations": deviations}
        fit(out, Constant({8: 1.2}), **spiky)
        assert lines(out / "metrics.jsonl")[-1]["skipped_steps"] == spikes
        assert (out / "bad_rows.jsonl").exists() == bool(spikes)
    (first, *rest) = lines(tmp_path / "0" / "bad_rows.jsonl")
    assert first["step"] == 9 and first["reason"].startswith("loss of step 9 is 1.1, a spike above")
    assert [line["loss"] for line in (first, *rest)] == pytest.approx([1.0, 1.0, 1.2, 1.2])


def test_a_spike_is_ignored_or_stops_where_the_settings_say_so(tmp_path: Path) -> None:
    fit(tmp_path / "ignored", Constant({8: 99.0}))
    assert not (tmp_path / "ignored" / "bad_rows.jsonl").exists()
    with pytest.raises(UserError, match="loss of step 9 is 50, a spike above") as error:
        fit(tmp_path / "stopped", Constant({8: 99.0}), on_spike="stop")
    assert error.value.hint.startswith("--set on_spike=skip")
    # Of the first spike_window steps none is a spike.
    fit(tmp_path / "early", Constant({2: 99.0}), on_spike="stop")


def test_a_resumed_run_knows_the_losses_before_it(tmp_path: Path) -> None:
    spiky = {"on_spike": "skip", "spike_deviations": 30.0}
    whole = fit(tmp_path / "whole", Constant({8: 1.2, 10: 1.3}), **spiky)
    for stop in (8, 11):
        out = tmp_path / f"stopped_{stop}"
        with pytest.raises(KeyboardInterrupt):
            fit(out, Constant({8: 1.2, 10: 1.3}, stop=stop), **spiky)
        fit(out, Constant({8: 1.2, 10: 1.3}), **spiky)
        assert weight(out) == weight(whole)
        assert lines(out / "bad_rows.jsonl") == lines(whole / "bad_rows.jsonl")


def test_a_training_that_skips_all_its_steps_stops(tmp_path: Path) -> None:
    bad = {step: float("inf") for step in range(5, 12)}
    with pytest.raises(UserError, match="loss of step 9 is inf, after 3 skipped steps"):
        fit(tmp_path / "out", Constant(bad), on_nonfinite="skip", max_skipped=3)
    del bad[7]
    # Two and four, with one that is taken between them.
    fit(tmp_path / "broken", Constant(bad), on_nonfinite="skip", max_skipped=4)
    assert lines(tmp_path / "broken" / "metrics.jsonl")[-1]["skipped_steps"] == 6


def test_a_checkpoint_of_an_older_version_has_no_losses(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, Constant({}, stop=7))
    place = checkpoints_in(tmp_path / "state")[0] / "state.json"
    state = json.loads(place.read_text())
    assert state["counters"]["taken"] == 6
    place.write_text(json.dumps(state | {"counters": {}}))
    fit(tmp_path, Constant({}))


@pytest.mark.slow
def test_two_processes_skip_and_list_alike(tmp_path: Path) -> None:
    # Each reads two rows of a step in one pass; the second part of the rows is bad.
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    plain = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE")}
    done = subprocess.run(
        [sys.executable, *launch, "--module", __name__, str(tmp_path / "shared")],
        env={**plain, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("constant: 12/12 steps") == 1  # one of them shows progress
    whole = fit(tmp_path / "whole", Constant(NAN), on_nonfinite="skip")
    assert weight(tmp_path / "shared") == pytest.approx(weight(whole), rel=1e-6)
    assert lines(tmp_path / "shared" / "bad_rows.jsonl") == lines(whole / "bad_rows.jsonl")


if __name__ == "__main__":
    fit(Path(sys.argv[1]), Constant(NAN), on_nonfinite="skip")
