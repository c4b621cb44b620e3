"""`tarkit encode`, `generate`, `describe`, `reconstruct`: a trained model at work."""

from pathlib import Path
from typing import Annotated

import typer

from tarkit.cli.command import FAILED_ROWS, command
from tarkit.cli.options import (
    ConfigOption,
    Device,
    DryRun,
    Dtok,
    Guidance,
    Json,
    Limit,
    Model,
    Out,
    Precision,
    PromptGuidance,
    RetryFailed,
    ScaleOption,
    Seed,
    Set,
    SizePx,
    Steps,
    Temperature,
    Tokenizer,
    TopK,
    TopP,
)
from tarkit.cli.output import check_steps, device_of, given, made, part_of, previewed, show

group = typer.Typer()


@command(group, "encode")
def encode(
    images: Annotated[Path, typer.Argument(help="An images artifact.")],
    tokenizer: Tokenizer,
    out: Out,
    config: ConfigOption = None,
    overrides: Set = None,
    limit: Limit = None,
    retry_failed: RetryFailed = False,
    dry_run: DryRun = False,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Turn pictures into the codes of every scale, in one encoder pass."""
    from tarkit import encode as verb
    from tarkit.artifacts.preview import preview_rows

    if dry_run:
        return previewed(preview_rows(images, "images", out=out, limit=limit), out, as_json)
    artifact = verb.run(
        images,
        tokenizer=part_of(tokenizer, "ta_tok"),
        out=out,
        config=config,
        overrides=overrides or (),
        limit=limit,
        retry_failed=retry_failed,
        device=device_of(device),
    )
    return made(artifact, as_json)


@command(group, "generate")
def generate(
    out: Annotated[
        Path, typer.Option("--out", metavar="PNG|DIR", help="A picture; with --prompts a folder.")
    ],
    prompt: Annotated[
        str | None, typer.Argument(help="What to draw; <image> marks stand for --image pictures.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Many prompts: .txt (one a line), .jsonl, .csv, .parquet or a prompts artifact.",
        ),
    ] = None,
    model: Model = "mini",
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="FILE", help="For an <image> mark; may be repeated."),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, max=1000, help="Samples of each prompt.")] = 1,
    seed: Seed = 0,
    scale: ScaleOption = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    prompt_guidance: PromptGuidance = None,
    guidance: Guidance = None,
    best_of: Annotated[
        int | None,
        typer.Option(
            "--best-of", min=2, metavar="N", help="Draw N, keep what the model judges best."
        ),
    ] = None,
    reflect: Annotated[
        int | None,
        typer.Option(
            "--reflect", min=2, metavar="N", help="Draw until the model says yes, N at most."
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            help="gain: how much likelier the prompt makes the picture; yes: P(yes).",
        ),
    ] = None,
    judge_on: Annotated[
        str,
        typer.Option("--judge-on", help="pixels, or codes: then only what is kept is decoded."),
    ] = "pixels",
    limit: Limit = None,
    dtok: Dtok = "ar",
    size: SizePx = None,
    steps: Steps = None,
    precision: Precision = "float32",
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Draw pictures of a prompt, or of every prompt of a file."""
    from tarkit.inference import generate as verb

    if (prompt is None) == (prompts is None):
        raise typer.BadParameter("give either a PROMPT or --prompts FILE")
    if prompts is not None and image:
        raise typer.BadParameter("--image goes with a PROMPT, not with --prompts")
    if prompts is None and limit is not None:
        raise typer.BadParameter("--limit goes with --prompts, not with a PROMPT")
    if best_of is not None and reflect is not None:
        raise typer.BadParameter("give either --best-of or --reflect")
    check_steps(dtok, steps)
    sampling = given(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        prompt_guidance=prompt_guidance,
        guidance=guidance,
        dif_steps=steps,
    )
    reflection = None
    if best_of or reflect:
        from tarkit.inference.self_reflect import reflection_of

        by = judge or ("gain" if best_of else "yes")
        reflection = reflection_of(best_of or reflect or 1, by, judge_on, reflect is not None)
    if prompts is not None:
        done = verb.run_file(
            prompts,
            out=out,
            model=model,
            n=n,
            seed=seed,
            scale=scale,
            sampling=sampling,
            limit=limit,
            reflection=reflection,
            device=device_of(device),
            size_px=size,
            dtok=dtok,
            precision=precision,
        )
        show({"path": str(done.path), "pictures": done.num_pictures}, str(done.path), as_json)
        return 0
    paths = verb.run(
        str(prompt),
        out=out,
        model=model,
        images=image or (),
        n=n,
        seed=seed,
        scale=scale,
        sampling=sampling,
        reflection=reflection,
        device=device_of(device),
        size_px=size,
        dtok=dtok,
        precision=precision,
    )
    show({"paths": [str(path) for path in paths]}, "\n".join(map(str, paths)), as_json)
    return 0


@command(group, "describe")
def describe(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture file.")],
    question: Annotated[str, typer.Argument(help="What to ask.")] = "Describe the image.",
    model: Model = "mini",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 256,
    precision: Precision = "float32",
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Answer a question about a picture."""
    from tarkit.inference import describe as verb

    answer = verb.run(
        image,
        question,
        model=model,
        max_tokens=max_tokens,
        precision=precision,
        device=device_of(device),
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
        Path, typer.Option("--out", metavar="PNG", help="The sheet: originals beside each scale.")
    ],
    model: Model = "mini",
    seed: Seed = 0,
    limit: Limit = None,
    guidance: Guidance = None,
    dtok: Dtok = "ar",
    size: SizePx = None,
    steps: Steps = None,
    precision: Precision = "float32",
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Turn pictures into codes and back, side by side with the originals, at every scale."""
    from tarkit.inference import reconstruct as verb

    check_steps(dtok, steps)
    done = verb.run(
        images,
        out=out,
        model=model,
        seed=seed,
        limit=limit,
        device=device_of(device),
        size_px=size,
        dtok=dtok,
        precision=precision,
        sampling=given(guidance=guidance, dif_steps=steps),
    )
    for name, reason in done.failed.items():
        typer.echo(f"failed: {name}: {reason}", err=True)
    facts = {"path": str(done.path), "pictures": done.num_pictures, "failed": done.failed}
    show(facts, str(done.path), as_json)
    return FAILED_ROWS if done.failed else 0
