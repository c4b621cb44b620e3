"""The command line: every signature and its help; a verb is imported only when it is called.

Grammar: `tarkit VERB [WHAT] SOURCE --out DIR`, paths on the command line and numbers in the TOML.
stdout is data (the path written, or JSON with --json), stderr is progress and complaints. Exit
codes: 0 done, 1 failed, 2 misuse, 3 finished with failed rows, 130 interrupted.
"""

import functools
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from tarkit.errors import UserError
from tarkit.places import DtokName

if TYPE_CHECKING:
    from tarkit.artifacts import Artifact
    from tarkit.eval.outcome import Scored

FAILED, FAILED_ROWS, INTERRUPTED = 1, 3, 130

P = ParamSpec("P")


def _group(help_text: str, **options: Any) -> typer.Typer:
    return typer.Typer(
        help=help_text, no_args_is_help=True, pretty_exceptions_enable=False, **options
    )


app = _group(
    "The whole chain of Tar: curate pictures, train each part, encode, generate, describe, score."
)
curate = _group("Make training data: pictures in, rows of text and codes out.")
train = _group("Train one part of the system; the same command again goes on.")
evaluate = _group("Score a model.")
app.add_typer(curate, name="curate")
app.add_typer(train, name="train")
app.add_typer(evaluate, name="eval")
export = _group("Write a model for other programs.")
app.add_typer(export, name="export")
models = typer.Typer(
    help="Published models: list them, fetch them, read them strictly and without running them.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)
app.add_typer(models, name="models")


def command(group: typer.Typer, name: str) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Register a function that returns its exit code; a UserError is told without a traceback."""

    def register(function: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(function)
        def exiting(*args: P.args, **kwargs: P.kwargs) -> int:
            raise typer.Exit(guarded(lambda: function(*args, **kwargs)))

        group.command(name)(exiting)
        return function

    return register


def guarded(function: Callable[[], int]) -> int:
    """The exit code of a function; a UserError is told with the next command."""
    try:
        return function()
    except UserError as error:
        typer.echo(f"error: {error.message}", err=True)
        if error.hint:
            typer.echo(f"next: {error.hint}", err=True)
        return FAILED
    except KeyboardInterrupt:
        again = shlex.join(["tarkit", *sys.argv[1:]])
        typer.echo(f"\nstopped; the same command goes on from here:\n{again}", err=True)
        return INTERRUPTED


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
) -> None:
    if engine is None or context.invoked_subcommand is None:
        return
    words = sys.argv[1:]
    at = next(n for n, word in enumerate(words) if word.split("=")[0] == "--engine")
    del words[at : at + (1 if "=" in words[at] else 2)]

    def spread() -> int:
        from tarkit.engines import spread as run

        return run(engine, words)

    raise typer.Exit(guarded(spread))


ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG.toml", exists=True, dir_okay=False, show_default=False)
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="TOML", exists=True, dir_okay=False, help="Numbers."),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the result goes.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one number; may be repeated."),
]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Only the first rows: a prefix of the whole.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be made; write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of the path or text.")]
Images = Annotated[Path, typer.Option("--images", metavar="DIR", help="An images artifact.")]
Tokenizer = Annotated[
    Path,
    typer.Option("--tokenizer", metavar="DIR|NAME", help="A trained TA-Tok, or that of a model."),
]
Vqvae = Annotated[
    Path,
    typer.Option("--vqvae", metavar="DIR|NAME", help="A trained image VQ, or that of a model."),
]
Model = Annotated[
    str,
    typer.Option(
        "--model", metavar="NAME|DIR", help="`mini` is built in; `tarkit models` lists the others."
    ),
]
SizePx = Annotated[
    int | None,
    typer.Option(
        "--size",
        metavar="PX",
        help="Which published de-tokenizer: 256, 512 or 1024, by --dtok dif 512 or 1024; default: "
        "the smallest here.",
    ),
]
Dtok = Annotated[
    DtokName, typer.Option("--dtok", help="What turns codes into pixels: AR-DTok, or by diffusion.")
]
Steps = Annotated[
    int | None, typer.Option("--steps", min=1, help="Denoising steps, with --dtok dif.")
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="Of language model and de-tokenizer: float32, bfloat16 or float16.",
    ),
]
Device = Annotated[
    str, typer.Option("--device", help="cpu, cuda, cuda:1, ...; auto: a GPU where there is one.")
]
Llm = Annotated[
    str,
    typer.Option(
        "--llm", metavar="DIR|HUB-ID", help="The model that writes; with --server its name there."
    ),
]
Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="An OpenAI-compatible server, http://HOST:8000/v1; its key: OPENAI_API_KEY.",
    ),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Also redo failed rows of finished shards.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="All randomness comes from it.")]
ScaleOption = Annotated[
    int | None,
    typer.Option(
        "--scale",
        min=1,
        max=3,
        help="1 is full, 2 half, 3 a third: what is drawn at, or read at where nothing is drawn; "
        "of `eval shapes` both. Default: the model's own.",
    ),
]
Temperature = Annotated[
    float | None, typer.Option("--temperature", min=0.0, help="Of the language model.")
]
TopK = Annotated[int | None, typer.Option("--top-k", min=0, help="Of the language model; 0: off.")]
TopP = Annotated[
    float | None, typer.Option("--top-p", min=0.0, max=1.0, help="Of the language model; 1: off.")
]
PromptGuidance = Annotated[
    float | None,
    typer.Option(
        "--prompt-guidance", min=0.0, help="Of the language model, towards the prompt; 1: off."
    ),
]
Guidance = Annotated[
    float | None, typer.Option("--guidance", min=0.0, help="Of the de-tokenizer; 1: off.")
]


# ---- curate ------------------------------------------------------------------------------------


@command(curate, "render")
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
        return _previewed(counts, out, as_json)
    artifact = render.run(out=out, config=config, overrides=overrides or (), limit=limit)
    return _made(artifact, as_json)


@command(curate, "ingest")
def curate_ingest(
    source: Annotated[
        Path, typer.Argument(help="A folder, a Parquet file with image bytes, or WebDataset tars.")
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
    )
    return _made(artifact, as_json)


@command(curate, "prompts")
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
        return _previewed(counts, out, as_json)
    artifact = prompts.run(
        source,
        out=out,
        style=style,
        exclude=exclude or (),
        config=config,
        overrides=overrides or (),
        limit=limit,
    )
    return _made(artifact, as_json)


@command(curate, "download")
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
        return _previewed(counts, out, as_json)
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
    return _made(artifact, as_json)


@command(curate, "caption")
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
    from tarkit.config import load_config
    from tarkit.curate import caption
    from tarkit.plan import preview_rows

    if dry_run:
        tries = load_config(caption.CaptionConfig, config, overrides or ()).assistant.tries
        counts = preview_rows(images, "images", out=out, limit=limit, tries=tries)
        return _previewed(counts, out, as_json)
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
        device=_device(device),
        precision=precision,
    )
    return _made(artifact, as_json)


@command(curate, "split")
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
    from tarkit.config import load_config
    from tarkit.curate import split
    from tarkit.plan import preview_rows

    if dry_run:
        tries = load_config(split.SplitConfig, config, overrides or ()).assistant.tries
        counts = preview_rows(prompts, "prompts", out=out, limit=limit, tries=tries)
        return _previewed(counts, out, as_json)
    artifact = split.run(
        prompts,
        out=out,
        llm=llm,
        server=server,
        config=config,
        overrides=overrides or (),
        limit=limit,
        retry_failed=retry_failed,
        device=_device(device),
        precision=precision,
    )
    return _made(artifact, as_json)


@command(curate, "synthesize")
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
        return _previewed(counts, out, as_json)
    artifact = synthesize.run(
        prompts,
        out=out,
        generator=generator,
        config=config,
        overrides=overrides or (),
        limit=limit,
        retry_failed=retry_failed,
        device=_device(device),
        precision=precision,
    )
    return _made(artifact, as_json)


@command(curate, "score")
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
    from tarkit.curate import score
    from tarkit.plan import preview_rows

    if dry_run:
        return _previewed(preview_rows(images, "images", out=out, limit=limit), out, as_json)
    artifact = score.run(
        images,
        out=out,
        scorer=scorer,
        model=model,
        config=config,
        overrides=overrides or (),
        limit=limit,
        retry_failed=retry_failed,
        device=_device(device),
    )
    return _made(artifact, as_json)


@command(curate, "judge")
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
    from tarkit.config import load_config
    from tarkit.curate import judge
    from tarkit.plan import preview_rows

    if dry_run:
        tries = (
            load_config(judge.JudgeConfig, config, overrides or ()).assistant.tries if llm else None
        )
        counts = preview_rows(images, "images", out=out, limit=limit, tries=tries)
        return _previewed(counts, out, as_json)
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
        device=_device(device),
        precision=precision,
    )
    return _made(artifact, as_json)


@command(curate, "chats")
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
        return _previewed(counts, out, as_json)
    artifact = chats.run(sources, out=out, config=config, overrides=overrides or (), limit=limit)
    return _made(artifact, as_json)


# ---- train -------------------------------------------------------------------------------------


@command(train, "vqvae")
def train_vqvae(
    config: ConfigFile, images: Images, out: Out, overrides: Set = None, as_json: Json = False
) -> int:
    """Train the image VQ: pixels to codes and back."""
    from tarkit.train import vqvae

    return _trained(vqvae.run(config, images=images, out=out, overrides=overrides or ()), as_json)


@command(train, "encoder")
def train_encoder(
    config: ConfigFile, images: Images, out: Out, overrides: Set = None, as_json: Json = False
) -> int:
    """Train a small SigLIP on pictures and captions, in place of the one the paper downloads."""
    from tarkit.train import encoder

    return _trained(encoder.run(config, images=images, out=out, overrides=overrides or ()), as_json)


@command(train, "tokenizer")
def train_tokenizer(
    config: ConfigFile,
    images: Images,
    encoder: Annotated[
        Path, typer.Option("--encoder", metavar="DIR", help="The vision encoder to start from.")
    ],
    lm: Annotated[
        Path, typer.Option("--lm", metavar="DIR", help="The language model to take rows from.")
    ],
    out: Out,
    overrides: Set = None,
    as_json: Json = False,
) -> int:
    """Train TA-Tok: pictures to codes whose codebook is the language model's own embeddings."""
    from tarkit.train import tokenizer

    path = tokenizer.run(
        config, images=images, encoder=encoder, lm=lm, out=out, overrides=overrides or ()
    )
    return _trained(path, as_json)


@command(train, "ar-dtok")
def train_ar_dtok(
    config: ConfigFile,
    images: Images,
    tokenizer: Tokenizer,
    vqvae: Vqvae,
    out: Out,
    start: Annotated[
        Path | None,
        typer.Option("--start", metavar="DIR|NAME", help="An AR-DTok to go on from."),
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> int:
    """Train the autoregressive de-tokenizer: TA-Tok's codes to the image VQ's."""
    from tarkit.train import ar_dtok

    path = ar_dtok.run(
        config,
        images=images,
        tokenizer=_part(tokenizer, "ta_tok"),
        vqvae=_part(vqvae, "vqvae"),
        out=out,
        start=_part(start, "ar_dtok") if start else None,
        overrides=overrides or (),
    )
    return _trained(path, as_json)


@command(train, "mllm")
def train_mllm(
    config: ConfigFile,
    chats: Annotated[
        list[Path],
        typer.Option("--chats", metavar="DIR", help="A chats artifact; may be repeated."),
    ],
    out: Out,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="DIR", help="The TA-Tok that made the codes."),
    ] = None,
    lm: Annotated[
        Path | None,
        typer.Option("--lm", metavar="DIR", help="The language model to grow; else from scratch."),
    ] = None,
    ar_dtok: Annotated[
        Path | None,
        typer.Option("--ar-dtok", metavar="DIR", help="Draws the sample sheets, with --vqvae."),
    ] = None,
    vqvae: Annotated[
        Path | None,
        typer.Option("--vqvae", metavar="DIR", help="Draws the sample sheets, with --ar-dtok."),
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> int:
    """Train the language model that reads and draws codes (text-only without --tokenizer)."""
    from tarkit.train import mllm

    if (ar_dtok is None) != (vqvae is None):
        raise UserError(
            "sample sheets need both --ar-dtok and --vqvae", hint="tarkit train mllm --help"
        )
    path = mllm.run(
        config,
        chats=chats,
        tokenizer=_part(tokenizer, "ta_tok") if tokenizer else None,
        lm=lm,
        dtok=(_part(ar_dtok, "ar_dtok"), _part(vqvae, "vqvae")) if ar_dtok and vqvae else None,
        out=out,
        overrides=overrides or (),
    )
    return _trained(path, as_json)


@command(train, "grpo")
def train_grpo(
    config: ConfigFile,
    prompts: Annotated[
        Path,
        typer.Option("--prompts", metavar="PATH", help="Prompts to draw: a file or an artifact."),
    ],
    scorer: Annotated[
        str,
        typer.Option(
            "--scorer", metavar="NAME", help="The reward: a scorer of `tarkit curate score`."
        ),
    ],
    out: Out,
    model: Model = "mini",
    scorer_model: Annotated[
        str | None,
        typer.Option("--scorer-model", metavar="DIR|HUB-ID|NAME", help="What the scorer loads."),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option("--column", metavar="NAME", help="Its number to reward, where it gives many."),
    ] = None,
    chats: Annotated[
        list[Path] | None,
        typer.Option("--chats", metavar="DIR", help="Chats learnt beside; may be repeated."),
    ] = None,
    device: Device = "auto",
    overrides: Set = None,
    as_json: Json = False,
) -> int:
    """Train a model by the scores of what it draws (GRPO): scored higher, drawn more often.

    --scorer shapes rewards pictures of the drawn world that show their prompt.
    --device is the scorer's; the model is where accelerate puts it.
    What comes out is a language model for `tarkit assemble`.
    """
    from tarkit.train import grpo

    path = grpo.run(
        config,
        model=model,
        prompts=prompts,
        scorer=scorer,
        scorer_model=scorer_model,
        column=column,
        chats=chats or (),
        out=out,
        device=_device(device),
        overrides=overrides or (),
    )
    return _trained(path, as_json)


@command(app, "assemble")
def assemble(
    mllm: Annotated[
        Path, typer.Option("--mllm", metavar="DIR", help="The trained language model.")
    ],
    tokenizer: Tokenizer,
    ar_dtok: Annotated[
        Path, typer.Option("--ar-dtok", metavar="DIR", help="The trained de-tokenizer.")
    ],
    vqvae: Vqvae,
    out: Out,
    half: Annotated[bool, typer.Option("--half", help="Store weights as float16.")] = False,
    config: ConfigOption = None,
    overrides: Set = None,
    as_json: Json = False,
) -> int:
    """Put the trained parts into one model directory, which --model takes."""
    from tarkit import assemble as verb

    path = verb.run(
        mllm=mllm,
        tokenizer=tokenizer,
        ar_dtok=ar_dtok,
        vqvae=vqvae,
        out=out,
        half_precision=half,
        config=config,
        overrides=overrides or (),
    )
    return _trained(path, as_json)


@models.callback()
def models_known(context: typer.Context, as_json: Json = False) -> None:
    """List what a --model name stands for, and what of it is on this machine."""
    if context.invoked_subcommand is None:
        _list_models(as_json)


def _list_models(as_json: bool) -> None:
    from tarkit.places import EMBEDDED, cache_dir, known

    rows = list(known())
    lines = [f"{name:<16} {path}" for name, path in EMBEDDED.items()]
    for row in rows:
        on_disk = f"{row.num_bytes / 1e9:.2f} GB" if row.path else "not here"
        licence = row.licence or "see its model card"
        lines.append(f"{row.part:<16} {on_disk:<10} {row.place}   ({licence})")
    lines.append(
        f"looked for in {cache_dir()}; tarkit models fetch tar-1.5b   gets what is missing"
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
    _print(facts, "\n".join(lines), as_json)


@command(models, "fetch")
def models_fetch(
    model: Annotated[str, typer.Argument(metavar="NAME", help="tar-1.5b, tar-7b or a hub id.")],
    size: SizePx = None,
    dtok: Dtok = "ar",
    as_json: Json = False,
) -> int:
    """Download what a published model lacks: language model, TA-Tok and one de-tokenizer."""
    from tarkit.places import fetch

    found = fetch(model, size_px=size, dtok=dtok)
    paths = {part: str(path) for part, path in found.parts.items()}
    _print(paths, "\n".join(f"{part:<8} {path}" for part, path in paths.items()), as_json)
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
    """Turn a published weight file into a model directory, which every command takes."""
    from tarkit import convert

    return _trained(convert.run(file, out=out, precision=precision), as_json)  # type: ignore[arg-type]


@command(export, "hf")
def export_hf(
    model: Annotated[str, typer.Argument(metavar="NAME|DIR", help="A model, as --model takes it.")],
    out: Out,
    precision: Precision = "float32",
    as_json: Json = False,
) -> int:
    """Write the language model as a directory that transformers and vLLM load."""
    from tarkit import export as verb

    return _trained(verb.run(model, out=out, precision=precision), as_json)


# ---- encode, generate, describe, reconstruct ---------------------------------------------------


@command(app, "encode")
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
    from tarkit.plan import preview_rows

    if dry_run:
        return _previewed(preview_rows(images, "images", out=out, limit=limit), out, as_json)
    artifact = verb.run(
        images,
        tokenizer=_part(tokenizer, "ta_tok"),
        out=out,
        config=config,
        overrides=overrides or (),
        limit=limit,
        retry_failed=retry_failed,
        device=_device(device),
    )
    return _made(artifact, as_json)


@command(app, "generate")
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
    from tarkit import generate as verb

    if (prompt is None) == (prompts is None):
        raise typer.BadParameter("give either a PROMPT or --prompts FILE")
    if prompts is not None and image:
        raise typer.BadParameter("--image goes with a PROMPT, not with --prompts")
    if prompts is None and limit is not None:
        raise typer.BadParameter("--limit goes with --prompts, not with a PROMPT")
    if best_of is not None and reflect is not None:
        raise typer.BadParameter("give either --best-of or --reflect")
    _check_steps(dtok, steps)
    sampling = _given(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        prompt_guidance=prompt_guidance,
        guidance=guidance,
        dif_steps=steps,
    )
    reflection = None
    if best_of or reflect:
        from tarkit.reflect import reflection_of

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
            device=_device(device),
            size_px=size,
            dtok=dtok,
            precision=precision,
        )
        _print({"path": str(done.path), "pictures": done.num_pictures}, str(done.path), as_json)
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
        device=_device(device),
        size_px=size,
        dtok=dtok,
        precision=precision,
    )
    _print({"paths": [str(path) for path in paths]}, "\n".join(map(str, paths)), as_json)
    return 0


@command(app, "describe")
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
    from tarkit import describe as verb

    answer = verb.run(
        image,
        question,
        model=model,
        max_tokens=max_tokens,
        precision=precision,
        device=_device(device),
    )
    _print({"image": str(image), "question": question, "answer": answer}, answer, as_json)
    return 0


@command(app, "reconstruct")
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
    from tarkit import reconstruct as verb

    _check_steps(dtok, steps)
    done = verb.run(
        images,
        out=out,
        model=model,
        seed=seed,
        limit=limit,
        device=_device(device),
        size_px=size,
        dtok=dtok,
        precision=precision,
        sampling=_given(guidance=guidance, dif_steps=steps),
    )
    for name, reason in done.failed.items():
        typer.echo(f"failed: {name}: {reason}", err=True)
    facts = {"path": str(done.path), "pictures": done.num_pictures, "failed": done.failed}
    _print(facts, str(done.path), as_json)
    return FAILED_ROWS if done.failed else 0


# ---- eval, inspect, version --------------------------------------------------------------------


@command(evaluate, "shapes")
def eval_shapes(
    out: Out,
    model: Model = "mini",
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite", help="geneval, pope, caption or ceilings; may be repeated; default: all."
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Pictures of each prompt.")] = 1,
    seed: Seed = 0,
    scale: ScaleOption = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    prompt_guidance: PromptGuidance = None,
    guidance: Guidance = None,
    limit: Limit = None,
    validation: Annotated[
        bool, typer.Option("--validation", help="The lists that settings may be chosen on.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 16,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also redo samples that failed or are damaged.")
    ] = False,
    score_only: Annotated[
        bool, typer.Option("--score-only", help="Score what lies in --out; load no model.")
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Score a model on the shapes world: GenEval-style, POPE-style, captions, ceilings."""
    from tarkit.eval import shapes

    if score_only:
        done = shapes.score(out)
    else:
        done = shapes.run(
            out=out,
            model=model,
            suites=suite or shapes.SUITES,
            n=n,
            seed=seed,
            scale=scale,
            limit=limit,
            split="validation" if validation else "test",
            batch_size=batch_size,
            sampling=_given(
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                prompt_guidance=prompt_guidance,
                guidance=guidance,
            ),
            retry_failed=retry_failed,
            device=_device(device),
        )
    return _scored(done, as_json)


Bench = Annotated[
    str,
    typer.Argument(help="geneval, dpg, pope, mme, mmbench, seed, gqa or mmmu."),
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="What `tarkit eval prepare` wrote.")]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="PATH", help="The benchmark's own file of questions."),
]
Pictured = Annotated[
    Path | None,
    typer.Option("--images", metavar="DIR", help="The pictures that the questions name."),
]
NumPictures = Annotated[
    int | None, typer.Option("--n", min=1, help="Pictures of each prompt; default: 4.")
]
RetrySamples = Annotated[
    bool, typer.Option("--retry-failed", help="Also redo samples that failed or are damaged.")
]
Scorer = Annotated[
    str | None,
    typer.Option(
        "--scorer",
        help="geneval: shapes, hf-m2f, detections; dpg: tar, vlm, answers; others need none.",
    ),
]
ScorerModel = Annotated[
    str | None,
    typer.Option("--scorer-model", metavar="DIR|HUB-ID", help="The detector's, or the judge's."),
]
Clip = Annotated[
    str | None, typer.Option("--clip", metavar="DIR|HUB-ID", help="That names colours.")
]
ScorerFile = Annotated[
    Path | None,
    typer.Option("--file", metavar="JSONL", help="Detections or answers made elsewhere."),
]
AsPublished = Annotated[
    bool,
    typer.Option("--as-published", help="dpg: also with the published scorer's faults, #60, #61."),
]
RetryJudge = Annotated[
    bool,
    typer.Option(
        "--retry-failed",
        help="dpg: also ask the judge again where it failed or its answers are damaged.",
    ),
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Write results though samples failed: they score 0.")
]


@command(evaluate, "prepare")
def eval_prepare(
    bench: Bench,
    out: Out,
    data: Data = None,
    images: Pictured = None,
    n: NumPictures = None,
    seed: Seed = 0,
    limit: Limit = None,
    as_json: Json = False,
) -> int:
    """Begin a run of a benchmark: write down what is asked, before anything is answered."""
    from tarkit.eval import prepare

    run = prepare.run(bench, out=out, data=data, images=images, n=n, seed=seed, limit=limit)
    _print({"path": str(run.path), "items": len(run.items)}, str(run.path), as_json)
    return 0


@command(evaluate, "generate")
def eval_generate(
    run: RunDir,
    model: Model = "mini",
    scale: ScaleOption = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    prompt_guidance: PromptGuidance = None,
    guidance: Guidance = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 16,
    retry_failed: RetrySamples = False,
    device: Device = "auto",
) -> int:
    """Draw the pictures that a run lacks."""
    from tarkit.eval import generate as verb

    verb.run(
        run,
        model=model,
        scale=scale,
        sampling=_given(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            prompt_guidance=prompt_guidance,
            guidance=guidance,
        ),
        batch_size=batch_size,
        retry_failed=retry_failed,
        device=_device(device),
    )
    typer.echo(str(run))
    return 0


@command(evaluate, "answer")
def eval_answer(
    run: RunDir,
    model: Model = "mini",
    scale: ScaleOption = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 16,
    retry_failed: RetrySamples = False,
    device: Device = "auto",
) -> int:
    """Answer the questions that a run lacks answers to."""
    from tarkit.eval import answer

    answer.run(
        run,
        model=model,
        scale=scale,
        batch_size=batch_size,
        retry_failed=retry_failed,
        device=_device(device),
    )
    typer.echo(str(run))
    return 0


@command(evaluate, "score")
def eval_score(
    run: RunDir,
    scorer: Scorer = None,
    scorer_model: ScorerModel = None,
    clip: Clip = None,
    file: ScorerFile = None,
    server: Server = None,
    as_published: AsPublished = False,
    allow_missing: AllowMissing = False,
    retry_failed: RetryJudge = False,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Score what a run drew or answered; every scorer has results of its own."""
    from tarkit.eval import score

    done = score.run(
        run,
        scorer=scorer,
        model=scorer_model,
        clip=clip,
        file=file,
        server=server,
        as_published=as_published,
        allow_missing=allow_missing,
        retry_failed=retry_failed,
        device=_device(device),
    )
    return _scored(done, as_json)


@command(evaluate, "export")
def eval_export(
    run: RunDir,
    out: Out,
    layout: Annotated[
        str,
        typer.Option(
            "--format",
            help="geneval-dir, dpg-grid, adm-npz; mme-txt, pope-jsonl, mmmu-json.",
        ),
    ],
) -> int:
    """Write a run's pictures or answers as an official scorer reads them."""
    from tarkit.eval import export as verb

    typer.echo(str(verb.run(run, out=out, layout=layout)))
    return 0


@command(evaluate, "collect")
def eval_collect(
    run: RunDir,
    file: Annotated[Path, typer.Argument(help="What the scorer wrote.")],
    layout: Annotated[str, typer.Option("--format", help="geneval-jsonl.")] = "geneval-jsonl",
    scorer: Annotated[
        str, typer.Option("--scorer", help="The name its figures get: geneval@NAME.")
    ] = "official",
) -> int:
    """Bring verdicts back that an official scorer made elsewhere."""
    from tarkit.eval import collect

    typer.echo(str(collect.run(run, file, layout=layout, scorer=scorer)))
    return 0


@command(evaluate, "geneval")
def eval_geneval(
    out: Out,
    model: Model = "mini",
    data: Data = None,
    n: NumPictures = None,
    seed: Seed = 0,
    limit: Limit = None,
    scale: ScaleOption = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    prompt_guidance: PromptGuidance = None,
    guidance: Guidance = None,
    scorer: Scorer = "hf-m2f",
    scorer_model: ScorerModel = "facebook/mask2former-swin-small-coco-instance",
    clip: Clip = "openai/clip-vit-large-patch14",
    file: ScorerFile = None,
    retry_failed: RetrySamples = False,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """GenEval from its prompts to its figures: prepare, generate and score in one."""
    from tarkit.eval import generate as drawing
    from tarkit.eval import prepare, score

    sampling = _given(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        prompt_guidance=prompt_guidance,
        guidance=guidance,
    )
    on = _device(device)
    prepare.run("geneval", out=out, data=data, n=n, seed=seed, limit=limit)
    drawing.run(
        out, model=model, scale=scale, sampling=sampling, retry_failed=retry_failed, device=on
    )
    done = score.run(out, scorer=scorer, model=scorer_model, clip=clip, file=file, device=on)
    return _scored(done, as_json)


@command(evaluate, "dpg")
def eval_dpg(
    out: Out,
    data: Data = None,
    model: Model = "mini",
    n: NumPictures = None,
    seed: Seed = 0,
    limit: Limit = None,
    scale: ScaleOption = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    prompt_guidance: PromptGuidance = None,
    guidance: Guidance = None,
    scorer: Scorer = "tar",
    scorer_model: ScorerModel = None,
    file: ScorerFile = None,
    server: Server = None,
    as_published: AsPublished = False,
    retry_failed: RetrySamples = False,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """DPG-Bench from its csv to its figures; the judge, --scorer, is part of their name."""
    from tarkit.eval import generate as drawing
    from tarkit.eval import prepare, score

    sampling = _given(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        prompt_guidance=prompt_guidance,
        guidance=guidance,
    )
    on = _device(device)
    prepare.run("dpg", out=out, data=data, n=n, seed=seed, limit=limit)
    drawing.run(
        out, model=model, scale=scale, sampling=sampling, retry_failed=retry_failed, device=on
    )
    done = score.run(
        out,
        scorer=scorer,
        model=scorer_model or (model if scorer == "tar" else None),
        file=file,
        server=server,
        as_published=as_published,
        retry_failed=retry_failed,
        device=on,
    )
    return _scored(done, as_json)


def _asking(bench: str) -> Callable[..., int]:
    def ask(
        out: Out,
        data: Data = None,
        images: Pictured = None,
        model: Model = "mini",
        limit: Limit = None,
        scale: ScaleOption = None,
        batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 16,
        allow_missing: AllowMissing = False,
        retry_failed: RetrySamples = False,
        device: Device = "auto",
        as_json: Json = False,
    ) -> int:
        from tarkit.eval import answer, prepare, score

        on = _device(device)
        prepare.run(bench, out=out, data=data, images=images, limit=limit)
        answer.run(
            out,
            model=model,
            scale=scale,
            batch_size=batch_size,
            retry_failed=retry_failed,
            device=on,
        )
        return _scored(score.run(out, allow_missing=allow_missing, device=on), as_json)

    ask.__doc__ = f"Score a model on {bench.upper()}: prepare, answer and score in one."
    return ask


for _bench in ("pope", "mme", "mmbench", "seed", "gqa", "mmmu"):
    command(evaluate, _bench)(_asking(_bench))


@command(evaluate, "reflect")
def eval_reflect(
    out: Out,
    model: Model = "mini",
    slots: Annotated[
        int, typer.Option("--slots", min=1, help="Reported pictures of a prompt, a pool for each.")
    ] = 1,
    seed: Seed = 0,
    scale: ScaleOption = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    prompt_guidance: PromptGuidance = None,
    guidance: Guidance = None,
    limit: Limit = None,
    validation: Annotated[
        bool, typer.Option("--validation", help="The lists that settings may be chosen on.")
    ] = False,
    scorer: Annotated[
        str | None,
        typer.Option("--scorer", help="A judge beside the model: clip, tar, or module:function."),
    ] = None,
    scorer_model: ScorerModel = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 16,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Have a model choose among its own pictures: every arm at N = 1, 2, 4, 8, and its judges."""
    from tarkit.eval import reflect

    done = reflect.run(
        out=out,
        model=model,
        slots=slots,
        seed=seed,
        scale=scale,
        limit=limit,
        split="validation" if validation else "test",
        batch_size=batch_size,
        sampling=_given(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            prompt_guidance=prompt_guidance,
            guidance=guidance,
        ),
        external=(scorer, scorer_model) if scorer else None,
        device=_device(device),
    )
    facts = {"path": str(done.path), "report": done.report}
    _print(facts, f"{done.report.rstrip()}\n\n{done.path}", as_json)
    return 0


Compared = Annotated[Path, typer.Argument(help="A folder of pictures, or an images artifact.")]
Features = Annotated[
    str,
    typer.Option(
        "--features",
        help="tatok (a tokenizer's own), shapes (drawn world), inception (extra metrics).",
    ),
]


@command(evaluate, "rfid")
def eval_rfid(
    samples: Compared,
    originals: Compared,
    out: Out,
    features: Features = "tatok",
    model: Model = "mini",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 32,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Compare pictures with their originals: rFID, PSNR, SSIM, cosine of features."""
    from tarkit.eval import pictures

    path = pictures.run(
        samples=samples,
        reference=originals,
        out=out,
        features=features,
        model=model,
        device=_device(device),
        batch_size=batch_size,
        metric="rfid",
    )
    return _compared(path, as_json)


@command(evaluate, "gfid")
def eval_gfid(
    samples: Compared,
    reference: Annotated[
        Path, typer.Argument(help="Real pictures, or an .npz of their mu and sigma.")
    ],
    out: Out,
    features: Features = "tatok",
    model: Model = "mini",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 32,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Compare drawn pictures with real ones: gFID, Inception Score, precision, recall."""
    from tarkit.eval import pictures

    path = pictures.run(
        samples=samples,
        reference=reference,
        out=out,
        features=features,
        model=model,
        device=_device(device),
        batch_size=batch_size,
        metric="gfid",
    )
    return _compared(path, as_json)


def _compared(path: Path, as_json: bool) -> int:
    report = (path / "report.md").read_text(encoding="utf-8")
    _print({"path": str(path), "report": report}, f"{report.rstrip()}\n\n{path}", as_json)
    return 0


@command(evaluate, "selftest")
def eval_selftest(
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Benchmark files, in their owners' folders."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the drawn world's scenes; default: a new one.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Check the scorers against published figures; what --data lacks is told and not run."""
    from tarkit.eval import selftest

    done = selftest.run(data=data, seed=seed)
    _print({"checks": done.facts()}, done.text(), as_json)
    if done.count("failed"):
        return FAILED
    return FAILED_ROWS if done.count("not run") else 0


@command(evaluate, "lmms")
def eval_lmms(
    out: Out,
    tasks: Annotated[
        list[str],
        typer.Option("--tasks", metavar="NAME,...", help="Of lmms-eval; may be repeated."),
    ],
    model: Model = "mini",
    include: Annotated[
        Path | None,
        typer.Option("--include", metavar="DIR", help="A folder of tasks of your own."),
    ] = None,
    scale: ScaleOption = None,
    limit: Limit = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 16,
    simple: Annotated[
        bool, typer.Option("--simple", help="Ask as lmms-eval asks its simple models, not by chat.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Open no connection; data sets must be here.")
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Score a model on the tasks of lmms-eval, run by lmms-eval: pip install 'tarkit[lmms]'."""
    from tarkit.eval import lmms

    path = lmms.run(
        tasks=tasks,
        out=out,
        model=model,
        include=include,
        scale=scale,
        limit=limit,
        batch_size=batch_size,
        device=_device(device),
        offline=offline,
        simple=simple,
    )
    _print({"path": str(path)}, str(path), as_json)
    return 0


@command(app, "inspect")
def inspect(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Anything that tarkit made.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PNG", help="Where a contact sheet goes.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Say what a directory is: kind, counts, lineage, settings, and a sheet of its pictures."""
    from tarkit.report import inspect as verb

    verb.run(path, out=out, as_json=as_json)
    return 0


@command(app, "version")
def version(as_json: Json = False) -> int:
    """Print the version; with --json also Python's and the packages'."""
    from tarkit.config import provenance

    versions = provenance()
    _print(versions, versions["tarkit"], as_json)
    return 0


@command(app, "report")
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Results of evaluations, or folders of trainings."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the page goes.")],
    title: Annotated[str | None, typer.Option("--title", help="Above the page.")] = None,
    pictures: Annotated[
        int, typer.Option("--pictures", min=0, help="Judged pictures shown of each run.")
    ] = 24,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws those pictures.")] = 0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Also show figures that lack samples.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Write one page of runs, for any browser: tables, plots, pictures, paired comparisons."""
    from tarkit.report import report as verb

    page = verb.run(
        runs, out=out, title=title, pictures=pictures, seed=seed, allow_missing=allow_missing
    )
    _print({"path": str(page)}, str(page), as_json)
    return 0


# ---- what the commands share -------------------------------------------------------------------


def _print(facts: Mapping[str, Any], text: str, as_json: bool) -> None:
    typer.echo(json.dumps(facts, ensure_ascii=False) if as_json else text)


def _scored(done: "Scored", as_json: bool) -> int:
    facts = {"path": str(done.path), "failed": done.num_failed, "report": done.report}
    _print(facts, f"{done.report.rstrip()}\n\n{done.path}", as_json)
    return FAILED_ROWS if done.num_failed else 0


def _made(artifact: "Artifact", as_json: bool) -> int:
    from tarkit.plan import num_failed

    failed = num_failed(artifact)
    left = len(artifact.missing())
    facts = {"path": str(artifact.path), "kind": artifact.kind, "shards": len(artifact.shards)}
    _print({**facts, "shards_left": left, "failed": failed}, str(artifact.path), as_json)
    if failed:
        typer.echo(f"{failed} failed rows: tarkit inspect {artifact.path}", err=True)
    return FAILED_ROWS if failed else 0


def _previewed(counts: Mapping[str, int], out: Path, as_json: bool) -> int:
    from tarkit.plan import disk

    counts = {**counts, **disk(out, counts["shards_to_make"])}
    _print(counts, "\n".join(f"{name}: {count}" for name, count in counts.items()), as_json)
    return 0


def _trained(path: Path, as_json: bool) -> int:
    _print({"path": str(path)}, str(path), as_json)
    return 0


def _given(**values: float | int | None) -> dict[str, float | int]:
    return {name: value for name, value in values.items() if value is not None}


def _check_steps(dtok: DtokName, steps: int | None) -> None:
    if dtok == "ar" and steps is not None:
        raise typer.BadParameter("--steps goes with --dtok dif: AR-DTok has none")


def _part(named: Path, part: str) -> Path:
    from tarkit.places import find_part

    return find_part(named, part)


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    """The console command."""
    app()


if __name__ == "__main__":
    main()
