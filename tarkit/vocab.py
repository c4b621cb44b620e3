"""The vocabulary of words and pictures: scales, visual token ids, and the ids of prompts and chats.

Source: paper Sec. 3.3 and App. C.1. Where the published program differs from the paper, the program
is followed; departures from the program are stated where they occur.

Letters: N codes of one picture, K codes in the codebook, V rows of the language model's vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, NonNegativeInt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Two bars apart: `<im_start>` begins a picture, `<|im_start|>` begins a turn of a chat.
IMAGE_START = "<im_start>"
IMAGE_END = "<im_end>"
CHAT_START = "<|im_start|>"
CHAT_END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"

IMAGE_MARK = "<image>"
"""Marks the place of a picture in the text of a chat row or a prompt; it is never a token."""

FEATURE = -1
"""Stands among the codes of a picture for a position that holds a feature of a vision encoder."""

Supervised = Literal["answers", "published"]
"""Which tokens of a chat are learned: see `Vocabulary.chat`."""


class Scale(IntEnum):
    """The factor by which the encoder's grid is pooled before it is quantised (paper Sec. 3.1).

    The paper's grid of 27x27 gives 27, 13 or 9 codes per side, the miniature's grid of 12x12 gives
    12, 6 or 4: the published program pools with kernel and stride s and drops the remainder.
    """

    FULL = 1
    HALF = 2
    THIRD = 3

    def side(self, grid: int) -> int:
        """Codes along one side of a picture whose encoder grid is `grid` wide."""
        return grid // int(self)

    def num_codes(self, grid: int) -> int:
        """N, the number of codes of one picture."""
        return self.side(grid) ** 2

    @property
    def token(self) -> str:
        """The scale's own token: `<S0>` for `Scale.FULL`."""
        return f"<S{int(self) - 1}>"

    @classmethod
    def of(cls, num_codes: int, grid: int) -> Scale:
        """The scale whose pictures have `num_codes` codes; ValueError if there is none."""
        for scale in cls:
            if scale.num_codes(grid) == num_codes:
                return scale
        known = ", ".join(f"{s.num_codes(grid)} (scale {int(s)})" for s in cls)
        raise ValueError(f"{num_codes} codes fit no scale of a {grid}x{grid} grid; known: {known}")


def _some_scale(odds: tuple[int, int, int]) -> tuple[int, int, int]:
    if not any(odds):
        raise ValueError(f"odds of scales are all 0 in {list(odds)}: one must be above 0")
    return odds


ScaleOdds = Annotated[
    tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt], AfterValidator(_some_scale)
]
"""Odds of scales 1, 2 and 3 in a config; one is above 0."""


def drawn_scales(odds: ScaleOdds) -> list[Scale]:
    """The scales whose odds are above 0."""
    return [scale for scale, weight in zip(Scale, odds, strict=True) if weight]


@dataclass(frozen=True, kw_only=True)
class VisualVocabulary:
    """The ids of the visual tokens: contiguous, after those of the text (paper App. C.1).

    The order is the published one: `<im_start> <im_end> <S0> <S1> <S2> <I0> ... <I{K-1}>`.
    """

    first_id: int
    num_codes: int

    NUM_TAGS = 5

    @property
    def image_start(self) -> int:
        return self.first_id

    @property
    def image_end(self) -> int:
        return self.first_id + 1

    def scale(self, scale: Scale) -> int:
        """The id of a scale's token."""
        return self.first_id + 1 + int(scale)

    @property
    def first_code(self) -> int:
        """The id of `<I0>`."""
        return self.first_id + self.NUM_TAGS

    @property
    def size(self) -> int:
        """V, the number of text tokens, tags and codes together."""
        return self.first_code + self.num_codes

    @property
    def feature(self) -> int:
        """The id at a position that holds a feature in place of a token: beyond the vocabulary."""
        return self.size

    def tokens(self) -> list[str]:
        """The names of all visual tokens in the order of their ids."""
        tags = [IMAGE_START, IMAGE_END, *(s.token for s in Scale)]
        return tags + [f"<I{code}>" for code in range(self.num_codes)]


class TextTokenizer:
    """A byte-level tokenizer of plain text, in which no text becomes a special token.

    The published program finds codes in prompts and answers by a regular expression, so a prompt
    that contains `<I5>` injects a code. Here the tokenizer that reads text has no added tokens;
    their ids are in `special`, by name.
    """

    def __init__(self, tokenizer_json: str) -> None:
        from tokenizers import Tokenizer

        description = json.loads(tokenizer_json)
        added = description.get("added_tokens") or []
        self.special: dict[str, int] = {token["content"]: token["id"] for token in added}
        plain = {**description, "added_tokens": []}
        self._plain: Tokenizer = Tokenizer.from_str(json.dumps(plain))
        self._plain.no_truncation()
        self._plain.no_padding()
        self.json = tokenizer_json
        text_ids = self._plain.get_vocab(with_added_tokens=False).values()
        self.size = max([*text_ids, *self.special.values()]) + 1

    def encode(self, text: str) -> list[int]:
        """The ids of a text; none of them is a special token."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, for each of several texts."""
        encodings = self._plain.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special and visual tokens are left out."""
        special = set(self.special.values())
        limit = self.size
        text_ids = [i for i in ids if i < limit and i not in special]
        text: str = self._plain.decode(text_ids, skip_special_tokens=False)
        return text


def split_tokenizer(tokenizer_json: str) -> tuple[TextTokenizer, VisualVocabulary | None]:
    """The text tokenizer and the visual vocabulary of a published `tokenizer.json`.

    The visual tokens are some of the added tokens. Their ids are read, not assumed, and must be
    contiguous (published: `<im_start>` 151665 to `<I65535>` 217205). Tokens added after them are
    dropped, such as the published `<image>`, whose id is beyond the embedding table. Without
    `<im_start>` the visual vocabulary is None. Raises ValueError when a visual token is missing or
    out of order.
    """
    description = json.loads(tokenizer_json)
    added = {token["content"]: token["id"] for token in description.get("added_tokens") or []}
    if IMAGE_START not in added:
        return TextTokenizer(tokenizer_json), None
    num_codes = sum(name.startswith("<I") and name[2:-1].isdecimal() for name in added)
    visual = VisualVocabulary(first_id=added[IMAGE_START], num_codes=num_codes)
    for number, name in enumerate(visual.tokens(), start=visual.first_id):
        if added.get(name) != number:
            raise ValueError(f"{name} has id {added.get(name)}, not {number}")
    text_tokens = [t for t in description["added_tokens"] if t["id"] < visual.first_id]
    text = TextTokenizer(json.dumps({**description, "added_tokens": text_tokens}))
    if text.size != visual.first_id:
        raise ValueError(f"{text.size} text tokens, but pictures begin at {visual.first_id}")
    return text, visual


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Text tokenizer and visual tokens together; turns chats into ids and labels."""

    text: TextTokenizer
    visual: VisualVocabulary | None
    system: str | None = "You are a helpful assistant."
    """The system turn of chats that have none; "" or None leaves it out."""
    feature_grid: int | None = None
    """The grid of the vision encoder whose features stand for pictures that are read, where a model
    has separate encoders (paper Sec. 4.3); None: pictures that are read are codes."""

    IGNORED = -100
    """The label of an id that is not supervised."""

    @property
    def chat_start(self) -> int:
        return self.text.special[CHAT_START]

    @property
    def chat_end(self) -> int:
        return self.text.special[CHAT_END]

    def picture(self, codes: Sequence[int], scale: Scale, *, tagged: bool) -> list[int]:
        """Ids of one picture: its codes, and with `tagged` the tags and the scale around them.

        Answers have tagged pictures, questions bare codes, which may all be `FEATURE`. Raises
        ValueError for a code outside the codebook, or a vocabulary without visual tokens.
        """
        if self.visual is None:
            raise ValueError("this vocabulary has no visual tokens")
        if codes and max(codes) == FEATURE and not tagged:
            return [self.visual.feature] * len(codes)
        if codes and not 0 <= min(codes) <= max(codes) < self.visual.num_codes:
            raise ValueError(
                f"codes span {min(codes)} to {max(codes)}, the codebook has {self.visual.num_codes}"
            )
        ids = [self.visual.first_code + code for code in codes]
        if not tagged:
            return ids
        start = [self.visual.image_start, self.visual.scale(scale)]
        return [*start, *ids, self.visual.image_end]

    def turn(
        self, role: str, content: str, pictures: Sequence[tuple[Scale, Sequence[int]]]
    ) -> list[int]:
        """Ids of `<|im_start|>{role}\\n{content}<|im_end|>\\n`, a picture at each `<image>` mark.

        Raises ValueError when marks and pictures differ in number.
        """
        parts = content.split(IMAGE_MARK)
        if len(parts) - 1 != len(pictures):
            raise ValueError(
                f"{len(parts) - 1} {IMAGE_MARK} marks but {len(pictures)} pictures in {content!r}"
            )
        return self._turn(role, parts, pictures)

    def _turn(
        self, role: str, parts: Sequence[str], pictures: Sequence[tuple[Scale, Sequence[int]]]
    ) -> list[int]:
        ids = [self.chat_start, *self._opening(role, parts[0])]
        for (scale, codes), text in zip(pictures, parts[1:], strict=True):
            ids += self.picture(codes, scale, tagged=role == "assistant")
            ids += self.text.encode(text) if text else []
        return [*ids, self.chat_end, *self.text.encode("\n")]

    def _opening(self, role: str, text: str) -> list[int]:
        """Ids of a turn's header and its first words.

        An answer is tokenized apart from its header, because the model generates it apart: a
        newline at its start must not merge with that of the header, which is in the prompt.
        """
        if role == "assistant":
            return self.text.encode(f"{role}\n") + (self.text.encode(text) if text else [])
        return self.text.encode(f"{role}\n{text}")

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        pictures: Sequence[tuple[Scale, Sequence[int]]] = (),
        *,
        supervise: Supervised = "answers",
    ) -> tuple[list[int], list[int]]:
        """Ids and labels, of equal length, of a whole chat.

        "answers": only the answers are supervised, which are what the assistant says with its
        `<|im_end|>`. "published": as in the published program also the assistant's header, the
        newline after its turn, and every turn tag and newline of all turns, which inference never
        predicts. The first token is never supervised: nothing comes before it. Raises ValueError
        when marks and pictures differ in number.
        """
        ids: list[int] = []
        labels: list[int] = []
        turns = list(messages)
        if self.system and (not turns or turns[0]["role"] != "system"):
            turns.insert(0, {"role": "system", "content": self.system})
        remaining = list(pictures)
        for turn in turns:
            marks = turn["content"].count(IMAGE_MARK)
            own, remaining = remaining[:marks], remaining[marks:]
            turn_ids = self.turn(turn["role"], turn["content"], own)
            ids += turn_ids
            labels += self._labels(turn_ids, turn["role"] == "assistant", supervise)
        if remaining:
            raise ValueError(f"{len(remaining)} pictures more than {IMAGE_MARK} marks")
        if labels:
            labels[0] = self.IGNORED
        return ids, labels

    def _labels(self, turn: list[int], answer: bool, supervise: Supervised) -> list[int]:
        newline = self.text.encode("\n")
        if supervise == "published":
            everywhere = {self.chat_start, self.chat_end, *newline}
            return [i if answer or i in everywhere else self.IGNORED for i in turn]
        if not answer:
            return [self.IGNORED] * len(turn)
        header, end = 1 + len(self.text.encode("assistant\n")), len(turn) - len(newline)
        return [self.IGNORED] * header + turn[header:end] + [self.IGNORED] * len(newline)

    def prompt(
        self,
        content: str,
        pictures: Sequence[tuple[Scale, Sequence[int]]] = (),
        *,
        draw: Scale | None,
    ) -> list[int]:
        """Ids of a user turn, up to where the answer begins; with `draw`, up to `<im_start><S..>`.

        Without `pictures` an `<image>` in `content` is plain text. Raises ValueError when marks and
        pictures differ in number, or to draw without visual tokens.
        """
        ids: list[int] = []
        if self.system:
            ids += self._turn("system", [self.system], ())
        ids += (
            self.turn("user", content, pictures) if pictures else self._turn("user", [content], ())
        )
        ids += [self.chat_start, *self.text.encode("assistant\n")]
        if draw is not None:
            if self.visual is None:
                raise ValueError("this vocabulary has no visual tokens")
            ids += [self.visual.image_start, self.visual.scale(draw)]
        return ids

    def question(self, question: str, picture: tuple[Scale, Sequence[int]]) -> list[int]:
        """Ids of a picture, a newline and a question about it, up to where the answer begins."""
        ids: list[int] = []
        if self.system:
            ids += self._turn("system", [self.system], ())
        ids += self._turn("user", ["", f"\n{question}"], [picture])
        return [*ids, self.chat_start, *self.text.encode("assistant\n")]


def train_text_tokenizer(texts: Iterable[str], *, vocab_size: int) -> str:
    """A byte-level BPE trained on `texts`, as the text of a `tokenizer.json`.

    `vocab_size` is the most tokens that it may have. Ids 0 to 255 are the bytes, so that every text
    can be encoded; the three special tokens come last.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [END_OF_TEXT, CHAT_START, CHAT_END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials])
    text: str = tokenizer.to_str()
    return text


def judgement_question(prompt: str) -> str:
    """The question whether a picture shows `prompt`; its answer is yes or no."""
    return f'does this image match "{prompt}"?'
