"""A step is the same whatever processes and micro-batches share its rows.

Run by torchrun as a module, it trains what a JSON file names: the second half of a comparison.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tarkit.checkpoints import assemble
from tarkit.config import write_toml
from tarkit.errors import UserError
from tarkit.shapes.regions import regions_of
from tarkit.train import ar_dtok, encoder, grpo, loop, mllm, tokenizer, vqvae
from tarkit.train.loop_config import LoopConfig
from tarkit.train.metrics import OF_THE_MACHINE, is_documented
from tarkit.train.task import Mean, Total
from tests import parts

# Four steps of eight rows. All that a trainer draws for a row is drawn: codes, dropped conditions,
# emptied prompts, restarts of codes. Off is dropout inside AR-DTok, which each process draws for
# itself. A batch of two chats has another number of supervised tokens than the next.
LOOP: dict[str, Any] = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3, "log_every": 1}
CHATS: dict[str, Any] = {"text_weight": 3.0, "prompt_dropout": 0.5, "length": 128}
VQVAE = vqvae.VqvaeConfig(
    **LOOP,
    # Two channels to a group of its norms: with one, a bias before a norm has no effect.
    arch=parts.VQVAE.model_copy(update={"channels": 64}),
    warmup_unquantised=0.25,
    fade_in=0.25,
    restart_every=2,
)
CONFIGS: dict[str, LoopConfig] = {
    "vqvae": VQVAE,
    "vqvae_adversary": VQVAE.model_copy(
        update={
            "discriminator_from": 1,
            "discriminator_channels": 32,
            "discriminator_layers": 2,
        }
    ),
    "encoder": encoder.EncoderConfig(
        **LOOP,
        arch=parts.ENCODER,
        text_width=8,
        text_layers=1,
        text_heads=2,
        text_length=16,
        text_vocab=270,
        grounding=1.0,
        surplus=0.5,
    ),
    "tokenizer": tokenizer.TokenizerConfig(
        **LOOP,
        sizes=tokenizer.TaTokSizes(
            num_codes=10, decoder_layers=1, decoder_heads=2, decoder_mlp_width=24, decoder_side=4
        ),
    ),
    "ar_dtok": ar_dtok.ArDtokConfig(
        **LOOP,
        arch=parts.AR_DTOK.model_copy(
            update={"token_dropout": 0.0, "residual_dropout": 0.0, "ffn_dropout": 0.0}
        ),
        condition_dropout=0.5,
        # What is compared is the average of the weights, which every process holds.
        ema=0.5,
        freeze=("*norm*",),
    ),
    "mllm": mllm.MllmConfig(**LOOP, **CHATS),
    "grpo": grpo.GrpoConfig(
        **LOOP, **CHATS, group=4, round_steps=2, checkpoint_every=4, chats_size=4
    ),
}
# Of these the whole step is one batch, and they refuse micro-batches.
WHOLE = ("encoder", "grpo")
# Attention ignores what is added to all keys: the gradient is rounding, and Adam makes steps of it.
KEY_BIAS = re.compile(r"(\.k|\.k_proj)\.bias$|\.in_proj_bias$")


def start(name: str, config: Path, data: Mapping[str, Path], out: Path) -> None:
    """Train with one of the trainers."""
    images, tok, lm, chats = (data[k] for k in ("pictures", "tokenizer", "lm", "chats"))
    if name.startswith("vqvae"):
        vqvae.run(config, images=[images], out=out)
    elif name == "encoder":
        encoder.run(config, images=[images], out=out, regions_of=regions_of)
    elif name == "tokenizer":
        tokenizer.run(config, images=[images], encoder=data["encoder"], lm=lm, out=out)
    elif name == "ar_dtok":
        ar_dtok.run(config, images=[images], tokenizer=tok, vqvae=data["vqvae"], out=out)
    elif name == "mllm":
        mllm.run(config, chats=[chats], tokenizer=tok, lm=lm, out=out)
    else:
        scored: dict[str, Any] = {"prompts": data["prompts"], "scorer": f"{__name__}:Bright"}
        grpo.run(config, model=str(data["tar"]), chats=[chats], out=out, **scored)


class Bright:
    """How bright a picture is."""

    columns = ("bright",)

    def score(self, shown: Sequence[Any]) -> list[dict[str, float]]:
        pixels = [torch.tensor(list(one.picture.convert("L").tobytes())) for one in shown]
        return [{"bright": float(grey.float().mean() / 255)} for grey in pixels]


@pytest.fixture(scope="module")
def data(
    pictures: Path, models: dict[str, Path], chats: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("processes")
    (folder / "prompts.txt").write_text("\n".join(parts.CAPTIONS))
    four: dict[str, Any] = {k: models[k] for k in ("mllm", "tokenizer", "ar_dtok", "vqvae")}
    tar = assemble.run(**four, out=folder / "tar", overrides=["default_scale=3"])
    made = {"pictures": pictures, "chats": chats, "prompts": folder / "prompts.txt", "tar": tar}
    return models | made


def job(name: str, data: Mapping[str, Path], out: Path, **changes: Any) -> dict[str, Any]:
    """The arguments of `start`; `changes` are of the trainer's config."""
    config = out.with_suffix(".toml")
    config.write_text(write_toml(CONFIGS[name].model_copy(update=changes)))
    return {"name": name, "config": config, "data": data, "out": out}


def torchrun(jobs: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Do jobs one after another in two processes, as a user's torchrun on a CPU starts them."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs, default=str))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    plain = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE")}
    done = subprocess.run(
        [sys.executable, *launch, "--module", __name__, str(file)],
        env={**plain, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def require_equal(out: Path, whole: Path) -> None:
    """Logged figures and final weights agree to 1e-5."""
    logs = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (out, whole)]
    assert len(logs[0]) == 4
    apart: dict[str, float] = {}
    for one, other in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert one.keys() == other.keys()
        assert all(map(is_documented, one)), one.keys()
        for name in filter(lambda name: not OF_THE_MACHINE.search(name), one):
            apart[name] = max(apart.get(name, 0), abs(one[name] - other[name]))
    model, expected = (load_file(folder / "model.safetensors") for folder in (out, whole))
    assert model.keys() == expected.keys()
    for name, values in model.items():
        difference = float((values - expected[name]).abs().max())
        if KEY_BIAS.search(name):
            assert difference < 1e-3, name
        else:
            apart["weights"] = max(apart.get("weights", 0), difference)
    assert max(apart.values()) < 1e-5, apart


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in WHOLE])
def test_micro_batches_leave_a_training_as_it_is(
    name: str, data: dict[str, Path], tmp_path: Path
) -> None:
    whole = job(name, data, tmp_path / "whole")
    split = job(name, data, tmp_path / "split", micro_batch_size=2)
    start(**whole)
    start(**split)
    require_equal(split["out"], whole["out"])


def test_passes_of_packed_rows_leave_a_training_as_it_is(
    data: dict[str, Path], tmp_path: Path
) -> None:
    whole = job("mllm", data, tmp_path / "whole")
    split = job("mllm", data, tmp_path / "split", micro_batch_tokens=128)
    start(**whole)
    start(**split)
    require_equal(split["out"], whole["out"])


def test_two_processes_leave_a_training_as_it_is(data: dict[str, Path], tmp_path: Path) -> None:
    whole, shared = (job("tokenizer", data, tmp_path / out) for out in ("whole", "shared"))
    start(**whole)
    torchrun([shared], tmp_path)
    require_equal(shared["out"], whole["out"])


class Stopped(Exception):
    """Stands for a killed process."""


def stop(task: type[Any], at: int, one: Mapping[str, Any]) -> None:
    """Do a job until the loss of step `at`."""
    whole = task.loss

    def loss(self: Any, model: nn.Module, batch: Any, step: int) -> Any:
        if step == at:
            raise Stopped
        return whole(self, model, batch, step)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(task, "loss", loss)
        start(**one)


@pytest.mark.slow
def test_two_processes_leave_every_training_as_it_is(data: dict[str, Path], tmp_path: Path) -> None:
    # 8 rows in one process; 4 in each of two; there in two passes.
    shared = {name: job(name, data, tmp_path / f"{name}_shared") for name in CONFIGS}
    split = {
        name: job(name, data, tmp_path / f"{name}_split", micro_batch_size=2)
        for name in CONFIGS
        if name not in WHOLE
    }
    # One process takes three steps, and two go on after the second.
    resumed = job("tokenizer", data, tmp_path / "resumed", checkpoint_every=2)
    stop(tokenizer.TokenizerTask, 3, resumed)
    assert (resumed["out"] / "state" / "step-0000002").exists()
    torchrun([*shared.values(), *split.values(), resumed], tmp_path)
    for name in CONFIGS:
        whole = job(name, data, tmp_path / name)
        start(**whole)
        require_equal(shared[name]["out"], whole["out"])
        if name in split:
            require_equal(split[name]["out"], whole["out"])
    require_equal(resumed["out"], tmp_path / "tokenizer")


@pytest.mark.parametrize("name", WHOLE)
def test_a_step_that_is_one_batch_is_not_split(
    name: str, data: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="micro_batch_size splits a step, but .* more processes"):
        start(**job(name, data, tmp_path / "out", micro_batch_size=4))
    assert not (tmp_path / "out").exists()


# ---- figures and rows


class Weighed:
    """Fits a number to rows whose weights differ; the first two of a step weigh nothing."""

    unused_parameters = False

    def __init__(self) -> None:
        self.model = nn.Linear(1, 1)
        nn.init.zeros_(self.model.weight)
        nn.init.zeros_(self.model.bias)

    def batch(self, step: int, size: int, part: int, count: int) -> Tensor:
        rows = torch.tensor([[1.0, 0], [9, 0], [2, 1], [3, 2], [4, 3], [5, 1]])
        return rows[part * size : (part + 1) * size]

    def weight(self, batch: Tensor) -> float:
        return float(batch[:, 1].sum())

    def loss(self, model: nn.Module, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Any]]:
        values, weights = batch.split(1, dim=1)
        losses = (model(values) - values).pow(2) * weights
        loss = losses.sum() / max(self.weight(batch), 1)
        largest = float(values.max())
        means = {"largest": largest, "plain": Mean(largest, len(batch))}
        return loss, {**means, "rows": Total(len(batch))}

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        return {"after": 7.0}

    def samples(self, step: int) -> None:
        return None

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        return self.model, {"kind": "weighed", "arch": {}}


@pytest.mark.parametrize("micro", [None, 1, 2, 3])
def test_loss_and_figures_are_those_of_the_whole_step(tmp_path: Path, micro: int | None) -> None:
    settings = LoopConfig(
        steps=1, batch_size=6, micro_batch_size=micro, learning_rate=0.1, log_every=1, clip=1e9
    )
    loop.train(Weighed(), settings, out=tmp_path, name="weighed", parents={})
    (row,) = map(json.loads, (tmp_path / "metrics.jsonl").open())
    # Weights 1, 2, 3, 1 of squares 4, 9, 16, 25.
    assert row["loss"] == pytest.approx((4 + 18 + 48 + 25) / 7)
    # d/dw = mean of 2 (0 - v) v, d/db = mean of 2 (0 - v).
    slope, offset = 2 * (4 + 18 + 48 + 25) / 7, 2 * (2 + 6 + 12 + 5) / 7
    assert row["grad_norm"] == pytest.approx((slope**2 + offset**2) ** 0.5)
    assert row["rows"] == 6 and row["after"] == 7.0
    # Of parts of 2: 9 weighs nothing, 3 weighs 3, 5 weighs 4; or each as many rows as it has.
    largest = {None: 9.0, 1: (2 + 6 + 12 + 5) / 7, 2: (3 * 3 + 5 * 4) / 7, 3: (9 * 1 + 5 * 6) / 7}
    plain = {None: 9.0, 1: 24 / 6, 2: (9 + 3 + 5) / 3, 3: (9 + 5) / 2}
    assert row["largest"] == pytest.approx(largest[micro])
    assert row["plain"] == pytest.approx(plain[micro])


def main(file: Path) -> None:
    for one in json.loads(file.read_text()):
        data = {name: Path(path) for name, path in one["data"].items()}
        start(one["name"], Path(one["config"]), data, Path(one["out"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
