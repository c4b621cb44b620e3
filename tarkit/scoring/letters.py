"""Multiple choice and short answers: how each benchmark reads an answer, as published.

Sources: MMMU-Benchmark/MMMU `mmmu/utils/eval_utils.py` (Apache-2.0), SEED-Bench and MMBench as
lmms-eval reads them, GQA's exact match. No answer is guessed here: where the published program
draws a choice at random, `None` is returned, counted, and wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

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
