"""The one vocabulary of words and pictures: scales, visual token ids, and the prompts' exact bytes.

Source: paper Sec. 3.3 and App. C.1; where the published program differs, it is followed (said so).

Letters: N codes of one picture, K codes in the codebook, V rows of the language model's vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Two bars apart, and not the same thing: a picture's tag and a turn's tag.
IMAGE_START = "<im_start>"
IMAGE_END = "<im_end>"
CHAT_START = "<|im_start|>"
CHAT_END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"

IMAGE_MARK = "<image>"
"""Where a picture stands in the text of a chat row or a prompt; never a token."""


Supervised = Literal["answers", "published"]
"""Which tokens of a chat are learned: see `Vocabulary.chat`."""


class Scale(IntEnum):
    """How coarsely the encoder's grid is pooled before it is quantised (paper Sec. 3.1).

    A grid of 27x27 (the paper's) gives 27, 13 or 9 codes a side, one of 12x12 (the miniature's)
    12, 6 or 4: the published program pools with kernel and stride s and drops what is left over.
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
        """The scale whose pictures have `num_codes` codes; ValueError names the ones that exist."""
        for scale in cls:
            if scale.num_codes(grid) == num_codes:
                return scale
        known = ", ".join(f"{s.num_codes(grid)} (scale {int(s)})" for s in cls)
        raise ValueError(f"{num_codes} codes fit no scale of a {grid}x{grid} grid; known: {known}")


@dataclass(frozen=True, kw_only=True)
class VisualVocabulary:
    """Where the visual tokens lie in the vocabulary: contiguous, after the text (paper App. C.1).

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
        return self.first_id + 1 + int(scale)

    @property
    def first_code(self) -> int:
        return self.first_id + self.NUM_TAGS

    @property
    def size(self) -> int:
        """V once the visual tokens are in: text tokens, tags and codes."""
        return self.first_code + self.num_codes

    def tokens(self) -> list[str]:
        """The names of all visual tokens in the order of their ids."""
        tags = [IMAGE_START, IMAGE_END, *(s.token for s in Scale)]
        return tags + [f"<I{code}>" for code in range(self.num_codes)]


class TextTokenizer:
    """A byte-level tokenizer that reads words only: no text can turn into a special token.

    The published program finds codes by a regular expression in prompt and answer, so a prompt
    that says `<I5>` injects a code. Here added tokens are cut out of the tokenizer that reads
    text, and their ids are placed by name alone.
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
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._plain.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids that are text; special and visual tokens have none and are left out."""
        special = set(self.special.values())
        limit = self.size
        kept = [i for i in ids if i < limit and i not in special]
        text: str = self._plain.decode(kept, skip_special_tokens=False)
        return text


def split_tokenizer(tokenizer_json: str) -> tuple[TextTokenizer, VisualVocabulary | None]:
    """A published language model's tokenizer as words and pictures apart.

    The visual tokens stand among the added ones; ids are read, never assumed, and must be
    contiguous (published: `<im_start>` 151665 to `<I65535>` 217205). What is added after them, as
    the published `<image>` beyond the embedding table, is no token here. Raises ValueError where
    a visual token is missing or out of order.
    """
    description = json.loads(tokenizer_json)
    added = {token["content"]: token["id"] for token in description.get("added_tokens") or []}
    if IMAGE_START not in added:
        return TextTokenizer(tokenizer_json), None
    codes = sum(name.startswith("<I") and name[2:-1].isdecimal() for name in added)
    visual = VisualVocabulary(first_id=added[IMAGE_START], num_codes=codes)
    for number, name in enumerate(visual.tokens(), start=visual.first_id):
        if added.get(name) != number:
            raise ValueError(f"{name} has id {added.get(name)}, not {number}")
    words = [t for t in description["added_tokens"] if t["id"] < visual.first_id]
    text = TextTokenizer(json.dumps({**description, "added_tokens": words}))
    if text.size != visual.first_id:
        raise ValueError(f"{text.size} text tokens, but pictures begin at {visual.first_id}")
    return text, visual


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Text tokenizer and visual tokens together: what turns a chat into ids and labels."""

    text: TextTokenizer
    visual: VisualVocabulary | None
    system: str | None = "You are a helpful assistant."
    """The system turn of chats that have none of their own; "" or None leaves it out."""

    IGNORED = -100

    @property
    def size(self) -> int:
        return self.visual.size if self.visual else self.text.size

    @property
    def chat_start(self) -> int:
        return self.text.special[CHAT_START]

    @property
    def chat_end(self) -> int:
        return self.text.special[CHAT_END]

    def picture(self, codes: Sequence[int], scale: Scale, *, tagged: bool) -> list[int]:
        """Ids of one picture: bare codes in a question, with tags and scale in an answer."""
        if self.visual is None:
            raise ValueError("this vocabulary has no visual tokens")
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

        Raises ValueError where marks and pictures differ in number.
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

        An answer is read apart from its header, as it is written: a newline that it begins with
        must not merge with the header's, which stands in the prompt already.
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
        """Ids and labels of a whole chat.

        "answers": only what the assistant says is supervised, and its `<|im_end|>`. "published": as
        in the published program also the assistant's header, the newline after its turn, and every
        turn tag and newline of all turns, which inference never predicts. The first token has
        nothing to be predicted from and is never supervised.
        """
        ids: list[int] = []
        labels: list[int] = []
        turns = list(messages)
        if self.system and (not turns or turns[0]["role"] != "system"):
            turns.insert(0, {"role": "system", "content": self.system})
        rest = list(pictures)
        for turn in turns:
            marks = turn["content"].count(IMAGE_MARK)
            mine, rest = rest[:marks], rest[marks:]
            turn_ids = self.turn(turn["role"], turn["content"], mine)
            ids += turn_ids
            labels += self._labels(turn_ids, turn["role"] == "assistant", supervise)
        if rest:
            raise ValueError(f"{len(rest)} pictures more than {IMAGE_MARK} marks")
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
        """Ids up to where the model goes on: with `draw`, up to `<im_start><S..>`.

        Marks in `content` count only where `pictures` are given: a typed `<image>` without a
        picture is just a word.
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
    """A byte-level BPE made from `texts`, as the text of a `tokenizer.json`.

    Ids 0..255 are the bytes, so any text can be read; the special tokens come last.
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
    """The question whose answer, yes or no, judges a picture of `prompt`."""
    return f'does this image match "{prompt}"?'
