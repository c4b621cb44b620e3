"""`tarkit curate`: training data out of pictures, prompts and text."""

from pathlib import Path
from typing import Annotated

import typer

from tarkit.cli.command import command, new_group
from tarkit.cli.options import (
    ConfigOption,
    Device,
    DryRun,
    Json,
    Limit,
    Llm,
    Out,
    Precision,
    RetryFailed,
    Server,
    Set,
)
from tarkit.cli.output import device_of, made, previewed
from tarkit.errors import UserError

group = new_group("Make training data: pictures in, rows of text and codes out.")


@command(group, "render")
def curate_render(
    out: Out,
    config: ConfigOption = None,
    overrides: Set = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Draw the shapes world: pictures with captions, questions, pairs and triples."""
    from tarkit.curate import render

    if dry_run:
        counts = render.preview(out=out, config=config, overrides=overrides or (), limit=limit)
        return previewed(counts, out, as_json)
    artifact = render.run(out=out, config=config, overrides=overrides or (), limit=limit)
    return made(artifact, as_json)


@command(group, "ingest")
def curate_ingest(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder, a Parquet file with image bytes, or WebDataset tars: also "
            "'data-{000..099}.tar', a .txt with a shard a line, and tars at http and https URLs."
        ),
    ],
    out: Out,
    captions: Annotated[
        Path | None,
        typer.Option("--captions", metavar="FILE", help="csv, jsonl or Parquet: image, caption."),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            metavar="FILE",
            help="csv, jsonl, json: image, question, answer; or LLaVA's conversations.",
        ),
    ] = None,
    allow_private: Annotated[
        bool,
        typer.Option("--allow-private", help="Also read shards at addresses of your own network."),
    ] = False,
    config: ConfigOption = None,
    overrides: Set = None,
    limit: Limit = None,
    as_json: Json = False,
) -> int:
    """Take your own pictures in; a damaged file becomes a failed row with its reason."""
    from tarkit.curate import ingest

    artifact = ingest.run(
        source,
        out=out,
        captions=captions,
        questions=questions,
        config=config,
        overrides=overrides or (),
        limit=limit,
        allow_private=allow_private,
    )
    return made(artifact, as_json)


@command(group, "prompts")
def curate_prompts(
    out: Out,
    source: Annotated[
        Path | None,
        typer.Argument(help="Prompts as .txt, .jsonl, .csv or .parquet, or a folder of them."),
    ] = None,
    style: Annotated[
        str | None,
        typer.Option("--style", help="Make prompts by rule, as those of geneval or dpg."),
    ] = None,
    exclude: Annotated[
        list[Path] | None,
        typer.Option(
            "--exclude",
            metavar="FILE",
            help="Prompts that are left out, of a benchmark for example; may be repeated.",
        ),
    ] = None,
    config: ConfigOption = None,
    overrides: Set = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Take prompts that people wrote, or make them by rule: cleaned, and each but once."""
    from tarkit.curate import prompts

    if dry_run:
        counts = prompts.preview(
            source,
            out=out,
            style=style,
            exclude=exclude or (),
            config=config,
            overrides=overrides or (),
            limit=limit,
        )
        return previewed(counts, out, as_json)
    artifact = prompts.run(
        source,
        out=out,
        style=style,
        exclude=exclude or (),
        config=config,
        overrides=overrides or (),
        limit=limit,
    )
    return made(artifact, as_json)


@command(group, "download")
def curate_download(
    urls: Annotated[
        Path,
        typer.Argument(
            metavar="URLS",
            help="A .txt with a URL a line, or .csv, .jsonl, .parquet with a column url or "
            "image_url and maybe prompt, caption or text, and licence.",
        ),
    ],
    out: Out,
    img2dataset: Annotated[
        str,
        typer.Option(
            "--img2dataset",
            metavar="PROGRAM",
            help="Its name or path, for one in an environment of its own.",
        ),
    ] = "img2dataset",
    allow_private: Annotated[
        bool,
        typer.Option("--allow-private", help="Also fetch from addresses of your own network."),
    ] = False,
    config: ConfigOption = None,
    overrides: Set = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    retry_failed: RetryFailed = False,
    as_json: Json = False,
) -> int:
    """Fetch a list of URLs with img2dataset; every URL is a row, a failed one with its reason.

    Only http and https. A URL whose host is, or resolves to, an address that is
    not public is a failed row, and is not asked.

    Two things img2dataset cannot enforce: it follows redirects wherever they
    lead, and looks a host up anew when it fetches. Where that matters, set
    HTTP_PROXY and HTTPS_PROXY to a proxy that refuses private addresses; of
    your environment it is given the proxies alone.

    Nor has it a limit on the length of an answer: memory_mb bounds its processes
    while they read, max_bytes what is kept. A server that never stops sending is
    cut off when no piece of the list was finished for stall_s.

    An answer whose X-Robots-Tag says noai, noimageai or noindex is not taken.
    """
    from tarkit.curate import download

    if dry_run:
        counts = download.preview(
            urls, out=out, config=config, overrides=overrides or (), limit=limit
        )
        return previewed(counts, out, as_json)
    artifact = download.run(
        urls,
        out=out,
        img2dataset=img2dataset,
        config=config,
        overrides=overrides or (),
        limit=limit,
        retry_failed=retry_failed,
        allow_private=allow_private,
    )
    return made(artifact, as_json)


@command(group, "caption")
def curate_caption(
    images: Annotated[Path, typer.Argument(help="An images artifact.")],
    llm: Llm,
    out: Out,
    examples: Annotated[
        Path | None,
        typer.Option(
            "--examples",
            metavar="FILE",
            help="Prompts whose style is followed, a line each; three are shown at a time.",
        ),
    ] = None,
    server: Server = None,
    config: ConfigOption = None,
    overrides: Set = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    retry_failed: RetryFailed = False,
    device: Device = "auto",
    precision: Precision = "float32",
    as_json: Json = False,
) -> int:
    """Have a vision-language model write a prompt (or a short caption) for each picture.

    With style="rewrite" a language model words the picture's own prompt anew and
    sees no picture.
    """
    from tarkit.artifacts.preview import preview_rows
    from tarkit.config import load_config
    from tarkit.curate import caption

    if dry_run:
        tries = load_config(caption.CaptionConfig, config, overrides or ()).assistant.tries
        counts = preview_rows(images, "images", out=out, limit=limit, tries=tries)
        return previewed(counts, out, as_json)
    artifact = caption.run(
        images,
        out=out,
        llm=llm,
        examples=examples,
        server=server,
        config=config,
        overrides=overrides or (),
        limit=limit,
        retry_failed=retry_failed,
        device=device_of(device),
        precision=precision,
    )
    return made(artifact, as_json)


@command(group, "split")
def curate_split(
    prompts: Annotated[Path, typer.Argument(help="A prompts artifact.")],
    llm: Llm,
    out: Out,
    server: Server = None,
    config: ConfigOption = None,
    overrides: Set = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    retry_failed: RetryFailed = False,
    device: Device = "auto",
    precision: Precision = "float32",
    as_json: Json = False,
) -> int:
    """Have a language model put <image> in the place of a phrase of each prompt, and prove it."""
    from tarkit.artifacts.preview import preview_rows
    from tarkit.config import load_config
    from tarkit.curate import split

    if dry_run:
        tries = load_config(split.SplitConfig, config, overrides or ()).assistant.tries
        counts = preview_rows(prompts, "prompts", out=out, limit=limit, tries=tries)
        return previewed(counts, out, as_json)
    artifact = split.run(
        prompts,
        out=out,
        llm=llm,
        server=server,
        config=config,
        overrides=overrides or (),
        limit=limit,
        retry_failed=retry_failed,
        device=device_of(device),
        precision=precision,
    )
    return made(artifact, as_json)


@command(group, "synthesize")
def curate_synthesize(
    prompts: Annotated[Path, typer.Argument(help="A prompts artifact.")],
    generator: Annotated[
        str,
        typer.Option(
            "--generator",
            metavar="DIR|HUB-ID",
            help="A diffusers pipeline; the paper's is black-forest-labs/FLUX.1-schnell.",
        ),
    ],
    out: Out,
    config: ConfigOption = None,
    overrides: Set = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    retry_failed: RetryFailed = False,
    device: Device = "auto",
    precision: Precision = "float32",
    as_json: Json = False,
) -> int:
    """Draw prompts by a text-to-image model; `--set seeds=2` makes pairs of similar pictures."""
    from tarkit.curate import synthesize

    if dry_run:
        counts = synthesize.preview(
            prompts, out=out, config=config, overrides=overrides or (), limit=limit
        )
        return previewed(counts, out, as_json)
    artifact = synthesize.run(
        prompts,
        out=out,
        generator=generator,
        config=config,
        overrides=overrides or (),
        limit=limit,
        retry_failed=retry_failed,
        device=device_of(device),
        precision=precision,
    )
    return made(artifact, as_json)


@command(group, "score")
def curate_score(
    images: Annotated[Path, typer.Argument(help="An images artifact.")],
    scorer: Annotated[
        str,
        typer.Option(
            "--scorer",
            metavar="NAME",
            help="pixels, shapes, clip, classifier, tar, or module:function of your own.",
        ),
    ],
    out: Out,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="DIR|HUB-ID|NAME", help="What clip, classifier, tar load."),
    ] = None,
    config: ConfigOption = None,
    overrides: Set = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    retry_failed: RetryFailed = False,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Give every picture numbers, in columns of their own; nothing is deleted.

    pixels: spread of the levels, 0 for a blank picture.

    shapes: 1 where a picture of the drawn world shows its prompt, else 0.

    clip: raw cosine of picture and prompt by a CLIP or SigLIP; how many tokens
    of the prompt were cut off.

    classifier: probabilities of a picture classifier's labels (NSFW and such).

    tar: how much likelier a Tar model finds the picture after its prompt than
    after none; `--model mini` for the shapes world.

    module:function makes an object with `columns` and `score(shown)`.
    """
    from tarkit.artifacts.preview import preview_rows
    from tarkit.curate import score

    if dry_run:
        return previewed(preview_rows(images, "images", out=out, limit=limit), out, as_json)
    artifact = score.run(
        images,
        out=out,
        scorer=scorer,
        model=model,
        config=config,
        overrides=overrides or (),
        limit=limit,
        retry_failed=retry_failed,
        device=device_of(device),
    )
    return made(artifact, as_json)


@command(group, "judge")
def curate_judge(
    images: Annotated[Path, typer.Argument(help="An images artifact whose pictures have prompts.")],
    out: Out,
    llm: Annotated[
        str | None,
        typer.Option(
            "--llm",
            metavar="DIR|HUB-ID",
            help="The vision-language model that judges; with --server its name there.",
        ),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Pictures of the shapes world, judged exactly.")
    ] = False,
    server: Server = None,
    config: ConfigOption = None,
    overrides: Set = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    retry_failed: RetryFailed = False,
    device: Device = "auto",
    precision: Precision = "float32",
    as_json: Json = False,
) -> int:
    """Have each picture judged: does it show its prompt, yes or no, and why."""
    from tarkit.artifacts.preview import preview_rows
    from tarkit.config import load_config
    from tarkit.curate import judge

    if dry_run:
        tries = (
            load_config(judge.JudgeConfig, config, overrides or ()).assistant.tries if llm else None
        )
        counts = preview_rows(images, "images", out=out, limit=limit, tries=tries)
        return previewed(counts, out, as_json)
    artifact = judge.run(
        images,
        out=out,
        llm=llm,
        exact=exact,
        server=server,
        config=config,
        overrides=overrides or (),
        limit=limit,
        retry_failed=retry_failed,
        device=device_of(device),
        precision=precision,
    )
    return made(artifact, as_json)


@command(group, "chats")
def curate_chats(
    out: Out,
    tokens: Annotated[
        Path | None, typer.Argument(help="A tokens artifact; may be left out beside --text.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Text-only rows: .txt (a document a line), .jsonl, .json, .parquet.",
        ),
    ] = None,
    captions: Annotated[
        list[Path] | None,
        typer.Option(
            "--captions",
            metavar="DIR",
            help="What `curate caption` wrote for these pictures; may be repeated.",
        ),
    ] = None,
    judgements: Annotated[
        Path | None,
        typer.Option(
            "--judgements", metavar="DIR", help="What `curate judge` said of these pictures."
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            "--keep", metavar="SCORES", help="Leave out pictures with a score below --min."
        ),
    ] = None,
    least: Annotated[
        float | None, typer.Option("--min", metavar="NUMBER", help="With --keep.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="COLUMN", help="Which score, where --keep has several."),
    ] = None,
    config: ConfigOption = None,
    overrides: Set = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Make the chats that the language model learns from, of codes, captions and text."""
    from tarkit.curate import chats

    if (keep is None) != (least is None) or (by and keep is None):
        raise UserError("--keep SCORES and --min NUMBER go together, --by COLUMN with them")
    sources = chats.Sources(
        tokens=tokens,
        text=text,
        captions=captions or (),
        judgements=judgements,
        keep=chats.Keep(keep, least, by) if keep and least is not None else None,
    )
    if dry_run:
        counts = chats.preview(
            sources, out=out, config=config, overrides=overrides or (), limit=limit
        )
        return previewed(counts, out, as_json)
    artifact = chats.run(sources, out=out, config=config, overrides=overrides or (), limit=limit)
    return made(artifact, as_json)
