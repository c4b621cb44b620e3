"""`tarkit eval`: every benchmark, in steps or in one."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from tarkit.cli.command import FAILED, FAILED_ROWS, command, new_group
from tarkit.cli.options import (
    Device,
    Guidance,
    Json,
    Limit,
    Model,
    Out,
    PromptGuidance,
    ScaleOption,
    Seed,
    Server,
    Temperature,
    TopK,
    TopP,
)
from tarkit.cli.output import device_of, given, scored, show
from tarkit.eval.benchmarks import LAYOUTS, PICTURES, QUESTIONS

group = new_group("Score a model.")


@command(group, "shapes")
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
            sampling=given(
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                prompt_guidance=prompt_guidance,
                guidance=guidance,
            ),
            retry_failed=retry_failed,
            device=device_of(device),
        )
    return scored(done, as_json)


Bench = Annotated[
    str,
    typer.Argument(help=", ".join((*PICTURES, *QUESTIONS))),
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


@command(group, "prepare")
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
    show({"path": str(run.path), "items": len(run.items)}, str(run.path), as_json)
    return 0


@command(group, "generate")
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
        sampling=given(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            prompt_guidance=prompt_guidance,
            guidance=guidance,
        ),
        batch_size=batch_size,
        retry_failed=retry_failed,
        device=device_of(device),
    )
    typer.echo(str(run))
    return 0


@command(group, "answer")
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
        device=device_of(device),
    )
    typer.echo(str(run))
    return 0


@command(group, "score")
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
        device=device_of(device),
    )
    return scored(done, as_json)


@command(group, "export")
def eval_export(
    run: RunDir,
    out: Out,
    layout: Annotated[
        str,
        typer.Option(
            "--format",
            help=", ".join(LAYOUTS),
        ),
    ],
) -> int:
    """Write a run's pictures or answers as an official scorer reads them."""
    from tarkit.eval import export as verb

    typer.echo(str(verb.run(run, out=out, layout=layout)))
    return 0


@command(group, "collect")
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


@command(group, "geneval")
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

    sampling = given(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        prompt_guidance=prompt_guidance,
        guidance=guidance,
    )
    on = device_of(device)
    prepare.run("geneval", out=out, data=data, n=n, seed=seed, limit=limit)
    drawing.run(
        out, model=model, scale=scale, sampling=sampling, retry_failed=retry_failed, device=on
    )
    done = score.run(out, scorer=scorer, model=scorer_model, clip=clip, file=file, device=on)
    return scored(done, as_json)


@command(group, "dpg")
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

    sampling = given(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        prompt_guidance=prompt_guidance,
        guidance=guidance,
    )
    on = device_of(device)
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
    return scored(done, as_json)


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

        on = device_of(device)
        prepare.run(bench, out=out, data=data, images=images, limit=limit)
        answer.run(
            out,
            model=model,
            scale=scale,
            batch_size=batch_size,
            retry_failed=retry_failed,
            device=on,
        )
        return scored(score.run(out, allow_missing=allow_missing, device=on), as_json)

    ask.__doc__ = f"Score a model on {bench.upper()}: prepare, answer and score in one."
    return ask


for _bench in QUESTIONS:
    command(group, _bench)(_asking(_bench))


@command(group, "reflect")
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
        sampling=given(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            prompt_guidance=prompt_guidance,
            guidance=guidance,
        ),
        external=(scorer, scorer_model) if scorer else None,
        device=device_of(device),
    )
    facts = {"path": str(done.path), "report": done.report}
    show(facts, f"{done.report.rstrip()}\n\n{done.path}", as_json)
    return 0


Compared = Annotated[Path, typer.Argument(help="A folder of pictures, or an images artifact.")]

Features = Annotated[
    str,
    typer.Option(
        "--features",
        help="tatok (a tokenizer's own), shapes (drawn world), inception (extra metrics).",
    ),
]


@command(group, "rfid")
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
        device=device_of(device),
        batch_size=batch_size,
        metric="rfid",
    )
    return _compared(path, as_json)


@command(group, "gfid")
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
        device=device_of(device),
        batch_size=batch_size,
        metric="gfid",
    )
    return _compared(path, as_json)


def _compared(path: Path, as_json: bool) -> int:
    report = (path / "report.md").read_text(encoding="utf-8")
    show({"path": str(path), "report": report}, f"{report.rstrip()}\n\n{path}", as_json)
    return 0


@command(group, "selftest")
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
    show({"checks": done.facts()}, done.text(), as_json)
    if done.count("failed"):
        return FAILED
    return FAILED_ROWS if done.count("not run") else 0


@command(group, "lmms")
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
        device=device_of(device),
        offline=offline,
        simple=simple,
    )
    show({"path": str(path)}, str(path), as_json)
    return 0
