"""Multiple choice and short answers: how each benchmark reads an answer, as published.

Sources: MMMU-Benchmark/MMMU `mmmu/utils/eval_utils.py` (Apache-2.0), SEED-Bench and MMBench as
lmms-eval reads them, GQA's exact match. No answer is guessed here: where the published program
draws a choice at random, `None` is returned, counted, and wrong.
"""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tarkit.artifacts.files import write_whole
from tarkit.errors import UserError
from tarkit.eval.benchmarks.layouts import _answered
from tarkit.eval.benchmarks.rows import LETTER, LETTERS, SHORT, Row, _first, _need, _picture, _rows
from tarkit.eval.run import Run

log = logging.getLogger("tarkit")

_EDGES = ",.!?;:'"
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?|-?\.\d+")
_LEADS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_LONG = 5  # words: below it an answer that quotes an option's text is taken for no choice

Normal = str | float


def parse_choice(answer: str, options: Mapping[str, str]) -> str | None:
    """MMMU's reading of an answer to lettered options: the last letter that it states, or None.

    Letters in brackets come before bare ones, and those before the text of an option, which only
    an answer of more than five words may quote.
    """
    said = f" {answer.strip(_EDGES)} "
    for form in ("({})", " {} "):
        places = {letter: said.rfind(form.format(letter)) for letter in options}
        found = {letter: place for letter, place in places.items() if place >= 0}
        if found:
            return max(found, key=lambda letter: found[letter])
    if len(said.split()) > _LONG:
        low = said.lower()
        found = {
            letter: low.rfind(text.lower()) for letter, text in options.items() if text.strip()
        }
        found = {letter: place for letter, place in found.items() if place >= 0}
        if found:
            return max(found, key=lambda letter: found[letter])
    return None


def first_letter(answer: str, letters: Sequence[str]) -> str | None:
    """SEED-Bench's and MMBench's reading: the answer's first character, where it is an option."""
    first = answer.strip()[:1].upper()
    return first if first in letters else None


def parse_open(answer: str) -> list[Normal]:
    """MMMU's reading of an open answer: what may be meant, as normal strings and numbers."""
    parts = re.split(r"\n", answer.strip().strip(".").lower())
    meant = [
        part for index, text in enumerate(parts) for part in _key(text, index == len(parts) - 1)
    ]
    meant = meant or [answer.strip().strip(".").lower()]
    numbers = [number for text in meant for number in _NUMBER.findall(text)]
    return list(dict.fromkeys(form for text in (*meant, *numbers) for form in normal_forms(text)))


def _key(text: str, last: bool) -> list[str]:
    """What stands behind the last lead word, by the lead that leaves the shortest; [] for none."""
    leads = (*_LEADS, "=") if last else _LEADS
    tails = [text.split(lead)[-1].strip() for lead in leads if lead in text]
    shortest = min(tails, key=len, default="")
    return [shortest] if shortest.strip(" :,.!?;'") else []


def normal_forms(text: str) -> list[Normal]:
    """A number, rounded to two places; or the text in lower case, one letter alone with a space
    on either side, so that it is not found within words."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        low = text.lower()
        return [f" {low}", f"{low} "] if len(low) == 1 else [low]


def open_correct(answer: str, truth: str | Sequence[str]) -> bool:
    """MMMU's verdict on an open answer: a string of the truth within it, or an equal number."""
    truths = [truth] if isinstance(truth, str) else truth
    wanted = [form for text in truths for form in normal_forms(text)]
    return any(
        any(isinstance(want, str) and want in said for want in wanted)
        if isinstance(said, str)
        else said in wanted
        for said in parse_open(answer)
    )


def exact(answer: str, truth: str) -> bool:
    """GQA's verdict: the same words, whatever their case and punctuation."""
    return _words(answer) == _words(truth)


def _words(text: str) -> list[str]:
    return re.sub(r"[^\w\s]", "", text).casefold().split()


def read_choices(path: Path, images: Path | None) -> list[Row]:
    """Lettered options: MMBench's .tsv, SEED-Bench's and MMMU's rows, by their columns' names."""
    rows = []
    for place, found in _rows(path):
        options = _options(found, place)
        _need(found, ("question", "answer"), place)
        question = str(found["question"]).replace("<image 1>", "").strip()
        hint = found.get("hint")
        stem = f"{hint}\n{question}" if hint and str(hint) != "nan" else question
        listed = "".join(f"\n{letter}. {text}" for letter, text in options.items())
        row = {
            "id": str(_first(found, ("id", "index", "question_id"), place)),
            "tag": str(_first(found, ("category", "subfield", "question_type_id"), "", "all")),
            "prompt": stem + listed + (LETTER if options else SHORT),
            "truth": json.dumps(found["answer"]),
            "meta": {"options": options},
        }
        rows.append(row | _picture(found, images, place))
    return rows


def _options(found: Mapping[str, Any], place: str) -> dict[str, str]:
    given = found.get("options")
    if isinstance(given, str):
        try:
            given = ast.literal_eval(given)  # MMMU writes a list as Python would
        except (ValueError, SyntaxError):
            raise UserError(f"{place}: options {given!r} are no list") from None
    if given is None:
        given = [
            text
            for letter in "ABCD"
            if (text := found.get(letter) or found.get(f"choice_{letter.lower()}")) is not None
            and str(text) != "nan"
        ]
    return {letter: str(text) for letter, text in zip(LETTERS, given, strict=False)}


def _mmmu_json(asked: Run, folder: Path) -> None:
    found: dict[str, str] = {}
    for item, answer in _answered(asked, unasked=""):
        if not re.fullmatch(r"[a-z]+_\w+_\d+", item.id):
            raise UserError(
                f"MMMU's scorer reads the subject from an id as validation_Accounting_1, and "
                f"would leave {item.id!r} out",
                hint="tarkit eval prepare mmmu --data MMMU --out DIR, of rows with MMMU's own ids",
            )
        options = item.options
        found[item.id] = (parse_choice(answer, options) or "") if options else answer
    unasked = sum(item.unasked is not None for item in asked.items)
    if unasked:
        log.warning("%d of %d questions cannot be asked and are wrong", unasked, len(found))
    text = json.dumps(found, indent=1) + "\n"
    write_whole(folder / "total_val_output.json", text.encode())
