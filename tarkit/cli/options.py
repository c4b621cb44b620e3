"""Options that several commands share, each with its help, and bundles of those that go together.

A bundle is a parameter of a command whose type is a dataclass: the command has an option for each
of its fields, and the function gets one object (see tarkit.cli.command).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tarkit.checkpoints.hub import DtokName
from tarkit.seeds import MAX_SEED

if TYPE_CHECKING:
    from tarkit.inference.self_reflect import Reflection


def _toml(path: Path | None) -> Path | None:
    """The file; where there is none, that of a recipe, named as `tarkit cat` names it."""
    if path is None or path.exists():
        return path
    from tarkit.recipes import recipes

    recipe = recipes().get(path.parent.name)
    file = recipe.files.get(path.name) if recipe else None
    if recipe is None or file is None:
        raise typer.BadParameter(f"file {str(path)!r} does not exist")
    name = f"{recipe.name}/{path.name}"
    if path.as_posix() != name:
        raise typer.BadParameter(f"file {str(path)!r} does not exist; the recipe's is {name}")
    return file


ConfigFile = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG.toml",
        dir_okay=False,
        callback=_toml,
        show_default=False,
        help="A file, or one of a recipe, for example paper/mllm_pretrain.toml.",
    ),
]

TrainingConfig = Annotated[
    Path | None,
    typer.Argument(
        metavar="[CONFIG.toml]",
        dir_okay=False,
        callback=_toml,
        show_default=False,
        help="Settings: a file, or one of a recipe (paper/ar_dtok_256.toml); default: one that "
        "fits what is given, named on stderr.",
    ),
]

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="TOML", exists=True, dir_okay=False, help="Settings of the command."
    ),
]

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the result.")]

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; may be repeated."),
]

Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first rows.")]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be made; write nothing.")]

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of the path or text.")]

Images = Annotated[
    list[Path],
    typer.Option(
        "--images", metavar="DIR", help="An images artifact; several are mixed by images_weights."
    ),
]

Tokenizer = Annotated[
    Path,
    typer.Option(
        "--tokenizer", metavar="DIR|NAME", help="A trained TA-Tok, or a model that has one."
    ),
]

Vqvae = Annotated[
    Path,
    typer.Option(
        "--vqvae", metavar="DIR|NAME", help="A trained image VQ, or a model that has one."
    ),
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
        help="Size of the published de-tokenizer: 256, 512 or 1024; with --dtok dif 512 or 1024. "
        "Default: the smallest on this machine.",
    ),
]

Dtok = Annotated[
    DtokName, typer.Option("--dtok", help="The de-tokenizer: ar (AR-DTok) or dif (diffusion).")
]

Steps = Annotated[
    int | None, typer.Option("--steps", min=1, help="Denoising steps, with --dtok dif.")
]

Draft = Annotated[
    Path | None,
    typer.Option(
        "--draft",
        metavar="DIR|NAME",
        help="A small AR-DTok that proposes codes, of which the model's own tests many at once: "
        "faster, and the same distribution of pictures.",
    ),
]

Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="Of the language model and the de-tokenizer: float32, bfloat16 or float16; on a "
        "processor int8, a quarter of the bytes of their weights (other codes than float32's).",
    ),
]

Device = Annotated[
    str, typer.Option("--device", help="cpu, cuda, cuda:1, ...; auto: the GPU if there is one.")
]

Llm = Annotated[
    str,
    typer.Option(
        "--llm",
        metavar="DIR|HUB-ID",
        help="The language model; with --server its name on the server.",
    ),
]

Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="An OpenAI-compatible server, http://HOST:8000/v1; OPENAI_API_KEY holds its key.",
    ),
]

CodeServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="A vLLM server with this language model, http://HOST:8000/v1, which draws the codes; "
        "OPENAI_API_KEY holds its key.",
    ),
]

Split = Annotated[
    str | None,
    typer.Option(
        "--split",
        metavar="NAME",
        help="Only pictures of this split of an images artifact: train, test, ...",
    ),
]

RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Also make the failed rows of finished shards again.")
]

Seed = Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of all randomness.")]

NumSamples = Annotated[int, typer.Option("--n", min=1, max=1000, help="Samples of each prompt.")]

ScaleOption = Annotated[
    int | None,
    typer.Option(
        "--scale",
        min=1,
        max=3,
        help="Scale of the codes: 1 full, 2 half, 3 a third. Of drawn pictures, or else of "
        "those that are read; of both for `eval shapes`. Default: the model's own.",
    ),
]

Temperature = Annotated[
    float | None, typer.Option("--temperature", min=0.0, help="Sampling of the language model.")
]

TopK = Annotated[
    int | None, typer.Option("--top-k", min=0, help="Sampling of the language model; 0: off.")
]

TopP = Annotated[
    float | None,
    typer.Option("--top-p", min=0.0, max=1.0, help="Sampling of the language model; 1: off."),
]

PromptGuidance = Annotated[
    float | None,
    typer.Option(
        "--prompt-guidance",
        min=0.0,
        help="Guidance of the language model towards the prompt; 1: off.",
    ),
]

Guidance = Annotated[
    float | None, typer.Option("--guidance", min=0.0, help="Guidance of the de-tokenizer; 1: off.")
]

BestOf = Annotated[
    int | None,
    typer.Option(
        "--best-of",
        min=2,
        metavar="N",
        help="Draw N candidates and keep the one that the model judges best.",
    ),
]

Reflect = Annotated[
    int | None,
    typer.Option(
        "--reflect", min=2, metavar="N", help="Draw until the model accepts a candidate, at most N."
    ),
]

Judge = Annotated[
    str | None,
    typer.Option(
        "--judge", help="gain: how much likelier the prompt makes the picture; yes: P(yes)."
    ),
]

JudgeOn = Annotated[
    str,
    typer.Option("--judge-on", help="pixels, or codes: then only the kept candidate is decoded."),
]


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """The numbers of a stage that writes an artifact, and how many rows it takes."""

    config: ConfigOption = None
    overrides: Set = None
    limit: Limit = None


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which trained model, in which number format, and where it runs."""

    model: Model = "mini"
    precision: Precision = "float32"
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class LlmOptions:
    """Where the language model that is asked runs: on a server, or here."""

    server: Server = None
    device: Device = "auto"
    precision: Precision = "float32"


@dataclass(frozen=True, kw_only=True)
class DrawingOptions:
    """At which scale codes are drawn, and how they are sampled; None is the model's own value."""

    scale: ScaleOption = None
    temperature: Temperature = None
    top_k: TopK = None
    top_p: TopP = None
    prompt_guidance: PromptGuidance = None
    guidance: Guidance = None

    def sampling(self) -> dict[str, float | int]:
        """The values of checkpoints.system.Sampling that the user gave."""
        return given(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            prompt_guidance=self.prompt_guidance,
            guidance=self.guidance,
        )


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How many pictures of each prompt, of how many prompts, and from which seed on."""

    n: NumSamples = 1
    seed: Seed = 0
    limit: Limit = None
    split: Split = None


@dataclass(frozen=True, kw_only=True)
class HelperOptions:
    """What draws codes in the place of the model, or ahead of it."""

    server: CodeServerOption = None
    draft: Draft = None


@dataclass(frozen=True, kw_only=True)
class DetokenizerOptions:
    """Which de-tokenizer turns codes into pixels."""

    dtok: Dtok = "ar"
    size: SizePx = None
    steps: Steps = None

    def sampling(self) -> dict[str, float | int]:
        """The values of checkpoints.system.Sampling that the user gave.

        Raises typer.BadParameter for --steps with an AR-DTok, which has no steps.
        """
        if self.dtok == "ar" and self.steps is not None:
            raise typer.BadParameter("--steps goes with --dtok dif: AR-DTok has none")
        return given(dif_steps=self.steps)


@dataclass(frozen=True, kw_only=True)
class ReflectOptions:
    """Whether the model chooses among several candidates of each picture, and how."""

    best_of: BestOf = None
    reflect: Reflect = None
    judge: Judge = None
    judge_on: JudgeOn = "pixels"

    def reflection(self) -> Reflection | None:
        """None without --best-of and --reflect; typer.BadParameter with both, or a judge alone."""
        if self.best_of is not None and self.reflect is not None:
            raise typer.BadParameter("give either --best-of or --reflect")
        num_candidates = self.best_of or self.reflect
        if num_candidates is None:
            if self.judge is not None or self.judge_on != "pixels":
                raise typer.BadParameter("--judge goes with --best-of N or --reflect N")
            return None
        from tarkit.inference.self_reflect import reflection_of

        judge = self.judge or ("gain" if self.best_of else "yes")
        return reflection_of(num_candidates, judge, self.judge_on, self.reflect is not None)


def given(**values: float | int | None) -> dict[str, float | int]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}
