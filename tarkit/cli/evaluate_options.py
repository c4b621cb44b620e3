"""Options that several commands of `tarkit eval` share, each with its help, and their bundles."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tarkit.cli.options import Device, Limit, Model, Seed
from tarkit.eval.benchmarks import PICTURES, QUESTIONS

Bench = Annotated[
    str,
    typer.Argument(help=", ".join((*PICTURES, *QUESTIONS))),
]

RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="A folder of `tarkit eval prepare`.")]

Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="PATH", help="The file of prompts or questions of the benchmark."
    ),
]

Pictured = Annotated[
    Path | None,
    typer.Option("--images", metavar="DIR", help="The pictures of the questions."),
]

NumPictures = Annotated[
    int | None, typer.Option("--n", min=1, help="Pictures of each prompt; default: 4.")
]

RetrySamples = Annotated[
    bool, typer.Option("--retry-failed", help="Also make failed or damaged samples again.")
]

Scorer = Annotated[
    str | None,
    typer.Option(
        "--scorer",
        help="geneval: shapes, hf-m2f, detections; geneval2: softtifa; dpg: tar, vlm, answers; "
        "not for others.",
    ),
]

ScorerModel = Annotated[
    str | None,
    typer.Option(
        "--scorer-model", metavar="DIR|HUB-ID", help="The model of the detector or the judge."
    ),
]

Clip = Annotated[
    str | None,
    typer.Option("--clip", metavar="DIR|HUB-ID", help="The CLIP model that classifies colours."),
]

ScorerFile = Annotated[
    Path | None,
    typer.Option("--file", metavar="JSONL", help="Detections or answers of another program."),
]

AsPublished = Annotated[
    bool,
    typer.Option(
        "--as-published",
        help="dpg: also score with the faults #60 and #61 of the published scorer.",
    ),
]

RetryJudge = Annotated[
    bool,
    typer.Option(
        "--retry-failed",
        help="dpg, geneval2: also ask the judge again if it failed or its answers are damaged.",
    ),
]

AllowMissing = Annotated[
    bool,
    typer.Option("--allow-missing", help="Write results even if samples failed; these score 0."),
]

Validation = Annotated[
    bool, typer.Option("--validation", help="The validation lists, for the choice of settings.")
]

BatchSize = Annotated[int, typer.Option("--batch-size", min=1)]
NumWorkers = Annotated[
    int | None,
    typer.Option(
        "--num-workers",
        min=0,
        help="Processes that read pictures ahead of the model; 0: threads, as by default on a CPU.",
    ),
]

Compared = Annotated[Path, typer.Argument(help="A folder of pictures, or an images artifact.")]

Features = Annotated[
    str,
    typer.Option(
        "--features",
        help="tatok (a tokenizer's own), shapes (drawn world), inception (extra metrics).",
    ),
]


@dataclass(frozen=True, kw_only=True)
class ItemOptions:
    """Which items a run of a benchmark has, and how many pictures of each."""

    data: Data = None
    n: NumPictures = None
    seed: Seed = 0
    limit: Limit = None


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """How sets of pictures are compared: by which features, of which model, on which device."""

    features: Features = "tatok"
    model: Model = "mini"
    batch_size: BatchSize = 32
    num_workers: NumWorkers = None
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class EvaluatedOptions:
    """The model that is evaluated, the batches that it is given, and where it runs."""

    model: Model = "mini"
    batch_size: BatchSize = 16
    device: Device = "auto"
