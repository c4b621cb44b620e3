"""Every experiment under pipelines/ is one that its command would accept."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tarkit.config import Config, load_config
from tarkit.errors import UserError
from tarkit.models.encoder import EncoderArch
from tarkit.models.vqvae import VqvaeArch
from tarkit.train.ar_dtok import ArDtokConfig
from tarkit.vocab import Scale

ROOT = Path(__file__).resolve().parents[1]
TOMLS = sorted((ROOT / "pipelines").rglob("*.toml"))

IMPORTS = re.compile(r"from (tarkit[\w.]*) import (\w+(?:, \w+)*)")

ConfigClass = Callable[[str], type[Config]]


@pytest.mark.parametrize("path", TOMLS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_toml_loads_with_its_config(path: Path, config_class: ConfigClass) -> None:
    load_config(config_class(path.stem), path)


def test_there_are_experiments_to_load() -> None:
    folders = {path.relative_to(ROOT / "pipelines").parts[0] for path in TOMLS}
    assert folders == {"smoke", "mini", "paper", "emoji", "grpo", "dif_dtok"}


def test_a_misspelt_key_would_be_noticed(tmp_path: Path, config_class: ConfigClass) -> None:
    (tmp_path / "chats.toml").write_text("t2i_per_pictures = 3\n")
    with pytest.raises(UserError, match=r"t2i_per_pictures.*did you mean t2i_per_picture\?"):
        load_config(config_class("chats"), tmp_path / "chats.toml")


def test_names_are_matched_whole(config_class: ConfigClass) -> None:
    with pytest.raises(AssertionError, match="no command reads it"):
        config_class("mllmsft")


@pytest.mark.parametrize(
    "path",
    sorted(p for p in (ROOT / "pipelines").rglob("*.*") if p.suffix in (".py", ".sh")),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_what_a_pipeline_imports_is_there(path: Path) -> None:
    for module, names in IMPORTS.findall(path.read_text()):
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"


def test_an_import_in_a_line_of_shell_is_found() -> None:
    line = """embedded=$(python -c 'from tarkit.gone import A, B; print(A["mini"])')"""
    assert IMPORTS.findall(line) == [("tarkit.gone", "A, B")]


# ---- the paper's AR-DTok

PAPER = ROOT / "pipelines" / "paper"

# Table 8, by input resolution: learning rate, samples and batch size. Its other rows are the same
# for all three: cosine, AdamW (.9, .95), weight decay .05, warm-up .04 of 1 epoch, gradient clip
# 1.0, token drop prob .1.
TABLE_8 = {256: (4e-4, 50_000_000, 768), 512: (1e-4, 23_000_000, 96), 1024: (1e-4, 3_000_000, 48)}
# What the paper does not say.
OPEN = {"condition_dropout", "sample_guidance", "precision", "residual_dropout", "ffn_dropout"}


def ar_dtok(size_px: int) -> ArDtokConfig:
    return load_config(ArDtokConfig, PAPER / f"ar_dtok_{size_px}.toml")


@pytest.mark.parametrize("size_px", TABLE_8)
def test_ar_dtok_has_the_papers_numbers(size_px: int) -> None:
    config, (rate, samples, batch) = ar_dtok(size_px), TABLE_8[size_px]
    assert (config.learning_rate, config.batch_size) == (rate, batch)
    assert config.steps == samples // batch  # 1 epoch
    assert (config.schedule, config.optimizer) == ("cosine", "adamw")
    assert (config.betas, config.weight_decay) == ((0.9, 0.95), 0.05)
    assert (config.warmup, config.clip) == (0.04, 1.0)
    assert config.arch.token_dropout == 0.1
    assert config.scale_ratio == (2, 1, 1)  # App. C.1
    # Sec. 4.1: LlamaGen's image VQ, 16 px a code, and 729 of TA-Tok's codes at scale 1.
    vqvae = VqvaeArch()
    assert config.arch.num_codes == (size_px // vqvae.downsampling) ** 2
    assert config.arch.vocab_size == vqvae.num_codes == 16384
    assert config.arch.max_condition == Scale.FULL.num_codes(384 // 14) == 729
    assert config.arch.condition_width == EncoderArch().width == 1152


def test_each_resolution_can_start_from_the_one_before() -> None:
    sizes = [ar_dtok(size_px).arch.model_copy(update={"num_codes": 0}) for size_px in TABLE_8]
    assert sizes[0] == sizes[1] == sizes[2]


@pytest.mark.parametrize("size_px", TABLE_8)
def test_what_the_paper_leaves_open_is_marked_and_nothing_else(size_px: int) -> None:
    lines = (PAPER / f"ar_dtok_{size_px}.toml").read_text().splitlines()
    marked = {line.split(" = ")[0] for line in lines if "# open" in line}
    assert marked == OPEN
