"""GenEval 2: prompts of several atoms, scored by Soft-TIFA (Kamath et al. 2512.16853).

A vision-language judge answers one question for every atom of a prompt; the score of an atom is the
judge's probability of the true answer. `soft_tifa_am` is the arithmetic mean over a prompt's
questions, `soft_tifa_gm` their geometric mean; both are then averaged over prompts. Skills are
shown by the arithmetic mean (over questions), atom counts by the geometric mean (over prompts), as
the README of facebookresearch/GenEval2 defines. All intervals redraw prompts.

Data: the publisher's `geneval2_data.jsonl` (CC BY-NC 4.0, supplied by the user), a line a prompt
with `prompt`, `atom_count`, `vqa_list` ([question, answer] pairs) and `skills` (one a pair). The
article "a" is no atom, but its question of count is asked, so there may be more questions than
atoms: at most one more for every question of the skill `count`.

From the README and the paper: data, questions, both means, and the judge Qwen3-VL-8B. The rest is
tarkit's and was not compared with the published program. The words "Answer in one word." follow the
question and stand before the picture. The probability is the sum, at the first position and before
any penalty, over the tokens that spell the whole answer, as a word or digits, in small letters or
capitalised, with or without a space before it. An answer that no token spells whole is refused,
because its first piece may begin another answer. Several pictures of a prompt are averaged after
the mean over questions; the publisher draws one. A server lists only its most probable tokens, and
an answer that it does not list counts as 0, as does the geometric mean of its prompt (`zero_share`
is the share of such answers).

The layout `geneval2-json` is `DIR/image_paths.json`, prompt -> picture, for the publisher's
`evaluation.py`, and needs one picture a prompt.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tarkit.artifacts.digests import file_sha256
from tarkit.artifacts.files import write_whole
from tarkit.artifacts.manifest import begin_directory
from tarkit.artifacts.tables import AGAIN, read_json_records
from tarkit.errors import UserError
from tarkit.eval.benchmark_parts.export_layouts import run_pictures, write_adm_npz
from tarkit.eval.benchmark_parts.question_files import encoding_of
from tarkit.eval.benchmarks.base import (
    ItemRow,
    PictureBenchmark,
    ScorerOptions,
    ScoreRow,
    Verdicts,
    score_command,
)
from tarkit.eval.outcome import score_row
from tarkit.eval.run import BenchmarkRun, RunPicture, scorer_folder
from tarkit.eval.sample_files import Failure, make_answers, read_answers
from tarkit.images import png_bytes, read_picture
from tarkit.scoring.statistics import bootstrap, micro

BATCH_SIZE = 16
SCORER = "softtifa"
GREY_PX = 256
ONE_WORD = "Answer in one word."
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class AtomQuestion(NamedTuple):
    """One question of a prompt about one of its pictures, and the true answer, a single word."""

    picture: RunPicture
    text: str
    answer: str
    skill: str


AskJudge = Callable[[Sequence[tuple[Path, AtomQuestion]]], list[str]]
"""(picture's file, question) of a batch -> the probabilities of the true answers, as text."""


def read_geneval2(path: Path, images: Path | None) -> list[ItemRow]:
    """The prompts of `geneval2_data.jsonl`; raises UserError for a line of another form."""
    rows: list[ItemRow] = []
    for row in read_json_records(path, encoding=encoding_of(path)):
        line = row.require()
        fault = _fault(line)
        if fault is not None:
            raise UserError(f"{path}:{row.number} {fault}", hint=AGAIN)
        meta = {name: line[name] for name in ("atom_count", "vqa_list", "skills")}
        tag = str(line["atom_count"])
        item = {"id": f"{len(rows):05d}", "tag": tag, "prompt": line["prompt"], "meta": meta}
        rows.append(item)
    return rows


def _fault(line: dict[str, Any]) -> str | None:
    """The reason why a line is no prompt of GenEval 2, None where it is one."""
    prompt, pairs, skills = (line.get(name) for name in ("prompt", "vqa_list", "skills"))
    if not _is_text(prompt):
        return "lacks a prompt"
    if not isinstance(pairs, list) or not pairs:
        return "lacks a vqa_list of [question, answer] pairs"
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(map(_is_text, pair))):
            return f"has no [question, answer] of two texts: {pair!r:.80}"
        if len(pair[1].split()) > 1:
            return f"has an answer of more than one word: {pair[1]!r:.80}"
    if not isinstance(skills, list) or not all(map(_is_text, skills)):
        return "lacks a list of skills"
    if len(skills) != len(pairs):
        return f"has {len(pairs)} questions and {len(skills)} skills"
    atoms = line.get("atom_count")
    surplus = skills.count("count")
    if type(atoms) is not int or not max(1, len(pairs) - surplus) <= atoms <= len(pairs):
        return (
            f"has atom_count {atoms!r:.80}, which does not match {len(pairs)} questions, "
            f"{surplus} of them of count"
        )
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def answer_forms(answer: str) -> tuple[str, ...]:
    """The spellings of an answer: small, capitalised, a number also in digits; with a space too."""
    word = answer.strip().lower()
    forms = [word, word.capitalize()]
    if word in NUMBERS:
        forms.append(str(NUMBERS.index(word)))
    return (*forms, *(f" {form}" for form in forms))


def score_geneval2(run: BenchmarkRun, options: ScorerOptions) -> Verdicts:
    """Ask the judge every question that it has not answered yet, and average its probabilities.

    With `retry_failed` the judge also answers again where it failed or where its file is damaged.
    The name contains that of the judge's model. Raises UserError.
    """
    if options.scorer != SCORER or options.model is None:
        raise UserError(
            f"geneval2 is scored by {SCORER} with a judge that sees",
            hint=f"--scorer {SCORER} --scorer-model DIR|HUB-ID [--server URL]",
        )
    questions = [
        AtomQuestion(one, text, answer.strip(), skill)
        for one in run.pictures()
        for (text, answer), skill in zip(
            (one.item.meta or {})["vqa_list"], (one.item.meta or {})["skills"], strict=True
        )
    ]
    name = f"{SCORER}-{Path(options.model).name}"
    identity = {
        "judge": SCORER,
        "model": options.model,
        "served": options.server is not None,
        "request": ONE_WORD,
    }
    folder = scorer_folder(run, name) / "answers"
    answers_asked = sorted({question.answer.lower() for question in questions})
    ask = _judge(options.model, options.server, options.device, answers_asked)
    begin_directory(folder, "answers", settings={**identity, "batch_size": BATCH_SIZE})
    sha256 = cache(_sha256)  # a picture has many questions
    make_answers(
        f"geneval2 by {name}",
        folder,
        [(run.path / "samples" / each.picture.file, each) for each in questions],
        ask,
        batch_size=BATCH_SIZE,
        retry_failed=options.retry_failed,
        about=lambda pair: sha256(pair[0]),
    )
    answers = read_answers(folder, len(questions), batch_size=BATCH_SIZE)
    chances = [_probability(answer, folder) for answer in answers]
    rows = [
        _row(run, question, answer, chance)
        for question, answer, chance in zip(questions, answers, chances, strict=True)
    ]
    figures = soft_tifa(run, questions, chances)
    failed = sum(isinstance(answer, Failure) for answer in answers)
    figures["coverage"] = 1.0 - failed / len(answers)
    score = f"{score_command(run, SCORER)} --scorer-model {options.model}"
    repair = f"tarkit eval generate {run.path} --retry-failed, then {score} --retry-failed"
    return Verdicts(name, {f"geneval2@{name}": figures}, rows, {"scorer": identity}, repair)


def soft_tifa(
    run: BenchmarkRun, questions: Sequence[AtomQuestion], chances: Sequence[float]
) -> dict[str, Any]:
    """Soft-TIFA's two means, by skill and by atom count, of a probability for each question."""
    by_picture: list[list[list[float]]] = [[[] for _ in range(run.n)] for _ in run.items]
    for question, chance in zip(questions, chances, strict=True):
        by_picture[question.picture.row][question.picture.sample].append(chance)
    arithmetic = [float(np.mean([np.mean(one) for one in each])) for each in by_picture]
    geometric = np.array([np.mean([geometric_mean(one) for one in each]) for each in by_picture])
    counts = np.array([int(item.tag) for item in run.items])
    terms = np.array([(chance, 1.0) for chance in chances])
    clusters = np.array([question.picture.row for question in questions])
    skills = np.array([question.skill for question in questions])
    return {
        "soft_tifa_am": micro(arithmetic)._asdict(),
        "soft_tifa_gm": micro(geometric)._asdict(),
        "skills_am": {
            str(skill): bootstrap(
                terms[skills == skill],
                clusters[skills == skill].tolist(),
                lambda sums: sums[..., 0] / sums[..., 1],
            )._asdict()
            for skill in sorted(set(skills.tolist()))
        },
        "atom_counts_gm": {
            str(count): micro(geometric[counts == count])._asdict()
            for count in sorted(set(counts.tolist()))
        },
        "zero_share": float(np.mean([chance == 0 for chance in chances])),
        "num_prompts": len(run.items),
        "num_questions": len(questions),
    }


def geometric_mean(chances: Sequence[float]) -> float:
    """Of probabilities in [0, 1]; 0 where one of them is 0."""
    if min(chances) == 0:
        return 0.0
    return math.exp(math.fsum(map(math.log, chances)) / len(chances))


def _sha256(picture: Path) -> str | None:
    """Of the file's bytes, even if they are damaged; None where there is no file."""
    return file_sha256(picture) if picture.is_file() else None


def _probability(answer: str | Failure, folder: Path) -> float:
    """A failed answer is 0; raises UserError for a file that was changed by hand."""
    if isinstance(answer, Failure):
        return 0.0
    try:
        chance = float(answer)
    except ValueError:
        chance = math.nan
    if not 0 <= chance <= 1:
        raise UserError(
            f"{folder} holds {answer!r:.80}, which is no probability",
            hint=f"remove {folder} and score again",
        )
    return chance


def _row(
    run: BenchmarkRun, question: AtomQuestion, answer: str | Failure, chance: float
) -> ScoreRow:
    one = question.picture
    failed = isinstance(answer, Failure)
    return score_row(
        "geneval2",
        question.skill,
        "",
        one.item.id,
        sample=one.sample,
        seed=run.seed_of(one.item, one.sample),
        prompt=question.text,
        file=f"samples/{one.file}",
        answer=None if failed else answer,
        label=question.answer,
        correct=chance > 0.5,
        error=answer.reason if isinstance(answer, Failure) else None,
    )


def _judge(model: str, server: str | None, device: str, answers: Sequence[str]) -> AskJudge:
    """A function that gives probabilities; raises UserError for a judge that has none of `answers`.

    Each of the few different answers is tried once with a grey picture, because a server without
    logprobs, or a tokenizer without a token for an answer, would fail thousands of times.
    """
    from tarkit.llm.base import AssistantConfig, LlmQuestion
    from tarkit.llm.load import load

    config = AssistantConfig(temperature=0.0, tries=1, max_tokens=1, batch_size=BATCH_SIZE)
    judge = load(model, config=config, server=server, sees=True, device=device)
    grey = png_bytes(Image.new("RGB", (GREY_PX, GREY_PX), "grey"))
    tried = [LlmQuestion(f"How many cups are there? {ONE_WORD}", seed=0, blob=grey)]
    for answer in answers:
        judge.first_token_probabilities(tried, [answer_forms(answer)])

    def ask(pairs: Sequence[tuple[Path, AtomQuestion]]) -> list[str]:
        asked = [
            LlmQuestion(f"{one.text} {ONE_WORD}", seed=0, blob=png_bytes(read_picture(file)))
            for file, one in pairs
        ]
        forms = [answer_forms(one.answer) for _, one in pairs]
        return [repr(chance) for chance in judge.first_token_probabilities(asked, forms)]

    return ask


def write_geneval2_json(run: BenchmarkRun, folder: Path) -> None:
    """Raises UserError unless the run has one picture a prompt and no prompt twice."""
    prompts = [item.prompt for item in run.items]
    if run.n != 1 or len(set(prompts)) != len(prompts):
        raise UserError(
            f"GenEval 2's program takes one picture of each prompt, {run.path} has {run.n} of "
            f"each of {len(prompts)} prompts, {len(set(prompts))} of them different",
            hint="tarkit eval prepare geneval2 --n 1 --data JSONL --out DIR",
        )
    files = {}
    for _, item, pictures in run_pictures(run):
        file = folder / "pictures" / f"{item.id}.png"
        write_whole(file, png_bytes(pictures[0]))
        files[item.prompt] = f"pictures/{item.id}.png"
    text = json.dumps(files, indent=1, ensure_ascii=False) + "\n"
    write_whole(folder / "image_paths.json", text.encode())


BENCHMARK = PictureBenchmark(
    name="geneval2",
    data="GenEval 2's geneval2_data.jsonl",
    read=read_geneval2,
    scorers=(SCORER,),
    score=score_geneval2,
    layouts={"geneval2-json": write_geneval2_json, "adm-npz": write_adm_npz},
)
