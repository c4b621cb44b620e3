"""Options that several commands share, each with its help."""

from pathlib import Path
from typing import Annotated

import typer

from tarkit.checkpoints.hub import DtokName

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
