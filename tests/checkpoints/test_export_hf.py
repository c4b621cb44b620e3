"""The exported directory: stock transformers computes the same, and writes the same chats."""

import os
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tarkit.checkpoints import export_hf
from tarkit.checkpoints.export_hf import chat_template
from tarkit.checkpoints.hub import find
from tarkit.checkpoints.language_model import load_mllm
from tarkit.errors import UserError
from tarkit.vocab import Scale
from tests.checkpoints.test_language_model import publish

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_hf.run("mini", out=tmp_path_factory.mktemp("export") / "mini")


def test_stock_transformers_computes_the_same(exported: Path) -> None:
    ours = load_mllm(find("mini").mllm)
    theirs = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    assert type(theirs).__name__ == "Qwen2ForCausalLM"
    visual = ours.vocabulary.visual
    assert visual is not None
    ids = torch.tensor([ours.vocabulary.prompt("a photo of a red circle", draw=Scale.HALF)])
    with torch.no_grad():
        assert_close(theirs(input_ids=ids).logits, ours.model(input_ids=ids).logits)
    assert theirs.config.vocab_size == visual.size
    settings = GenerationConfig.from_pretrained(exported)
    assert settings.eos_token_id == [
        ours.vocabulary.chat_end,
        ours.vocabulary.text.special["<|endoftext|>"],
    ]
    # Its numbers for sampling are transformers' own: none of a model's is passed on.
    plain = GenerationConfig()
    for name in ("temperature", "top_p", "top_k", "repetition_penalty", "do_sample"):
        assert getattr(settings, name) == getattr(plain, name)


@pytest.mark.parametrize("which", ["mini", "published"])
def test_the_tokenizer_writes_the_chats_that_were_trained(
    exported: Path, tmp_path: Path, which: str
) -> None:
    folder = exported
    model: str | Path = "mini"
    if which == "published":
        # Its parts beside the language model are not needed for an export, but for finding it.
        model = publish(tmp_path / "published")
        for name in ("ta_tok.pth", "ar_dtok_lp_256px.pth", "vq_ds16_t2i.pt"):
            (tmp_path / "published" / name).touch()
        folder = export_hf.run(model, out=tmp_path / "out")
    vocabulary = load_mllm(find(model).mllm).vocabulary
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert vocabulary.visual is not None and len(tokenizer) == vocabulary.visual.size
    turns = [{"role": "user", "content": "how many stars?\nsay it"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert ids == vocabulary.prompt("how many stars?\nsay it", draw=None)
    picture = vocabulary.picture([3, 1, 2], Scale.HALF, tagged=True)
    assert tokenizer.encode("<im_start><S1><I3><I1><I2><im_end>") == picture
    assert tokenizer.decode(picture) == "<im_start><S1><I3><I1><I2><im_end>"
    assert tokenizer.decode(picture, skip_special_tokens=True) == "<S1><I3><I1><I2>"
    mine = {"role": "system", "content": "be brief"}
    ids = tokenizer.apply_chat_template([mine, *turns], return_dict=False)
    assert ids == vocabulary.chat([mine, *turns])[0]
    card = (folder / "card.md").read_text()
    visual = vocabulary.visual
    assert visual is not None and f"{visual.first_code} to {visual.size - 1}" in card


def test_the_export_says_what_the_model_was_trained_on(exported: Path) -> None:
    card = (exported / "card.md").read_text()
    assert "- text: the 117,791 glosses of WordNet 3.1" in card and "library_name: tran" in card
    changed = card.replace("the 117,791 glosses", "glosses that were removed since")
    (exported / "card.md").write_text(changed)
    assert export_hf.run("mini", out=exported) == exported  # it is this export still
    (exported / "card.md").write_text(card)


def test_nothing_is_written_over_and_precision_is_as_asked(tmp_path: Path, exported: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in exported.iterdir()}
    assert export_hf.run("mini", out=exported) == exported  # it is this export
    with pytest.raises(UserError, match="holds another model"):
        export_hf.run("mini", out=exported, precision="bfloat16")
    assert {path: path.stat().st_mtime_ns for path in exported.iterdir()} == before
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not empty"):
        export_hf.run("mini", out=tmp_path / "own")
    with pytest.raises(UserError, match="precision 'int3'"):
        export_hf.run("mini", out=tmp_path / "x", precision="int3")
    folder = export_hf.run("mini", out=tmp_path / "half", precision="bfloat16")
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


KILLED = """
import os, sys
from pathlib import Path
from tarkit.checkpoints import export_hf
export_hf._write_tokenizer = lambda *given, **named: os._exit(9)  # the weights are written
export_hf.run("mini", out=Path(sys.argv[1]))
"""


def test_an_export_that_ends_early_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **named: object) -> None:
        assert any(tmp_path.rglob("model.safetensors"))
        raise OSError("no space left")

    monkeypatch.setattr(export_hf, "_write_tokenizer", full)
    with pytest.raises(OSError, match="no space left"):
        export_hf.run("mini", out=tmp_path / "mini")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_and_the_same_command_writes_it(
    exported: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mini"
    words = [sys.executable, "-c", KILLED, str(out)]
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == 9, done.stderr
    (left,) = tmp_path.iterdir()
    assert (left / "model.safetensors").exists() and not out.exists()
    export_hf.run("mini", out=out)
    assert list(tmp_path.iterdir()) == [out]  # what was left is gone
    files = sorted(path.name for path in exported.iterdir())
    assert sorted(path.name for path in out.iterdir()) == files
    assert all((out / name).read_bytes() == (exported / name).read_bytes() for name in files)


@pytest.mark.parametrize(
    "system", ["\u00c9t\u00e9", "\U0001f600 helps.", '\U00020000\n"{{ 1 }}" \\']
)
def test_the_system_turn_keeps_every_character(system: str) -> None:
    render = jinja2.Environment().from_string(chat_template(system)).render
    text = render(messages=[{"role": "user", "content": "hi"}], add_generation_prompt=False)
    assert text.startswith(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n")
    assert text.encode()  # no half of a surrogate pair
