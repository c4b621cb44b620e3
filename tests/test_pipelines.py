"""Every experiment under pipelines/ is one that its command would accept."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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
    assert folders == {"smoke", "mini", "paper", "emoji", "grpo"} | {
        "dif_dtok",
        "finetune",
        "ablations",
    }


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


# ---- the paper's numbers

PAPER = ROOT / "pipelines" / "paper"


class Column(NamedTuple):
    """A column of Table 8, and what Sec. 4.1 and App. C.1 add to it."""

    learning_rate: float
    schedule: str
    optimizer: str
    betas: tuple[float, ...]
    weight_decay: float
    warmup: float  # of its 1 epoch
    samples: int  # in millions
    batch_size: int
    clip: float


AR_DTOK = ("cosine", "adamw", (0.9, 0.95), 0.05, 0.04)
MLLM = (5e-5, "cosine", "adamw", (0.9, 0.999), 0.0, 0.03)
TABLE_8 = {
    "tokenizer": Column(2e-4, "cosine", "adamw", (0.9, 0.99), 1e-4, 0.04, 200, 512, 1.0),
    "ar_dtok_256": Column(4e-4, *AR_DTOK, 50, 768, 1.0),
    "ar_dtok_512": Column(1e-4, *AR_DTOK, 23, 96, 1.0),
    "ar_dtok_1024": Column(1e-4, *AR_DTOK, 3, 48, 1.0),
    "dif_dtok_512": Column(1e-4, "constant", "came", (0.9, 0.999, 0.9999), 0, 0.01, 23, 48, 0.1),
    "mllm_pretrain": Column(*MLLM, 100, 1024, 1.0),
    "mllm_sft": Column(*MLLM, 4, 256, 1.0),
}
# What the paper does not say, by the beginning of the file's name.
LOOP_OPEN = {"precision", "checkpoint_every"}
OPEN = {
    "tokenizer": LOOP_OPEN
    | {"representative", "select_layer"}
    | {"decoder_heads", "decoder_mlp_width", "decoder_side"},
    "ar_dtok": LOOP_OPEN | {"sample_guidance", "token_dropout", "residual_dropout", "ffn_dropout"},
    "dif_dtok_512": LOOP_OPEN
    | {"logit_mean", "logit_std", "flow_shift", "sample_guidance", "sample_steps"},
    "mllm": LOOP_OPEN | {"length", "codebook_norm"},
}
OPEN["dif_dtok_1024"] = OPEN["dif_dtok_512"] | {"size_px", "condition_dropout"} | {"steps"}
OPEN["dif_dtok_1024"] |= set(Column._fields) - {"samples"}
PAPER_TOMLS = [PAPER / f"{stem}.toml" for stem in (*TABLE_8, "dif_dtok_1024")]


@pytest.mark.parametrize("stem", TABLE_8)
def test_a_training_has_the_numbers_of_table_8(stem: str, config_class: ConfigClass) -> None:
    config: Any = load_config(config_class(stem), PAPER / f"{stem}.toml")
    column = TABLE_8[stem]
    for name in set(Column._fields) - {"samples"}:
        assert getattr(config, name) == getattr(column, name), name
    assert config.steps == column.samples * 1_000_000 // column.batch_size  # 1 epoch
    assert config.scale_ratio == (2, 1, 1)  # App. C.1


def test_the_tokenizer_has_the_papers_sizes_and_losses(config_class: ConfigClass) -> None:
    config: Any = load_config(config_class("tokenizer"), PAPER / "tokenizer.toml")
    assert (config.codebook, config.reconstruction) == (1.0, 1.0)  # Table 8
    assert config.images_weights == (1, 1)  # Table 7: 100M of each
    assert (config.sizes.num_codes, config.sizes.code_width) == (65536, 1536)  # Table 9 (c)
    assert config.sizes.decoder_layers == 3  # Sec. 4.1
    # Sec. 4.1: {729, 169, 81} tokens of an encoder of 384 px, which is Table 8's resolution.
    encoder = EncoderArch()
    assert encoder.size_px == 384
    assert [scale.num_codes(encoder.grid) for scale in Scale] == [729, 169, 81]


def test_the_token_drop_prob_of_table_8_is_the_share_of_dropped_conditions(
    config_class: ConfigClass,
) -> None:
    for stem in ("ar_dtok_256", "ar_dtok_512", "ar_dtok_1024", "dif_dtok_512"):
        path = PAPER / f"{stem}.toml"
        config: Any = load_config(config_class(stem), path)
        assert config.condition_dropout == 0.1
        lines = [line for line in path.read_text().splitlines() if "token drop prob" in line]
        assert [line.split(" = ")[0] for line in lines] == ["condition_dropout"]  # and that alone
    for stem in ("mllm_pretrain", "mllm_sft"):  # Table 8: none
        config = load_config(config_class(stem), PAPER / f"{stem}.toml")
        assert config.prompt_dropout == 0


def test_generation_is_as_much_as_understanding_and_twice_the_text(
    config_class: ConfigClass,
) -> None:
    drawing = ("t2i", "i2i", "ti2i")
    for stem in ("mllm_pretrain", "mllm_sft"):
        config: Any = load_config(config_class(stem), PAPER / f"{stem}.toml")
        generation = [config.ratio.get(task, 0) for task in drawing]
        unit = config.ratio["text"]
        assert (config.ratio["i2t"], sum(generation)) == (2 * unit, 2 * unit)  # Table 8
        # Sec. 4.4; Table 7 has no I2I and TI2I rows in SFT.
        assert generation == ([4, 1, 1] if stem == "mllm_pretrain" else [2, 0, 0])


AR_SIZES = (256, 512, 1024)


def ar_dtok(size_px: int) -> ArDtokConfig:
    return load_config(ArDtokConfig, PAPER / f"ar_dtok_{size_px}.toml")


@pytest.mark.parametrize("size_px", AR_SIZES)
def test_ar_dtok_has_the_sizes_of_what_it_reads_and_draws(size_px: int) -> None:
    arch = ar_dtok(size_px).arch
    # Sec. 4.1: LlamaGen's image VQ, 16 px a code, and 729 of TA-Tok's codes at scale 1.
    vqvae = VqvaeArch()
    assert arch.num_codes == (size_px // vqvae.downsampling) ** 2
    assert arch.vocab_size == vqvae.num_codes == 16384
    assert arch.max_condition == Scale.FULL.num_codes(384 // 14) == 729
    assert arch.condition_width == EncoderArch().width == 1152


def test_each_resolution_can_start_from_the_one_before() -> None:
    sizes = [ar_dtok(size_px).arch.model_copy(update={"num_codes": 0}) for size_px in AR_SIZES]
    assert sizes[0] == sizes[1] == sizes[2]


def cells(path: Path) -> dict[str, str]:
    """The comment of every key in a TOML."""
    lines = [line for line in path.read_text().splitlines() if re.match(r"\w+ = ", line)]
    return {line.split(" = ")[0]: line.partition("#")[2].strip() for line in lines}


@pytest.mark.parametrize("path", PAPER_TOMLS, ids=lambda path: path.stem)
def test_every_cell_names_its_source_or_is_marked_as_open(path: Path) -> None:
    comments = cells(path)
    assert all(comments.values()), [key for key, comment in comments.items() if not comment]
    known = max((name for name in OPEN if path.stem.startswith(name)), key=len)
    assert {key for key, text in comments.items() if text.startswith("open")} == OPEN[known]


# ---- the paper's scripts

STEPS = sorted(PAPER.glob("[0-9]-*.sh"))


def test_the_paper_has_six_steps() -> None:
    names = [path.stem for path in STEPS]
    stages = ("curate", "tokenizer", "encode", "ar_dtok", "dif_dtok", "mllm")
    assert names == [f"{number}-{stage}" for number, stage in enumerate(stages, start=1)]
    used = re.findall(r"\$here/(\w+)\.toml", "".join(path.read_text() for path in STEPS))
    assert sorted(used) == sorted(path.stem for path in PAPER_TOMLS)
