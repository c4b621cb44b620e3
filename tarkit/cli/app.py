"""The command line and its groups of commands; a command imports its verb when it runs.

Grammar: `tarkit VERB [WHAT] SOURCE --out DIR`, with paths on the command line and numbers in TOML
files. stdout has the result (the path written, or JSON with --json), stderr progress and errors.
Exit codes: 0 done, 1 failed, 2 misuse, 3 finished with failed rows, 130 interrupted.
"""

import gc
from pathlib import Path
from typing import Annotated

import typer

from tarkit.cli import bench, demo, finetune, inference, models, plan, recipes, report, train
from tarkit.cli.command import WORDS, guarded, later_group, new_group
from tarkit.terminal import print_warnings

app = new_group(
    "The whole chain of Tar: curate pictures, train each part, encode, generate, describe, score."
)
app.add_typer(inference.group)
app.add_typer(demo.group)
app.add_typer(models.top)
app.add_typer(plan.top)
app.add_typer(finetune.group)
app.add_typer(report.group)
app.add_typer(recipes.group)
app.add_typer(bench.group)
curate_help = "Make training data: pictures in, rows of text and codes out."
app.add_typer(later_group("tarkit.cli.curate", curate_help), name="curate")
app.add_typer(train.group, name="train")
app.add_typer(later_group("tarkit.cli.evaluate", "Score a model."), name="eval")
app.add_typer(models.export, name="export")
app.add_typer(models.models, name="models")


def _print_version(wanted: bool) -> None:
    if wanted:
        from tarkit.config import provenance

        typer.echo(provenance()["tarkit"])
        raise typer.Exit


@app.callback()
def _engine(
    context: typer.Context,
    engine: Annotated[
        Path | None,
        typer.Option(
            "--engine",
            metavar="TOML",
            help="Run the command as tasks of datatrove's local, Slurm or Ray executor: "
            "tarkit --engine FILE curate caption ...",
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    if engine is None or context.invoked_subcommand is None:
        return
    words = list(context.meta[WORDS])
    at = next(n for n, word in enumerate(words) if word.split("=")[0] == "--engine")
    del words[at : at + (1 if "=" in words[at] else 2)]

    def spread() -> int:
        from tarkit.cli.engines import spread as run

        return run(engine, words)

    raise typer.Exit(guarded(spread, context.meta[WORDS]))


def main() -> None:
    """The console command."""
    print_warnings()
    try:
        app()
    finally:
        # A process that ends needs no search for cyclic garbage among the million objects of
        # torch and transformers, which takes a second. Files are closed by reference counts.
        gc.freeze()
