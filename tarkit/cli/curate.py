"""`tarkit curate`: makes training data from pictures, prompts and text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tarkit.cli.command import command
from tarkit.cli.options import (
    Device,
    DryRun,
    Json,
    Llm,
    LlmOptions,
    Out,
    Precision,
    RetryFailed,
    StageOptions,
)
from tarkit.cli.output import device_of, preview_or_run
from tarkit.errors import UserError

if TYPE_CHECKING:
    from tarkit.curate.ask import LanguageModel
    from tarkit.curate.judge import Judge

group = typer.Typer()


@command(group, "render")
def curate_render(
    out: Out,
    *,
    stage: StageOptions,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Draw the shapes world: pictures with captions, questions, pairs and triples."""
    from tarkit.curate.render import RenderPlan

    plan = RenderPlan(
        out=out,
        config=stage.config,
        overrides=stage.overrides or (),
        limit=stage.limit,
    )
    return preview_or_run(plan, dry_run=dry_run, as_json=as_json)


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
        typer.Option(
            "--captions",
            metavar="FILE",
            help="csv, tsv, jsonl, Parquet or COCO json: image, caption.",
        ),
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
    *,
    stage: StageOptions,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Take in your own pictures; a damaged file becomes a failed row with its reason."""
    from tarkit.curate.ingest import IngestPlan

    plan = IngestPlan(
        source,
        captions=captions,
        questions=questions,
        allow_private=allow_private,
        out=out,
        config=stage.config,
        overrides=stage.overrides or (),
        limit=stage.limit,
    )
    return preview_or_run(plan, dry_run=dry_run, as_json=as_json)


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
    *,
    stage: StageOptions,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Take prompts that people wrote, or make them by rule; clean them, remove duplicates."""
    from tarkit.curate.prompts import PromptsPlan

    plan = PromptsPlan(
        source,
        style=style,
        exclude=exclude or (),
        out=out,
        config=stage.config,
        overrides=stage.overrides or (),
        limit=stage.limit,
    )
    return preview_or_run(plan, dry_run=dry_run, as_json=as_json)


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
    *,
    stage: StageOptions,
    dry_run: DryRun = False,
    retry_failed: RetryFailed = False,
    as_json: Json = False,
) -> int:
    """Fetch a list of URLs with img2dataset; every URL is a row, a failed one with its reason.

    Only http and https URLs are fetched. A URL whose host is, or resolves to, an
    address that is not public becomes a failed row without a request.

    img2dataset itself follows all redirects, and looks up a host again when it
    fetches. Where that matters, set HTTP_PROXY and HTTPS_PROXY to a proxy that
    refuses private addresses. The proxies (and the SSL_CERT variables) are all
    that img2dataset gets of your environment.

    img2dataset does not limit the length of a response: memory_mb bounds its
    processes while they read, and max_bytes the pictures that are kept. It is
    stopped, as by a server that never stops sending, when no piece of the list
    was finished for stall_s.

    A response whose X-Robots-Tag says noai, noimageai or noindex is refused.
    """
    from tarkit.curate.download import DownloadPlan

    plan = DownloadPlan(
        urls,
        img2dataset=img2dataset,
        retry_failed=retry_failed,
        allow_private=allow_private,
        out=out,
        config=stage.config,
        overrides=stage.overrides or (),
        limit=stage.limit,
    )
    return preview_or_run(plan, dry_run=dry_run, as_json=as_json)


def language_model(name: str, options: LlmOptions) -> "LanguageModel":
    from tarkit.curate.ask import LanguageModel

    device = device_of(options.device)
    return LanguageModel(name, options.server, device, options.precision)


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
            help="Prompts whose style to follow, one per line; each request shows three of them.",
        ),
    ] = None,
    *,
    stage: StageOptions,
    dry_run: DryRun = False,
    retry_failed: RetryFailed = False,
    options: LlmOptions,
    as_json: Json = False,
) -> int:
    """Have a vision-language model write a prompt (or a short caption) for each picture.

    With style="rewrite" a language model writes the picture's own prompt in other
    words and sees no picture.
    """
    from tarkit.curate.caption import CaptionPlan

    plan = CaptionPlan(
        images,
        llm=language_model(llm, options),
        examples=examples,
        retry_failed=retry_failed,
        out=out,
        config=stage.config,
        overrides=stage.overrides or (),
        limit=stage.limit,
    )
    return preview_or_run(plan, dry_run=dry_run, as_json=as_json)


@command(group, "split")
def curate_split(
    prompts: Annotated[Path, typer.Argument(help="A prompts artifact.")],
    llm: Llm,
    out: Out,
    *,
    stage: StageOptions,
    dry_run: DryRun = False,
    retry_failed: RetryFailed = False,
    options: LlmOptions,
    as_json: Json = False,
) -> int:
    """Have a language model replace a phrase of each prompt by <image>, and check the result."""
    from tarkit.curate.split import SplitPlan

    plan = SplitPlan(
        prompts,
        llm=language_model(llm, options),
        retry_failed=retry_failed,
        out=out,
        config=stage.config,
        overrides=stage.overrides or (),
        limit=stage.limit,
    )
    return preview_or_run(plan, dry_run=dry_run, as_json=as_json)


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
    *,
    stage: StageOptions,
    dry_run: DryRun = False,
    retry_failed: RetryFailed = False,
    device: Device = "auto",
    precision: Precision = "float32",
    as_json: Json = False,
) -> int:
    """Draw prompts by a text-to-image model; `--set seeds=2` makes pairs of similar pictures."""
    from tarkit.curate.synthesize import SynthesizePlan

    plan = SynthesizePlan(
        prompts,
        generator=generator,
        retry_failed=retry_failed,
        device=device_of(device),
        precision=precision,
        out=out,
        config=stage.config,
        overrides=stage.overrides or (),
        limit=stage.limit,
    )
    return preview_or_run(plan, dry_run=dry_run, as_json=as_json)


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
    *,
    stage: StageOptions,
    dry_run: DryRun = False,
    retry_failed: RetryFailed = False,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Give every picture numbers, in an artifact of their own; no picture is deleted.

    pixels: spread of the levels, 0 for a blank picture.

    shapes: 1 where a picture of the shapes world shows its prompt, else 0.

    clip: raw cosine of picture and prompt by a CLIP or SigLIP; how many tokens
    of the prompt were cut off.

    classifier: probabilities of a picture classifier's labels (NSFW and such).

    tar: how much likelier the picture is for a Tar model with its prompt than
    without; `--model mini` for the shapes world.

    module:function makes an object with `columns` and `score(shown)`.
    """
    from tarkit.curate.score import ScorePlan

    plan = ScorePlan(
        images,
        scorer=scorer,
        model=model,
        retry_failed=retry_failed,
        device=device_of(device),
        out=out,
        config=stage.config,
        overrides=stage.overrides or (),
        limit=stage.limit,
    )
    return preview_or_run(plan, dry_run=dry_run, as_json=as_json)


def picture_judge(llm: str | None, exact: bool, options: LlmOptions) -> "Judge":
    if exact == (llm is not None):
        raise UserError("give a judge: either --llm or, for the shapes world, --exact")
    if llm is None:
        from tarkit.curate.shapes_judge import ExactJudge

        return ExactJudge()
    from tarkit.curate.judge import LanguageModelJudge

    return LanguageModelJudge(language_model(llm, options))


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
    *,
    stage: StageOptions,
    dry_run: DryRun = False,
    retry_failed: RetryFailed = False,
    options: LlmOptions,
    as_json: Json = False,
) -> int:
    """Judge each picture: does it show its prompt, yes or no, and why."""
    from tarkit.curate.judge import JudgePlan

    plan = JudgePlan(
        images,
        judge=picture_judge(llm, exact, options),
        retry_failed=retry_failed,
        out=out,
        config=stage.config,
        overrides=stage.overrides or (),
        limit=stage.limit,
    )
    return preview_or_run(plan, dry_run=dry_run, as_json=as_json)


@command(group, "chats")
def curate_chats(
    out: Out,
    tokens: Annotated[
        Path | None, typer.Argument(help="A tokens artifact; optional with --text.")
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
            help="The output of `curate caption` for these pictures; may be repeated.",
        ),
    ] = None,
    judgements: Annotated[
        Path | None,
        typer.Option(
            "--judgements", metavar="DIR", help="The output of `curate judge` for these pictures."
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
    *,
    stage: StageOptions,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Make the chats that the language model learns from: codes, captions and text."""
    from tarkit.curate.chat_inputs import MinScore
    from tarkit.curate.chats import ChatsPlan

    if (keep is None) != (least is None) or (by and keep is None):
        raise UserError("--keep SCORES and --min NUMBER go together, and --by COLUMN needs them")
    plan = ChatsPlan(
        tokens,
        text=text,
        captions=captions or (),
        judgements=judgements,
        min_score=MinScore(keep, least, by) if keep and least is not None else None,
        out=out,
        config=stage.config,
        overrides=stage.overrides or (),
        limit=stage.limit,
    )
    return preview_or_run(plan, dry_run=dry_run, as_json=as_json)
