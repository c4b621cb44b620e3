"""The tensors of safetensors files by name and shape, each read only when it is asked for.

A vision tower or an embedding table is a small part of its checkpoint, so the rest stays on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tarkit.artifacts.files import read_object
from tarkit.checkpoints.directory import REFETCH, WEIGHTS, damaged
from tarkit.errors import UserError


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file."""

    file: Path
    name: str
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """The tensor in the precision that it is stored in."""
        with safe_open(self.file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(self.name)
        return tensor


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, or of a folder of them, by name.

    A folder's files are those of its index; without an index all of them. Raises UserError for a
    path without safetensors and for a damaged file.
    """
    if path.is_file():
        files = [path] if path.suffix == ".safetensors" else []
    else:
        files = indexed_files(path) or sorted(path.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{path} holds no safetensors weights, and only those are read",
            hint="name a model that is stored as safetensors",
        )
    tensors = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (no dict)
                    shape = tuple(opened.get_slice(name).get_shape())
                    tensors[name] = StoredTensor(file, name, shape)
        except SafetensorError as error:
            raise damaged(file, error) from None
    return tensors


def indexed_files(path: Path) -> list[Path]:
    """The safetensors files that the index of a transformers folder names; empty without an index.

    Raises UserError for an index that cannot be read or names a file that is missing.
    """
    index = path / f"{WEIGHTS}.index.json"
    if not index.exists():
        return []
    try:
        names = sorted(set(read_object(index, hint=REFETCH)["weight_map"].values()))
    except (KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is not an index of weights: {error!r}", hint=REFETCH) from None
    files = [path / str(name) for name in names]
    for file in files:
        if file.parent != path or not file.is_file():
            raise UserError(f"{index} names {file.name}, which is not in that folder", hint=REFETCH)
    return files
