"""How a function becomes a command: bundles of options, exit statuses."""

import ast
import dataclasses
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

import tarkit.cli
from tarkit.cli.command import command, new_group
from tarkit.errors import UserError


@dataclasses.dataclass(frozen=True)
class Draw:
    scale: Annotated[int | None, typer.Option("--scale", min=1, max=3, help="Of codes.")] = None
    top_p: Annotated[float, typer.Option("--top-p")] = 1.0


def drawing() -> tuple[typer.Typer, list[tuple[Path, Draw, int]]]:
    group, calls = new_group("Draw."), list[tuple[Path, Draw, int]]()

    @command(group, "one")
    def one(source: Path, draw: Draw, n: Annotated[int, typer.Option("--n")] = 1) -> int:
        calls.append((source, draw, n))
        return 3

    @command(group, "other")
    def other() -> int:
        return 0

    return group, calls


@pytest.mark.parametrize(
    ("words", "draw", "n"),
    [
        ([], Draw(), 1),
        (["--n", "2", "--scale", "3"], Draw(scale=3), 2),
        (["--top-p", "0.5"], Draw(top_p=0.5), 1),
    ],
)
def test_a_bundle_arrives_as_one_object(words: list[str], draw: Draw, n: int) -> None:
    group, calls = drawing()
    assert CliRunner().invoke(group, ["one", "a", *words]).exit_code == 3
    assert calls == [(Path("a"), draw, n)]


def test_the_options_of_a_bundle_are_checked_and_have_their_help() -> None:
    group, calls = drawing()
    assert CliRunner().invoke(group, ["one", "a", "--scale", "4"]).exit_code == 2
    assert "Of codes." in CliRunner().invoke(group, ["one", "--help"]).output
    assert calls == []


PACKAGE = Path(tarkit.cli.__file__).parent
MAX_PARAMETERS, MAX_LINES = 12, 560


def crowded(tree: ast.AST) -> list[str]:
    """The functions with more parameters than a reader can keep in mind."""
    return [
        f"{node.name} has {count} parameters"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (count := len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]))
        > MAX_PARAMETERS
    ]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_no_file_of_the_command_line_is_crowded(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not crowded(ast.parse(text))
    assert len(text.splitlines()) <= MAX_LINES


def test_a_crowded_function_would_be_noticed() -> None:
    names = [f"p{number}" for number in range(MAX_PARAMETERS)]
    assert crowded(ast.parse(f"def f({', '.join(names)}, *, last): pass"))
    assert not crowded(ast.parse(f"def f({', '.join(names)}): pass"))


def test_an_error_that_quotes_a_whole_file_is_shortened() -> None:
    group = new_group("Read.")

    @command(group, "one")
    def one() -> int:
        raise UserError("begins" + "y" * 1_000_000 + "ends", hint="do this")

    @command(group, "other")
    def other() -> int:
        return 0

    output = CliRunner().invoke(group, ["one"]).output
    assert len(output) < 4_200 and output.startswith("error: begins")
    assert output.endswith("ends\nnext: do this\n")
