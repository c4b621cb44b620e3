"""The recipes that travel with the package: shell scripts and TOMLs of whole experiments.

An installed package holds them in `tarkit/pipelines/`; a checkout has them in `pipelines/`. Their
scripts name files by the place of the script, and files of another recipe by `$here/../NAME`, so
that copies of both in one folder work as the originals do.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tarkit.artifacts.files import whole_folder
from tarkit.errors import UserError

LEFT_OUT = {"__pycache__"}
# `mini=$here/../mini` and `"$here/../mini/prompts.txt"`
NEIGHBOUR = re.compile(r"\$here/\.\./(\w+)")
SCRIPT = "run.sh"
"""The script of every recipe to begin with."""
FIRST_SENTENCE = re.compile(r"(.+?)(?:\.(?= [A-Z]|$)|$)")  # "Sec. 4.3" ends none


@dataclass(frozen=True)
class Recipe:
    """A folder of scripts and settings."""

    name: str
    folder: Path

    @property
    def files(self) -> Mapping[str, Path]:
        """Its files by their names, in order."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        names = {path.relative_to(self.folder).as_posix(): path for path in paths}
        return {name: path for name, path in names.items() if not LEFT_OUT & set(path.parts)}

    @property
    def line(self) -> str:
        """What it is: the first sentence of its script."""
        comment: list[str] = []
        for line in self.files[SCRIPT].read_text(encoding="utf-8").splitlines()[1:]:
            if not line.startswith("# ") or line.startswith("#  "):  # usage is indented
                break
            comment.append(line[2:])
        sentence = FIRST_SENTENCE.match(" ".join(comment))
        return sentence[1] if sentence else ""

    @property
    def neighbours(self) -> list[str]:
        """The names of the other recipes whose files its scripts use."""
        scripts = [path for name, path in self.files.items() if name.endswith(".sh")]
        found = {n for path in scripts for n in NEIGHBOUR.findall(path.read_text(encoding="utf-8"))}
        return sorted(found - {self.name})


def recipes() -> Mapping[str, Recipe]:
    """Every recipe by its name.

    Raises UserError where the installation has none.
    """
    package = Path(__file__).resolve().parent
    folder = package / "pipelines"
    if not folder.is_dir():  # an installation that reads a checkout
        folder = package.parent / "pipelines"
    if not folder.is_dir():
        raise UserError(
            f"this installation has no recipes: there is no folder {folder}",
            hint="pip install --force-reinstall --no-deps tarkit",
        )
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    return {path.name: Recipe(path.name, path) for path in inside if path.name not in LEFT_OUT}


def recipe_named(name: str) -> Recipe:
    """The recipe of this name; UserError for an unknown one."""
    known = recipes()
    if name not in known:
        raise UserError(f"no recipe {name!r}; there are: {', '.join(known)}", hint="tarkit ls")
    return known[name]


def recipe_file(name: str) -> Path:
    """The file of `RECIPE/FILE`, or the script of `RECIPE`; UserError where there is none."""
    first, _, rest = name.partition("/")
    recipe = recipe_named(first)
    file = recipe.files.get(rest or SCRIPT)
    if file is None:
        raise UserError(f"the recipe {first} has no file {rest!r}", hint=f"tarkit ls {first}")
    return file


def read(name: str) -> str:
    """The text of `RECIPE/FILE`, or of the script of `RECIPE`.

    Raises UserError for an unknown name, and for a file that is no text.
    """
    file = recipe_file(name)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        recipe = name.partition("/")[0]
        raise UserError(f"{name} is no text", hint=f"tarkit cp {recipe} DIR") from None


def copy(name: str, out: Path) -> tuple[list[Path], list[Path]]:
    """Copy a recipe and those whose files it uses into `out`; returns (copied, kept) folders.

    Each folder appears whole or not at all. Of the others, one that `out` has already is kept as
    it is. Raises UserError, and copies nothing, where `out` has the recipe itself, or is a file.
    """
    recipe = recipe_named(name)
    target = out / name
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; a recipe is copied into a folder")
    if target.exists() or target.is_symlink():
        raise UserError(
            f"{target} is there already, and is not written over",
            hint=f"tarkit cp {name} ANOTHER",
        )
    needed = [recipe]
    for each in needed:
        needed += [n for n in map(recipe_named, each.neighbours) if n not in needed]
    copied, kept = [], []
    for each in reversed(needed):  # the recipe last: where it is, those that it uses are too
        place = out / each.name
        if place.exists():
            kept.append(place)
            continue
        _copy_folder(each, place)
        copied.append(place)
    return copied, kept


def _copy_folder(recipe: Recipe, place: Path) -> None:
    with whole_folder(place) as folder:
        for name, file in recipe.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)
    # Not before: `whole_folder` gives files the permissions of any new file.
    for name in recipe.files:
        script = place / name
        if script.read_bytes()[:2] == b"#!":
            mode = script.stat().st_mode
            script.chmod(mode | (mode & 0o444) >> 2)
