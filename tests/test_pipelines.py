"""Every experiment under pipelines/ is one that its command would accept."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tarkit.config import Config, load_config
from tarkit.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
TOMLS = sorted((ROOT / "pipelines").rglob("*.toml"))

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
