"""`tarkit ls`, `cp`, `cat`: the recipes that travel with the package."""

from pathlib import Path
from typing import Annotated

import typer

from tarkit.cli.command import command
from tarkit.cli.options import Json
from tarkit.cli.output import show
from tarkit.terminal import print_note, print_result

group = typer.Typer()


def _names() -> list[str]:
    """The recipes, for the shell's completion."""
    from tarkit.recipes import recipes

    return list(recipes())


def _names_of_files() -> list[str]:
    from tarkit.recipes import recipes

    return [f"{name}/{file}" for name, recipe in recipes().items() for file in recipe.files]


@command(group, "ls", recorded_in=None)
def ls(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE", help="A recipe whose files are listed.", autocompletion=_names
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """List the recipes (scripts and settings of whole experiments), or the files of one."""
    from tarkit.recipes import recipe_named, recipes

    if recipe is not None:
        files = list(recipe_named(recipe).files)
        show({"recipe": recipe, "files": files}, "\n".join(files), as_json)
        return 0
    lines = {name: each.line for name, each in recipes().items()}
    show(lines, "\n".join(f"{name:<10} {line}" for name, line in lines.items()), as_json)
    return 0


@command(group, "cp", recorded_in=None)
def cp(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A recipe of `tarkit ls`.", autocompletion=_names),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder that gets a folder of its name.")
    ],
    as_json: Json = False,
) -> int:
    """Copy a recipe to DIR/RECIPE, and next to it the recipes whose files it uses.

    Nothing is written over.
    """
    from tarkit.recipes import copy

    copied, kept = copy(recipe, out)
    for folder in kept:
        print_note(f"{recipe} uses {folder}, which is there already and was kept")
    facts = {"copied": [str(path) for path in copied], "kept": [str(path) for path in kept]}
    show(facts, "\n".join(facts["copied"]), as_json)
    return 0


@command(group, "cat", recorded_in=None)
def cat(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE[/FILE]",
            help="A recipe, for its script, or a file of it.",
            autocompletion=_names_of_files,
        ),
    ],
) -> int:
    """Print a file of a recipe, such as smoke/mllm.toml."""
    from tarkit.recipes import read

    print_result(read(name).rstrip("\n"))
    return 0
