"""`tarkit finetune`, `compare`: a model for one's own pictures, and what it is worth."""

from pathlib import Path
from typing import Annotated

import typer

from tarkit.cli.command import command
from tarkit.cli.options import Device, Json, Split
from tarkit.cli.output import device_of, show

group = typer.Typer()


@command(group, "finetune")
def finetune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME|DIR", help="The model to start from: mini, tar-1.5b, or a folder."
        ),
    ],
    images: Annotated[
        Path, typer.Option("--images", metavar="FOLDER", help="Your pictures, in any subfolders.")
    ],
    captions: Annotated[
        Path,
        typer.Option(
            "--captions",
            metavar="FILE",
            help="A csv, tsv, jsonl or Parquet file: image (its path in FOLDER) and caption.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for all results.")],
    prepare: Annotated[
        bool,
        typer.Option(
            "--prepare", help="Write the settings and the script, run nothing: to edit them first."
        ),
    ] = False,
    as_json: Json = False,
) -> int:
    """Train a model on your own pictures: prints each command that it runs, one after another.

    DIR/settings has the settings of every stage, and DIR/run.sh the commands. Both
    are written first; edited ones are kept. The same command goes on where it was
    stopped. Every tenth picture is held out of the trainings.

    DIR/tar is the new model. DIR/page/index.html shows the held-out pictures, and
    what the model draws of their captions, before and after.
    """
    from tarkit.finetune import finetune as verb

    done = verb.run(model, images=images, captions=captions, out=out, only_prepare=prepare)
    if prepare:
        show({"script": str(done.script)}, str(done.script), as_json)
    elif done.status == 0:
        facts = {"model": str(done.model), "page": str(done.page)}
        show(facts, "\n".join(facts.values()), as_json)
    return done.status


@command(group, "compare", recorded_in=None)
def compare(
    before: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="What a model drew: of `generate --prompts IMAGES`."),
    ],
    after: Annotated[
        Path, typer.Argument(metavar="DIR", help="What another model drew of the same captions.")
    ],
    images: Annotated[
        Path, typer.Option("--images", metavar="DIR", help="The images artifact of the captions.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the page.")],
    split: Split = None,
    features_of: Annotated[
        str,
        typer.Option(
            "--features-of",
            metavar="NAME|DIR",
            help="The model whose tokenizer gives the features that are compared.",
        ),
    ] = "mini",
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Compare two models with the true pictures of captions: a page, and two distances."""
    from tarkit.finetune import compare as verb

    page, facts = verb.run(
        before,
        after,
        images=images,
        out=out,
        split=split,
        features_of=features_of,
        device=device_of(device),
    )
    show({"path": str(page), **facts}, f"{verb.in_words(facts)}\n{page}", as_json)
    return 0
