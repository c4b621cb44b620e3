"""`tarkit curate judge`: does a picture show its prompt? Data for self-reflect.

Source: paper Sec. 4.3 (Self-Reflect-340K: prompts in the style of GenEval and DPG-Bench, judged by
Qwen2.5-VL-7B). The question to the judge and the form of its answer are not published; here it
says yes or no and then why. Of pictures that a model drew, those it drew badly are the hard cases
of no; `mismatched` pictures are judged against the prompt of another, the easy ones. In the shapes
world the verdict is exact. A row in, a row out; `curate chats --judgements` balances them.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from tarkit.artifacts.artifact import Artifact, begin_artifact, open_artifact
from tarkit.artifacts.map_rows import Make, Result, Todo, map_rows
from tarkit.artifacts.preview import first_rows
from tarkit.config import Config, load_config
from tarkit.curate.ask import LOG, Lazy, Refused, ask
from tarkit.errors import UserError
from tarkit.images import ImageError, decode
from tarkit.llm.base import AssistantConfig, LlmQuestion
from tarkit.llm.load import load
from tarkit.scoring.geneval import check
from tarkit.scoring.shapes_detector import ShapesDetector
from tarkit.seeds import row_seed
from tarkit.shapes.prompts import clauses_of
from tarkit.shapes.scene import satisfies, scene_from_json

INSTRUCTION = """\
This picture was made from the prompt: {}

Does the picture show what the prompt says: every object, the number of each, their colours and \
where they are? Begin with the word yes or no, and then give the reason in one sentence."""
MAX_REASON_CHARS = 400


class JudgeConfig(Config):
    """How pictures are judged."""

    seed: int = 0
    mismatched: float = Field(default=0.0, ge=0, le=1)
    """Share of pictures that are judged against the prompt of another of their shard."""
    assistant: AssistantConfig = AssistantConfig(temperature=0.0, tries=1, max_tokens=128)


def run(
    images: Path,
    *,
    out: Path,
    llm: str | None = None,
    exact: bool = False,
    server: str | None = None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    limit: int | None = None,
    retry_failed: bool = False,
    device: str = "cpu",
    precision: str = "float32",
) -> Artifact:
    """Write the judgements artifact `out`, a verdict for every picture of `images`, by its key.

    Either a vision-language model `llm` (a folder or hub id, with `server` its name there) judges,
    or with `exact` the scorer of the shapes world.
    """
    if exact == (llm is not None):
        raise UserError("who judges? either --llm or, for the shapes world, --exact")
    settings = load_config(JudgeConfig, config, overrides)
    source = open_artifact(images, "images")
    rows_of = first_rows(source, limit)
    artifact = begin_artifact(
        out,
        "judgements",
        settings={
            **settings.model_dump(mode="json"),
            "assistant": settings.assistant.identity(served=server is not None) if llm else None,
            "limit": limit,
            "judge": llm or "exact",
        },
        shards=list(rows_of),
        parents={"images": source},
    )
    make: Make = _exactly
    if llm is not None:
        judge = functools.partial(
            load,
            llm,
            config=settings.assistant,
            server=server,
            sees=True,
            device=device,
            precision=precision,
        )
        make = functools.partial(
            ask,
            assistant=Lazy(judge),
            config=settings.assistant,
            question=functools.partial(_question, settings),
            read=_read,
            log=out / LOG,
        )
    map_rows(
        artifact,
        source,
        rows_of,
        functools.partial(_judged, make, _Prompts(source, list(rows_of), settings)),
        carry=lambda row: {name: row[name] for name in ("key", "licence")},
        name="judge",
        retry_failed=retry_failed,
    )
    return artifact


# ---- what a picture is judged against -----------------------------------------------------------


class _Prompts:
    """The prompt each picture is judged against; shards are asked about in their order."""

    def __init__(self, source: Artifact, shards: Sequence[str], config: JudgeConfig) -> None:
        self._source, self._config = source, config
        self._shards = iter(shards)
        self._of_key: dict[str, str] = {}

    def of(self, row: Mapping[str, Any]) -> str | None:
        own: str | None = row["prompt"]
        rng = random.Random(row_seed(self._config.seed, row["key"], 0))
        if not own or rng.random() >= self._config.mismatched:
            return own
        while row["key"] not in self._of_key:
            rows = self._source.rows(next(self._shards), ["key", "prompt"])
            self._of_key = {found["key"]: found["prompt"] for found in rows}
        others = sorted({text for text in self._of_key.values() if text and text != own})
        return rng.choice(others) if others else own


def _judged(make: Make, prompts: _Prompts, todo: Iterator[Todo]) -> Iterator[tuple[int, Result]]:
    """`make`, asked about the prompts that rows are judged against, which the results name."""
    against: dict[int, str] = {}
    silent: list[int] = []

    def told() -> Iterator[Todo]:
        for one in todo:
            prompt = prompts.of(one.row)
            if prompt:
                against[one.place] = prompt
                yield replace(one, row={**one.row, "prompt": prompt})
            else:
                silent.append(one.place)

    for place, result in make(told()):
        yield place, result if isinstance(result, str) else {**result, "prompt": against[place]}
    for place in silent:
        yield place, "it has no prompt to be judged against"


# ---- by a vision-language model -----------------------------------------------------------------


def _question(config: JudgeConfig, todo: Todo, number: int) -> LlmQuestion:
    seed = row_seed(config.seed, todo.row["key"], number)
    return LlmQuestion(INSTRUCTION.format(todo.row["prompt"]), seed=seed, blob=todo.blob)


def _read(todo: Todo, text: str) -> Mapping[str, Any]:
    """The verdict, the answer's first word, and what follows it; raises Refused."""
    found = re.match(r"\W*(yes|no)\b\W*", text, re.IGNORECASE)
    if not found:
        raise Refused("the answer does not begin with yes or no")
    reason = " ".join(text[found.end() :].split())
    if len(reason) > MAX_REASON_CHARS:
        raise Refused(f"the reason is too long: {len(reason)} characters")
    return {"verdict": found[1].lower(), "reason": reason or None}


# ---- exactly, in the shapes world ---------------------------------------------------------------


def _exactly(todo: Iterator[Todo]) -> Iterator[tuple[int, Result]]:
    detector = ShapesDetector()
    for one in todo:
        try:
            verdict, reason = _verdict(one, detector)
        except (Refused, UserError) as why:
            yield one.place, str(why)
            continue
        yield one.place, {"verdict": "yes" if verdict else "no", "reason": reason}


def _verdict(todo: Todo, detector: ShapesDetector) -> tuple[bool, str | None]:
    """Of the scene where the row has one, else of what the detector finds in the picture."""
    asked = clauses_of(todo.row["prompt"])
    if todo.row["scene"]:
        return satisfies(scene_from_json(todo.row["scene"]), asked), None
    if "background" in asked:
        raise Refused("the background of a picture without its scene is not judged")
    try:
        picture = np.asarray(decode(todo.blob or b""))
    except ImageError as error:
        raise Refused(f"the picture cannot be read: {error}") from None
    verdict = check(asked, detector.detect(picture))
    return verdict.correct, None if verdict.correct else verdict.reason
