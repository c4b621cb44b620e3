"""MMMU: choices and open answers over college subjects (Yue et al. 2311.16502).

Source of the reading: MMMU-Benchmark/MMMU `mmmu/utils/eval_utils.py` (Apache-2.0), restated. Where
the published program draws a choice at random, the reading here is None, which is wrong.

The layout `mmmu-json` is `DIR/total_val_output.json`, {id: answer}, for `main_eval_only.py`, which
reads open answers itself and expects the letter of a choice: "" where an answer names none, which
is wrong there. Tar cannot be asked about several pictures; such a question is exported as "" too,
because the program leaves out of its mean whatever the file lacks. How many there are is logged.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tarkit.artifacts.files import write_whole
from tarkit.errors import UserError
from tarkit.eval.benchmark_parts.choices import read_choices
from tarkit.eval.benchmark_parts.export_layouts import run_answers
from tarkit.eval.benchmarks.base import QuestionBenchmark
from tarkit.eval.run import BenchmarkItem, BenchmarkRun

log = logging.getLogger("tarkit")

_EDGES = ",.!?;:'"
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?|-?\.\d+")
_LEADS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_LONG = 5  # words; a shorter answer that quotes an option's text does not choose it

Normal = str | float


def parse_choice(answer: str, options: Mapping[str, str]) -> str | None:
    """The last letter that an answer states, or None.

    Letters in brackets come before bare ones, and those before the text of an option, which only
    an answer of more than five words may quote.
    """
    text = f" {answer.strip(_EDGES)} "
    for form in ("({})", " {} "):
        letter = _last({letter: text.rfind(form.format(letter)) for letter in options})
        if letter is not None:
            return letter
    if len(text.split()) > _LONG:
        low = text.lower()
        return _last(
            {k: low.rfind(option.lower()) for k, option in options.items() if option.strip()}
        )
    return None


def _last(places: Mapping[str, int]) -> str | None:
    """The letter at the highest place; a place below 0 means that it is absent."""
    present = {letter: place for letter, place in places.items() if place >= 0}
    return max(present, key=lambda letter: present[letter], default=None)


def parse_open(answer: str) -> list[Normal]:
    """What an open answer may mean, as normal strings and numbers."""
    lines = re.split(r"\n", answer.strip().strip(".").lower())
    texts = [
        part for index, line in enumerate(lines) for part in _key(line, index == len(lines) - 1)
    ]
    texts = texts or [answer.strip().strip(".").lower()]
    numbers = [number for text in texts for number in _NUMBER.findall(text)]
    return list(dict.fromkeys(form for text in (*texts, *numbers) for form in normal_forms(text)))


def _key(text: str, last: bool) -> list[str]:
    """The text behind the last lead word, by the lead that leaves the shortest; [] for no lead."""
    leads = (*_LEADS, "=") if last else _LEADS
    tails = [text.split(lead)[-1].strip() for lead in leads if lead in text]
    shortest = min(tails, key=len, default="")
    return [shortest] if shortest.strip(" :,.!?;'") else []


def normal_forms(text: str) -> list[Normal]:
    """A number, rounded to two places, or the text in lower case.

    A single letter gets a space on either side, so that it does not match within a word.
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        low = text.lower()
        return [f" {low}", f"{low} "] if len(low) == 1 else [low]


def open_correct(answer: str, truth: str | Sequence[str]) -> bool:
    """Whether an open answer holds a string of the truth, or a number equal to one of it."""
    truths = [truth] if isinstance(truth, str) else truth
    wanted = [form for text in truths for form in normal_forms(text)]
    return any(
        any(isinstance(want, str) and want in form for want in wanted)
        if isinstance(form, str)
        else form in wanted
        for form in parse_open(answer)
    )


def mmmu_correct(item: BenchmarkItem, answer: str) -> bool:
    """Whether MMMU's program would accept the answer, without its random choice."""
    truth = json.loads(str(item.truth))
    if item.options:
        return bool(parse_choice(answer, item.options) == truth)
    return open_correct(answer, truth)


def write_mmmu_json(run: BenchmarkRun, folder: Path) -> None:
    """Raises UserError for an id without a subject, which MMMU's program would leave out."""
    outputs: dict[str, str] = {}
    for item, answer in run_answers(run, unasked=""):
        if not re.fullmatch(r"[a-z]+_\w+_\d+", item.id):
            raise UserError(
                f"MMMU's scorer reads the subject from an id as validation_Accounting_1, and "
                f"would leave {item.id!r} out",
                hint="tarkit eval prepare mmmu --data MMMU --out DIR, of rows with MMMU's own ids",
            )
        options = item.options
        outputs[item.id] = (parse_choice(answer, options) or "") if options else answer
    unasked = sum(item.unasked is not None for item in run.items)
    if unasked:
        log.warning("%d of %d questions cannot be asked and are wrong", unasked, len(outputs))
    text = json.dumps(outputs, indent=1) + "\n"
    write_whole(folder / "total_val_output.json", text.encode())


BENCHMARK = QuestionBenchmark(
    name="mmmu",
    data="MMMU's questions as .parquet or .jsonl, or a folder of them",
    read=read_choices,
    reader="official-parse",
    correct=mmmu_correct,
    layouts={"mmmu-json": write_mmmu_json},
)
