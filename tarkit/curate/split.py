"""`tarkit curate split`: a prompt becomes a template with `<image>` and the phrase it stands for.

Source: paper App. D.2 (text-image-to-image data; the instruction is the paper's). The answer of a
language model is parsed, repaired where that is safe, and verified: the template with the phrase in
place of `<image>` must give the prompt. Template and phrase are then cut from the prompt itself, so
that together they give it letter for letter.
"""

from __future__ import annotations

import ast
import collections
import functools
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.map_rows import Todo
from tarkit.config import Seed, load_config
from tarkit.curate.ask import AskConfig, AskPlan, Refused
from tarkit.llm.base import LlmQuestion
from tarkit.seeds import row_seed
from tarkit.terminal import print_note
from tarkit.vocab import IMAGE_MARK

INSTRUCTION = """\
For a given prompt, you need to replace part of its content with a placeholder <image>.

For example: INPUT:

In a cinematic and realistic portrayal of 1920s girls at college, we see them studying in a \
university with a dark academic atmosphere, where a haunting and creepy ghost story unfolds.

OUTPUT EXAMPLE 1:

{"prompt": "In a cinematic and realistic portrayal of <image>, we see them studying in a \
university with a dark academic atmosphere, where a haunting and creepy ghost story unfolds.", \
"<image>": "1920s girls at college."}

OUTPUT EXAMPLE 2:

{"prompt": "In a cinematic and realistic portrayal of 1920s girls at college, we see them studying \
in <image>, where a haunting and creepy ghost story unfolds.", \
"<image>": "a university with a dark academic atmosphere"}

Now I will give you another prompt, you need to output one sample for each prompt. Just output the \
result in json format, and do not output anything else.

INPUT:

"""

PHRASE_ALONE = "Which thing could be shown as a picture of its own in: {}"
EXAMPLES = (
    ("a photo of a red fox sitting in the snow at dawn", "a red fox"),
    ("two children play beside an old wooden boat, oil painting", "an old wooden boat"),
    ("a blue vase below a green clock", "a green clock"),
)

ARTICLES = ("a", "an", "the")
# Scripts without spaces, in which each letter counts as a word.
UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
MAX_BRACES = 100
"""Places of an answer where an object may begin; an answer of braces alone costs no more."""
CARRIED = ("key", "parent_key", "prompt", "source", "licence")


class SplitConfig(AskConfig):
    """How a language model is asked to split prompts."""

    style: Literal["paper", "phrase"] = "paper"
    """`paper`: the model writes the paper's JSON. `phrase`: it sees three examples and writes the
    phrase alone, which a model of 135M parameters can do."""
    seed: Seed = 0
    min_words_left: int = Field(default=2, ge=1)
    """Words that the template must keep: a template of `<image>` alone teaches nothing."""


@dataclass(frozen=True)
class PromptSplit:
    """`template` with its one `<image>`, and the `phrase` that it stands for."""

    template: str
    phrase: str
    repaired: bool = False
    """True where the answer's template did not fit and only its phrase was used."""


@dataclass(frozen=True, kw_only=True)
class SplitPlan(AskPlan):
    """Writes a prompts artifact: the rows of another with a template and a phrase.

    A row without a verified answer after the last try fails with the last reason.
    """

    kind = "prompts"
    input_kind = "prompts"

    @cached_property
    def settings(self) -> SplitConfig:
        return load_config(SplitConfig, self.config, self.overrides)

    def make(self, artifact: Artifact) -> None:
        counts: collections.Counter[str] = collections.Counter()
        self.map_answers(
            artifact,
            question=functools.partial(_question, self.settings),
            read=functools.partial(_read, self.settings, counts),
            carry=lambda row: {name: row[name] for name in CARRIED},
            name="split",
        )
        if counts:
            summary = ", ".join(f"{count} {name}" for name, count in counts.most_common())
            print_note(f"split: {summary}")


def _question(config: SplitConfig, todo: Todo, number: int) -> LlmQuestion:
    prompt = todo.row["prompt"]
    seed = row_seed(config.seed, todo.row["key"], number)
    if config.style == "paper":
        return LlmQuestion(INSTRUCTION + prompt, seed=seed)
    turns = tuple((PHRASE_ALONE.format(text), phrase) for text, phrase in EXAMPLES)
    return LlmQuestion(PHRASE_ALONE.format(prompt), seed=seed, examples=turns)


def _read(
    config: SplitConfig, counts: collections.Counter[str], todo: Todo, text: str
) -> Mapping[str, Any]:
    prompt, min_words = todo.row["prompt"], config.min_words_left
    if config.style == "phrase":
        split = split_at(prompt, text, min_words_left=min_words)
    else:
        split = split_of(prompt, text, min_words_left=min_words)
    counts["repaired" if split.repaired else "accepted as answered"] += 1
    return {"template": split.template, "phrase": split.phrase}


# ---- verification -------------------------------------------------------------------------------


def split_of(prompt: str, answer: str, *, min_words_left: int = 2) -> PromptSplit:
    """The split of `prompt` in an answer; raises Refused with the reason.

    The check: `template` has one `<image>`, and with `phrase` in its place it has the words of
    `prompt` (case, spacing, articles and punctuation do not count). Where that fails but the phrase
    occurs exactly once in the prompt, the template is made from the prompt: a repair.
    """
    _check_unmarked(prompt)
    template, phrase = _fields(answer)
    if template.count(IMAGE_MARK) == 1 and _words(phrase):
        words = _words(prompt)
        before, after = (len(_words(part)) for part in template.split(IMAGE_MARK))
        restored = template.replace(IMAGE_MARK, f" {phrase} ")
        if _texts(_words(restored)) == _texts(words):
            return _cut(prompt, words, before, len(words) - after, min_words_left)
    return replace(split_at(prompt, phrase, min_words_left=min_words_left), repaired=True)


def split_at(prompt: str, phrase: str, *, min_words_left: int = 2) -> PromptSplit:
    """The split of `prompt` at `phrase`; raises Refused unless it occurs exactly once."""
    _check_unmarked(prompt)
    words, phrase_words = _words(prompt), _texts(_words(phrase))
    if not phrase_words:
        raise Refused("the phrase has no word")
    num_words = len(phrase_words)
    starts = range(len(words) - num_words + 1)
    places = [at for at in starts if _texts(words[at : at + num_words]) == phrase_words]
    if not places:
        raise Refused("the phrase is not in the prompt")
    if len(places) > 1:
        raise Refused(f"the phrase does not say which part it is: it stands {len(places)} times")
    return _cut(prompt, words, places[0], places[0] + num_words, min_words_left)


def _check_unmarked(prompt: str) -> None:
    if IMAGE_MARK in prompt:
        raise Refused(f"the prompt itself contains {IMAGE_MARK}")


def _cut(
    prompt: str,
    words: Sequence[tuple[str, int, int]],
    start: int,
    stop: int,
    min_words_left: int,
) -> PromptSplit:
    """The split that takes out the words `start` to `stop`, and an article before them."""
    if len(words) - (stop - start) < min_words_left:
        raise Refused("too little of the prompt is left beside the phrase")
    first, last = words[start][1], words[stop - 1][2]
    article = re.search(rf"\b(?:{'|'.join(ARTICLES)})\s+$", prompt[:first], re.IGNORECASE)
    first = article.start() if article else first
    return PromptSplit(prompt[:first] + IMAGE_MARK + prompt[last:], prompt[first:last])


def _words(text: str) -> list[tuple[str, int, int]]:
    """(word, start, end) of the words in order, case-folded and without articles."""
    matches = [(match[0], *match.span()) for match in WORD.finditer(text)]
    folded = [(unicodedata.normalize("NFKC", w).casefold(), a, b) for w, a, b in matches]
    return [word for word in folded if word[0] not in ARTICLES]


def _texts(words: Sequence[tuple[str, int, int]]) -> list[str]:
    return [word for word, _, _ in words]


def _fields(answer: str) -> tuple[str, str]:
    """The template and the phrase of an answer's JSON object; raises Refused."""
    fields = _object(answer)
    if set(fields) != {"prompt", IMAGE_MARK}:
        raise Refused(f"the answer has other keys: {', '.join(map(str, fields))[:80]}")
    template, phrase = fields["prompt"], fields[IMAGE_MARK]
    if not isinstance(template, str) or not isinstance(phrase, str):
        raise Refused("the answer's values are not texts")
    if IMAGE_MARK in phrase:
        raise Refused(f"the phrase contains {IMAGE_MARK}")
    return template, phrase


def _object(answer: str) -> dict[str, Any]:
    """The first object with an answer's keys in a text, or else its first object; raises Refused.

    Text or a code fence around it, a comma before its end and Python's quotes are accepted.
    """
    first: dict[str, Any] | None = None
    for value in _objects(answer):
        if set(value) == {"prompt", IMAGE_MARK}:
            return value
        first = value if first is None else first
    if first is None:
        raise Refused("the answer is not JSON")
    return first


def _objects(answer: str) -> Iterator[dict[str, Any]]:
    """The objects of a text: those that are JSON, then those with a small fault, in their order."""
    starts = [match.start() for match in re.finditer(r"{", answer)][:MAX_BRACES]
    readers: tuple[Callable[[str], Any], ...] = (
        lambda text: json.JSONDecoder().raw_decode(text)[0],
        lambda text: json.loads(re.sub(r",\s*}$", "}", text)),
        ast.literal_eval,
    )
    whole = [answer[start : answer.rfind("}") + 1] for start in starts[:1]]
    flat = [*re.findall(r"{[^{}]*}", answer)[:MAX_BRACES], *whole]
    texts: tuple[Sequence[str], ...] = ([answer[start:] for start in starts], flat, flat)
    for read, candidates in zip(readers, texts, strict=True):
        for text in candidates:
            try:
                value = read(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(value, dict):
                yield value
