"""`tarkit inspect`, `dialect`, `verify`, `report`, `version`, `doctor`: what is there, and how."""

from pathlib import Path
from typing import Annotated

import typer

from tarkit.cli.command import FAILED, command
from tarkit.cli.options import Device, Json, Model
from tarkit.cli.output import device_of, show
from tarkit.terminal import print_note

group = typer.Typer()


@command(group, "inspect")
def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="DIR|NAME", help="A directory that tarkit made, or `mini`.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PNG", help="File for a contact sheet.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Describe a directory: kind, counts, lineage, settings, card, and a sheet of its pictures."""
    from tarkit.checkpoints.hub import EMBEDDED
    from tarkit.report import inspect as verb

    folder = path if path.exists() else EMBEDDED.get(str(path), path)
    verb.run(folder, out=out, as_json=as_json)
    return 0


@command(group, "dialect", recorded_in=None)
def dialect(
    image: Annotated[
        Path | None,
        typer.Argument(metavar="IMAGE", help="A picture; without one the codebook is shown."),
    ] = None,
    *,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="HTML|PNG", help="File for the page; a .png for a picture."),
    ],
    model: Model = "mini",
    lm: Annotated[
        Path | None,
        typer.Option(
            "--lm",
            metavar="DIR|HUB-ID",
            help="The language model that TA-Tok was trained with; its embeddings are compared "
            "with the codebook. Needed for published models.",
        ),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            "--tokens", metavar="DIR", help="A tokens artifact: how often each code is used."
        ),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Show the word behind every code of a picture, or of a codebook, on one page."""
    from tarkit.report import dialect as verb

    done = verb.run(image, out=out, model=model, lm=lm, tokens=tokens, device=device_of(device))
    words = done.words
    facts = {"path": str(done.path), "codes": len(words.words), "equal_rows": words.num_equal}
    if words.num_equal is not None:
        print_note(f"{words.num_equal} of {len(words.words)} rows are rows of the language model")
    show(facts | {"tokens_recorded": words.are_kept}, str(done.path), as_json)
    return 0


@command(group, "verify", recorded_in=None)
def verify(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A directory that tarkit made.")],
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Make damaged and missing shards again, and only those."),
    ] = False,
    as_json: Json = False,
) -> int:
    """Compare shards, tars and weights of a directory and its inputs with what was recorded."""
    from tarkit.report import verify as verb

    return 0 if verb.run(path, repair=repair, as_json=as_json) else FAILED


@command(group, "version")
def version(as_json: Json = False) -> int:
    """Print the version; with --json also the versions of Python and of the packages."""
    from tarkit.config import provenance

    versions = provenance()
    show(versions, versions["tarkit"], as_json)
    return 0


@command(group, "doctor", recorded_in=None)
def doctor(
    hub: Annotated[
        bool, typer.Option("--hub", help="Also ask the hub whether it answers: one request.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Check packages, GPUs, disks, caches and models; say how to mend what is broken.

    The exit status is 1 where something is broken. Without --hub no connection is opened.
    """
    from tarkit import doctor as verb

    findings = verb.run(hub=hub)
    is_broken = any(each.state == "broken" for each in findings)
    facts = {"broken": is_broken, "findings": [vars(each) for each in findings]}
    show(facts, verb.in_words(findings), as_json)
    return FAILED if is_broken else 0


@command(group, "report", recorded_in=None)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Results of evaluations, or folders of trainings."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the page.")],
    title: Annotated[str | None, typer.Option("--title", help="Title of the page.")] = None,
    pictures: Annotated[
        int, typer.Option("--pictures", min=0, help="Number of judged pictures of each run.")
    ] = 24,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Seed that chooses those pictures.")
    ] = 0,
    findings: Annotated[
        Path | None,
        typer.Option(
            "--findings",
            metavar="TOML",
            help="A paper's findings: the page compares arms over seeds, each run named ARM-SEED.",
        ),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Also show figures with missing samples.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Write one HTML page of runs: tables, plots, pictures, paired comparisons."""
    from tarkit.report import report as verb

    page = verb.run(
        runs,
        out=out,
        title=title,
        pictures=pictures,
        seed=seed,
        allow_missing=allow_missing,
        findings=findings,
    )
    show({"path": str(page)}, str(page), as_json)
    return 0
