"""`tarkit models`, `assemble`, `export`: models on disk."""

from pathlib import Path
from typing import Annotated

import typer

from tarkit.cli.command import command, new_group
from tarkit.cli.options import (
    ConfigOption,
    DryRun,
    Dtok,
    Json,
    Out,
    Precision,
    Set,
    SizePx,
    Vqvae,
)
from tarkit.cli.output import part_of, show, trained

export = new_group("Write a model for other programs.")

models = typer.Typer(
    help="Published models: list, fetch, convert and push them, without running their code.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)

top = typer.Typer()


@command(top, "assemble")
def assemble(
    mllm: Annotated[
        Path,
        typer.Option(
            "--mllm",
            metavar="DIR|NAME",
            help="The trained language model, or a model that has one.",
        ),
    ],
    vqvae: Vqvae,
    out: Out,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="DIR|NAME",
            help="The trained TA-Tok, or a model that has one; not for pixel codes.",
        ),
    ] = None,
    ar_dtok: Annotated[
        Path | None,
        typer.Option(
            "--ar-dtok",
            metavar="DIR|NAME",
            help="The trained de-tokenizer, or a model that has one; not for pixel codes.",
        ),
    ] = None,
    dif_dtok: Annotated[
        Path | None,
        typer.Option(
            "--dif-dtok",
            metavar="DIR",
            help="A trained diffusion de-tokenizer, for --dtok dif; keeps its precision.",
        ),
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(
            "--encoder",
            metavar="DIR|HUB-ID",
            help="The encoder that reads pictures, of a model with separate encoders.",
        ),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store weights as float16.")] = False,
    config: ConfigOption = None,
    overrides: Set = None,
    as_json: Json = False,
) -> int:
    """Put the trained parts into one model directory for --model."""
    from tarkit.checkpoints import assemble as verb
    from tarkit.checkpoints.hub import find_folder, find_language_model

    path = verb.run(
        mllm=find_language_model(mllm),
        tokenizer=part_of(tokenizer, "ta_tok") if tokenizer else None,
        ar_dtok=part_of(ar_dtok, "ar_dtok") if ar_dtok else None,
        vqvae=part_of(vqvae, "vqvae"),
        out=out,
        dif_dtok=dif_dtok,
        encoder=find_folder(encoder) if encoder else None,
        half_precision=half,
        config=config,
        overrides=overrides or (),
    )
    return trained(path, as_json)


@models.callback()
def models_known(context: typer.Context, as_json: Json = False) -> None:
    """List the names that --model takes, and which of their parts are on this machine."""
    if context.invoked_subcommand is None:
        _list_models(as_json)


def _list_models(as_json: bool) -> None:
    from tarkit.checkpoints.hub import EMBEDDED, cache_dir, known

    rows = list(known())
    lines = [f"{name:<16} {path}" for name, path in EMBEDDED.items()]
    for row in rows:
        on_disk = f"{row.num_bytes / 1e9:.2f} GB" if row.path else "not here"
        licence = row.licence or "see its model card"
        lines.append(f"{row.part:<16} {on_disk:<10} {row.place}   ({licence})")
    lines.append(
        f"searched in {cache_dir()}; `tarkit models fetch tar-1.5b` downloads missing parts"
    )
    facts = {
        "embedded": {name: str(path) for name, path in EMBEDDED.items()},
        "published": [
            {
                "part": row.part,
                "source": str(row.place),
                "path": str(row.path) if row.path else None,
                "bytes": row.num_bytes,
                "licence": row.licence,
            }
            for row in rows
        ],
    }
    show(facts, "\n".join(lines), as_json)


@command(models, "fetch")
def models_fetch(
    model: Annotated[str, typer.Argument(metavar="NAME", help="tar-1.5b, tar-7b or a hub id.")],
    size: SizePx = None,
    dtok: Dtok = "ar",
    as_json: Json = False,
) -> int:
    """Download the missing parts of a model: language model, TA-Tok and one de-tokenizer."""
    from tarkit.checkpoints.hub import fetch

    places = fetch(model, size_px=size, dtok=dtok)
    paths = {part: str(path) for part, path in places.parts.items()}
    show(paths, "\n".join(f"{part:<8} {path}" for part, path in paths.items()), as_json)
    return 0


@command(models, "convert")
def models_convert(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A published ta_tok.pth, ar_dtok_*.pth or vq_*.pt."),
    ],
    out: Out,
    precision: Annotated[
        str, typer.Option("--precision", help="stored, float32, float16 or bfloat16.")
    ] = "stored",
    as_json: Json = False,
) -> int:
    """Convert a published weight file into a model directory for all commands."""
    from tarkit.checkpoints import convert

    return trained(convert.run(file, out=out, precision=precision), as_json)  # type: ignore[arg-type]


@command(models, "push", recorded_in=None)
def models_push(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A trained, assembled or exported model.")
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="A hub id: OWNER/NAME.")],
    licence: Annotated[
        str,
        typer.Option("--licence", metavar="ID", help="Of the weights, as apache-2.0 or other."),
    ],
    trained_on: Annotated[
        list[str] | None,
        typer.Option(
            "--trained-on",
            metavar="TEXT",
            help="Data that the card names, besides those of card.md; may be repeated.",
        ),
    ] = None,
    base_model: Annotated[
        list[str] | None,
        typer.Option(
            "--base-model", metavar="HUB-ID", help="A model it was trained from; may be repeated."
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Everybody may see it; default: private.")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Upload a model directory to the hub, with a model card, as one commit.

    --dry-run opens no connection and prints the files with their bytes, and the card.
    Logs, sample sheets and the state of a training stay here.
    """
    from tarkit.checkpoints import push

    upload = push.plan(
        folder,
        repo,
        licence=licence,
        named=trained_on or (),
        base_models=base_model or (),
        public=public,
    )
    facts = {"repo": repo, "private": upload.private, "licence": licence, "files": upload.sizes}
    lines = [f"{num_bytes:>15_}  {name}" for name, num_bytes in upload.sizes.items()]
    visibility = "private" if upload.private else "public"
    lines.append(f"{sum(upload.sizes.values()):>15_}  bytes in all, to {repo} ({visibility})")
    if dry_run:
        show({**facts, "card": upload.card}, "\n".join([*lines, "", upload.card]), as_json)
        return 0
    address = push.run(upload)
    show({**facts, "address": address}, address, as_json)
    return 0


@command(export, "hf", recorded_in=None)
def export_hf(
    model: Annotated[str, typer.Argument(metavar="NAME|DIR", help="A model, as for --model.")],
    out: Out,
    precision: Precision = "float32",
    as_json: Json = False,
) -> int:
    """Write the language model as a directory for transformers and vLLM."""
    from tarkit.checkpoints import export_hf as verb

    return trained(verb.run(model, out=out, precision=precision), as_json)
