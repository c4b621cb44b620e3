"""Configs as frozen pydantic models read from TOML, and the versions that a result depends on."""

import difflib
import importlib.metadata
import platform
import tomllib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
import tomli_w

from tarkit.errors import UserError
from tarkit.seeds import MAX_SEED

MAX_TOML_BYTES = 1 << 20
PACKAGES = (
    "accelerate diffusers numpy pillow pyarrow safetensors tokenizers torch transformers".split()
)


MAX_FLOAT = 3e38
"""Networks compute in float32, in which a larger number is infinite."""
Count = Annotated[int, pydantic.Field(ge=1, le=1024)]
"""A number of layers, heads or blocks of a network: a file that claims more is refused at once."""
Size = Annotated[int, pydantic.Field(ge=1, le=1 << 24)]
"""A width, a number of rows or a side: a file that claims more is refused at once."""
Seed = Annotated[int, pydantic.Field(ge=0, le=MAX_SEED)]


class Config(pydantic.BaseModel):
    """Base of every config: unknown keys are errors and nothing changes after loading."""

    # By default pydantic accepts inf and nan, which would spoil a run hours later.
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @pydantic.field_validator("*")
    @classmethod
    def _fits_float32(cls, value: Any) -> Any:
        if isinstance(value, float) and abs(value) > MAX_FLOAT:
            raise ValueError(f"{value:g} is beyond {MAX_FLOAT:.2g}, the range of float32")
        return value


ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(cls: type[ConfigT], path: Path | None, overrides: Sequence[str] = ()) -> ConfigT:
    """The config in the TOML file `path` (None: all defaults) with `a.b=3` overrides applied.

    An override's value is read as TOML, and as a string when it is a bare word. Raises UserError
    with file, key and the nearest known key.
    """
    place = str(path) if path else "the defaults"
    data = _read_toml(path) if path else {}
    for override in overrides:
        _apply(data, override)
    try:
        return cls.model_validate(data)
    except pydantic.ValidationError as error:
        lines = [_explain(cls, item) for item in error.errors()]
        changed = " and --set" if overrides else ""
        known = f"known keys: {', '.join(cls.model_fields)}"
        raise UserError(f"{place}{changed}: " + "; ".join(lines), hint=known) from None


def provenance() -> dict[str, str]:
    """Versions of tarkit, Python and the packages that decide a result; imports none of them."""
    versions = {"tarkit": _version("tarkit") or "source tree", "python": platform.python_version()}
    return versions | {name: version for name in PACKAGES if (version := _version(name))}


def write_toml(config: pydantic.BaseModel) -> str:
    """The resolved config as TOML text that `load_config` reads back; unset values are left out."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():  # a pipe or /dev/zero would never end
            raise UserError(f"the config {path} cannot be read: it is not a file")
        if path.exists() and path.stat().st_size > MAX_TOML_BYTES:
            raise UserError(f"the config {path} has more than {MAX_TOML_BYTES} bytes")
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is not TOML for a config: it nests too deeply") from None
    except ValueError as error:  # also a number of more than 4,300 digits
        raise UserError(f"{path} is not TOML: {error}") from None
    except OSError as error:
        raise UserError(f"the config {path} cannot be read: {error.strerror}") from None


def _apply(data: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    parts = [part.strip() for part in name.split(".")]
    if not equals or not all(parts):
        raise UserError(f"--set {override}: expected key=value", hint="for example --set steps=200")
    for part in parts[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise UserError(f"--set {override}: {part} is a value, not a table")
    data[parts[-1]] = _toml_value(text.strip())


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except (ValueError, RecursionError) as error:
        why = "it nests too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"--set: the value {text[:40]}... cannot be read: {why}") from None
    return parsed["value"] if len(parsed) == 1 else text


def _explain(cls: type[pydantic.BaseModel], item: Any) -> str:
    """One sentence for one pydantic error."""
    location = [part for part in item["loc"] if isinstance(part, str)]
    key = ".".join(str(part) for part in item["loc"]) or "the whole"
    if item["type"] == "extra_forbidden":
        names = _field_names(cls, location[:-1])
        near = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
        return f"unknown key {key}" + (f" (did you mean {near[0]}?)" if near else "")
    if item["type"] == "missing":
        return f"key {key} is missing"
    if item["type"] == "value_error":  # a validator of ours, whose sentence says what is wrong
        message = str(item["ctx"]["error"])
        return f"{key}: {message}" if item["loc"] else message
    return f"{key} = {item['input']!r}: {item['msg']}"


def _field_names(cls: type[pydantic.BaseModel], location: Sequence[str]) -> list[str]:
    """Keys that are known at `location`; for a union of tables, those of all its members."""
    models = [cls]
    for part in location:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if fields:  # a part that is not a field names a member of a union: `models` already has it
            models = [model for field in fields for model in _models_in(field.annotation)]
    return [name for model in models for name in model.model_fields]


def _models_in(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, pydantic.BaseModel):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
