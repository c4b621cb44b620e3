"""`tarkit eval reflect`: what a model gains by judging its own pictures, on the drawn world.

Every prompt has `slots` reported pictures, and each slot a pool of candidates of its own. All arms
choose from the same pools, so their figures differ by the choice alone; a pool of eight is also two
pools of four. Arms at a budget of N:

- `single`: one candidate; its figure is the mean over all of them.
- `best-JUDGE-codes`, `best-JUDGE-pixels`: the highest score among N, by the drawn codes themselves
  or by those of the picture that the de-tokenizer made of them, which sees its errors too.
- `until-JUDGE-codes`: one after the other until the judge says yes, N at most.
- `edit-yes-codes`: the same, but the model reads the rejected picture with the prompt (TI2I).
- `oracle`: the scorer itself chooses. A bound, never a result.

Judges are those of `tarkit.inference.self_reflect`. Pools (shapes_pools.py) lie in
`out/pools/00000.parquet`, one file a batch; `WORLD_SIZE` processes share the batches. Scores are
always taken anew. Seconds depend on the machine alone and are written to `costs.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from tarkit.artifacts.files import whole_file, write_whole
from tarkit.artifacts.manifest import begin_directory, read_manifest
from tarkit.artifacts.parquet import write_parquet
from tarkit.artifacts.ranks import rank_and_world
from tarkit.eval.metrics.judges import best_of_n, judge_results
from tarkit.eval.metrics.selection import EXTERNAL, SCORES, Cost, Pool, Slots, arms, reflect_tables
from tarkit.eval.outcome import score_row, write_outcome
from tarkit.eval.result_tables import show
from tarkit.eval.shapes_items import EvalSplit, ShapesPlan
from tarkit.eval.shapes_pools import (
    BUDGETS,
    EDIT,
    EDITS,
    POOLS,
    RENDERS,
    PoolMaker,
    Slot,
    mean_seconds,
    read_rows,
    require_slots,
    slots_of,
)
from tarkit.images import decode, to_uint8
from tarkit.inference.ar_detokenizer import ArDetokenizer
from tarkit.inference.self_reflect import ACCEPTED, JUDGES
from tarkit.inference.tar_model import Tar
from tarkit.progress import Progress
from tarkit.scoring.geneval import check
from tarkit.scoring.scorers import plan_scorer
from tarkit.scoring.shapes_detector import ShapesDetector
from tarkit.shapes.suites import PromptItem
from tarkit.vocab import Scale, judgement_question

# The arm whose pictures are written as files.
WRITTEN_SCORE, WRITTEN_BUDGET = "gain_pixels", 8
WRITTEN_ARM = "best-gain-pixels of 8"

ItemT = TypeVar("ItemT")
FileJob = tuple[Path, Callable[[], pa.Table]]
"""A file, and the function that makes its bytes."""


@dataclass(frozen=True)
class Reflected:
    """The directory and its report as text."""

    path: Path
    report: str


def run(
    *,
    out: Path,
    model: str | Path = "mini",
    slots: int = 1,
    seed: int = 0,
    scale: int | None = None,
    limit: int | None = None,
    split: EvalSplit = "test",
    batch_size: int = 16,
    sampling: Mapping[str, float | int] | None = None,
    external: tuple[str, str | None] | None = None,
    device: str = "cpu",
) -> Reflected:
    """Make the pools that are missing, then score all; `limit` takes the first prompts.

    `external` is a scorer (`tarkit.scoring.scorers`) and its model: one more judge.
    """
    scorer_plan = plan_scorer(*external) if external else None
    plan = ShapesPlan(suites=("geneval",), split=split, n=slots, seed=seed, limit=limit)
    tar = Tar.load(model, device=device)
    complete = tar.sampling.changed(sampling)
    draw_scale = Scale(scale) if scale is not None else tar.default_scale
    begin_directory(
        out,
        "results",
        settings={
            **asdict(plan),
            "budgets": list(BUDGETS),
            "scale": int(draw_scale),
            "read_scale": int(tar.read_scale),
            "sampling": complete.model_dump(mode="json"),
            "question": judgement_question("..."),
            "edit": EDIT,
            "accepted_above": ACCEPTED,
            "external": scorer_plan and dict(scorer_plan.identity),
            "batch_size": batch_size,
            "model": tar.fingerprints(),
            "items": plan.fingerprints(),
        },
    )
    scorer = scorer_plan.load(device) if scorer_plan else None
    column = scorer_plan.columns[0] if scorer_plan else ""
    maker = PoolMaker(out, tar, draw_scale, complete, scorer, column)
    jobs = _jobs(maker, plan, batch_size)
    _make_missing(jobs)
    missing = [file for file, _ in jobs if not file.exists()]
    if missing:
        return Reflected(out, f"{len(missing)} files are left to the other processes")
    return _score(out, plan, tar, [file for file, _ in jobs])


def _jobs(maker: PoolMaker, plan: ShapesPlan, batch_size: int) -> list[FileJob]:
    """All files of a run: of each batch its pool and its edits, then the renders."""
    jobs: list[FileJob] = []
    for number, batch in enumerate(_batches(slots_of(plan), batch_size)):
        name = f"{number:05d}.parquet"
        jobs.append((maker.out / POOLS / name, partial(maker.pool, batch)))
        jobs.append((maker.out / EDITS / name, partial(maker.edits, number, batch)))
    for number, prompts in enumerate(_batches(list(enumerate(plan.prompts())), batch_size)):
        file = maker.out / RENDERS / f"{number:05d}.parquet"
        jobs.append((file, partial(maker.renders, plan, prompts)))
    return jobs


def _make_missing(jobs: Sequence[FileJob]) -> None:
    """Make this process's share of the files; a pool and its edits are of one process."""
    rank, world = rank_and_world()
    own = [job for place, job in enumerate(jobs) if place // 2 % world == rank]
    with Progress("reflect", total=len(own), unit="files") as progress:
        for file, make in own:
            if not file.exists():
                with whole_file(file) as temporary:
                    write_parquet(make(), temporary)
            progress.advance(1)


def _batches(items: Sequence[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


# ---- scores -------------------------------------------------------------------------------------


def _score(out: Path, plan: ShapesPlan, tar: Tar, files: Sequence[Path]) -> Reflected:
    """Write results.json, report.md, costs.json, scores.parquet, and the pictures of one arm."""
    items = plan.prompts()
    slots = slots_of(plan)
    rows = {name: list(read_rows(files, name)) for name in (POOLS, EDITS, RENDERS)}
    require_slots(rows[POOLS], slots, out / POOLS)
    pool = _pool(rows[POOLS], items, slots)
    results = {
        "arms": arms(
            pool,
            _edits(pool, rows[EDITS], items, slots),
            Slots(
                prompts=[slot.item.id for slot in slots],
                tasks=[slot.item.task for slot in slots],
                columns=[slot.item.column for slot in slots],
            ),
            _cost(rows[POOLS], tar),
            budgets=BUDGETS,
        ),
        "judge": _judge_figures(pool, slots),
        "renders": _render_figures(rows[RENDERS]),
        "num_prompts": len(items),
        "num_pictures": int(pool.right.size),
    }
    seconds = mean_seconds(out)
    write_whole(out / "costs.json", (json.dumps(seconds, indent=1) + "\n").encode())
    tables = reflect_tables(results, seconds)
    show(tables)
    report = "\n".join(["# tarkit eval reflect\n", *(table.markdown() for table in tables)])
    write_outcome(
        out,
        {"reflect@shapes": results},
        settings=read_manifest(out)["settings"],
        report=report,
        rows=list(_write_chosen(out, pool, rows[POOLS], slots)),
    )
    return Reflected(out, report)


def _write_chosen(
    out: Path, pool: Pool, rows: Sequence[Mapping[str, Any]], slots: Sequence[Slot]
) -> Iterator[dict[str, Any]]:
    """Write the pictures of one arm as files; rows of `scores.parquet` with their verdicts."""
    candidates = {(row["prompt_row"], row["slot"], row["number"]): row for row in rows}
    detector = ShapesDetector()
    picks = best_of_n(pool.scores[WRITTEN_SCORE], WRITTEN_BUDGET).tolist()
    for slot, number in zip(slots, picks, strict=True):
        row = candidates[slot.row, slot.number, number]
        file = f"chosen/{slot.row:05d}/{slot.number:04d}.png"
        write_whole(out / file, row["picture"])
        verdict = check(slot.item.metadata, detector.detect(to_uint8(decode(row["picture"]))))
        yield score_row(
            WRITTEN_ARM,
            slot.item.task,
            slot.item.column,
            slot.item.id,
            sample=slot.number,
            seed=row["seed"],
            prompt=slot.item.prompt,
            file=file,
            answer=f"candidate {number}, gain {row[WRITTEN_SCORE]:.2f} nats a code",
            correct=verdict.correct,
            clauses=list(verdict.clauses),
            reason=verdict.reason,
        )


def _pool(
    rows: Sequence[Mapping[str, Any]], items: Sequence[PromptItem], slots: Sequence[Slot]
) -> Pool:
    """The rows of all pools as arrays of slots and candidates."""
    shape = (len(slots), max(BUDGETS))
    place = {(slot.row, slot.number): index for index, slot in enumerate(slots)}
    names = [*SCORES, *([EXTERNAL] if rows[0][EXTERNAL] is not None else [])]
    pool = Pool({name: np.full(shape, np.nan) for name in names}, np.zeros(shape, dtype=bool))
    for row, right in zip(rows, _verdicts(rows, items), strict=True):
        at = place[row["prompt_row"], row["slot"]], row["number"]
        pool.right[at] = right
        for name in names:
            pool.scores[name][at] = row[name]
    return pool


def _edits(
    pool: Pool,
    rows: Sequence[Mapping[str, Any]],
    items: Sequence[PromptItem],
    slots: Sequence[Slot],
) -> Pool:
    """The pool's first candidates, and after them those drawn from a rejected picture."""
    place = {(slot.row, slot.number): index for index, slot in enumerate(slots)}
    scores = np.full(pool.right.shape, -np.inf)
    right = np.zeros(pool.right.shape, dtype=bool)
    scores[:, 0], right[:, 0] = pool.scores["yes_codes"][:, 0], pool.right[:, 0]
    for row, correct in zip(rows, _verdicts(rows, items), strict=True):
        at = place[row["prompt_row"], row["slot"]], row["number"]
        scores[at], right[at] = row["yes_codes"], correct
    return Pool({"yes_codes": scores}, right)


def _verdicts(rows: Sequence[Mapping[str, Any]], items: Sequence[PromptItem]) -> Iterator[bool]:
    detector = ShapesDetector()
    for row in rows:
        objects = detector.detect(to_uint8(decode(row["picture"])))
        yield check(items[row["prompt_row"]].metadata, objects).correct


def _cost(rows: Sequence[Mapping[str, Any]], tar: Tar) -> Cost:
    """The tokens of a candidate, of the pools' rows: the mean over their questions to the judge."""
    num_codes = len(rows[0]["codes"])
    question = float(np.mean([row["judge_tokens"] for row in rows]))
    dtok = tar.dtok
    pixels = dtok.ar_dtok.arch.num_codes if isinstance(dtok, ArDetokenizer) else 0
    # P(yes) reads the picture and the question; the gain reads the picture twice.
    read_codes = tar.read_scale.num_codes(tar.grid)
    judge = {"yes_codes": num_codes + question, "yes_pixels": read_codes + question}
    judge |= dict.fromkeys(("gain_codes", "gain_pixels"), 2 * num_codes + question)
    return Cost(words=num_codes, judge=judge, pixels=pixels)


def _judge_figures(pool: Pool, slots: Sequence[Slot]) -> dict[str, Any]:
    """Quality of every judge on all candidates, and on those of each column of prompts."""
    columns = np.array([slot.item.column for slot in slots])
    prompts = np.array([slot.item.id for slot in slots])
    figures: dict[str, Any] = {}
    for name in pool.scores:
        by = name.split("_")[0]
        figures[name] = {}
        for column in ("all", *dict.fromkeys(columns)):
            chosen = np.ones(len(slots), dtype=bool) if column == "all" else columns == column
            figures[name][column] = judge_results(
                pool.scores[name][chosen].ravel(),
                pool.right[chosen].ravel(),
                np.repeat(prompts[chosen], pool.right.shape[1]).tolist(),
                threshold=ACCEPTED.get(by),
                probability=by == "yes",
            )
    return figures


def _render_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every judge on true pictures against each kind of corruption."""
    kinds = dict.fromkeys(row["kind"] for row in rows if not row["right"])
    figures: dict[str, Any] = {}
    for by in JUDGES:
        figures[by] = {}
        for kind in ("all", *kinds):
            chosen = [row for row in rows if row["right"] or kind in ("all", row["kind"])]
            figures[by][kind] = judge_results(
                [row[by] for row in chosen],
                [row["right"] for row in chosen],
                [row["prompt_row"] for row in chosen],
                threshold=ACCEPTED[by],
                probability=by == "yes",
            )
    return figures
