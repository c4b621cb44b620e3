"""The pools of `eval reflect`: candidates of each reported picture, drawn and judged.

A slot is one reported picture of a prompt; its pool holds as many candidates as the largest budget.
Pools, chains of edits and judged renders are parquet files of one batch each, made whole, and every
candidate has a seed of its own, so a run that was killed ends in the same candidates. Seconds
depend on the machine and are written to a file of their own.
"""

from __future__ import annotations

import itertools
import json
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from tarkit.artifacts.parquet import read_parquet
from tarkit.artifacts.remote import made_again
from tarkit.artifacts.tables import read_json_lines
from tarkit.checkpoints.tar_config import Sampling
from tarkit.errors import UserError
from tarkit.eval.metrics.selection import EXTERNAL
from tarkit.eval.shapes_items import ShapesPlan
from tarkit.eval.shapes_proof import TRUE, corrupted
from tarkit.images import decode, png_bytes
from tarkit.inference.self_reflect import (
    ACCEPTED,
    JUDGES,
    JudgeName,
    candidate_seed,
    judge,
    reading_scale,
)
from tarkit.inference.tar_model import Tar
from tarkit.scoring.scorers import Scorer, Shown, checked
from tarkit.shapes.suites import PromptItem
from tarkit.vocab import IMAGE_MARK, Scale, judgement_question

BUDGETS = (1, 2, 4, 8)
POOLS, EDITS, RENDERS, SECONDS = "pools", "edits", "renders", "seconds.jsonl"
STEPS = ("words", "judge", "pixels", "judge_pixels")
EDIT = f"{IMAGE_MARK} {{}}"
"""A rejected picture and the prompt, as the model reads them; the paper does not give its form."""

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
RENDERED = pa.schema(
    [
        ("kind", pa.string()),
        ("prompt_row", pa.int32()),
        ("right", pa.bool_()),
        *((name, pa.float64()) for name in JUDGES),
    ]
)


@dataclass(frozen=True)
class Slot:
    """One reported picture: its prompt's row and item, and the seed of its first candidate."""

    row: int
    number: int
    item: PromptItem
    seed: int


def slots_of(plan: ShapesPlan) -> list[Slot]:
    """The slots of all prompts, `plan.n` for each."""
    return [
        Slot(row, number, item, plan.seed_of("reflect", item.id, number))
        for row, item in enumerate(plan.prompts())
        for number in range(plan.n)
    ]


@dataclass(frozen=True)
class PoolMaker:
    """Draws and judges the candidates of slots; every method gives the table of a parquet file.

    `external` is a further judge, of whose scores `column` is the one that is kept.
    """

    out: Path
    tar: Tar
    scale: Scale
    sampling: Sampling
    external: Scorer | None
    column: str

    def pool(self, slots: Sequence[Slot]) -> pa.Table:
        """All candidates of a batch of slots, judged by their codes and by their pixels."""
        rows = []
        prompts = [slot.item.prompt for slot in slots]
        for number in range(max(BUDGETS)):
            rows += self._candidates(slots, prompts, None, number)
        return pa.Table.from_pylist(rows, schema=POOL)

    def edits(self, batch: int, slots: Sequence[Slot]) -> pa.Table:
        """The candidates drawn after a rejected one; the first of each slot is its pool's."""
        rows: list[dict[str, Any]] = []
        pool = list(read_rows([self.out / POOLS / f"{batch:05d}.parquet"], POOLS))
        require_slots(pool, slots, self.out / POOLS)
        last = {(row["prompt_row"], row["slot"]): row for row in pool if row["number"] == 0}
        for number in range(1, max(BUDGETS)):
            rejected = [
                slot
                for slot in slots
                if last[slot.row, slot.number]["yes_codes"] <= ACCEPTED["yes"]
            ]
            if not rejected:
                break
            images = [[decode(last[slot.row, slot.number]["picture"])] for slot in rejected]
            prompts = [EDIT.format(slot.item.prompt) for slot in rejected]
            candidates = self._candidates(rejected, prompts, images, number)
            last |= {(row["prompt_row"], row["slot"]): row for row in candidates}
            rows += candidates
        return pa.Table.from_pylist(rows, schema=POOL)

    def renders(self, plan: ShapesPlan, prompts: Sequence[tuple[int, PromptItem]]) -> pa.Table:
        """True pictures of prompts and their corruptions, each judged against the prompt."""
        rows = []
        for row, item in prompts:
            rng = np.random.default_rng(plan.seed_of("renders", item.id))
            renders = list(corrupted(item.metadata, rng))
            pictures = [Image.fromarray(pixels) for _, pixels in renders]
            scores = self._judge_pixels(pictures, [item.prompt] * len(renders))
            for place, (kind, _) in enumerate(renders):
                about = {"kind": kind, "prompt_row": row, "right": kind == TRUE}
                rows.append(about | {by: values[place] for by, values in scores.items()})
        return pa.Table.from_pylist(rows, schema=RENDERED)

    def _candidates(
        self,
        slots: Sequence[Slot],
        prompts: Sequence[str],
        images: Sequence[list[Image.Image]] | None,
        number: int,
    ) -> list[dict[str, Any]]:
        """Candidate `number` of each slot, drawn from `prompts` and `images`: rows of POOL."""
        own_prompts = [slot.item.prompt for slot in slots]
        seeds = [candidate_seed(slot.seed, number) for slot in slots]
        clock = _Clock()
        codes = self.tar.imagine_codes(
            prompts, seeds=seeds, scale=self.scale, images=images, sampling=self.sampling
        )
        clock.lap("words")
        scores = {f"{by}_codes": judge(self.tar, codes, own_prompts, by) for by in JUDGES}
        clock.lap("judge")
        pictures = self.tar.draw(codes, seeds=seeds, sampling=self.sampling)
        clock.lap("pixels")
        by_pixels = self._judge_pixels(pictures, own_prompts)
        scores |= {f"{by}_pixels": values for by, values in by_pixels.items()}
        clock.lap("judge_pixels")
        external = self._judge_externally(pictures, own_prompts)
        self._log_seconds(clock.seconds, len(slots))
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
                EXTERNAL: external[place],
                "judge_tokens": len(ask(judgement_question(own_prompts[place]), (self.scale, []))),
            }
            for place, slot in enumerate(slots)
        ]

    def _judge_pixels(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str]
    ) -> dict[JudgeName, list[float]]:
        """The scores of each judge, by codes of the scale that it reads."""
        scales = {by: reading_scale(self.tar, by, self.scale) for by in JUDGES}
        codes = self.tar.encode(pictures, sorted(set(scales.values())))
        return {by: judge(self.tar, codes[scales[by]], prompts, by) for by in JUDGES}

    def _judge_externally(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str]
    ) -> list[float] | list[None]:
        """The external scorer's numbers; UserError where it has none for a picture."""
        if self.external is None:
            return [None] * len(pictures)
        shown = [Shown(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
        scores = [checked(each, [*each]) for each in self.external.score(shown) if each]
        reason = next((each for each in scores if isinstance(each, str)), None)
        if reason is not None:
            raise UserError(f"the scorer gave a picture no score: {reason}")
        return [float(each[self.column]) for each in scores if not isinstance(each, str)]

    def _log_seconds(self, seconds: Mapping[str, float], count: int) -> None:
        with (self.out / SECONDS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"pictures": count, **seconds}) + "\n")


class _Clock:
    """Seconds of wall time by the name of a step."""

    def __init__(self) -> None:
        self._since, self.seconds = time.perf_counter(), dict[str, float]()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._since = now - self._since, now


def read_rows(files: Sequence[Path], folder: str) -> Iterator[dict[str, Any]]:
    """The rows of those files that lie in a folder of this name, in the files' order.

    Raises UserError for a damaged file and for one of another kind.
    """
    schema = RENDERED if folder == RENDERS else POOL
    for file in files:
        if file.parent.name == folder:
            table = read_parquet(file)
            if not table.schema.equals(schema):
                raise UserError(f"{file} is no file of {folder}", hint=made_again(file))
            yield from table.to_pylist()


def require_slots(rows: Iterable[Mapping[str, Any]], slots: Sequence[Slot], folder: Path) -> None:
    """Raises UserError unless `rows` of pools have every candidate of these slots, and no other."""
    found = Counter((row["prompt_row"], row["slot"], row["number"]) for row in rows)
    wanted = itertools.product(slots, range(max(BUDGETS)))
    if found != Counter((slot.row, slot.number, number) for slot, number in wanted):
        raise UserError(
            f"the files in {folder} are not those of this run's candidates",
            hint=f"rm -r {shlex.quote(str(folder))}, and run the same command again",
        )


def mean_seconds(out: Path) -> dict[str, float]:
    """Mean seconds a candidate, of each step, over all that were drawn.

    Lines of a killed run, or damaged since, are left out: they only say how long something took.
    """
    rows = [row.values for row in read_json_lines(out / SECONDS) if row.error is None]
    lines = [row for row in rows if row.keys() == {"pictures", *STEPS} and _are_amounts(row)]
    if not lines:
        raise UserError(f"{out / SECONDS} has no line of seconds", hint="give another --out")
    count = sum(line["pictures"] for line in lines)
    return {name: sum(line[name] for line in lines) / count for name in STEPS}


def _are_amounts(row: Mapping[str, Any]) -> bool:
    values = row.values()
    return all(type(v) in (int, float) and 0 <= v < 1e9 for v in values) and row["pictures"] > 0
