"""How a function becomes a command: its exit status, and errors as sentences."""

import functools
import shlex
import sys
from collections.abc import Callable
from typing import Any, ParamSpec

import typer

from tarkit.errors import UserError

FAILED, FAILED_ROWS, INTERRUPTED = 1, 3, 130

P = ParamSpec("P")


def new_group(help_text: str, **options: Any) -> typer.Typer:
    return typer.Typer(
        help=help_text, no_args_is_help=True, pretty_exceptions_enable=False, **options
    )


def command(group: typer.Typer, name: str) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Register a function that returns its exit code; a UserError is told without a traceback."""

    def register(function: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(function)
        def exiting(*args: P.args, **kwargs: P.kwargs) -> int:
            raise typer.Exit(guarded(lambda: function(*args, **kwargs)))

        group.command(name)(exiting)
        return function

    return register


def guarded(function: Callable[[], int]) -> int:
    """The exit code of a function; a UserError is told with the next command."""
    try:
        return function()
    except UserError as error:
        typer.echo(f"error: {error.message}", err=True)
        if error.hint:
            typer.echo(f"next: {error.hint}", err=True)
        return FAILED
    except KeyboardInterrupt:
        again = shlex.join(["tarkit", *sys.argv[1:]])
        typer.echo(f"\nstopped; the same command goes on from here:\n{again}", err=True)
        return INTERRUPTED
