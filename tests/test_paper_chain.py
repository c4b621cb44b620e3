"""The paper's whole chain by the command line, from small models that other programs saved.

SigLIP 2 and Qwen2.5 are saved by transformers and SANA by diffusers, into the cache of the hub.
They are what a user downloads except in size. Every stage reads the paper's own TOML and `--set`
changes its sizes. Two steps teach nothing: the test is whether each stage takes what the others
made.
"""

import csv
import json
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import constants
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.qwen2 import Qwen2Tokenizer
from typer.testing import CliRunner

from tarkit import Tar
from tarkit.artifacts.artifact import open_artifact
from tarkit.checkpoints.directory import read_config
from tarkit.checkpoints.load import load_encoder, load_ta_tok
from tarkit.cli.app import app
from tarkit.vocab import train_text_tokenizer
from tests.checkpoints.test_hub import snapshot
from tests.train.conftest import metrics
from tests.train.test_dif_dtok import save_sana

PAPER = Path(__file__).resolve().parents[1] / "pipelines" / "paper"
TEXTS = [
    "a photo of a red circle left of a blue square",
    "Describe the image. Generate an image similar to this one.",
    "You are a helpful assistant. how many stars are in the image? two",
]
# The tags of Qwen2.5 behind <|endoftext|>, of which chats use the first two.
TAGS = ["<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_start|>", "<|image_pad|>"]
WIDTH = 32
QUESTION = "how many stars are there?"
CHATS = ("chats", "llava_chats", "text_chats")
NUM_TOKENS = 344  # of the text: 337 words, <|endoftext|>, TAGS and <tool_call>


def save_siglip2(folder: Path) -> None:
    """58 px in patches of 14: a grid of 4, and two pixels are dropped, as 384 = 27 * 14 + 6."""
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_attention_heads": 2}
    text: dict[str, Any] = {"vocab_size": 32, "bos_token_id": 1, "eos_token_id": 2}
    SiglipModel(
        SiglipConfig(
            text_config={**sizes, **text, "num_hidden_layers": 1, "pad_token_id": 0},
            vision_config={**sizes, "num_hidden_layers": 3, "image_size": 58, "patch_size": 14},
        )
    ).save_pretrained(folder)


def save_qwen(folder: Path) -> None:
    """Qwen2.5's tokenizer class, and a table with more rows than the tokenizer has tokens."""
    torch.manual_seed(0)
    words = json.loads(train_text_tokenizer(TEXTS * 4, vocab_size=340))["model"]
    tokenizer = Qwen2Tokenizer(vocab=words["vocab"], merges=[tuple(m) for m in words["merges"]])
    tokenizer.add_special_tokens({"extra_special_tokens": TAGS})
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    tokenizer.save_pretrained(folder)
    assert len(tokenizer) == NUM_TOKENS
    model = Qwen2ForCausalLM(
        Qwen2Config(
            **{"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2},
            **{"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 384},
            **{"max_position_embeddings": 4096, "tie_word_embeddings": True},
        )
    )
    model.to(torch.bfloat16).save_pretrained(folder)


def save_photos(folder: Path) -> None:
    """Four photographs of different shapes, captions.csv, and llava.json about them."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    talks = []
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for number in range(4):
            pixels = rng.integers(0, 256, (48 + 8 * number, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((96, 72 + 8 * number)).save(
                folder / "photos" / f"{number}.jpg", quality=90
            )
            rows.writerow([f"{number}.jpg", f"a photo of {number} stars"])
            talk = ["<image>\nhow many stars are there?", str(number), "of which color?", "red"]
            turns = [{"from": ("human", "gpt")[i % 2], "value": t} for i, t in enumerate(talk)]
            talks.append({"id": number, "image": f"{number}.jpg", "conversations": turns})
    (folder / "llava.json").write_text(json.dumps(talks))
    messages = [{"role": "user", "content": "how many?"}, {"role": "assistant", "content": "two"}]
    (folder / "text.jsonl").write_text(json.dumps({"messages": messages}) + "\n")


# By the word that stands for them in CHAIN.
SETTINGS = {
    "FEW": "steps=2 batch_size=4 log_every=1",
    "TOKENIZER": "sizes.num_codes=64 sizes.code_width=32 sizes.decoder_heads=2 "
    "sizes.decoder_mlp_width=48 sizes.decoder_side=4",
    "VQVAE": "arch.num_codes=16 arch.unshuffle=2",
    "AR": "arch.layers=1 arch.heads=2 arch.width=32 arch.multiple_of=16 arch.condition_width=32 "
    "arch.vocab_size=16 arch.max_condition=16",
    "DIF": "sample_steps=2 sample_pictures=1",
}
SIGLIP2, QWEN, SANA = (
    "google/siglip2-so400m-patch14-384",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Efficient-Large-Model/Sana_600M_512px_diffusers",
)
# Of 24 drawn scenes, 16 have a similar picture and 8 a reference: the groups of I2I and TI2I.
CHAIN = f"""
tarkit curate ingest photos --captions captions.csv --out laion
tarkit curate ingest photos --captions captions.csv --out laion_aes
tarkit curate render --set count=24 --set shard_size=24 --set captions=2 --set questions=2 --out gen
tarkit plan PAPER/tokenizer.toml --gpus 4 --gpu h100 --lm {QWEN} --encoder {SIGLIP2} FEW \
    TOKENIZER --json
tarkit train tokenizer PAPER/tokenizer.toml --images laion --images laion_aes --encoder {SIGLIP2} \
    --lm {QWEN} FEW TOKENIZER --out ta_tok
tarkit encode gen --tokenizer ta_tok --out tokens
tarkit curate chats tokens --out chats
tarkit curate chats --text text.jsonl --out text_chats
tarkit curate ingest photos --questions llava.json --out llava
tarkit encode llava --tokenizer ta_tok --out llava_tokens
tarkit curate chats llava_tokens --set qa_per_picture=16 --set qa_turns=16 --set qa_order=given \
    --out llava_chats
tarkit plan PAPER/mllm_pretrain.toml --gpus 4 --gpu h100 --lm {QWEN} --tokenizer ta_tok FEW \
    --set length=256 --json
tarkit train mllm PAPER/mllm_pretrain.toml --chats chats --chats text_chats --lm {QWEN} \
    --tokenizer ta_tok FEW --set batch_size=15 --set length=256 --out pretrained
tarkit train mllm PAPER/mllm_sft.toml --chats chats --chats llava_chats --chats text_chats \
    --lm pretrained --tokenizer ta_tok FEW --set batch_size=5 --set length=256 --out mllm
tarkit train vqvae PAPER/../smoke/vqvae.toml --images gen FEW VQVAE --out vqvae
tarkit encode gen --tokenizer ta_tok --vqvae vqvae --set vq_size_px=16 --set square=crop \
    --out tokens_16
tarkit encode gen --tokenizer ta_tok --vqvae vqvae --set vq_size_px=32 --out tokens_32
tarkit encode gen --tokenizer ta_tok --vqvae vqvae --set vq_size_px=64 --out tokens_64
tarkit train ar-dtok PAPER/ar_dtok_256.toml --tokens tokens_16 --tokenizer ta_tok --vqvae vqvae \
    FEW AR --set arch.num_codes=16 --out ar_16
tarkit train ar-dtok PAPER/ar_dtok_512.toml --tokens tokens_32 --tokenizer ta_tok --vqvae vqvae \
    --start ar_16 FEW AR --set arch.num_codes=64 --out ar_32
tarkit plan PAPER/ar_dtok_1024.toml --gpus 4 --gpu h100 --tokenizer ta_tok --vqvae vqvae FEW AR \
    --set arch.num_codes=256 --json
tarkit train ar-dtok PAPER/ar_dtok_1024.toml --tokens tokens_64 --tokenizer ta_tok --vqvae vqvae \
    --start ar_32 FEW AR --set arch.num_codes=256 --out ar_64
tarkit train dif-dtok PAPER/dif_dtok_512.toml --images gen --tokenizer ta_tok --sana {SANA} FEW \
    DIF --set size_px=32 --out dif_32
tarkit train dif-dtok PAPER/dif_dtok_1024.toml --images gen --tokenizer ta_tok --sana dif_32 FEW \
    DIF --set size_px=64 --out dif_64
tarkit assemble --mllm mllm --tokenizer ta_tok --ar-dtok ar_64 --vqvae vqvae --dif-dtok dif_64 \
    --out tar
tarkit generate "a photo of a red circle" --model tar --out ar.png
tarkit generate "a photo of a red circle" --model tar --dtok dif --steps 2 --out dif.png
tarkit generate "make <image> blue" --image ar.png --model tar --scale 3 --out edited.png
tarkit describe dif.png "{QUESTION}" --max-tokens 4 --model tar
tarkit export hf tar --out exported
"""


def words(line: str) -> list[str]:
    """The words of a command of CHAIN behind `tarkit`."""
    line = line.replace("PAPER", str(PAPER))
    for name, settings in SETTINGS.items():
        flags = " ".join(f"--set {setting}" for setting in settings.split())
        line = line.replace(f" {name} ", f" {flags} ")
    return shlex.split(line)[1:]


class Chain(NamedTuple):
    """The folder in which the chain ran, and what each command wrote on stdout, by its words."""

    work: Path
    outputs: dict[str, str]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    work = tmp_path_factory.mktemp("paper")
    save_siglip2(snapshot(work / "hub", SIGLIP2))
    save_qwen(snapshot(work / "hub", QWEN))
    save_sana(snapshot(work / "hub", SANA))
    save_photos(work)
    outputs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(work / "hub"))
        patch.chdir(work)
        for line in CHAIN.strip().splitlines():
            # A user's every command is a process of its own, and so has its own precision.
            AcceleratorState._reset_state(reset_partial_state=True)
            done = CliRunner().invoke(app, words(line))
            assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
            outputs[line] = done.stdout
    return Chain(work, outputs)


def output(chain: Chain, start: str) -> str:
    """What the one command of the chain that begins so wrote."""
    (line,) = [line for line in chain.outputs if line.startswith(start)]
    return chain.outputs[line]


def test_codes_come_from_the_words_of_qwen_and_features_from_siglip(chain: Chain) -> None:
    config = read_config(chain.work / "ta_tok", "ta_tok")
    assert config["arch"]["encoder"]["size_px"] == 58 and config["arch"]["code_width"] == WIDTH
    words_of_qwen = NUM_TOKENS - len(TAGS) - 2  # <|endoftext|> and <tool_call> are added too
    rows = config["codebook_rows"]
    assert len(set(rows)) == 64 and max(rows) < words_of_qwen
    with safe_open(model_file(chain, QWEN), "pt") as file:
        table = file.get_tensor("model.embed_tokens.weight").float()
    codebook = load_ta_tok(chain.work / "ta_tok").model.codebook
    assert torch.equal(codebook.embedding.weight, table[rows])
    encoder = load_encoder(snapshot(chain.work / "hub", SIGLIP2)).state_dict()
    trained = load_ta_tok(chain.work / "ta_tok").model.encoder.state_dict()
    # Two steps of the warm-up move no weight by more than their rates.
    for name, weight in trained.items():
        assert_close(weight, encoder[name], atol=5e-4, rtol=0)
        if name in ("embeddings.patch_embedding.weight", "layers.1.mlp.fc1.weight"):
            assert not torch.equal(weight, encoder[name])


def model_file(chain: Chain, repo: str) -> Path:
    return snapshot(chain.work / "hub", repo) / "model.safetensors"


def test_stored_codes_of_each_resolution_come_from_one_picture(chain: Chain) -> None:
    for size_px in (16, 32, 64):
        tokens = open_artifact(chain.work / f"tokens_{size_px}", "tokens")
        rows = list(tokens.rows("00000"))
        assert {len(row["vq_codes"]) for row in rows} == {(size_px // 4) ** 2}
        assert [row["codes_1"] for row in rows] == [
            row["codes_1"] for row in open_artifact(chain.work / "tokens").rows("00000")
        ]


def test_the_language_model_learned_every_task_and_grew_by_the_codes(chain: Chain) -> None:
    chats = [row for part in CHATS for row in open_artifact(chain.work / part).rows("00000")]
    assert {row["task"] for row in chats} == {"t2i", "i2t", "i2i", "ti2i", "text"}
    for name in ("pretrained", "mllm"):
        visual = read_config(chain.work / name, "mllm")["visual"]
        assert visual == {"first_id": NUM_TOKENS, "num_codes": 64}
        assert not (chain.work / name / "too_long.jsonl").exists()
        losses = metrics(chain.work / name)
        assert [row["step"] for row in losses] == [1, 2]
        for name in ("code_loss", "text_loss"):
            assert all(0 < row[name] < 20 for row in losses)
    # Table 8: fully finetuned, in both stages.
    first, last = (
        load_file(chain.work / name / "model.safetensors") for name in ("pretrained", "mllm")
    )
    with safe_open(model_file(chain, QWEN), "pt") as file:
        for name in file.keys():
            before = file.get_tensor(name).float()
            assert not torch.equal(first[name][: len(before)], before[: len(first[name])]), name
            assert not torch.equal(last[name], first[name]), name


def test_an_ar_dtok_starts_from_the_one_of_the_resolution_before(chain: Chain) -> None:
    codes = {16: 16, 32: 64, 64: 256}
    for size_px, num_codes in codes.items():
        arch = read_config(chain.work / f"ar_{size_px}", "ar_dtok")["arch"]
        assert (arch["num_codes"], arch["max_condition"]) == (num_codes, 16)
    # Two steps of a warm-up move no weight by more than their rates.
    one, two = (load_file(chain.work / f"ar_{size_px}/model.safetensors") for size_px in (16, 32))
    assert one.keys() == two.keys()
    for name in one.keys() - {"abs_pe"}:
        assert_close(two[name], one[name], atol=5e-4, rtol=0)
    assert two["abs_pe"].shape[1] == 16 + 64 - 1


@pytest.mark.parametrize("file", ["ar.png", "dif.png", "edited.png"])
def test_both_detokenizers_draw(chain: Chain, file: str) -> None:
    with Image.open(chain.work / file) as picture:
        assert picture.size == (64, 64)
        assert len(np.unique(np.asarray(picture))) > 8  # not a blank


def test_the_budget_is_that_of_the_model_which_is_made(chain: Chain) -> None:
    for stage, folder in (("tokenizer", "ta_tok"), ("mllm", "pretrained"), ("ar_dtok", "ar_64")):
        budget = json.loads(output(chain, f"tarkit plan PAPER/{stage}"))
        weights = load_file(chain.work / folder / "model.safetensors")
        assert budget["model_bytes"] == 4 * sum(weight.numel() for weight in weights.values())


def test_plain_transformers_reads_and_writes_what_tarkit_does(chain: Chain) -> None:
    tar = Tar.load(chain.work / "tar")
    model = AutoModelForCausalLM.from_pretrained(chain.work / "exported", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(chain.work / "exported")
    assert len(tokenizer) == NUM_TOKENS + 5 + 64
    with Image.open(chain.work / "dif.png") as picture:
        codes = tar.encode([picture], [tar.read_scale])[tar.read_scale][0].tolist()
    spelled = "".join(f"<I{code}>" for code in codes)
    chat = [{"role": "user", "content": f"{spelled}\n{QUESTION}"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids[0].tolist() == tar.mllm.vocabulary.question(QUESTION, (tar.read_scale, codes))
    with torch.no_grad():
        theirs, ours = model(input_ids=ids).logits, tar.mllm.model(input_ids=ids).logits
    assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    # The same answer as `tarkit describe`, token by token.
    words_alone = list(range(NUM_TOKENS))
    written = model.generate(
        ids,
        max_new_tokens=4,
        do_sample=False,
        prefix_allowed_tokens_fn=lambda _, __: words_alone,
    )
    answer = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    assert output(chain, "tarkit describe").strip() == answer.strip()


def test_codes_that_plain_transformers_draws_become_a_picture(chain: Chain) -> None:
    model = AutoModelForCausalLM.from_pretrained(chain.work / "exported", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(chain.work / "exported")
    chat = [{"role": "user", "content": "a photo of a red circle"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text + "<im_start><S0>", return_tensors="pt").input_ids
    first = tokenizer.convert_tokens_to_ids("<I0>")
    drawn = model.generate(
        ids,
        max_new_tokens=16,
        min_new_tokens=16,
        do_sample=True,
        top_k=0,
        prefix_allowed_tokens_fn=lambda _, __: list(range(first, first + 64)),
    )
    codes = drawn[:, ids.shape[1] :] - first
    (picture,) = Tar.load(chain.work / "tar").draw(codes, seeds=[0])
    assert picture.size == (64, 64)
