"""The figures of a training: how they are combined, timed, documented and shown."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tarkit.artifacts.artifact import open_artifact
from tarkit.errors import UserError
from tarkit.models.mllm import LmArch, build, from_scratch
from tarkit.train import metrics as metrics_module
from tarkit.train import mllm, tokenizer, trackers
from tarkit.train.gpus import GPUS, gpu_named
from tarkit.train.loop import train
from tarkit.train.loop_config import LoopConfig
from tarkit.train.metrics import FIGURES, OF_THE_MACHINE, combined, is_documented, truncate_log
from tarkit.train.plans import plan
from tarkit.train.streams import source_names
from tarkit.train.task import Amount, Figure, Largest, Mean, Total
from tarkit.train.workloads.language import language_costs
from tarkit.train.workloads.tokenizer import tokenizer as tokenizer_workload
from tarkit.train.workloads.workload import Start, flops_by_scale
from tests import parts

SMALL: dict[str, Any] = {"steps": 6, "batch_size": 4, "learning_rate": 0.1, "log_every": 3}


def test_figures_of_parts_are_combined_by_their_kind() -> None:
    parts_of_step: list[tuple[float, dict[str, Figure]]] = [
        (1.0, {"mean": 2.0, "own": Mean(5.0, 3), "sum": Total(4), "most": Largest(2)}),
        (3.0, {"mean": 6.0, "own": Mean(1.0, 1), "sum": Total(5), "most": Largest(7)}),
        (0.0, {"mean": 9.0, "none": Mean(1.0, 0)}),
    ]
    # (1*2 + 3*6) / 4; (3*5 + 1*1) / 4; 4 + 5; nothing is over nothing.
    assert combined(parts_of_step) == {"mean": 5.0, "own": 4.0, "sum": 9, "most": 7}


class Clock:
    """A clock that only the training moves."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Timed:
    """Every step takes 2 s, waits 1 s for its batch, and reads 10 tokens; a sheet takes 50 s."""

    unused_parameters = False

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.model = nn.Linear(1, 1)

    def batch(self, step: int, size: int, part: int, parts: int) -> Tensor:
        return torch.ones(size, 1)

    def weight(self, batch: Tensor) -> float:
        return len(batch)

    def loss(self, model: nn.Module, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Any]]:
        self.clock.now += 2
        amounts = {"tokens_per_s": Amount(10), "flops_per_s": Amount(4e12)}
        return model(batch).mean(), amounts | {"float32_flops_per_s": Amount(1e12)}

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        return {}

    def samples(self, step: int) -> None:
        self.clock.now += 50

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        return self.model, {"kind": "timed", "arch": {}}


def timed_rows(
    out: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> list[dict[str, float]]:
    clock = Clock()
    monkeypatch.setattr(metrics_module.time, "monotonic", clock.monotonic)
    from tarkit.train import loop

    def batches(*args: Any, **options: Any) -> Any:
        for step, batch in real(*args, **options):
            clock.now += 1
            yield step, batch

    real = loop.step_batches
    monkeypatch.setattr(loop, "step_batches", batches)
    config = LoopConfig.model_validate(SMALL | {"sample_every": 2} | changes)
    train(Timed(clock), config, out=out, name="timed", parents={})
    return [json.loads(line) for line in (out / "metrics.jsonl").open()]


def test_rates_are_of_the_interval_without_sheets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = timed_rows(tmp_path, monkeypatch)
    assert [row["step"] for row in rows] == [3, 6]
    for row in rows:
        # Three steps of 3 s with 4 rows and 10 tokens each; sheets after 2 and 4 do not count.
        assert row["step_s"] == 3 and row["data_wait_s"] == 1
        assert row["rows_per_s"] == pytest.approx(12 / 9, abs=0.01)
        assert row["tokens_per_s"] == pytest.approx(30 / 9, abs=0.01)
        assert row["flops_per_s"] == pytest.approx(12e12 / 9, rel=1e-6)
        # torch alone takes more than 100 MB, and a test less than 100 GB.
        assert 0.1 < row["peak_process_memory_gb"] < 100
        assert "mfu" not in row and "peak_gpu_memory_gb" not in row


def test_the_utilisation_is_that_of_the_peak_of_each_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "_gpu", lambda device: GPUS["a100-80"])
    # 4 TFLOP at 19.5 TFLOP/s, in the 3 s of a step.
    row = timed_rows(tmp_path, monkeypatch)[-1]
    assert row["mfu"] == pytest.approx(4 / 19.5 / 3, abs=1e-4)
    # Under bf16 3 of them at 312 TFLOP/s and 1, which is in float32 all the same, at 19.5.
    at_peak = metrics_module.seconds_at_peak(GPUS["a100-80"], "bf16", 4e12, 1e12)
    assert at_peak == pytest.approx(3 / 312 + 1 / 19.5)


def test_a_gpu_has_a_peak_only_where_its_very_model_is_known() -> None:
    assert gpu_named("NVIDIA H100 80GB HBM3") == GPUS["h100"]
    for other in ("NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"):
        assert gpu_named(other) is None


# ---- what is counted


def test_flops_of_chats_are_those_of_the_plan_for_chats_of_one_length() -> None:
    # 8 chats of 64 tokens that fill their row alone: the plan's attention is within the chat too.
    lm = LmArch(width=64, layers=2, heads=4, kv_heads=2, mlp_width=96)
    settings = mllm.MllmConfig(
        **SMALL | {"batch_size": 8}, lm=lm, text_vocab=300, ratio={"text": 1}, length=64
    )
    start = Start(text_tokens=64)
    budget = plan("mllm", settings.model_dump(mode="json"), start, gpus=1, gpu="h100", mfu=0.4)
    costs = language_costs(build(from_scratch(lm, 300)).config)
    assert costs is not None
    assert costs.flops(8 * 64, 8 * 64**2, 8 * 64) == pytest.approx(budget.flops_per_step)
    assert language_costs(type("Config", (), {"model_type": "mamba"})) is None


def test_flops_of_pictures_are_the_plans_at_the_scales_it_draws(models: dict[str, Path]) -> None:
    settings = tokenizer.TokenizerConfig(
        **SMALL,
        sizes=tokenizer.TaTokSizes(
            num_codes=10, decoder_layers=1, decoder_heads=2, decoder_mlp_width=24, decoder_side=4
        ),
    ).model_dump(mode="json")
    start = Start(embedding_width=16, encoder=parts.ENCODER)
    costs = flops_by_scale(tokenizer_workload, settings, start)
    budget = plan("tokenizer", settings, start, gpus=1, gpu="h100", mfu=0.4)
    # Scales are drawn 2:1:1; a step is one pass over 4 pictures.
    mean = sum(n / 4 * cost.row for n, cost in zip((2, 1, 1), costs.values(), strict=True))
    once = {cost.once for cost in costs.values()}
    assert len(once) == 1
    planned = budget.flops_per_step + budget.frozen_flops_per_step
    assert 4 * mean + once.pop() == pytest.approx(planned)
    assert len({cost.row for cost in costs.values()}) == 3


def test_inputs_are_named_by_their_folders_unless_two_share_a_name() -> None:
    folders = [Path("a/web"), Path("b/web"), Path("a/aesthetic")]
    assert list(source_names(folders).values()) == ["a/web", "b/web", "aesthetic"]


def test_losses_of_chats_are_told_apart_by_task_scale_and_source(
    chats: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    made_by = {"tokenizer_sha256": parts.sha256(models["tokenizer"])}
    more = parts.write_chats(tmp_path / "more", [parts.mixed_chats(5)], **made_by).path
    settings = mllm.MllmConfig(**SMALL | {"steps": 1}, length=512, text_weight=3.0)
    streams = mllm.ChatStreams(
        [open_artifact(c, "chats") for c in (chats, more)], settings.ratio, 0
    )
    ta_tok = mllm.load_ta_tok(models["tokenizer"])
    task = mllm.MllmTask(settings, streams, tokenizer=ta_tok, lm=models["lm"])
    batch = task.batch(0, 20, 0, 1)
    losses, targets = task.model(batch)
    _, figures = task.loss(task.model, batch, 0)
    slots = batch.numbers[:, 1:][batch.labels[:, 1:] != -100].tolist()
    groups: dict[str, list[float]] = {}
    for slot, loss in zip(slots, losses.tolist(), strict=True):
        chat = streams[slot]
        groups.setdefault(f"loss_by_task/{chat['task']}", []).append(loss)
        groups.setdefault(f"loss_by_source/{Path(chat['chats']).name}", []).append(loss)
    for name, values in groups.items():
        figure = figures[name]
        assert isinstance(figure, Mean) and figure.weight == len(values)
        assert figure.value == pytest.approx(sum(values) / len(values), rel=1e-4)
    assert {"loss_by_task/t2i", "loss_by_source/mixed", "loss_by_source/more"} <= groups.keys()
    by_scale = [f for name, f in figures.items() if name.startswith("loss_by_scale/")]
    pictured = sum(
        len(v) for k, v in groups.items() if k in ("loss_by_task/t2i", "loss_by_task/i2t")
    )
    assert sum(f.weight for f in by_scale if isinstance(f, Mean)) == pictured
    assert figures["pictures_per_s"] == Amount(
        sum(streams[slot]["task"] != "text" for slot in range(20))
    )
    names = task.row_names(batch, 0)
    assert [name.key for name in names] == [streams[slot]["key"] for slot in range(20)]
    assert {Path(name.source).name for name in names} == {"mixed", "more"}


def test_pictures_of_two_sources_have_two_cosines(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    other = parts.write_pictures(tmp_path / "other", [["train"] * 4]).path
    config = tmp_path / "t.toml"
    config.write_text(
        "steps = 2\nbatch_size = 4\nlearning_rate = 0.1\nlog_every = 1\n"
        "[sizes]\nnum_codes = 10\ndecoder_layers = 1\ndecoder_heads = 2\n"
        "decoder_mlp_width = 24\ndecoder_side = 4\n"
    )
    out = tokenizer.run(
        config,
        images=[pictures, other],
        encoder=models["encoder"],
        lm=models["lm"],
        out=tmp_path / "out",
    )
    for row in map(json.loads, (out / "metrics.jsonl").open()):
        both = [row[f"cosine_by_source/{name}"] for name in ("pictures", "other")]
        # Mixed 1:1, so that the mean is the mean of both.
        assert sum(both) / 2 == pytest.approx(row["cosine"], abs=1e-5)
        assert row[f"loss_by_scale/{int(row['scale'])}"] == pytest.approx(row["loss"])
        assert 0 < row["usage"] <= 1
        assert all(map(is_documented, row)), row.keys()


def test_every_figure_of_the_machine_is_documented_as_such() -> None:
    of_the_machine = {name for name in FIGURES if OF_THE_MACHINE.search(name)}
    assert {"rows_per_s", "step_s", "mfu", "peak_gpu_memory_gb"} <= of_the_machine
    assert not {"loss", "usage", "scale", "loss_by_task/*"} & of_the_machine
    assert is_documented("loss_by_source/a folder") and not is_documented("strange")


# ---- trackers


# Stands for the modules wandb and trackio: what it is given is in a file.
STUB = """
import json, pathlib
FILE = pathlib.Path({file!r})
def note(*what):
    with FILE.open("a") as file:
        file.write(json.dumps(what, default=str) + "\\n")
class Run:
    def log(self, values, step=None):
        if step > {last!r}:
            raise RuntimeError("no room")
        note("log", step, values)
    def finish(self):
        note("finish")
def finish():
    note("finish")
def init(**options):
    print("welcome")
    note("init", options)
    if {fails!r}:
        raise RuntimeError("no key")
    return Run()
"""


def stub(
    name: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    fails: bool = False,
    last: int = 1000,
) -> Path:
    """Make a package of that name importable; the file of its calls."""
    file = folder / f"{name}.calls"
    (folder / "packages").mkdir(exist_ok=True)
    code = STUB.format(file=str(file), fails=fails, last=last)
    (folder / "packages" / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder / "packages"))
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    importlib.import_module(name)
    # For monkeypatch to take it out again.
    monkeypatch.setitem(sys.modules, name, sys.modules.pop(name))
    return file


def calls(file: Path) -> list[list[Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def plain(out: Path, *, stop: int = -1, **changes: Any) -> None:
    class Stops(Timed):
        def loss(self, model: nn.Module, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Any]]:
            if step == stop:
                raise KeyboardInterrupt
            return super().loss(model, batch, step)

    config = LoopConfig.model_validate(SMALL | {"log_every": 1, "checkpoint_every": 2} | changes)
    train(Stops(Clock()), config, out=out, name="timed", parents={})


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_every_step_and_goes_on_after_a_stop(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = stub(name, tmp_path, monkeypatch)
    options: dict[str, Any] = {"trackers": (name,), "tracker_project": "mine"}
    with pytest.raises(KeyboardInterrupt):
        plain(tmp_path / "run", stop=3, **options)
    plain(tmp_path / "run", **options)
    starts = [call[1] for call in calls(file) if call[0] == "init"]
    assert len(starts) == 2 and starts[0] == starts[1]  # the same run, by name or by id
    assert starts[0]["project"] == "mine" and starts[0]["resume"] == "allow"
    assert starts[0]["name"].startswith("run-") and starts[0]["config"]["stage"] == "timed"
    # Stopped in the fourth step, resumed from the second; wandb itself drops what it has.
    again = [3] if name == "wandb" else []
    assert [call[1] for call in calls(file) if call[0] == "log"] == [1, 2, 3, *again, 4, 5, 6]
    assert [call[0] for call in calls(file)].count("finish") == 2
    logged = [call[2] for call in calls(file) if call[0] == "log"][-1]
    assert logged["rows_per_s"] > 0 and "step" not in logged
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_tensorboard_shows_no_step_twice(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        plain(tmp_path, stop=3)
    plain(tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    plain(tmp_path / "none", trackers=())
    assert not (tmp_path / "none" / "tensorboard").exists()


def test_a_tracker_that_is_not_installed_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="trackers names trackio, which is not installed") as error:
        plain(tmp_path / "out", trackers=("trackio",))
    assert error.value.hint.startswith("pip install trackio")
    assert not (tmp_path / "out").exists()
    plain(tmp_path / "out")  # with none at all, figures are in the file alone
    assert not (tmp_path / "out" / "tensorboard").exists()
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 6


def test_a_tracker_that_cannot_start_is_refused_and_one_that_breaks_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stub("wandb", tmp_path, monkeypatch, fails=True)
    with pytest.raises(UserError, match="wandb cannot start: no key") as error:
        plain(tmp_path / "out", trackers=("wandb",))
    assert "WANDB_MODE=offline" in error.value.hint
    file = stub("wandb", tmp_path, monkeypatch, last=2)
    plain(tmp_path / "out", trackers=("wandb",))
    assert "wandb fails and gets no more figures: no room" in caplog.text
    assert [call[1] for call in calls(file) if call[0] == "log"] == [1, 2]
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"null", b'{"loss": 1}', b'{"step": "2"}', b"\xff", b"[" * 100_000]
)
def test_a_damaged_line_of_the_log_is_left_out_with_a_warning(
    tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "metrics.jsonl"
    rows = [json.dumps({"step": step}).encode() for step in (1, 3, 4)]
    file.write_bytes(b"\n".join([rows[0], line, *rows[1:]]) + b'\n{"step": 5')
    assert truncate_log(file, 3) == [{"step": 1}, {"step": 3}, {"step": 4}]
    assert file.read_bytes() == rows[0] + b"\n" + rows[1] + b"\n"
    assert [f"{file}:2 is damaged and is left out" in r.message for r in caplog.records] == [True]


def test_a_source_of_any_name_is_no_figure_of_the_machine() -> None:
    for name in ("loss_by_source/photos_s", "cosine_by_source/cc_gb", "loss_by_source/x_per_s"):
        assert not OF_THE_MACHINE.search(name)
    for name in ("step_s", "rows_per_s", "peak_gb", "mfu"):
        assert OF_THE_MACHINE.search(name)
