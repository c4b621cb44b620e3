"""`tarkit eval reflect`: what a model gains by judging its own pictures, on the drawn world.

Every prompt has `slots` reported pictures, and each slot a pool of candidates of its own; all arms
choose from the same pools, so their figures differ by the choice alone; a pool of eight is also two
of four. Arms at a budget of N:

- `single`: one candidate, which is the mean of them all.
- `best-JUDGE-codes`, `best-JUDGE-pixels`: the highest score among N, by the drawn codes themselves
  or by those of the picture that the de-tokenizer made of them, which sees its errors too.
- `until-JUDGE-codes`: one after the other until the judge says yes, N at most.
- `edit-yes-codes`: as that, but what was rejected is shown to the model with the prompt (TI2I).
- `oracle`: the scorer itself chooses. A bound, never a result.

Judges are those of `tarkit.inference.self_reflect`. Pools lie in `out/pools/00000.parquet`, one
file a batch, made whole; `WORLD_SIZE` processes share the batches. Scores are always taken anew.
Seconds depend on the machine and on nothing else, and stand apart in `costs.json`.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tarkit.artifacts.files import write_whole
from tarkit.artifacts.manifest import begin_directory, read_manifest
from tarkit.artifacts.ranks import rank_and_world
from tarkit.checkpoints.system import Sampling
from tarkit.errors import UserError
from tarkit.eval.benchmarks.shapes_items import Plan, Split
from tarkit.eval.benchmarks.shapes_proof import corrupted
from tarkit.eval.metrics.judges import best_of_n, judge_results
from tarkit.eval.metrics.selection import EXTERNAL, SCORES, Cost, Pool, Slots, arms, reflect_tables
from tarkit.eval.outcome import score_row, write_outcome
from tarkit.images import decode, png_bytes, to_uint8
from tarkit.inference.detokenizers import ArDetokenizer
from tarkit.inference.self_reflect import (
    ACCEPTED,
    JUDGES,
    JudgeName,
    candidate_seed,
    judge,
    reading_scale,
)
from tarkit.inference.tar import Tar
from tarkit.progress import Progress
from tarkit.scoring.geneval import check
from tarkit.scoring.scorers import Scorer, Shown, checked, plan_scorer
from tarkit.scoring.shapes_detector import ShapesDetector
from tarkit.scoring.tables import show
from tarkit.shapes.suites import PromptItem
from tarkit.vocab import IMAGE_MARK, Scale, judgement_question

BUDGETS = (1, 2, 4, 8)
POOLS, EDITS, RENDERS, SECONDS = "pools", "edits", "renders", "seconds.jsonl"
# Of all arms the one whose pictures are written as files.
SHOWN_SCORE, SHOWN_BUDGET = "gain_pixels", 8
SHOWN_ARM = "best-gain-pixels of 8"
EDIT = f"{IMAGE_MARK} {{}}"
"""How a rejected picture is shown to the model beside the prompt; the paper does not say."""

POOL = pa.schema(
    [
        ("prompt_row", pa.int32()),
        ("slot", pa.int32()),
        ("number", pa.int32()),
        ("seed", pa.int64()),
        ("codes", pa.list_(pa.uint16())),
        ("picture", pa.binary()),
        *((f"{name}_{on}", pa.float64()) for name in JUDGES for on in ("codes", "pixels")),
        (EXTERNAL, pa.float64()),
        ("judge_tokens", pa.int32()),
    ]
)
RENDERED = pa.schema([("kind", pa.string()), ("prompt_row", pa.int32()), ("right", pa.bool_())])
for _name in JUDGES:
    RENDERED = RENDERED.append(pa.field(_name, pa.float64()))


@dataclass(frozen=True)
class Reflected:
    """The directory and its report as text."""

    path: Path
    report: str


@dataclass(frozen=True)
class _Slot:
    """One reported picture: its prompt's row and item, and the seed of its first candidate."""

    row: int
    number: int
    item: PromptItem
    seed: int


def run(
    *,
    out: Path,
    model: str | Path = "mini",
    slots: int = 1,
    seed: int = 0,
    scale: int | None = None,
    limit: int | None = None,
    split: Split = "test",
    batch_size: int = 16,
    sampling: Mapping[str, float | int] | None = None,
    external: tuple[str, str | None] | None = None,
    device: str = "cpu",
) -> Reflected:
    """Make the pools that are missing, then score all; `limit` takes the first prompts.

    `external` is a scorer (`tarkit.scoring.scorers`) and its model: one more judge.
    """
    planned = plan_scorer(*external) if external else None
    plan = Plan(suites=("geneval",), split=split, n=slots, seed=seed, limit=limit)
    tar = Tar.load(model, device=device)
    complete = tar.sampling.changed(sampling)
    drawn_at = Scale(scale) if scale is not None else tar.default_scale
    begin_directory(
        out,
        "results",
        settings={
            **asdict(plan),
            "budgets": list(BUDGETS),
            "scale": int(drawn_at),
            "read_scale": int(tar.read_scale),
            "sampling": complete.model_dump(mode="json"),
            "question": judgement_question("..."),
            "edit": EDIT,
            "accepted_above": ACCEPTED,
            "external": planned and dict(planned.identity),
            "batch_size": batch_size,
            "model": tar.fingerprints(),
            "items": plan.fingerprints(),
        },
    )
    judging = planned.load(device) if planned else None
    column = planned.columns[0] if planned else ""
    maker = _Maker(out, tar, drawn_at, complete, judging, column)
    batches = list(_batches(list(_slots(plan)), batch_size))
    rank, world = rank_and_world()
    tasks: list[tuple[Path, Callable[[], bytes]]] = []
    for number, batch in enumerate(batches):
        tasks.append((out / POOLS / f"{number:05d}.parquet", partial(maker.pool, batch)))
        tasks.append((out / EDITS / f"{number:05d}.parquet", partial(maker.edits, number, batch)))
    for number, rows in enumerate(_batches(list(enumerate(plan.prompts())), batch_size)):
        tasks.append((out / RENDERS / f"{number:05d}.parquet", partial(maker.renders, plan, rows)))
    mine = [task for place, task in enumerate(tasks) if place // 2 % world == rank]
    with Progress("reflect", total=len(mine), unit="files") as progress:
        for file, make in mine:
            if not file.exists():
                write_whole(file, make())
            progress.advance(1)
    missing = [file for file, _ in tasks if not file.exists()]
    if missing:
        return Reflected(out, f"{len(missing)} files are left to the other processes")
    return _score(out, plan, tar, [file for file, _ in tasks])


def _slots(plan: Plan) -> Iterator[_Slot]:
    for row, item in enumerate(plan.prompts()):
        for number in range(plan.n):
            yield _Slot(row, number, item, plan.seed_of("reflect", item.id, number))


def _batches(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


# ---- pools --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Maker:
    out: Path
    tar: Tar
    scale: Scale
    sampling: Sampling
    external: Scorer | None
    column: str

    def pool(self, slots: Sequence[_Slot]) -> bytes:
        """All candidates of a batch of slots, drawn and judged both ways."""
        rows = []
        prompts = [slot.item.prompt for slot in slots]
        for number in range(max(BUDGETS)):
            seeds = [candidate_seed(slot.seed, number) for slot in slots]
            rows += self._candidates(slots, prompts, None, seeds, number)
        return _parquet(rows, POOL)

    def edits(self, number: int, slots: Sequence[_Slot]) -> bytes:
        """The candidates that follow a rejected one, drawn after it; the first is the pool's."""
        rows: list[dict[str, Any]] = []
        pool = pq.read_table(self.out / POOLS / f"{number:05d}.parquet").to_pylist()
        last = {(row["prompt_row"], row["slot"]): row for row in pool if row["number"] == 0}
        for round_number in range(1, max(BUDGETS)):
            left = [
                slot
                for slot in slots
                if last[slot.row, slot.number]["yes_codes"] <= ACCEPTED["yes"]
            ]
            if not left:
                break
            shown = [[decode(last[slot.row, slot.number]["picture"])] for slot in left]
            prompts = [EDIT.format(slot.item.prompt) for slot in left]
            seeds = [candidate_seed(slot.seed, round_number) for slot in left]
            made = self._candidates(left, prompts, shown, seeds, round_number)
            last |= {(row["prompt_row"], row["slot"]): row for row in made}
            rows += made
        return _parquet(rows, POOL)

    def _candidates(
        self,
        slots: Sequence[_Slot],
        prompts: Sequence[str],
        images: Any,
        seeds: Sequence[int],
        number: int,
    ) -> list[dict[str, Any]]:
        said = [slot.item.prompt for slot in slots]
        clock = _Clock()
        codes = self.tar.imagine_codes(
            prompts, seeds=seeds, scale=self.scale, images=images, sampling=self.sampling
        )
        clock.took("words")
        scores = {f"{by}_codes": judge(self.tar, codes, said, by) for by in JUDGES}
        clock.took("judge")
        pictures = self.tar.draw(codes, seeds=seeds, sampling=self.sampling)
        clock.took("pixels")
        scores |= {f"{by}_pixels": found for by, found in self._judged(pictures, said).items()}
        clock.took("judge_pixels")
        judged = self._external(pictures, said)
        self._log(clock.seconds, len(slots))
        ask = self.tar.mllm.vocabulary.question
        return [
            {
                "prompt_row": slot.row,
                "slot": slot.number,
                "number": number,
                "seed": seeds[place],
                "codes": codes[place].tolist(),
                "picture": png_bytes(pictures[place]),
                **{name: values[place] for name, values in scores.items()},
                EXTERNAL: judged[place],
                "judge_tokens": len(ask(judgement_question(said[place]), (self.scale, []))),
            }
            for place, slot in enumerate(slots)
        ]

    def _judged(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str]
    ) -> dict[JudgeName, list[float]]:
        """What each judge says of pictures, by codes of the scale that it reads."""
        read_at = {by: reading_scale(self.tar, by, self.scale) for by in JUDGES}
        codes = self.tar.encode(pictures, sorted(set(read_at.values())))
        return {by: judge(self.tar, codes[read_at[by]], prompts, by) for by in JUDGES}

    def _external(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str]
    ) -> list[float] | list[None]:
        if self.external is None:
            return [None] * len(pictures)
        shown = [Shown(picture, said) for picture, said in zip(pictures, prompts, strict=True)]
        found = [checked(each, [*each]) for each in self.external.score(shown) if each]
        wrong = next((each for each in found if isinstance(each, str)), None)
        if wrong is not None:
            raise UserError(f"the scorer gave a picture no score: {wrong}")
        return [float(each[self.column]) for each in found if not isinstance(each, str)]

    def renders(self, plan: Plan, prompts: Sequence[tuple[int, PromptItem]]) -> bytes:
        """True pictures of prompts and their corruptions, each judged against the prompt."""
        rows = []
        for row, item in prompts:
            rng = np.random.default_rng(plan.seed_of("renders", item.id))
            shown = list(corrupted(item.metadata, rng))
            pictures = [Image.fromarray(pixels) for _, pixels in shown]
            scores = self._judged(pictures, [item.prompt] * len(shown))
            for place, (kind, _) in enumerate(shown):
                about = {"kind": kind, "prompt_row": row, "right": kind == "true"}
                rows.append(about | {by: values[place] for by, values in scores.items()})
        return _parquet(rows, RENDERED)

    def _log(self, seconds: Mapping[str, float], count: int) -> None:
        with (self.out / SECONDS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"pictures": count, **seconds}) + "\n")


class _Clock:
    def __init__(self) -> None:
        self._since, self.seconds = time.perf_counter(), dict[str, float]()

    def took(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._since = now - self._since, now


def _parquet(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink, compression="zstd")
    return sink.getvalue()


# ---- scores -------------------------------------------------------------------------------------


def _score(out: Path, plan: Plan, tar: Tar, files: Sequence[Path]) -> Reflected:
    items = plan.prompts()
    slots = list(_slots(plan))
    rows = {name: _rows(files, name) for name in (POOLS, EDITS, RENDERS)}
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
        "judge": _judges(pool, slots),
        "renders": _on_renders(rows[RENDERS]),
        "num_prompts": len(items),
        "num_pictures": int(pool.right.size),
    }
    seconds = _seconds(out)
    write_whole(out / "costs.json", (json.dumps(seconds, indent=1) + "\n").encode())
    found = reflect_tables(results, seconds)
    show(found)
    report = "\n".join(["# tarkit eval reflect\n", *(table.markdown() for table in found)])
    write_outcome(
        out,
        {"reflect@shapes": results},
        settings=read_manifest(out)["settings"],
        report=report,
        rows=list(_chosen(out, pool, rows[POOLS], slots)),
    )
    return Reflected(out, report)


def _chosen(
    out: Path, pool: Pool, rows: Sequence[Mapping[str, Any]], slots: Sequence[_Slot]
) -> Iterator[dict[str, Any]]:
    """The pictures of one arm as files, and their verdicts as any evaluation's rows."""
    made = {(row["prompt_row"], row["slot"], row["number"]): row for row in rows}
    detector = ShapesDetector()
    picks = best_of_n(pool.scores[SHOWN_SCORE], SHOWN_BUDGET).tolist()
    for slot, number in zip(slots, picks, strict=True):
        row = made[slot.row, slot.number, number]
        file = f"chosen/{slot.row:05d}/{slot.number:04d}.png"
        write_whole(out / file, row["picture"])
        verdict = check(slot.item.metadata, detector.detect(to_uint8(decode(row["picture"]))))
        yield score_row(
            SHOWN_ARM,
            slot.item.task,
            slot.item.column,
            slot.item.id,
            sample=slot.number,
            seed=row["seed"],
            prompt=slot.item.prompt,
            file=file,
            answer=f"candidate {number}, gain {row[SHOWN_SCORE]:.2f} nats a code",
            correct=verdict.correct,
            clauses=list(verdict.clauses),
            reason=verdict.reason,
        )


def _rows(files: Sequence[Path], folder: str) -> list[dict[str, Any]]:
    return [row for f in files if f.parent.name == folder for row in pq.read_table(f).to_pylist()]


def _pool(
    rows: Sequence[Mapping[str, Any]], items: Sequence[PromptItem], slots: Sequence[_Slot]
) -> Pool:
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
    slots: Sequence[_Slot],
) -> Pool:
    """The pool's first candidates, and after them what was drawn of a rejected picture."""
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
        found = detector.detect(to_uint8(decode(row["picture"])))
        yield check(items[row["prompt_row"]].metadata, found).correct


def _cost(rows: Sequence[Mapping[str, Any]], tar: Tar) -> Cost:
    num_codes = len(rows[0]["codes"])
    asked = float(np.mean([row["judge_tokens"] for row in rows]))
    dtok = tar.dtok
    pixels = dtok.ar_dtok.arch.num_codes if isinstance(dtok, ArDetokenizer) else 0
    # P(yes) reads the picture and the question; the gain reads the picture twice.
    again = tar.read_scale.num_codes(tar.grid)
    judge = {"yes_codes": num_codes + asked, "yes_pixels": again + asked}
    judge |= dict.fromkeys(("gain_codes", "gain_pixels"), 2 * num_codes + asked)
    return Cost(words=num_codes, judge=judge, pixels=pixels)


def _judges(pool: Pool, slots: Sequence[_Slot]) -> dict[str, Any]:
    """Quality of every judge on all candidates, and on those of each column of prompts."""
    columns = np.array([slot.item.column for slot in slots])
    prompts = np.array([slot.item.id for slot in slots])
    found: dict[str, Any] = {}
    for name in pool.scores:
        by = name.split("_")[0]
        found[name] = {}
        for column in ("all", *dict.fromkeys(columns)):
            chosen = np.ones(len(slots), dtype=bool) if column == "all" else columns == column
            found[name][column] = judge_results(
                pool.scores[name][chosen].ravel(),
                pool.right[chosen].ravel(),
                np.repeat(prompts[chosen], pool.right.shape[1]).tolist(),
                threshold=ACCEPTED.get(by),
                probability=by == "yes",
            )
    return found


def _on_renders(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every judge on true pictures against each kind of corruption."""
    kinds = dict.fromkeys(row["kind"] for row in rows if not row["right"])
    found: dict[str, Any] = {}
    for by in JUDGES:
        found[by] = {}
        for kind in ("all", *kinds):
            chosen = [row for row in rows if row["right"] or kind in ("all", row["kind"])]
            found[by][kind] = judge_results(
                [row[by] for row in chosen],
                [row["right"] for row in chosen],
                [row["prompt_row"] for row in chosen],
                threshold=ACCEPTED[by],
                probability=by == "yes",
            )
    return found


def _seconds(out: Path) -> dict[str, float]:
    """Mean seconds a candidate, of each step, over all that were drawn."""
    lines = [json.loads(line) for line in (out / SECONDS).read_text().splitlines()]
    count = sum(line.pop("pictures") for line in lines)
    return {name: sum(line[name] for line in lines) / count for name in lines[0]}
