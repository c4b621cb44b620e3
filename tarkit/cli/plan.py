"""`tarkit plan`: what a training takes, before it runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tarkit.cli.command import command
from tarkit.cli.options import ConfigFile, Json, Set
from tarkit.cli.output import show

top = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """What a planned training starts from and reads, as far as its costs depend on it."""

    lm: Annotated[
        Path | None,
        typer.Option(
            "--lm",
            metavar="DIR|NAME|HUB-ID",
            help="The language model: a folder, whose config.json is enough, a hub id in the local "
            "cache, tar-1.5b or tar-7b.",
        ),
    ] = None
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer", metavar="DIR|TOML|NAME", help="TA-Tok, or the TOML of its training."
        ),
    ] = None
    encoder: Annotated[
        Path | None,
        typer.Option(
            "--encoder",
            metavar="DIR|HUB-ID|TOML",
            help="The vision encoder; default: siglip2-so400m.",
        ),
    ] = None
    vqvae: Annotated[
        Path | None,
        typer.Option(
            "--vqvae", metavar="DIR|TOML", help="The image VQ; default: LlamaGen's VQ-16."
        ),
    ] = None
    ar_dtok: Annotated[
        Path | None,
        typer.Option(
            "--ar-dtok", metavar="DIR|TOML", help="AR-DTok, with which grpo draws; default: 256 px."
        ),
    ] = None
    sana: Annotated[
        Path | None,
        typer.Option("--sana", metavar="DIR|HUB-ID", help="SANA; default: SANA-0.6B at 512 px."),
    ] = None
    size_px: Annotated[
        int | None,
        typer.Option("--size", metavar="PX", min=1, help="Side of the pictures of the image VQ."),
    ] = None
    text_tokens: Annotated[
        int, typer.Option("--text-tokens", min=1, help="Text tokens of a chat, caption or prompt.")
    ] = 100
    picture_kb: Annotated[
        float, typer.Option("--picture-kb", min=0, help="Kilobytes of a picture on the disk.")
    ] = 100.0
    from_images: Annotated[
        bool,
        typer.Option(
            "--from-images",
            help="A de-tokenizer's training encodes --images as they come; default: --tokens.",
        ),
    ] = False


@command(top, "plan", recorded_in=None)
def plan(
    config: ConfigFile,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="Number of GPUs.")],
    gpu: Annotated[
        str,
        typer.Option("--gpu", help="h100, h200, a100-40, a100-80, l40s or rtx4090."),
    ],
    start: StartOptions,
    stage: Annotated[
        str | None,
        typer.Option(
            "--stage",
            metavar="NAME",
            help="encoder, vqvae, tokenizer, ar-dtok, dif-dtok, mllm or grpo; default: that of the "
            "file's name.",
        ),
    ] = None,
    mfu: Annotated[
        float,
        typer.Option(
            "--mfu", min=0.01, max=1, help="Share of the GPUs' peak that the training reaches."
        ),
    ] = 0.4,
    overrides: Set = None,
    as_json: Json = False,
) -> int:
    """Say what a training takes before it runs: FLOPs, memory, disk, hours.

    A training that does not fit is refused with the options that mend it.
    """
    from tarkit.train import budget as verb

    budget = verb.run(
        config,
        gpus=gpus,
        gpu=gpu,
        stage=stage,
        mfu=mfu,
        overrides=overrides or (),
        **vars(start),
    )
    show(budget.facts(), verb.in_words(budget), as_json)
    return 0
