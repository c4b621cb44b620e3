"""How a function becomes a command: bundles of options, its exit status, errors as sentences."""

import dataclasses
import functools
import inspect
import shlex
import sys
import typing
from collections.abc import Callable
from typing import Any

import typer

from tarkit.errors import UserError

FAILED, FAILED_ROWS, INTERRUPTED = 1, 3, 130


def new_group(help_text: str, **options: Any) -> typer.Typer:
    return typer.Typer(
        help=help_text, no_args_is_help=True, pretty_exceptions_enable=False, **options
    )


def command(group: typer.Typer, name: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Register a function that returns its exit status.

    A parameter whose type is a dataclass is a bundle of options: the command has an option for each
    of its fields, and the function gets them as one object. A UserError becomes a sentence.
    """

    def register(function: Callable[..., int]) -> Callable[..., int]:
        flat = unbundled(function)

        @functools.wraps(flat)
        def exiting(**options: Any) -> int:
            raise typer.Exit(guarded(lambda: flat(**options)))

        group.command(name)(exiting)
        return function

    return register


def unbundled(function: Callable[..., int]) -> Callable[..., int]:
    """The same function with the fields of its bundles as parameters of its own."""
    parameters: list[inspect.Parameter] = []
    bundles: dict[str, type] = {}
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints[name]
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind, kind=parameter.KEYWORD_ONLY))
            continue
        bundles[name] = typing.cast(type, kind)
        types = typing.get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            missing = field.default is dataclasses.MISSING
            parameters.append(
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if missing else field.default,
                    annotation=types[field.name],
                )
            )

    @functools.wraps(function)
    def flat(**options: Any) -> int:
        for name, kind in bundles.items():
            fields = [field.name for field in dataclasses.fields(kind)]
            options[name] = kind(**{field: options.pop(field) for field in fields})
        return function(**options)

    # Typer reads the signature and the annotations, not the code.
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {each.name: each.annotation for each in parameters}
    return flat


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
