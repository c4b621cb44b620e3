"""`tarkit eval score`: verdicts on what a run drew or answered, by a scorer of one's choice.

A scorer is part of a result's name (`geneval@hf-m2f`, `dpg@tar`): two scorers are two benchmarks.
Pictures: `shapes` (the drawn world), `hf-m2f` (Mask2Former and CLIP by transformers), `detections`
(GenEval's checker over detections from a file); for DPG the judges `tar`, `vlm` and `answers`.
Questions are read as each benchmark publishes it. A picture or answer that failed scores 0 and
lowers coverage, and with coverage below 1 no result is written unless `allow_missing`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tarkit.errors import UserError
from tarkit.files import read_lines, read_picture
from tarkit.images import png_bytes, to_uint8
from tarkit.manifests import MANIFEST, begin_directory, read_manifest
from tarkit.outcomes import Scored, score_row, write_outcome
from tarkit.progress import Progress
from tarkit.runs import Item, Run, open_run, scorer_folder
from tarkit.samples import Failure, make_answers, open_pictures, read_answers
from tarkit.scoring.detections import read_detections
from tarkit.scoring.dsg import graph_from_json, graph_results
from tarkit.scoring.geneval import OFFICIAL_RULES, SHAPES_RULES, Detection, Rules, check
from tarkit.scoring.letters import exact, first_letter, open_correct, parse_choice
from tarkit.scoring.mme import Asked, mme_results, parse_mme
from tarkit.scoring.results import QuestionScores, question_results, run_figures
from tarkit.scoring.statistics import chance_floor, micro
from tarkit.scoring.tables import run_tables, show
from tarkit.scoring.yesno import parse_yes_no

DETECTORS = ("shapes", "hf-m2f", "detections")
JUDGES = ("tar", "vlm", "answers")
READERS = {
    **{"pope": "official-parse", "mme": "official-parse", "mmmu": "official-parse"},
    **{"mmbench": "first-letter", "seed": "first-letter", "gqa": "exact-match"},
}
BATCH_SIZE = 16

Row = dict[str, Any]
Detect = Callable[[Image.Image, Item, str], list[Detection]]


def run(
    path: Path,
    *,
    scorer: str | None = None,
    model: str | None = None,
    clip: str | None = None,
    file: Path | None = None,
    server: str | None = None,
    as_published: bool = False,
    allow_missing: bool = False,
    device: str = "cpu",
) -> Scored:
    """Score the run at `path`; `model` and `clip` are the scorer's, `file` what it reads."""
    asked = open_run(path)
    name = scorer or READERS.get(asked.bench)
    if name is None:
        known = DETECTORS if asked.bench == "geneval" else JUDGES
        raise UserError(f"{asked.bench} needs a scorer", hint=f"--scorer {' | '.join(known)}")
    if asked.bench == "geneval":
        return _geneval(asked, name, model, clip, file, allow_missing, device)
    if asked.bench == "dpg":
        return _dpg(asked, name, model, file, server, as_published, allow_missing, device)
    if name != READERS[asked.bench]:
        raise UserError(f"{asked.bench} is read by {READERS[asked.bench]}, not by {name}")
    return _questions(asked, name, allow_missing)


def _drawn(asked: Run) -> list[tuple[int, int, Item, Path]]:
    return [
        (row, sample, item, asked.picture(row, sample))
        for row, item in enumerate(asked.items)
        for sample in range(asked.n)
    ]


def _settings(asked: Run, part: str, **more: Any) -> dict[str, Any]:
    """Of the run, of how its samples or answers were made, and of the scorer."""
    made = asked.path / part
    return {
        **read_manifest(asked.path)["settings"],
        part: read_manifest(made)["settings"] if (made / MANIFEST).exists() else None,
        **more,
    }


def _write(
    asked: Run,
    name: str,
    metrics: Mapping[str, Any],
    settings: Mapping[str, Any],
    rows: Sequence[Row],
    allow_missing: bool,
) -> Scored:
    coverage = min(figures["coverage"] for figures in metrics.values())
    if coverage < 1 and not allow_missing:
        raise UserError(
            f"{1 - coverage:.1%} of {asked.path} failed, and a failure scores 0",
            hint="--retry-failed with the command that made them, or --allow-missing",
        )
    out = scorer_folder(asked, name)
    found = run_tables(metrics)
    show(found)
    report = "\n".join([f"# {asked.bench}@{name}\n", *(table.markdown() for table in found)])
    write_outcome(out, metrics, settings=settings, report=report, rows=rows)
    return Scored(out, report, sum(row["error"] is not None for row in rows))


# ---- GenEval ------------------------------------------------------------------------------------


def _geneval(
    asked: Run,
    name: str,
    model: str | None,
    clip: str | None,
    file: Path | None,
    allow_missing: bool,
    device: str,
) -> Scored:
    detect, rules, identity = _detector(asked, name, model, clip, file, device)
    jobs = _drawn(asked)
    rows: list[Row] = []
    found: list[list[Detection]] = []
    with Progress(f"score {name}", total=len(jobs), unit="pictures") as progress:
        for (_, sample, item, place), picture in zip(
            jobs, open_pictures([place for *_, place in jobs]), strict=True
        ):
            relative = place.relative_to(asked.path / "samples").as_posix()
            error, objects = None, list[Detection]()
            try:
                if isinstance(picture, Failure):
                    raise UserError(picture.reason)
                objects = detect(picture, item, relative)
            except UserError as reason:
                error = reason.message
            verdict = check(item.meta or {}, objects, rules=rules)
            found.append(objects)
            rows.append(
                score_row(
                    "geneval",
                    item.tag,
                    "",
                    item.id,
                    sample=sample,
                    seed=asked.seed_of(item, sample),
                    prompt=item.prompt,
                    file=f"samples/{relative}",
                    correct=verdict.correct and error is None,
                    clauses=list(verdict.clauses),
                    reason=verdict.reason if error is None else None,
                    detections=json.dumps([asdict(each) for each in objects]),
                    error=error,
                )
            )
            progress.advance(1, failed=int(error is not None))

    def fulfils(prompt: int, other: int) -> bool:
        return check(asked.items[prompt].meta or {}, found[other * asked.n], rules=rules).correct

    figures = run_figures([item.tag for item in asked.items], rows, n=asked.n)
    if len(asked.items) > 1:
        chance = chance_floor(fulfils, len(asked.items))
        figures["chance"] = _chance(asked, chance)
    settings = _settings(asked, "samples", scorer=identity, rules=asdict(rules))
    return _write(asked, name, {f"geneval@{name}": figures}, settings, rows, allow_missing)


def _chance(asked: Run, chance: np.ndarray) -> dict[str, Any]:
    tags = np.array([item.tag for item in asked.items])
    tasks = {str(tag): float(chance[tags == tag].mean()) for tag in dict.fromkeys(tags)}
    return {"overall": float(np.mean(list(tasks.values()))), "tasks": tasks}


def _detector(
    asked: Run, name: str, model: str | None, clip: str | None, file: Path | None, device: str
) -> tuple[Detect, Rules, dict[str, Any]]:
    if name == "shapes":
        from tarkit.scoring.shapes_detector import ShapesDetector

        shapes = ShapesDetector()
        return (
            lambda picture, item, place: shapes.detect(to_uint8(picture)),
            SHAPES_RULES,
            {"detector": "shapes"},
        )
    if name == "hf-m2f":
        if model is None or clip is None:
            raise UserError(
                "hf-m2f needs a detector and CLIP",
                hint="--model facebook/mask2former-swin-small-coco-instance "
                "--clip openai/clip-vit-large-patch14",
            )
        from tarkit.scoring.mask2former import Mask2FormerDetector

        network = Mask2FormerDetector(model, clip, device)
        return (
            lambda picture, item, place: network.detect(picture, item.meta or {}),
            OFFICIAL_RULES,
            {"detector": model, "clip": clip, "resize": "PIL"},
        )
    if name == "detections" and file is not None:
        known = read_detections(file)

        def from_file(picture: Image.Image, item: Item, place: str) -> list[Detection]:
            if place not in known:
                raise UserError(f"{file} has no detections of {place}")
            return known[place]

        return from_file, OFFICIAL_RULES, {"detections": file.name}
    raise UserError(
        f"no detector {name!r}", hint="--scorer shapes | hf-m2f | detections --file JSONL"
    )


# ---- DPG ----------------------------------------------------------------------------------------


def _dpg(
    asked: Run,
    name: str,
    model: str | None,
    file: Path | None,
    server: str | None,
    as_published: bool,
    allow_missing: bool,
    device: str,
) -> Scored:
    graphs = [graph_from_json(item.id, item.prompt, item.meta or {}) for item in asked.items]
    questions = [
        (place, graph.item, sample, question.id, question.text)
        for (row, sample, _, place) in _drawn(asked)
        for graph in [graphs[row]]
        for question in graph.questions
    ]
    if name == "answers":
        said = _given(file, [(item, sample, number) for _, item, sample, number, _ in questions])
        identity: dict[str, Any] = {"answers": file.name if file else None}
        variant = file.stem if file else name
    else:
        variant = {"tar": "tar", "vlm": Path(model or "vlm").name}.get(name, name)
        identity = {"judge": name, "model": model, "served": server is not None}
        ask = _asker(name, model, server, device)
        folder = scorer_folder(asked, variant) / "answers"
        begin_directory(folder, "answers", settings={**identity, "batch_size": BATCH_SIZE})
        make_answers(
            f"dpg by {variant}",
            folder,
            [(place, text) for place, _, _, _, text in questions],
            ask,
            batch_size=BATCH_SIZE,
        )
        said = read_answers(folder, len(questions), batch_size=BATCH_SIZE)
    answers: dict[str, list[dict[int, bool | None]]] = {
        graph.item: [{} for _ in range(asked.n)] for graph in graphs
    }
    rows = []
    for (place, item, sample, number, text), answer in zip(questions, said, strict=True):
        yes = None if isinstance(answer, Failure) else says_yes(answer)
        answers[item][sample][number] = yes
        rows.append(
            score_row(
                "dpg",
                "",
                "",
                item,
                sample=sample,
                prompt=text,
                file=place.relative_to(asked.path).as_posix(),
                answer=None if isinstance(answer, Failure) else answer,
                label="yes",
                correct=bool(yes),
                error=answer.reason if isinstance(answer, Failure) else None,
            )
        )
    settings = _settings(asked, "samples", scorer=identity)
    metrics = {f"dpg@{variant}": graph_results(graphs, answers)}
    if as_published:
        published = graph_results(graphs, answers, as_published=True)
        right = metrics[f"dpg@{variant}"]["overall"]["value"]
        published["difference"] = published["overall"]["value"] - right
        metrics[f"dpg@{variant}+as-published"] = published
    return _write(asked, variant, metrics, settings, rows, allow_missing)


def says_yes(answer: str) -> bool:
    """Whether the answer's first word is yes."""
    words = answer.strip().lower().replace(",", " ").replace(".", " ").split()
    return bool(words) and words[0] == "yes"


def _asker(
    name: str, model: str | None, server: str | None, device: str
) -> Callable[[Sequence[tuple[Path, str]]], list[str]]:
    if name == "tar":
        from tarkit.tar import Tar

        tar = Tar.load(model or "mini", device=device, dtok=None)

        def by_tar(asked: Sequence[tuple[Path, str]]) -> list[str]:
            pictures = [read_picture(place) for place, _ in asked]
            codes = tar.encode(pictures, [tar.default_scale])[tar.default_scale]
            chances = tar.yes_probability(codes, [text for _, text in asked])
            return ["yes" if chance > 0.5 else "no" for chance in chances]

        return by_tar
    if name == "vlm" and model is not None:
        from tarkit.assistants import AssistantConfig, Question, load

        config = AssistantConfig(temperature=0.0, tries=1, max_tokens=8, batch_size=BATCH_SIZE)
        judge = load(model, config=config, server=server, sees=True, device=device)

        def by_vlm(asked: Sequence[tuple[Path, str]]) -> list[str]:
            found = judge.answer(
                [
                    Question(f"{text} Answer yes or no.", seed=0, blob=png_bytes(read_picture(p)))
                    for p, text in asked
                ]
            )
            wrong = next((each.error for each in found if each.error is not None), None)
            if wrong is not None:
                raise UserError(wrong)
            return [each.text for each in found]

        return by_vlm
    raise UserError(
        f"no judge {name!r}{' without a model' if name == 'vlm' else ''}",
        hint="--scorer tar [--model NAME] | vlm --model DIR [--server URL] | answers --file JSONL",
    )


def _given(file: Path | None, wanted: Sequence[tuple[str, int, int]]) -> list[str | Failure]:
    """Answers of a jsonl with item, sample, question and answer, in the order asked."""
    if file is None:
        raise UserError("the scorer answers reads them from a file", hint="--file JSONL")
    known: dict[tuple[str, int, int], str] = {}
    for number, line in read_lines(file):
        try:
            row = json.loads(line)
            known[str(row["item"]), int(row["sample"]), int(row["question"])] = str(row["answer"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            raise UserError(
                f"{file}:{number} is not {{item, sample, question, answer}}: {line[:80]!r}"
            ) from None
    return [known.get(key, Failure(f"{file.name} has no answer")) for key in wanted]


# ---- questions ----------------------------------------------------------------------------------


def _questions(asked: Run, name: str, allow_missing: bool) -> Scored:
    made = asked.path / "answers"
    if not (made / MANIFEST).exists():
        raise UserError(f"{asked.path} has no answers yet", hint=f"tarkit eval answer {asked.path}")
    size = read_manifest(made)["settings"]["batch_size"]
    answers = read_answers(made, len(asked.items), batch_size=size)
    said = [None if isinstance(answer, Failure) else answer for answer in answers]
    right = [
        text is not None and correct(asked.bench, item, text)
        for item, text in zip(asked.items, said, strict=True)
    ]
    rows = [
        score_row(
            asked.bench,
            item.tag,
            "",
            item.id,
            prompt=item.prompt,
            answer=text,
            label=item.truth,
            correct=ok,
            error=answer.reason if isinstance(answer, Failure) else None,
        )
        for item, text, ok, answer in zip(asked.items, said, right, answers, strict=True)
    ]
    figures = _question_figures(asked, said, right)
    settings = _settings(asked, "answers", scorer={"reader": name})
    return _write(asked, name, {f"{asked.bench}@{name}": figures}, settings, rows, allow_missing)


def correct(bench: str, item: Item, answer: str) -> bool:
    """Whether an answer is right, as its benchmark reads it."""
    truth = str(item.truth)
    if bench == "pope":
        return parse_yes_no(answer) == (truth == "yes")
    if bench == "mme":
        return parse_mme(answer) == truth
    if bench == "gqa":
        return exact(answer, truth)
    key = json.loads(truth)
    options = dict((item.meta or {}).get("options") or {})
    if bench == "mmmu":
        return parse_choice(answer, options) == key if options else open_correct(answer, key)
    return first_letter(answer, list(options)) == key


def _question_figures(
    asked: Run, said: Sequence[str | None], right: Sequence[bool]
) -> dict[str, Any]:
    if asked.bench == "mme":
        return mme_results(
            [
                Asked(item.tag, str((item.meta or {})["group"]), str(item.truth), text)
                for item, text in zip(asked.items, said, strict=True)
            ]
        )
    if asked.bench == "pope":
        labels = [item.truth == "yes" for item in asked.items]

        def by_other(question: int, other: int) -> bool:
            text = said[other]
            return text is not None and parse_yes_no(text) == labels[question]

        return question_results(
            QuestionScores(
                kinds=[item.tag for item in asked.items],
                columns=[""] * len(asked.items),
                pictures=[str((item.meta or {})["group"]) for item in asked.items],
                answers=said,
                labels=labels,
                chance=chance_floor(by_other, len(asked.items)),
            )
        )
    values, tags = np.array(right, dtype=np.float64), np.array([item.tag for item in asked.items])
    return {
        "accuracy": micro(values)._asdict(),
        "tasks": {str(tag): micro(values[tags == tag])._asdict() for tag in dict.fromkeys(tags)},
        "coverage": 1.0 - sum(text is None for text in said) / len(said),
        "num_questions": len(said),
    }
