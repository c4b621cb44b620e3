"""LoRA: merged equals adapted, nothing frozen changes, checkpoints are small, exact resume."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from tarkit.checkpoints import assemble, export_hf
from tarkit.checkpoints.directory import read_config
from tarkit.checkpoints.language_model import lm_sha256, load_mllm
from tarkit.config import write_toml
from tarkit.errors import UserError
from tarkit.models.mllm import build, from_scratch
from tarkit.train import mllm
from tarkit.train.adapters import AdapterConfig, add_adapters, merged, save_adapters
from tarkit.train.mllm import MllmConfig, MllmTask
from tarkit.train.state import checkpoints_in
from tests import parts

SETTINGS: dict[str, Any] = {
    "steps": 8,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "checkpoint_every": 2,
    "log_every": 1,
    "length": 128,
    "ratio": {"t2i": 2, "i2t": 1},
    "lora": {"rank": 2, "alpha": 8},
}
ARCH = from_scratch(parts.LM, 291) | {"num_hidden_layers": 2}
IDS = torch.arange(20)[None]


def config(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "mllm.toml"
    file.write_text(write_toml(MllmConfig(**SETTINGS | changes)))
    return file


def model(*, tied: bool = True) -> Any:
    torch.manual_seed(0)
    return build({**ARCH, "tie_word_embeddings": tied})


def trained_for_a_while(lm: Any) -> Any:
    """Adapters that have left zero."""
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return lm.eval()


def logits(lm: Any) -> torch.Tensor:
    with torch.no_grad():
        computed: torch.Tensor = lm(input_ids=IDS).logits
    return computed


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_model_and_plain_peft_compute_what_the_adapters_do(
    tied: bool, embeddings: bool, tmp_path: Path
) -> None:
    from peft import PeftModel

    adapter = AdapterConfig(rank=3, alpha=6, train_embeddings=embeddings)
    lm = trained_for_a_while(add_adapters(model(tied=tied), adapter, base="here"))
    adapted = logits(lm)
    plain = merged(lm)
    assert_close(logits(plain), adapted, rtol=0, atol=1e-5)
    assert plain.state_dict().keys() == model(tied=tied).state_dict().keys()
    save_adapters(lm, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 3
    assert_close(logits(PeftModel.from_pretrained(model(tied=tied), tmp_path)), adapted)
    assert not torch.allclose(logits(model(tied=tied)), adapted, atol=1e-3)


def test_adapters_start_as_the_model_and_train_nothing_else() -> None:
    lm = add_adapters(model(), AdapterConfig(targets=("*.q_proj", "*.layers.1.mlp.up_proj")))
    assert torch.equal(logits(lm.eval()), logits(model().eval()))
    trained = {name for name, p in lm.named_parameters() if p.requires_grad}
    layers = [f"layers.{i}.self_attn.q_proj" for i in (0, 1)] + ["layers.1.mlp.up_proj"]
    assert trained == {f"model.{x}.lora_{ab}.default.weight" for x in layers for ab in "AB"}
    with pytest.raises(UserError, match=r"'q_proj' of lora.targets matches no linear") as error:
        add_adapters(model(), AdapterConfig(targets=("q_proj",)))
    assert "self_attn.q_proj" in error.value.message


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="peft, which is not installed") as error:
        add_adapters(model(), AdapterConfig())
    assert error.value.hint == "pip install 'tarkit[lora]'"


def test_a_stopped_training_ends_with_the_same_bytes_and_leaves_the_frozen_model(
    chats: Path, models: dict[str, Path], tmp_path: Path, resumes: Any
) -> None:
    file = config(tmp_path, lora={"rank": 2, "dropout": 0.3}, ema=0.5)
    base = load_mllm(models["mllm"]).model.state_dict()
    left: list[dict[str, torch.Tensor]] = []

    class Task(MllmTask):
        def finish(self) -> Any:
            state = dict(self.model.lm.named_parameters())
            left.append({n: p.detach().clone() for n, p in state.items() if not p.requires_grad})
            return super().finish()

    def run(out: Path) -> Path:
        return mllm.run(
            file, chats=[chats], tokenizer=models["tokenizer"], lm=models["mllm"], out=out
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mllm, "MllmTask", Task)
        resumes(Task, run, stops=(3, 5))
    frozen = {name.replace(".base_layer.", "."): value for name, value in left[-1].items()}
    assert frozen.keys() == base.keys() - {"lm_head.weight"}
    assert all(torch.equal(value, base[name]) for name, value in frozen.items())
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (whole / "adapter" / name).read_bytes() == (stopped / "adapter" / name).read_bytes()
    assert (
        load_file(whole / "model.safetensors").keys()
        == load_file(models["mllm"] / "model.safetensors").keys()
    )


@pytest.fixture
def any_precision() -> Iterator[None]:
    """accelerate keeps the precision of a process's first training."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def train(
    data: tuple[Path, dict[str, Path]], out: Path, file: Path, lm: Path | None = None
) -> Path:
    chats, models = data
    start = lm or models["mllm"]
    return mllm.run(file, chats=[chats], tokenizer=models["tokenizer"], lm=start, out=out)


@pytest.fixture
def data(chats: Path, models: dict[str, Path]) -> tuple[Path, dict[str, Path]]:
    return chats, models


def test_checkpoints_hold_what_is_trained_and_another_base_is_refused(
    data: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, lm, out = config(tmp_path), tmp_path / "lm", tmp_path / "out"
    shutil.copytree(data[1]["mllm"], lm)
    real = MllmTask.loss

    def loss(self: MllmTask, model: Any, batch: Any, step: int) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return real(self, model, batch, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MllmTask, "loss", loss)
        train(data, out, file, lm)
    (saved,) = checkpoints_in(out / "state")[0].glob("*.safetensors")
    state = [name for name in load_file(saved) if name.startswith("model.")]
    assert state and all(".lora_" in name for name in state)
    recorded = json.loads((out / "manifest.json").read_text())["settings"]
    assert recorded["lm_sha256"] == lm_sha256(lm)
    # The same folder with another model, as a training into it leaves it.
    other = parts.save_mllm(tmp_path / "other", data[1]["tokenizer"], seed=1)
    shutil.copytree(other, lm, dirs_exist_ok=True)
    with pytest.raises(UserError, match="was begun with other settings .*lm_sha256"):
        train(data, out, file, lm)


def test_two_micro_batches_are_one_step(data: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    one = train(data, tmp_path / "one", config(tmp_path))
    two = train(data, tmp_path / "two", config(tmp_path, micro_batch_size=2))
    a, b = (load_file(out / "model.safetensors") for out in (one, two))
    start = load_file(data[1]["mllm"] / "model.safetensors")
    for name in a:
        assert_close(a[name], b[name], rtol=0, atol=1e-5)
        assert torch.equal(a[name], start[name]) != ("proj.weight" in name), name


def test_a_finetuned_model_is_assembled_and_exported(
    data: tuple[Path, dict[str, Path]], tmp_path: Path, any_precision: None
) -> None:
    models = data[1]
    made = train(data, tmp_path / "made", config(tmp_path, precision="bf16", sample_every=3))
    # The frozen weights were bfloat16, and so is the merged model.
    weights = load_file(made / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    adapters = load_file(made / "adapter/adapter_model.safetensors")
    assert {value.dtype for value in adapters.values()} == {torch.float32}
    assert read_config(made)["tokenizer_sha256"] == parts.sha256(models["tokenizer"])
    four: dict[str, Any] = {k: models[k] for k in ("tokenizer", "ar_dtok", "vqvae")}
    tar = assemble.run(mllm=made, **four, out=tmp_path / "tar")
    out = export_hf.run(tar, out=tmp_path / "hf")
    exported = AutoModelForCausalLM.from_pretrained(out, local_files_only=True).eval()
    ours = load_mllm(made).model
    assert_close(logits(exported), logits(ours))


def test_the_rows_of_new_codes_are_trained_beside_the_adapters(
    data: tuple[Path, dict[str, Path]], tmp_path: Path, any_precision: None
) -> None:
    models = data[1]
    with pytest.raises(UserError, match="has no codes yet") as error:
        train(data, tmp_path / "out", config(tmp_path), models["lm"])
    assert error.value.hint.startswith("--set lora.train_embeddings=true")
    lora = {"rank": 2, "train_embeddings": True}
    for precision in ("no", "bf16"):
        file = config(tmp_path, lora=lora, precision=precision)
        AcceleratorState._reset_state(True)
        out = train(data, tmp_path / precision, file, models["lm"])
        table = load_mllm(out).model.get_input_embeddings().weight
        base = load_mllm(models["lm"]).model.get_input_embeddings().weight
        assert len(table) == len(base) + 5 + parts.K
        assert not torch.equal(table[: len(base)], base)
        adapter = load_file(out / "adapter/adapter_model.safetensors")
        saved = adapter["base_model.model.model.embed_tokens.weight"]
        assert_close(saved, table.detach(), rtol=0, atol=0 if precision == "no" else 1e-2)


def test_adapters_without_a_model_under_them_are_refused(
    chats: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="adapters need a trained model under them"):
        mllm.run(
            config(tmp_path), chats=[chats], tokenizer=models["tokenizer"], out=tmp_path / "out"
        )
