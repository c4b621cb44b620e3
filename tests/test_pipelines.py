"""Every experiment under pipelines/ is one that its command would accept."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tarkit.config import Config, load_config
from tarkit.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
TOMLS = sorted((ROOT / "pipelines").rglob("*.toml"))

IMPORTS = re.compile(r"from (tarkit[\w.]*) import (\w+(?:, \w+)*)")

ConfigClass = Callable[[str], type[Config]]


@pytest.mark.parametrize("path", TOMLS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_toml_loads_with_its_config(path: Path, config_class: ConfigClass) -> None:
    load_config(config_class(path.stem), path)


def test_there_are_experiments_to_load() -> None:
    folders = {path.relative_to(ROOT / "pipelines").parts[0] for path in TOMLS}
    assert folders == {"smoke", "mini", "paper", "emoji", "grpo"}


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
