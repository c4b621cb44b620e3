"""DPG-Bench: every question of a prompt's scene graph, put to a judge about each picture.

Judges: `tar` (the probability of yes), `vlm` (an assistant that sees), `answers` (a file of them,
from a judge elsewhere). A judge's answers lie beside its scores with the sha256 of the picture, and
are asked for once; about a picture that has since become another, again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from tarkit.artifacts.files import read_lines, write_whole
from tarkit.artifacts.manifest import begin_directory, file_sha256
from tarkit.errors import UserError
from tarkit.eval.benchmarks.base import Row, Verdicts
from tarkit.eval.benchmarks.dsg import (
    Graph,
    graph_from_json,
    graph_results,
    graph_to_json,
    read_graphs,
)
from tarkit.eval.benchmarks.layouts import _drawn, _require_size
from tarkit.eval.outcome import score_row
from tarkit.eval.run import Run, scorer_folder
from tarkit.eval.samples import Failure, make_answers, read_answers
from tarkit.images import png_bytes, read_picture

JUDGES = ("tar", "vlm", "answers")
BATCH_SIZE = 16

Ask = Callable[[Sequence[tuple[Path, str]]], list[str]]


class Asked(NamedTuple):
    """One question about one picture, by the number that the question has in its graph."""

    item: str
    sample: int
    number: int
    text: str
    place: str


def dpg_verdicts(
    asked: Run,
    judge: str,
    *,
    model: str | None,
    file: Path | None,
    server: str | None,
    as_published: bool,
    retry_failed: bool,
    device: str,
) -> Verdicts:
    """Asks the judge what it has not answered yet; figures also as published if `as_published`.

    With `retry_failed` also what it failed to answer and where its answers are damaged. The name
    is the judge's model's, or that of the file. Raises UserError.
    """
    graphs = [graph_from_json(item.id, item.prompt, item.meta or {}) for item in asked.items]
    questions = [
        Asked(one.item.id, one.sample, question.id, question.text, one.place)
        for one in asked.drawn()
        for question in graphs[one.row].questions
    ]
    identity: dict[str, Any]
    if judge == "answers":
        name = file.stem if file else judge
        identity = {"answers": file.name if file else None}
        said = _given(file, questions)
    else:
        name = Path(model or "vlm").name if judge == "vlm" else judge
        ask, of_judge = _judge(judge, model, server, device)
        identity = {"judge": judge, **of_judge}
        folder = scorer_folder(asked, name) / "answers"
        begin_directory(folder, "answers", settings={**identity, "batch_size": BATCH_SIZE})
        pairs = [(asked.path / "samples" / each.place, each.text) for each in questions]
        sha256 = cache(_sha256)  # a picture is asked about many times
        make_answers(
            f"dpg by {name}",
            folder,
            pairs,
            ask,
            batch_size=BATCH_SIZE,
            retry_failed=retry_failed,
            about=lambda pair: sha256(pair[0]),
        )
        said = read_answers(folder, len(questions), batch_size=BATCH_SIZE)
    rows = [_row(one, answer) for one, answer in zip(questions, said, strict=True)]
    figures = _figures(f"dpg@{name}", graphs, asked.n, questions, said, as_published)
    return Verdicts(name, figures, rows, {"scorer": identity})


def _sha256(picture: Path) -> str | None:
    """Of the file's bytes, whole picture or not; None where there is none."""
    return file_sha256(picture) if picture.is_file() else None


def _row(one: Asked, answer: str | Failure) -> Row:
    failed = isinstance(answer, Failure)
    return score_row(
        "dpg",
        "",
        "",
        one.item,
        sample=one.sample,
        prompt=one.text,
        file=f"samples/{one.place}",
        answer=None if failed else answer,
        label="yes",
        correct=bool(_yes(answer)),
        error=answer.reason if isinstance(answer, Failure) else None,
    )


def _yes(answer: str | Failure) -> bool | None:
    return None if isinstance(answer, Failure) else says_yes(answer)


def says_yes(answer: str) -> bool:
    """Whether the answer's first word is yes."""
    words = answer.strip().lower().replace(",", " ").replace(".", " ").split()
    return bool(words) and words[0] == "yes"


def _figures(
    name: str,
    graphs: Sequence[Graph],
    n: int,
    questions: Sequence[Asked],
    said: Sequence[str | Failure],
    as_published: bool,
) -> dict[str, dict[str, Any]]:
    answers: dict[str, list[dict[int, bool | None]]] = {
        graph.item: [{} for _ in range(n)] for graph in graphs
    }
    for one, answer in zip(questions, said, strict=True):
        answers[one.item][one.sample][one.number] = _yes(answer)
    right = graph_results(graphs, answers)
    if not as_published:
        return {name: right}
    published = graph_results(graphs, answers, as_published=True)
    published["difference"] = published["overall"]["value"] - right["overall"]["value"]
    return {name: right, f"{name}+as-published": published}


def _judge(
    name: str, model: str | None, server: str | None, device: str
) -> tuple[Ask, dict[str, Any]]:
    """What answers, and what its answers depend on."""
    if name == "tar":
        from tarkit.inference.tar import Tar

        tar = Tar.load(model or "mini", device=device, dtok=None)

        def by_tar(asked: Sequence[tuple[Path, str]]) -> list[str]:
            pictures = [read_picture(place) for place, _ in asked]
            codes = tar.encode(pictures, [tar.read_scale])[tar.read_scale]
            chances = tar.yes_probability(codes, [text for _, text in asked])
            return ["yes" if chance > 0.5 else "no" for chance in chances]

        return by_tar, {"model": tar.fingerprints(), "read_scale": int(tar.read_scale)}
    if name == "vlm" and model is not None:
        from tarkit.llm.base import AssistantConfig, LlmQuestion
        from tarkit.llm.load import load

        config = AssistantConfig(temperature=0.0, tries=1, max_tokens=8, batch_size=BATCH_SIZE)
        judge = load(model, config=config, server=server, sees=True, device=device)

        def by_vlm(asked: Sequence[tuple[Path, str]]) -> list[str]:
            found = judge.answer(
                [
                    LlmQuestion(
                        f"{text} Answer yes or no.", seed=0, blob=png_bytes(read_picture(p))
                    )
                    for p, text in asked
                ]
            )
            wrong = next((each.error for each in found if each.error is not None), None)
            if wrong is not None:
                raise UserError(wrong)
            return [each.text for each in found]

        return by_vlm, {"model": model, "served": server is not None}
    raise UserError(
        f"no judge {name!r}{' without a model' if name == 'vlm' else ''}",
        hint="--scorer tar [--model NAME] | vlm --model DIR [--server URL] | answers --file JSONL",
    )


def _given(file: Path | None, wanted: Sequence[Asked]) -> list[str | Failure]:
    """Answers of a jsonl with item, sample, question and answer, in the order asked."""
    if file is None:
        raise UserError("the scorer answers reads them from a file", hint="--file JSONL")
    known: dict[tuple[str, int, int], str] = {}
    for number, line in read_lines(file):
        try:
            row = json.loads(line)
            known[str(row["item"]), int(row["sample"]), int(row["question"])] = str(row["answer"])
        except (KeyError, RecursionError, TypeError, ValueError):
            raise UserError(
                f"{file}:{number} is not {{item, sample, question, answer}}: {line[:80]!r}"
            ) from None
    lacking = Failure(f"{file.name} has no answer")
    return [known.get((one.item, one.sample, one.number), lacking) for one in wanted]


def _dpg_grid(asked: Run, folder: Path) -> None:
    if asked.n not in (1, 4):
        raise UserError(
            f"DPG's scorer cuts a sheet into 1 or 4 pictures, {asked.path} has {asked.n} a prompt",
            hint="tarkit eval prepare dpg --n 4 --data CSV --out DIR",
        )
    side = math.isqrt(asked.n)
    for row, item, pictures in _drawn(asked):
        if not re.fullmatch(r"[\w-]+", item.id):  # the scorer takes it from the name, up to a dot
            raise UserError(f"the item {item.id!r} cannot be the name of a file for DPG's scorer")
        width, height = pictures[0].size
        sheet = Image.new("RGB", (side * width, side * height))
        for sample, picture in enumerate(pictures):
            _require_size(picture, (width, height), asked.picture(row, sample))
            sheet.paste(picture, (sample % side * width, sample // side * height))
        write_whole(folder / f"{item.id}.png", png_bytes(sheet))


def _dpg(data: Path | None, images: Path | None) -> list[dict[str, Any]]:
    assert data is not None
    return [
        {"id": graph.item, "tag": "dpg", "prompt": graph.prompt, "meta": graph_to_json(graph)}
        for graph in read_graphs(data)
    ]
