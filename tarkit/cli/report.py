"""`tarkit inspect`, `report`, `version`: what is there, and how it was made."""

from pathlib import Path
from typing import Annotated

import typer

from tarkit.cli.command import command
from tarkit.cli.options import Json
from tarkit.cli.output import show

group = typer.Typer()


@command(group, "inspect")
def inspect(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Anything that tarkit made.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PNG", help="Where a contact sheet goes.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Say what a directory is: kind, counts, lineage, settings, and a sheet of its pictures."""
    from tarkit.report import inspect as verb

    verb.run(path, out=out, as_json=as_json)
    return 0


@command(group, "version")
def version(as_json: Json = False) -> int:
    """Print the version; with --json also Python's and the packages'."""
    from tarkit.config import provenance

    versions = provenance()
    show(versions, versions["tarkit"], as_json)
    return 0


@command(group, "report", recorded_in=None)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Results of evaluations, or folders of trainings."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the page goes.")],
    title: Annotated[str | None, typer.Option("--title", help="Above the page.")] = None,
    pictures: Annotated[
        int, typer.Option("--pictures", min=0, help="Judged pictures shown of each run.")
    ] = 24,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws those pictures.")] = 0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Also show figures that lack samples.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Write one page of runs, for any browser: tables, plots, pictures, paired comparisons."""
    from tarkit.report import report as verb

    page = verb.run(
        runs, out=out, title=title, pictures=pictures, seed=seed, allow_missing=allow_missing
    )
    show({"path": str(page)}, str(page), as_json)
    return 0
