"""`tarkit bench`: the speed of the models on this machine, next to its limits."""

from typing import Annotated

import typer

from tarkit.bench.cases import Subject
from tarkit.cli.command import command
from tarkit.cli.options import Device, Json, Seed
from tarkit.cli.output import device_of, show
from tarkit.errors import UserError

group = typer.Typer()


@command(group, "bench", recorded_in=None)
def bench(
    subjects: Annotated[list[Subject], typer.Argument(metavar="WORK...", help="What is measured.")],
    only: Annotated[
        str, typer.Option("--only", metavar="TEXT", help="Only cases with this in their names.")
    ] = "",
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Small models, to see that it runs; no figures of use.")
    ] = False,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=3, help="Runs of each way; 7, or 3 with --tiny.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of torch on the processor.")
    ] = None,
    device: Device = "auto",
    seed: Seed = 0,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown tables, for a page.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Measure how fast this machine does some work, next to its own limits.

    Models have the published sizes and random weights. Each case is compared with the machine's
    limits and with a plain program of torch and transformers.
    """
    from tarkit.bench import bench as verb
    from tarkit.bench.table import markdown, table

    if as_markdown and as_json:
        raise UserError("--json and --markdown are two ways to print", hint="leave one out")
    result = verb.run(
        subjects,
        only=only,
        tiny=tiny,
        rounds=rounds,
        threads=threads,
        device=device_of(device),
        seed=seed,
    )
    show(result, markdown(result) if as_markdown else table(result), as_json)
    return 0
