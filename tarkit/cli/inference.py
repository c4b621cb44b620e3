"""`tarkit encode`, `generate`, `describe`, `reconstruct`: uses of a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from tarkit.cli.command import FAILED_ROWS, command
from tarkit.cli.options import (
    DetokenizerOptions,
    Device,
    Draft,
    DrawingOptions,
    DryRun,
    Guidance,
    HelperOptions,
    Json,
    Limit,
    ModelOptions,
    Out,
    ReflectOptions,
    RetryFailed,
    SampleOptions,
    Seed,
    StageOptions,
    Tokenizer,
    given,
)
from tarkit.cli.output import device_of, part_of, preview_or_run, show
from tarkit.terminal import print_note

group = typer.Typer()


@command(group, "encode")
def encode(
    images: Annotated[Path, typer.Argument(help="An images artifact.")],
    tokenizer: Tokenizer,
    out: Out,
    vqvae: Annotated[
        Path | None,
        typer.Option(
            "--vqvae",
            metavar="DIR|NAME",
            help="An image VQ, whose codes are stored too, for train ar-dtok; "
            "needs --set vq_size_px=PIXELS.",
        ),
    ] = None,
    sana: Annotated[
        str | None,
        typer.Option(
            "--sana",
            metavar="DIR|HUB-ID",
            help="A SANA, whose VAE's latents are stored too, for train dif-dtok; "
            "needs --set latent_size_px=PIXELS.",
        ),
    ] = None,
    *,
    stage: StageOptions,
    retry_failed: RetryFailed = False,
    dry_run: DryRun = False,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Encode pictures as the codes of every scale, in one encoder pass."""
    from tarkit.encode import EncodePlan

    plan = EncodePlan(
        images,
        tokenizer=part_of(tokenizer, "ta_tok"),
        vqvae=part_of(vqvae, "vqvae") if vqvae else None,
        sana=sana,
        out=out,
        config=stage.config,
        overrides=stage.overrides or (),
        limit=stage.limit,
        retry_failed=retry_failed,
        device=device_of(device),
    )
    return preview_or_run(plan, dry_run=dry_run, as_json=as_json)


@command(group, "generate")
def generate(
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="PNG|DIR", help="File for the picture; with --prompts a folder."
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(help="What to draw; an <image> mark stands for a picture of --image."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Many prompts: .txt (one per line), .jsonl, .csv, .parquet or a prompts artifact; "
            "of an images artifact the captions.",
        ),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            "--image", metavar="FILE", help="The picture for an <image> mark; may be repeated."
        ),
    ] = None,
    c2pa: Annotated[
        Path | None,
        typer.Option(
            "--c2pa",
            metavar="PEM",
            help="Sign the pictures as drawn by a model (Content Credentials): a private key and "
            "its certificates.",
        ),
    ] = None,
    *,
    drawing: DrawingOptions,
    reflecting: ReflectOptions,
    samples: SampleOptions,
    helpers: HelperOptions,
    detokenizer: DetokenizerOptions,
    model_options: ModelOptions,
    as_json: Json = False,
) -> int:
    """Draw pictures of a prompt, or of every prompt of a file."""
    from tarkit.inference import generate as verb

    _require_one_source(prompt, prompts, image=image, samples=samples)
    reflection = reflecting.reflection()
    sampling = drawing.sampling() | detokenizer.sampling()
    draft_path = part_of(helpers.draft, "ar_dtok") if helpers.draft else None
    if prompts is not None:
        done = verb.run_file(
            prompts,
            out=out,
            model=model_options.model,
            n=samples.n,
            seed=samples.seed,
            scale=drawing.scale,
            sampling=sampling,
            limit=samples.limit,
            split=samples.split,
            reflection=reflection,
            device=device_of(model_options.device),
            size_px=detokenizer.size,
            dtok=detokenizer.dtok,
            precision=model_options.precision,
            c2pa=c2pa,
            server=helpers.server,
            draft=draft_path,
        )
        show({"path": str(done.path), "pictures": done.num_pictures}, str(done.path), as_json)
        return 0
    paths = verb.run(
        str(prompt),
        out=out,
        model=model_options.model,
        images=image or (),
        n=samples.n,
        seed=samples.seed,
        scale=drawing.scale,
        sampling=sampling,
        reflection=reflection,
        device=device_of(model_options.device),
        size_px=detokenizer.size,
        dtok=detokenizer.dtok,
        precision=model_options.precision,
        c2pa=c2pa,
        server=helpers.server,
        draft=draft_path,
    )
    show({"paths": [str(path) for path in paths]}, "\n".join(map(str, paths)), as_json)
    return 0


def _require_one_source(
    prompt: str | None, prompts: Path | None, *, image: list[Path] | None, samples: SampleOptions
) -> None:
    if (prompt is None) == (prompts is None):
        raise typer.BadParameter("give either a PROMPT or --prompts FILE")
    if prompts is not None and image:
        raise typer.BadParameter("--image goes with a PROMPT, not with --prompts")
    if prompts is None and samples.limit is not None:
        raise typer.BadParameter("--limit goes with --prompts, not with a PROMPT")
    if prompts is None and samples.split is not None:
        raise typer.BadParameter("--split goes with --prompts, not with a PROMPT")


@command(group, "describe")
def describe(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture file.")],
    question: Annotated[str, typer.Argument(help="The question.")] = "Describe the image.",
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")
    ] = 256,
    *,
    model_options: ModelOptions,
    as_json: Json = False,
) -> int:
    """Answer a question about a picture."""
    from tarkit.inference import describe as verb

    answer = verb.run(
        image,
        question,
        model=model_options.model,
        max_tokens=max_tokens,
        precision=model_options.precision,
        device=device_of(model_options.device),
    )
    show({"image": str(image), "question": question, "answer": answer}, answer, as_json)
    return 0


@command(group, "reconstruct")
def reconstruct(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Picture files, folders, or images artifacts."),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="PNG", help="File for the sheet: originals and each scale."),
    ],
    seed: Seed = 0,
    limit: Limit = None,
    guidance: Guidance = None,
    *,
    detokenizer: DetokenizerOptions,
    draft: Draft = None,
    model_options: ModelOptions,
    as_json: Json = False,
) -> int:
    """Encode and decode pictures at every scale, side by side with the originals."""
    from tarkit.inference import reconstruct as verb

    result = verb.run(
        images,
        out=out,
        model=model_options.model,
        seed=seed,
        limit=limit,
        device=device_of(model_options.device),
        size_px=detokenizer.size,
        dtok=detokenizer.dtok,
        precision=model_options.precision,
        sampling=given(guidance=guidance) | detokenizer.sampling(),
        draft=part_of(draft, "ar_dtok") if draft else None,
    )
    for name, reason in result.failed.items():
        print_note(f"failed: {name}: {reason}")
    facts = {"path": str(result.path), "pictures": result.num_pictures, "failed": result.failed}
    show(facts, str(result.path), as_json)
    return FAILED_ROWS if result.failed else 0
