"""DPG-Bench: a judge answers every question of a prompt's scene graph about each picture.

Source: Hu et al. 2403.05135; the graphs and their scores stand in `dsg.py`.
Judges: `tar` (its probability of yes), `vlm` (an assistant that sees), `answers` (a file of the
answers of a judge elsewhere). A judge's answers are kept beside its scores, each with the sha256 of
its picture. An answer is kept until that picture changes.

The layout `dpg-grid` is `DIR/ITEM.png`, the pictures of a prompt in a square grid, for ELLA's
`compute_dpg_bench.py` with `--resolution` the side of one picture and `--pic-num` 1 or 4.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from tarkit.artifacts.digests import file_sha256
from tarkit.artifacts.files import read_lines, write_whole
from tarkit.artifacts.manifest import begin_directory
from tarkit.errors import UserError
from tarkit.eval.benchmark_parts.dsg import (
    GraphAnswers,
    SceneGraph,
    graph_from_json,
    graph_results,
    graph_to_json,
    read_graphs,
)
from tarkit.eval.benchmark_parts.export_layouts import require_size, run_pictures, write_adm_npz
from tarkit.eval.benchmarks.base import (
    ItemRow,
    PictureBenchmark,
    ScorerOptions,
    ScoreRow,
    Verdicts,
    score_command,
)
from tarkit.eval.outcome import score_row
from tarkit.eval.run import BenchmarkRun, scorer_folder
from tarkit.eval.sample_files import Failure, make_answers, read_answers
from tarkit.images import png_bytes, read_picture

BATCH_SIZE = 16

AskJudge = Callable[[Sequence[tuple[Path, str]]], list[str]]
"""(picture's file, question) of a batch -> the answers."""


class PictureQuestion(NamedTuple):
    """One question about one picture: `number` is its id in the graph of the prompt `item`."""

    item: str
    sample: int
    number: int
    text: str
    file: str


def read_dpg(path: Path, images: Path | None) -> list[ItemRow]:
    """A prompt for each scene graph of DPG-Bench's csv."""
    return [
        {"id": graph.item, "tag": "dpg", "prompt": graph.prompt, "meta": graph_to_json(graph)}
        for graph in read_graphs(path)
    ]


def score_dpg(run: BenchmarkRun, options: ScorerOptions) -> Verdicts:
    """Ask the judge every question that it has not answered yet, and score the answers.

    With `retry_failed` the judge also answers again where it failed or where its file is damaged;
    with `as_published` there are two results, the second with the published scorer's faults. The
    name is that of the judge's model, or of the file of answers. Raises UserError.
    """
    graphs = [graph_from_json(item.id, item.prompt, item.meta or {}) for item in run.items]
    questions = [
        PictureQuestion(one.item.id, one.sample, question.id, question.text, one.file)
        for one in run.pictures()
        for question in graphs[one.row].questions
    ]
    score = score_command(run, options.scorer)
    identity: dict[str, Any]
    if options.scorer == "answers":
        file = options.file
        name = file.stem if file else options.scorer
        identity = {"answers": file.name if file else None}
        answers = _answers_of_file(file, questions)
        repair = f"complete {file}, then {score}"  # the pictures are not looked at
    else:
        name = Path(options.model or "vlm").name if options.scorer == "vlm" else options.scorer
        ask, judge_settings = _judge(options.scorer, options.model, options.server, options.device)
        identity = {"judge": options.scorer, **judge_settings}
        folder = scorer_folder(run, name) / "answers"
        begin_directory(folder, "answers", settings={**identity, "batch_size": BATCH_SIZE})
        pairs = [(run.path / "samples" / each.file, each.text) for each in questions]
        sha256 = cache(_sha256)  # a picture has many questions
        make_answers(
            f"dpg by {name}",
            folder,
            pairs,
            ask,
            batch_size=BATCH_SIZE,
            retry_failed=options.retry_failed,
            about=lambda pair: sha256(pair[0]),
        )
        answers = read_answers(folder, len(questions), batch_size=BATCH_SIZE)
        repair = f"tarkit eval generate {run.path} --retry-failed, then {score} --retry-failed"
    rows = [_row(one, answer) for one, answer in zip(questions, answers, strict=True)]
    by_item: dict[str, list[dict[int, bool | None]]] = {
        graph.item: [{} for _ in range(run.n)] for graph in graphs
    }
    for one, answer in zip(questions, answers, strict=True):
        by_item[one.item][one.sample][one.number] = _yes(answer)
    figures = _figures(f"dpg@{name}", graphs, by_item, options.as_published)
    return Verdicts(name, figures, rows, {"scorer": identity}, repair)


def _sha256(picture: Path) -> str | None:
    """Of the file's bytes, even if they are damaged; None where there is no file."""
    return file_sha256(picture) if picture.is_file() else None


def _row(one: PictureQuestion, answer: str | Failure) -> ScoreRow:
    failed = isinstance(answer, Failure)
    return score_row(
        "dpg",
        "",
        "",
        one.item,
        sample=one.sample,
        prompt=one.text,
        file=f"samples/{one.file}",
        answer=None if failed else answer,
        label="yes",
        correct=bool(_yes(answer)),
        error=answer.reason if isinstance(answer, Failure) else None,
    )


def _yes(answer: str | Failure) -> bool | None:
    return None if isinstance(answer, Failure) else says_yes(answer)


def says_yes(answer: str) -> bool:
    """Whether the answer's first word is yes."""
    return re.match(r"\W*yes\b", answer, re.IGNORECASE) is not None


def _figures(
    name: str,
    graphs: Sequence[SceneGraph],
    answers: Mapping[str, Sequence[GraphAnswers]],
    as_published: bool,
) -> dict[str, dict[str, Any]]:
    correct = graph_results(graphs, answers)
    if not as_published:
        return {name: correct}
    published = graph_results(graphs, answers, as_published=True)
    published["difference"] = published["overall"]["value"] - correct["overall"]["value"]
    return {name: correct, f"{name}+as-published": published}


def _judge(
    name: str, model: str | None, server: str | None, device: str
) -> tuple[AskJudge, dict[str, Any]]:
    """A function that answers, and the settings on which its answers depend."""
    if name == "tar":
        from tarkit.inference.tar_model import Tar

        tar = Tar.load(model or "mini", device=device, dtok=None)

        def by_tar(pairs: Sequence[tuple[Path, str]]) -> list[str]:
            pictures = [read_picture(file) for file, _ in pairs]
            chances = tar.yes_probability_of(pictures, [text for _, text in pairs])
            return ["yes" if chance > 0.5 else "no" for chance in chances]

        return by_tar, {"model": tar.fingerprints(), "read_scale": int(tar.read_scale)}
    if name == "vlm" and model is not None:
        from tarkit.llm.base import AssistantConfig, LlmQuestion
        from tarkit.llm.load import load

        config = AssistantConfig(temperature=0.0, tries=1, max_tokens=8, batch_size=BATCH_SIZE)
        judge = load(model, config=config, server=server, sees=True, device=device)

        def by_vlm(pairs: Sequence[tuple[Path, str]]) -> list[str]:
            answers = judge.answer(
                [
                    LlmQuestion(
                        f"{text} Answer yes or no.", seed=0, blob=png_bytes(read_picture(p))
                    )
                    for p, text in pairs
                ]
            )
            error = next((each.error for each in answers if each.error is not None), None)
            if error is not None:
                raise UserError(error)
            return [each.text for each in answers]

        return by_vlm, {"model": model, "served": server is not None}
    raise UserError(
        f"no judge {name!r}{' without a model' if name == 'vlm' else ''}",
        hint="--scorer tar | vlm --scorer-model DIR [--server URL] | answers --file JSONL",
    )


def _answers_of_file(
    file: Path | None, questions: Sequence[PictureQuestion]
) -> list[str | Failure]:
    """Answers of a jsonl with item, sample, question and answer, in the order of the questions."""
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
    missing = Failure(f"{file.name} has no answer")
    return [known.get((one.item, one.sample, one.number), missing) for one in questions]


def write_dpg_grid(run: BenchmarkRun, folder: Path) -> None:
    """Raises UserError unless the run has 1 or 4 pictures a prompt, and for an item with a dot."""
    if run.n not in (1, 4):
        raise UserError(
            f"DPG's scorer cuts a sheet into 1 or 4 pictures, {run.path} has {run.n} a prompt",
            hint="tarkit eval prepare dpg --n 4 --data CSV --out DIR",
        )
    side = math.isqrt(run.n)
    for row, item, pictures in run_pictures(run):
        if not re.fullmatch(r"[\w-]+", item.id):  # the scorer takes it from the name, up to a dot
            raise UserError(f"the item {item.id!r} cannot be the name of a file for DPG's scorer")
        width, height = pictures[0].size
        sheet = Image.new("RGB", (side * width, side * height))
        for sample, picture in enumerate(pictures):
            require_size(picture, (width, height), run.picture_path(row, sample))
            sheet.paste(picture, (sample % side * width, sample // side * height))
        write_whole(folder / f"{item.id}.png", png_bytes(sheet))


BENCHMARK = PictureBenchmark(
    name="dpg",
    data="DPG-Bench's csv of questions",
    read=read_dpg,
    scorers=("tar", "vlm", "answers"),
    score=score_dpg,
    layouts={"dpg-grid": write_dpg_grid, "adm-npz": write_adm_npz},
)
