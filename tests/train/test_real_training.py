"""Two steps of trainings at their real sizes, from random weights, and what `tarkit plan` says.

14 GB of memory (9 GB for Dif-DTok), 4 GB of disk, minutes of two cores: `pytest -m real tests/train
-s`, which runs one at a time and prints measured and planned memory.

float32 and AdamW as on a GPU, one picture or chat a pass. Measured is what the process had at its
fullest by the end of the second step, above what it had after its imports. There it is ended: to
save, a training on the CPU copies weights and optimizer states, which on a GPU takes nothing from
the GPU's memory.

When this was written, in GB: tokenizer 13.22 measured, 12.25 planned; language model 13.47
measured, 13.41 planned; SANA 5.58 measured, 6.19 planned. Two loaded cores took 15, 9 and 23
minutes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tarkit.checkpoints.directory import save_model
from tarkit.models.encoder import EncoderArch
from tarkit.models.mllm import skeleton
from tarkit.models.ta_tok import TaTok, TaTokArch
from tarkit.train.budget import in_words
from tarkit.train.budget import run as plan
from tarkit.train.plans import Budget
from tarkit.train.sana_costs import SANA_600M
from tarkit.vocab import Scale
from tests import parts
from tests.test_real_size import QWEN, text_tokenizer, weights

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
NEEDED = 15 * GIB
PUBLISHED_ROWS = 151_936  # of Qwen2.5's table, with its padding
NUM_CODES, GRID = 65_536, 27
MEASURED = """
import os, resource, sys
from pathlib import Path
import torch, transformers, accelerate, torch.distributed.checkpoint
import tarkit.train.mllm, tarkit.train.tokenizer
if sys.argv[2] == "dif-dtok":
    import tarkit.train.dif_dtok
    from diffusers import AutoencoderDC, SanaTransformer2DModel
from tarkit.cli.app import app
from tarkit.train.state import Checkpoints
pages = int(Path("/proc/self/statm").read_text().split()[1])
print(pages * resource.getpagesize(), file=sys.stderr, flush=True)
Checkpoints.save = lambda *_: os._exit(0)  # after the last step
app(sys.argv[1:])
"""
FEW = ["steps=2", "batch_size=2", "micro_batch_size=1", "log_every=1", "precision=no"]


def available() -> int:
    """Bytes that processes can still have."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    amounts = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return amounts["MemAvailable"] * 1024


def train(
    words: Sequence[str | Path], out: Path, settings: Sequence[str], *, needed: int = NEEDED
) -> float:
    """Run two steps of `tarkit train` in a process of its own; bytes at the most."""
    if available() < needed:
        pytest.skip(f"{available() / GIB:.1f} GiB of memory are free, {needed / GIB:.0f} needed")
    sets = [word for setting in settings for word in ("--set", setting)]
    command = ["train", *map(str, words), "--out", str(out), *sets, "--set", "trackers=[]"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HF_HUB_OFFLINE": "1",
        # Without a fixed threshold, glibc keeps freed tensors.
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *command],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    imports = int(done.stderr.splitlines()[0])
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["loss"] > 0 and row["grad_norm"] > 0 for row in rows)
    print(f"\n{rows[-1]}")
    return 1e9 * rows[-1]["peak_process_memory_gb"] - imports


def compare(budget: Budget, measured: float) -> None:
    """Print both and require that they agree within 15 %."""
    planned = budget.memory.peak
    print(in_words(budget))
    print(
        f"measured {measured / 1e9:.2f} GB, planned {planned / 1e9:.2f} GB: "
        f"{planned / measured - 1:+.1%}"
    )
    assert planned == pytest.approx(measured, rel=0.15)


def save_siglip2(folder: Path) -> None:
    """The vision tower of siglip2-so400m-patch14-384, as transformers saves it."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    sizes: dict[str, Any] = {"hidden_size": 1152, "intermediate_size": 4304, "image_size": 384}
    sizes |= {"num_hidden_layers": 27, "num_attention_heads": 16, "patch_size": 14}
    SiglipVisionModel(SiglipVisionConfig(**sizes)).save_pretrained(folder)


def save_table(folder: Path) -> Path:
    """Qwen2.5-1.5B's table of embeddings, in one file, with its tokenizer."""
    folder.mkdir()
    table = torch.randn(PUBLISHED_ROWS, 1536, dtype=torch.bfloat16) / 50
    save_file({"model.embed_tokens.weight": table}, folder / "model.safetensors")
    text_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({**QWEN, "vocab_size": PUBLISHED_ROWS}))
    return folder / "model.safetensors"


@pytest.mark.real
@pytest.mark.timeout(3600)
def test_two_steps_of_ta_tok_at_the_papers_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_siglip2(tmp_path / "siglip2")
    table = save_table(tmp_path / "qwen")
    pictures = [parts.write_pictures(tmp_path / name, [["train"] * 2]).path for name in "ab"]
    config = ROOT / "pipelines" / "paper" / "tokenizer.toml"
    words: list[str | Path] = [
        "tokenizer",
        config,
        "--images",
        pictures[0],
        "--images",
        pictures[1],
    ]
    words += ["--encoder", tmp_path / "siglip2", "--lm", table]
    measured = train(words, tmp_path / "ta_tok", FEW)
    budget = plan(
        config,
        gpus=1,
        gpu="h100",
        encoder=tmp_path / "siglip2",
        lm=table.parent,
        overrides=FEW,
    )
    assert budget.trained == pytest.approx(447.5e6, rel=0.01)
    compare(budget, measured)


def save_ta_tok(folder: Path, *, width: int = 16) -> Path:
    """As many codes as the paper's, of as fine a grid, from a small encoder."""
    arch = TaTokArch(
        encoder=EncoderArch(
            size_px=2 * GRID, patch_px=2, width=width, layers=2, heads=2, mlp_width=24, head=False
        ),
        num_codes=NUM_CODES,
        embedding_width=16,
        code_width=16,
        decoder_layers=1,
        decoder_heads=2,
        decoder_mlp_width=24,
        decoder_side=4,
    )
    save_model(folder, TaTok(arch), {"kind": "ta_tok", "arch": arch.model_dump(mode="json")})
    return folder


def save_qwen(folder: Path) -> Path:
    """Qwen2.5-0.5B's shape in bfloat16, as published."""
    folder.mkdir()
    config = {**QWEN, "vocab_size": PUBLISHED_ROWS, "hidden_size": 896, "intermediate_size": 4864}
    config |= {"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
    state = weights(skeleton(config), torch.bfloat16)
    del state["lm_head.weight"]  # tied
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    text_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(
        json.dumps({**config, "architectures": ["Qwen2ForCausalLM"], "torch_dtype": "bfloat16"})
    )
    return folder


def write_drawings(folder: Path, tokenizer: Path) -> Path:
    """Chats that draw one picture of random codes."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(4):
        caption = ("user", f"picture number {number}")
        row = parts.chat_row("t2i", caption, ("assistant", "<image>"))
        codes = {
            f"codes_{int(scale)}": torch.randint(
                NUM_CODES, (scale.num_codes(GRID),), generator=generator
            ).tolist()
            for scale in Scale
        }
        rows.append({**row, "images": [codes]})
    made_by = {"tokenizer_sha256": parts.sha256(tokenizer)}
    return parts.write_chats(folder, [rows], **made_by).path


@pytest.mark.real
@pytest.mark.timeout(3600)
def test_two_steps_of_a_language_model_of_half_a_billion(tmp_path: Path) -> None:
    torch.manual_seed(0)
    lm, tokenizer = save_qwen(tmp_path / "qwen"), save_ta_tok(tmp_path / "ta_tok")
    chats = write_drawings(tmp_path / "chats", tokenizer)
    config = ROOT / "pipelines" / "paper" / "mllm_pretrain.toml"
    tasks = ["ratio.i2t=0", "ratio.i2i=0", "ratio.ti2i=0", "ratio.text=0"]
    settings = [*FEW, *tasks, "scale_ratio=[1,0,0]", "length=1024", "embedding_start=random"]
    words: list[str | Path] = [
        "mllm",
        config,
        "--chats",
        chats,
        "--tokenizer",
        tokenizer,
        "--lm",
        lm,
    ]
    measured = train(words, tmp_path / "mllm", settings)
    row = json.loads((tmp_path / "mllm" / "metrics.jsonl").read_text().splitlines()[0])
    text_tokens = round(row["tokens"] / 2) - GRID**2 - 3
    budget = plan(
        config,
        gpus=1,
        gpu="h100",
        lm=lm,
        tokenizer=tokenizer,
        text_tokens=text_tokens,
        overrides=settings,
    )
    assert budget.trained == pytest.approx(552.4e6, rel=0.01)
    compare(budget, measured)


def save_sana(folder: Path) -> Path:
    """SANA-0.6B at 512 px with its autoencoder, as diffusers saves them."""
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaTransformer2DModel

    transformer = SanaTransformer2DModel.from_config(dict(SANA_600M.transformer))
    transformer.save_pretrained(folder / "transformer")
    del transformer
    AutoencoderDC.from_config(dict(SANA_600M.vae)).save_pretrained(folder / "vae")
    DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ).save_pretrained(folder / "scheduler")
    return folder


@pytest.mark.real
@pytest.mark.timeout(7200)
def test_two_steps_of_sana_of_600_million(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sana = save_sana(tmp_path / "sana")
    tokenizer = save_ta_tok(tmp_path / "ta_tok", width=1152)
    pictures = parts.write_pictures(tmp_path / "pictures", [["train"] * 2]).path
    config = ROOT / "pipelines" / "paper" / "dif_dtok_512.toml"
    settings = [*FEW, "scale_ratio=[1,0,0]"]
    words: list[str | Path] = ["dif-dtok", config, "--images", pictures]
    words += ["--tokenizer", tokenizer, "--sana", sana]
    measured = train(words, tmp_path / "dif_dtok", settings, needed=10 * GIB)
    budget = plan(
        config,
        gpus=1,
        gpu="h100",
        sana=sana,
        tokenizer=tokenizer,
        from_images=True,
        overrides=settings,
    )
    compare(budget, measured)
