import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Literal

import pydantic
import pytest

from tarkit.config import Config, load_config, provenance, write_toml
from tarkit.errors import UserError
from tarkit.train.mllm import MllmConfig


class Optimiser(Config):
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.95)


class Small(Config):
    steps: int = 100
    name: str = "tar"
    shuffle: bool = True
    mode: Literal["near", "far"] = "near"
    limit: int | None = None
    optimiser: Optimiser = Optimiser()
    ratios: dict[str, float] = {"t2i": 0.5, "text": 0.5}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_and_overrides_change_the_defaults_and_the_override_wins(tmp_path: Path) -> None:
    path = written(tmp_path, "steps = 7\nname = 'a'\n[optimiser]\nlearning_rate = 2e-4\n")
    overrides = ["optimiser.learning_rate=1e-3", "name=bare-word", "steps=8", "ratios.t2i=1"]
    config = load_config(Small, path, overrides)
    assert config.optimiser == Optimiser(learning_rate=0.001, betas=(0.9, 0.95))
    assert (config.steps, config.name, config.ratios) == (8, "bare-word", {"t2i": 1.0})
    assert load_config(Small, None) == Small()


def test_an_override_may_hold_an_equals_sign_a_list_or_a_quoted_number() -> None:
    config = load_config(Small, None, ["name=a=b", "optimiser.betas=[0.5, 0.6]"])
    assert (config.name, config.optimiser.betas) == ("a=b", (0.5, 0.6))
    assert load_config(Small, None, ['name="3"']).name == "3"


def test_an_unknown_key_names_the_file_the_key_and_the_nearest_one(tmp_path: Path) -> None:
    path = written(tmp_path, "[optimiser]\nlearning_rat = 1e-3\n")
    with pytest.raises(UserError) as caught:
        load_config(Small, path)
    assert caught.value.message == (
        f"{path}: unknown key optimiser.learning_rat (did you mean learning_rate?)"
    )
    with pytest.raises(UserError, match=r"--set: unknown key step \(did you mean steps\?\)"):
        load_config(Small, None, ["step=3"])


def test_a_wrong_value_is_shown_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"steps = 'many': "):
        load_config(Small, None, ["steps=many"])
    with pytest.raises(UserError, match=r"mode = 'wide': .*'near' or 'far'"):
        load_config(Small, None, ["mode=wide"])
    with pytest.raises(UserError, match=r"learning_rate = nan: .*finite"):
        load_config(Small, None, ["optimiser.learning_rate=nan"])


def test_a_damaged_or_absent_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"small.toml is not TOML: .*line 1"):
        load_config(Small, written(tmp_path, "steps 3"))
    with pytest.raises(UserError, match="nothing.toml cannot be read: No such file"):
        load_config(Small, tmp_path / "nothing.toml")
    with pytest.raises(UserError, match="expected key=value"):
        load_config(Small, None, ["steps"])
    with pytest.raises(UserError, match="steps is a value, not a table"):
        load_config(Small, written(tmp_path, "steps = 3"), ["steps.more=3"])


def test_a_config_cannot_be_changed_after_loading() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        Small().steps = 3


def test_the_written_toml_reads_back_as_the_same_config(tmp_path: Path) -> None:
    odd = 'quote " backslash \\ newline \n del \x7f snow ☃ end'
    config = Small(name=odd, optimiser=Optimiser(learning_rate=1e-06), ratios={"a b": 1 / 3})
    text = write_toml(config)
    assert load_config(Small, written(tmp_path, text)) == config
    assert "limit" not in tomllib.loads(text)


def test_provenance_names_versions_without_importing_the_packages() -> None:
    versions = provenance()
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["numpy"].count(".") == 2
    code = (
        "import sys; from tarkit.config import provenance; provenance();"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "why"),
    [("steps = " + "[" * 100_000, "nests too deeply"), ("steps = " + "9" * 5_000, "not TOML")],
)
def test_hostile_toml_is_a_sentence(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=why):
        load_config(Small, file)
    with pytest.raises(UserError, match="cannot be read"):
        load_config(Small, None, [text.replace(" ", "")])


def test_a_number_beyond_float32_is_refused() -> None:
    with pytest.raises(UserError, match="beyond 3e.38, the range of float32"):
        load_config(MllmConfig, None, ["text_weight=1e308"])


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(b"\xef\xbb\xbf")
    assert load_config(Small, file) == Small()


def test_settings_in_a_pipe_or_without_end_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.toml")
    (tmp_path / "b.toml").touch()
    os.truncate(tmp_path / "b.toml", 1 << 40)
    for name, why in (("a.toml", "it is not a file"), ("b.toml", "has more than 1048576 bytes")):
        with pytest.raises(UserError, match=why):
            load_config(Small, tmp_path / name)
