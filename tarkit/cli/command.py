"""Turns functions into commands: bundles of options, exit statuses, errors, commands.jsonl."""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import logging
import shlex
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from tarkit.artifacts.commands import append_command
from tarkit.artifacts.remote import is_url, local_path, refuse_url, with_urls
from tarkit.errors import UserError, explained
from tarkit.terminal import print_note, printable

FAILED, FAILED_ROWS, INTERRUPTED = 1, 3, 130
MAX_MESSAGE = 4_000

LOG = logging.getLogger("tarkit")
WORDS = "tarkit.words"  # the key of a context under which its root keeps them


class _Group(TyperGroup):
    """A group of commands; the root group keeps the words of the command line."""

    def make_context(
        self, info_name: Any, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        words = list(args)  # parsing empties the list
        if parent is None and words[-1:] == ["--help"]:
            self._show_help(info_name, words[:-1])
        with _printable_misuse():
            context = super().make_context(info_name, args, parent=parent, **extra)
        context.meta.setdefault(WORDS, words)  # one dictionary for the root and all below it
        return context

    def invoke(self, ctx: Any) -> Any:
        with _printable_misuse():
            return super().invoke(ctx)

    def _show_help(self, info_name: Any, names: Sequence[str]) -> None:
        """Print the help of the command with these names and exit; returns where there is none.

        Help needs no values of options. Typer would first convert those of the groups above, for
        which it imports pydantic.
        """
        command: Any = self
        context = self.context_class(self, info_name=info_name)
        for name in names:
            command = command.get_command(context, name) if hasattr(command, "commands") else None
            if command is None:
                return
            context = command.context_class(command, info_name=name, parent=context)
        typer.echo(command.get_help(context))
        raise typer.Exit


@contextlib.contextmanager
def _printable_misuse() -> Iterator[None]:
    """Errors about arguments quote them: their message becomes printable."""
    try:
        yield
    except Exception as error:
        message = getattr(error, "message", None)
        if isinstance(message, str) and hasattr(error, "exit_code"):
            error.message = printable(message)  # type: ignore[attr-defined]
        raise


def new_group(help_text: str, cls: type[TyperGroup] = _Group) -> typer.Typer:
    return typer.Typer(
        help=help_text, no_args_is_help=True, pretty_exceptions_enable=False, cls=cls
    )


def later_group(module: str, help_text: str) -> typer.Typer:
    """The commands of `group` in a module that is imported when one of them is asked for."""

    class Later(_Group):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            del self.commands  # none: the property below reads them when they are asked for

        @functools.cached_property
        def commands(self) -> Any:  # type: ignore[override]
            return typer.main.get_group(importlib.import_module(module).group).commands

    return new_group(help_text, cls=Later)


def command(
    group: typer.Typer, name: str, *, recorded_in: str | None = "out"
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Register a function that returns its exit status.

    A parameter whose type is a dataclass is a bundle of options: the command has an option for each
    of its fields, and the function gets them as one object. A UserError is printed as a sentence.

    `recorded_in` names the parameter with the directory whose commands.jsonl gets the command line;
    None for directories that other programs read or that are given away, where it is a stray file.
    """

    def register(function: Callable[..., int]) -> Callable[..., int]:
        flat = unbundled(function)
        written = {"out", recorded_in or "out"}
        read = [name for name in naming_paths(flat) if name not in written]

        @functools.wraps(flat)
        def exiting(context: typer.Context, **options: Any) -> int:
            words = context.meta[WORDS]

            def run() -> int:
                for name in written & options.keys():
                    if options[name] is not None:
                        refuse_url(options[name])
                return flat(**options | {name: _local(options[name]) for name in read})

            status = guarded(run, words)
            folder = options.get(recorded_in) if recorded_in else None
            if status in (0, FAILED_ROWS) and folder and not options.get("dry_run"):
                _record(folder, words)
            raise typer.Exit(status)

        _set_parameters(
            exiting,
            [
                inspect.Parameter(
                    "context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context
                ),
                *inspect.signature(flat).parameters.values(),
            ],
        )
        group.command(name)(exiting)
        return function

    return register


def naming_paths(flat: Callable[..., int]) -> list[str]:
    """The parameters that name a file or a folder: by their type, or by DIR in their metavar."""
    return [
        name
        for name, parameter in inspect.signature(flat).parameters.items()
        if _names_a_path(parameter.annotation)
    ]


def _names_a_path(annotation: Any) -> bool:
    notes: tuple[Any, ...] = getattr(annotation, "__metadata__", ())
    if any("DIR" in str(getattr(note, "metavar", "")).split("|") for note in notes):
        return True
    return annotation is Path or any(map(_names_a_path, typing.get_args(annotation)))


def _local(value: Any) -> Any:
    """The value of an option with the paths of the cache in place of URLs."""
    if isinstance(value, list):
        return [_local(each) for each in value]
    if isinstance(value, str | Path) and is_url(value):
        return type(value)(local_path(value))
    return value


def _record(folder: Path, words: Sequence[str]) -> None:
    """Write the command line into the directory that it wrote; a failure is only logged."""
    if not folder.is_dir():  # a picture, say
        return
    try:
        append_command(folder, ["tarkit", *words])
    except OSError as error:
        LOG.debug("the command is not recorded in %s: %s", folder, error)


def unbundled(function: Callable[..., int]) -> Callable[..., int]:
    """The same function with the fields of its bundles as separate parameters."""
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

    _set_parameters(flat, parameters)
    return flat


def _set_parameters(function: Callable[..., int], parameters: list[inspect.Parameter]) -> None:
    # Typer reads the signature and the annotations, not the code.
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {each.name: each.annotation for each in parameters}


def _bounded(message: str) -> str:
    """A message that quotes a damaged file may quote all of it."""
    if len(message) <= MAX_MESSAGE:
        return message
    return f"{message[: MAX_MESSAGE // 2]} ... {message[-MAX_MESSAGE // 2 :]}"


def guarded(function: Callable[[], int], words: Sequence[str]) -> int:
    """The exit status of a function; a UserError is printed with the next command.

    `words` are the command's, without `tarkit`: an interrupted command is printed again.
    """
    try:
        try:
            return function()
        except Exception as fault:
            error = explained(fault)
            if error is None:
                raise
            LOG.debug("explained as a user error", exc_info=True)
            raise error from None
    except UserError as error:
        print_note(f"error: {_bounded(with_urls(error.message))}")
        if error.hint:
            print_note(f"next: {error.hint}")
        return FAILED
    except KeyboardInterrupt:
        again = shlex.join(["tarkit", *words])
        print_note(f"\nstopped; the same command continues from here:\n{again}")
        return INTERRUPTED
