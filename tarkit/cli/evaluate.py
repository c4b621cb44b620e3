"""`tarkit eval`: every benchmark, step by step or in one command."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from tarkit.cli.command import FAILED, FAILED_ROWS, command
from tarkit.cli.evaluate_options import (
    AllowMissing,
    AsPublished,
    Bench,
    Clip,
    Compared,
    ComparisonOptions,
    Data,
    EvaluatedOptions,
    ItemOptions,
    Pictured,
    RetryJudge,
    RetrySamples,
    RunDir,
    Scorer,
    ScorerFile,
    ScorerModel,
    Validation,
)
from tarkit.cli.options import (
    CodeServerOption,
    Device,
    DrawingOptions,
    Json,
    Limit,
    Model,
    Out,
    ScaleOption,
    Seed,
    Server,
)
from tarkit.cli.output import device_of, scored, show
from tarkit.eval.benchmarks import LAYOUTS, QUESTIONS
from tarkit.terminal import print_result

group = typer.Typer()


@command(group, "shapes")
def eval_shapes(
    out: Out,
    *,
    evaluated: EvaluatedOptions,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite", help="geneval, pope, caption or ceilings; may be repeated; default: all."
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Pictures of each prompt.")] = 1,
    seed: Seed = 0,
    drawing: DrawingOptions,
    limit: Limit = None,
    validation: Validation = False,
    retry_failed: RetrySamples = False,
    score_only: Annotated[
        bool, typer.Option("--score-only", help="Only score the samples in --out; load no model.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Score a model on the shapes world: GenEval-style, POPE-style, captions, ceilings."""
    from tarkit.eval import shapes

    if score_only:
        done = shapes.score(out)
    else:
        done = shapes.run(
            out=out,
            model=evaluated.model,
            suites=suite or shapes.SUITES,
            n=n,
            seed=seed,
            scale=drawing.scale,
            limit=limit,
            split="validation" if validation else "test",
            batch_size=evaluated.batch_size,
            sampling=drawing.sampling(),
            retry_failed=retry_failed,
            device=device_of(evaluated.device),
        )
    return scored(done, as_json)


@command(group, "prepare")
def eval_prepare(
    bench: Bench,
    out: Out,
    *,
    images: Pictured = None,
    items: ItemOptions,
    as_json: Json = False,
) -> int:
    """Begin a run of a benchmark: write its list of prompts or questions."""
    from tarkit.eval import prepare

    run = prepare.run(
        bench,
        out=out,
        data=items.data,
        images=images,
        n=items.n,
        seed=items.seed,
        limit=items.limit,
    )
    show({"path": str(run.path), "items": len(run.items)}, str(run.path), as_json)
    return 0


@command(group, "generate", recorded_in="run")
def eval_generate(
    run: RunDir,
    *,
    evaluated: EvaluatedOptions,
    drawing: DrawingOptions,
    server: CodeServerOption = None,
    retry_failed: RetrySamples = False,
) -> int:
    """Draw the missing pictures of a run."""
    from tarkit.eval import generate as verb

    verb.run(
        run,
        model=evaluated.model,
        scale=drawing.scale,
        sampling=drawing.sampling(),
        batch_size=evaluated.batch_size,
        retry_failed=retry_failed,
        server=server,
        device=device_of(evaluated.device),
    )
    print_result(str(run))
    return 0


@command(group, "answer", recorded_in="run")
def eval_answer(
    run: RunDir,
    *,
    evaluated: EvaluatedOptions,
    scale: ScaleOption = None,
    retry_failed: RetrySamples = False,
) -> int:
    """Answer the open questions of a run."""
    from tarkit.eval import answer

    answer.run(
        run,
        model=evaluated.model,
        scale=scale,
        batch_size=evaluated.batch_size,
        retry_failed=retry_failed,
        device=device_of(evaluated.device),
    )
    print_result(str(run))
    return 0


@command(group, "score", recorded_in="run")
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
    """Score the pictures or answers of a run; each scorer writes its own results."""
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


@command(group, "export", recorded_in=None)
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
    """Write the pictures or answers of a run in the layout of an official scorer."""
    from tarkit.eval import export as verb

    print_result(str(verb.run(run, out=out, layout=layout)))
    return 0


@command(group, "collect", recorded_in="run")
def eval_collect(
    run: RunDir,
    file: Annotated[Path, typer.Argument(help="The output of the scorer.")],
    layout: Annotated[str, typer.Option("--format", help="geneval-jsonl.")] = "geneval-jsonl",
    scorer: Annotated[
        str, typer.Option("--scorer", help="A name for its figures: geneval@NAME.")
    ] = "official",
) -> int:
    """Take in the verdicts of an official scorer."""
    from tarkit.eval import collect

    print_result(str(collect.run(run, file, layout=layout, scorer=scorer)))
    return 0


@command(group, "geneval")
def eval_geneval(
    out: Out,
    *,
    model: Model = "mini",
    items: ItemOptions,
    drawing: DrawingOptions,
    scorer: Scorer = "hf-m2f",
    scorer_model: ScorerModel = "facebook/mask2former-swin-small-coco-instance",
    clip: Clip = "openai/clip-vit-large-patch14",
    file: ScorerFile = None,
    retry_failed: RetrySamples = False,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """GenEval in one command: prepare, generate and score."""
    from tarkit.eval import generate, prepare, score

    on = device_of(device)
    prepare.run("geneval", out=out, data=items.data, n=items.n, seed=items.seed, limit=items.limit)
    generate.run(
        out,
        model=model,
        scale=drawing.scale,
        sampling=drawing.sampling(),
        retry_failed=retry_failed,
        device=on,
    )
    done = score.run(out, scorer=scorer, model=scorer_model, clip=clip, file=file, device=on)
    return scored(done, as_json)


@command(group, "geneval2")
def eval_geneval2(
    out: Out,
    *,
    model: Model = "mini",
    items: ItemOptions,
    drawing: DrawingOptions,
    scorer_model: ScorerModel = "Qwen/Qwen3-VL-8B-Instruct",
    server: Server = None,
    retry_failed: RetrySamples = False,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """GenEval 2 in one command, by Soft-TIFA; the names of its figures contain the judge."""
    from tarkit.eval import generate, prepare, score

    on = device_of(device)
    data, n, seed, limit = items.data, items.n, items.seed, items.limit
    prepare.run("geneval2", out=out, data=data, n=n, seed=seed, limit=limit)
    generate.run(
        out,
        model=model,
        scale=drawing.scale,
        sampling=drawing.sampling(),
        retry_failed=retry_failed,
        device=on,
    )
    done = score.run(
        out,
        scorer="softtifa",
        model=scorer_model,
        server=server,
        retry_failed=retry_failed,
        device=on,
    )
    return scored(done, as_json)


@command(group, "dpg")
def eval_dpg(
    out: Out,
    *,
    model: Model = "mini",
    items: ItemOptions,
    drawing: DrawingOptions,
    scorer: Scorer = "tar",
    scorer_model: ScorerModel = None,
    file: ScorerFile = None,
    server: Server = None,
    as_published: AsPublished = False,
    retry_failed: RetrySamples = False,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """DPG-Bench in one command; the names of its figures contain the judge, --scorer."""
    from tarkit.eval import generate, prepare, score

    on = device_of(device)
    prepare.run("dpg", out=out, data=items.data, n=items.n, seed=items.seed, limit=items.limit)
    generate.run(
        out,
        model=model,
        scale=drawing.scale,
        sampling=drawing.sampling(),
        retry_failed=retry_failed,
        device=on,
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


def _question_command(bench: str) -> Callable[..., int]:
    def evaluate_answers(
        out: Out,
        *,
        evaluated: EvaluatedOptions,
        data: Data = None,
        images: Pictured = None,
        limit: Limit = None,
        scale: ScaleOption = None,
        allow_missing: AllowMissing = False,
        retry_failed: RetrySamples = False,
        as_json: Json = False,
    ) -> int:
        from tarkit.eval import answer, prepare, score

        on = device_of(evaluated.device)
        prepare.run(bench, out=out, data=data, images=images, limit=limit)
        answer.run(
            out,
            model=evaluated.model,
            scale=scale,
            batch_size=evaluated.batch_size,
            retry_failed=retry_failed,
            device=on,
        )
        return scored(score.run(out, allow_missing=allow_missing, device=on), as_json)

    evaluate_answers.__doc__ = f"{bench.upper()} in one command: prepare, answer and score."
    return evaluate_answers


for _bench in QUESTIONS:
    command(group, _bench)(_question_command(_bench))


@command(group, "reflect")
def eval_reflect(
    out: Out,
    *,
    evaluated: EvaluatedOptions,
    slots: Annotated[
        int,
        typer.Option(
            "--slots",
            min=1,
            help="Pictures of each prompt that are reported; each has its own pool.",
        ),
    ] = 1,
    seed: Seed = 0,
    drawing: DrawingOptions,
    limit: Limit = None,
    validation: Validation = False,
    scorer: Annotated[
        str | None,
        typer.Option("--scorer", help="A further judge: clip, tar, or module:function."),
    ] = None,
    scorer_model: ScorerModel = None,
    as_json: Json = False,
) -> int:
    """Let a model choose among N = 1, 2, 4, 8 of its own pictures; score each rule and judge."""
    from tarkit.eval import reflect

    done = reflect.run(
        out=out,
        model=evaluated.model,
        slots=slots,
        seed=seed,
        scale=drawing.scale,
        limit=limit,
        split="validation" if validation else "test",
        batch_size=evaluated.batch_size,
        sampling=drawing.sampling(),
        external=(scorer, scorer_model) if scorer else None,
        device=device_of(evaluated.device),
    )
    facts = {"path": str(done.path), "report": done.report}
    show(facts, f"{done.report.rstrip()}\n\n{done.path}", as_json)
    return 0


@command(group, "rfid")
def eval_rfid(
    samples: Compared,
    originals: Compared,
    *,
    out: Out,
    comparison: ComparisonOptions,
    as_json: Json = False,
) -> int:
    """Compare pictures with their originals: rFID, PSNR, SSIM, cosine of features."""
    return _compare(
        "rfid", samples, reference=originals, out=out, comparison=comparison, as_json=as_json
    )


@command(group, "gfid")
def eval_gfid(
    samples: Compared,
    reference: Annotated[
        Path, typer.Argument(help="Real pictures, or an .npz of their mu and sigma.")
    ],
    *,
    out: Out,
    comparison: ComparisonOptions,
    as_json: Json = False,
) -> int:
    """Compare drawn pictures with real ones: gFID, Inception Score, precision, recall."""
    return _compare(
        "gfid", samples, reference=reference, out=out, comparison=comparison, as_json=as_json
    )


def _compare(
    metric: Literal["rfid", "gfid"],
    samples: Path,
    *,
    reference: Path,
    out: Path,
    comparison: ComparisonOptions,
    as_json: bool,
) -> int:
    from tarkit.eval import fid

    path = fid.run(
        samples=samples,
        reference=reference,
        out=out,
        features=comparison.features,
        model=comparison.model,
        device=device_of(comparison.device),
        batch_size=comparison.batch_size,
        num_workers=comparison.num_workers,
        metric=metric,
    )
    report = (path / "report.md").read_text(encoding="utf-8")
    show({"path": str(path), "report": report}, f"{report.rstrip()}\n\n{path}", as_json)
    return 0


@command(group, "selftest")
def eval_selftest(
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="Benchmark files, in the folders of their publishers."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Seed of the scenes of the shapes world; default: a new one."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Check the scorers against published figures; files missing in --data are reported."""
    from tarkit.eval import selftest

    done = selftest.run(data=data, seed=seed)
    show({"checks": done.facts()}, done.text(), as_json)
    if done.count("failed"):
        return FAILED
    return FAILED_ROWS if done.count("not run") else 0


@command(group, "lmms")
def eval_lmms(
    out: Out,
    *,
    evaluated: EvaluatedOptions,
    tasks: Annotated[
        list[str],
        typer.Option("--tasks", metavar="NAME,...", help="Tasks of lmms-eval; may be repeated."),
    ],
    include: Annotated[
        Path | None,
        typer.Option("--include", metavar="DIR", help="A folder with your own tasks."),
    ] = None,
    scale: ScaleOption = None,
    limit: Limit = None,
    simple: Annotated[
        bool,
        typer.Option(
            "--simple",
            help="Use the protocol of lmms-eval for simple models, not the one for chats.",
        ),
    ] = False,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Open no connection; data sets must be on this machine."),
    ] = False,
    as_json: Json = False,
) -> int:
    """Score a model with lmms-eval on its tasks; needs the extra `lmms` of the package."""
    from tarkit.eval import lmms

    path = lmms.run(
        tasks=tasks,
        out=out,
        model=evaluated.model,
        include=include,
        scale=scale,
        limit=limit,
        batch_size=evaluated.batch_size,
        device=device_of(evaluated.device),
        offline=offline,
        simple=simple,
    )
    show({"path": str(path)}, str(path), as_json)
    return 0
