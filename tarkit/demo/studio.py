"""What the page does with a model, step by step and without the page.

A job is an iterator: each `Step` replaces what the person sees, and a job that is stopped ends at
its next step. Every picture has generators of its own seed, so jobs of two persons do not disturb
each other.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from PIL import Image

from tarkit.checkpoints.code_words import CodeWords, read_code_words
from tarkit.checkpoints.hub import DtokName, find
from tarkit.checkpoints.tar_config import Sampling
from tarkit.errors import UserError
from tarkit.images import MAX_FILE_BYTES, decode
from tarkit.inference.self_reflect import JUDGES, JudgeName, candidate_seed, judge, reading_scale
from tarkit.inference.tar_model import Tar
from tarkit.report.dialect_facts import Dialect, PictureInCodes
from tarkit.report.dialect_sheet import dialect_sheet
from tarkit.seeds import MAX_SEED
from tarkit.vocab import IMAGE_MARK, Scale

MAX_PICTURES = 8
MAX_PROMPT_CHARACTERS = 500
NUM_TELLING = 12


@dataclass(frozen=True)
class Step:
    """What a person sees at one moment: pictures with captions, lines about them, and a table."""

    pictures: tuple[tuple[Image.Image, str], ...] = ()
    lines: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    """The first row has the names of the columns."""


@dataclass(frozen=True)
class DrawSettings:
    """How pictures are drawn; None is the model's own value."""

    seed: int = 0
    scale: int | None = None
    prompt_guidance: float | None = None
    guidance: float | None = None
    dtok: DtokName | None = None


@dataclass(frozen=True)
class Candidate:
    """One picture of a prompt and the score that each judge gives it."""

    picture: Image.Image
    scores: dict[JudgeName, float]


@dataclass
class Studio:
    """A model with each of its de-tokenizers that was used so far; all share its other parts."""

    model: str
    device: str
    precision: str
    dtoks: tuple[DtokName, ...]
    """The de-tokenizers that the model has; the first is used where none is named."""
    loaded: dict[DtokName, Tar] = field(default_factory=dict)

    @classmethod
    def load(
        cls, model: str = "mini", *, device: str = "cpu", precision: str = "float32"
    ) -> Studio:
        """Load a model with its first de-tokenizer; raises UserError as `Tar.load` does."""
        dtoks = _dtoks_of(model) or ("ar",)
        tar = Tar.load(model, device=device, dtok=dtoks[0], precision=precision)
        return cls(model, device, precision, dtoks, {dtoks[0]: tar})

    @property
    def tar(self) -> Tar:
        return self.loaded[self.dtoks[0]]

    def tar_with(self, dtok: DtokName | None) -> Tar:
        """The model with a de-tokenizer, which is loaded when it is first named."""
        if dtok is None:
            return self.tar
        if dtok not in self.loaded:
            other = Tar.load(self.model, device=self.device, dtok=dtok, precision=self.precision)
            self.loaded[dtok] = replace(other, mllm=self.tar.mllm, tokenizer=self.tar.tokenizer)
        return self.loaded[dtok]

    def draw(
        self,
        prompt: str,
        settings: DrawSettings = DrawSettings(),
        *,
        n: int = 4,
        images: Sequence[Image.Image] = (),
    ) -> Iterator[Step]:
        """`n` pictures of a prompt, one more at each step; `images` replace its `<image>` marks.

        Picture k has the seed `seed + k`. Raises UserError for a prompt that cannot be drawn.
        """
        prompt = _checked_prompt(prompt, len(images))
        _require_between("the number of pictures", n, 1, MAX_PICTURES)
        _require_between("the seed", settings.seed, 0, MAX_SEED)
        tar, sampling = self._prepared(settings)
        notes = self._unknown_words(prompt)
        pictures: list[tuple[Image.Image, str]] = []
        yield Step((), (f"Drawing picture 1 of {n} ...", *notes))
        for number in range(n):
            seed = settings.seed + number
            picture = tar.imagine(
                prompt,
                seed=seed,
                scale=Scale(settings.scale) if settings.scale else None,
                images=images,
                sampling=sampling,
            )
            pictures.append((picture, f"seed {seed}"))
            is_last = number + 1 == n
            now = f"Done: {n} of {n}." if is_last else f"Drawing picture {number + 2} of {n} ..."
            yield Step(tuple(pictures), (now, *notes))

    def edit(
        self,
        picture: Image.Image,
        prompt: str,
        settings: DrawSettings = DrawSettings(),
        *,
        n: int = 4,
    ) -> Iterator[Step]:
        """`n` pictures of a prompt in which one `<image>` mark stands for `picture`."""
        return self.draw(prompt, settings, n=n, images=[picture])

    def answer(self, picture: Image.Image, question: str) -> str:
        """The model's answer to a question about a picture."""
        if not question.strip():
            raise UserError("The question is empty.", hint="Describe the image.")
        return self.tar.describe(picture, _checked_length(question, "question"))

    def reconstruct(
        self, picture: Image.Image, settings: DrawSettings = DrawSettings()
    ) -> Iterator[Step]:
        """The picture as it comes back from its codes: one more scale at each step, full first."""
        tar, sampling = self._prepared(settings)
        yield Step(((picture, "your picture"),), ("Reading the picture ...",))
        codes = tar.encode([picture], tar.scales)
        pictures = [(picture, "your picture")]
        for scale in tar.scales:
            drawn = tar.draw(codes[scale], seeds=[settings.seed], sampling=sampling)[0]
            pictures.append((drawn, f"{scale.num_codes(tar.grid)} codes"))
            left = len(tar.scales) + 1 - len(pictures)
            yield Step(tuple(pictures), (f"{left} more ..." if left else "Done.",))

    def candidates(
        self, prompt: str, settings: DrawSettings = DrawSettings(), *, n: int = 4
    ) -> Iterator[Candidate]:
        """`n` candidates for a prompt, with the scores of both judges of the decoded pictures.

        The same candidates and scores as `self_reflect.best_of` on pixels has.
        """
        prompt = _checked_prompt(prompt, 0)
        _require_between("the number of candidates", n, 2, MAX_PICTURES)
        _require_between("the seed", settings.seed, 0, MAX_SEED)
        tar, sampling = self._prepared(settings)
        scale = Scale(settings.scale) if settings.scale else tar.default_scale
        for number in range(n):
            seed = candidate_seed(settings.seed, number)
            picture = tar.imagine(prompt, seed=seed, scale=scale, sampling=sampling)
            scales = {by: reading_scale(tar, by, scale) for by in JUDGES}
            codes = tar.encode([picture], sorted(set(scales.values())))
            scores = {by: judge(tar, codes[scales[by]], [prompt], by)[0] for by in JUDGES}
            yield Candidate(picture, scores)

    def reflect(
        self,
        prompt: str,
        settings: DrawSettings = DrawSettings(),
        *,
        n: int = 4,
        by: JudgeName = "gain",
    ) -> Iterator[Step]:
        """The candidates of a prompt, one more at each step, and at the end which one is chosen.

        The first picture of the last step is the chosen one.
        """
        found: list[Candidate] = []
        notes = self._unknown_words(prompt)
        yield Step((), (f"Drawing candidate 1 of {n} ...", *notes))
        for candidate in self.candidates(prompt, settings, n=n):
            found.append(candidate)
            is_last = len(found) == n
            best = chosen(found, by) if is_last else None
            now = f"Drawing candidate {len(found) + 1} of {n} ..."
            if best is not None:
                now = f"Done: the model chose candidate {best + 1} of {n}. It comes first."
            shown = [(each.picture, f"candidate {k}") for k, each in enumerate(found, start=1)]
            if best is not None:
                shown.insert(0, (shown.pop(best)[0], "chosen"))
            yield Step(tuple(shown), (now, *notes), _score_table(found, best))

    def dialect(self, picture: Image.Image) -> Iterator[Step]:
        """The word behind every code of a picture, on one sheet."""
        yield Step((), ("Reading the picture ...",))
        codes = self.tar.encode([picture], self.tar.scales)
        rows = {scale: each[0].cpu().numpy() for scale, each in codes.items()}
        shown = PictureInCodes(picture, rows, self.tar.grid)
        dialect = Dialect(self.tar.ta_tok, self._code_words)
        sheet = dialect_sheet(dialect, shown, name="your picture")
        words = [dialect.words.words[code] for code, _ in shown.telling(None)[:NUM_TELLING]]
        yield Step(((sheet, ""),), (f"The words that tell most: {', '.join(words)}",))

    @functools.cached_property
    def _code_words(self) -> CodeWords:
        places = self.tar.places
        rows = self.tar.ta_tok.model.codebook.embedding.weight
        assert places.ta_tok is not None  # where its TA-Tok came from
        return read_code_words(places.ta_tok, rows, places.mllm, compare=False)

    def _prepared(self, settings: DrawSettings) -> tuple[Tar, Sampling]:
        tar = self.tar_with(settings.dtok)
        changes = {"guidance": settings.guidance, "prompt_guidance": settings.prompt_guidance}
        given = {name: value for name, value in changes.items() if value is not None}
        return tar, tar.sampling.changed(given)

    def _unknown_words(self, prompt: str) -> tuple[str, ...]:
        unknown = self.tar.unknown_words([prompt])
        if not unknown:
            return ()
        return (
            f"This model has never read: {', '.join(unknown)}. It draws something, but it cannot "
            "know what is meant. The words that it knows are listed below.",
        )


def read_upload(path: Path | None) -> Image.Image:
    """The picture that a person gave; raises UserError with a sentence for a person."""
    if path is None:
        raise UserError("There is no picture yet.", hint="Give one, or take the example.")
    num_bytes = path.stat().st_size
    if num_bytes > MAX_FILE_BYTES:
        raise UserError(
            f"The file has {num_bytes >> 20} MB; at most {MAX_FILE_BYTES >> 20} MB are read."
        )
    try:
        return decode(path.read_bytes())
    except UserError as error:
        raise UserError(
            f"This file cannot be read as a picture: {error.message}.",
            hint="Try another file, for example a JPEG or a PNG.",
        ) from None


def chosen(candidates: Sequence[Candidate], by: JudgeName) -> int:
    """The place of the candidate with the highest score; of equal ones the first."""
    scores = [candidate.scores[by] for candidate in candidates]
    return scores.index(max(scores))


def _dtoks_of(model: str) -> tuple[DtokName, ...]:
    """The de-tokenizers that are there for a model."""
    names: list[DtokName] = []
    for name in get_args(DtokName):
        with contextlib.suppress(UserError):
            if all(path.exists() for path in find(model, dtok=name).parts.values()):
                names.append(name)
    return tuple(names)


def _score_table(candidates: Sequence[Candidate], best: int | None) -> tuple[tuple[str, ...], ...]:
    head = ("candidate", "P(yes)", "gain")
    rows = [
        (
            f"{k + 1} (chosen)" if k == best else f"{k + 1}",
            f"{each.scores['yes']:.2f}",
            f"{each.scores['gain']:+.2f}",
        )
        for k, each in enumerate(candidates)
    ]
    return (head, *rows)


def _checked_prompt(prompt: str, num_images: int) -> str:
    if not prompt.strip():
        raise UserError("The prompt is empty.", hint="Write what to draw, or take an example.")
    marks = prompt.count(IMAGE_MARK)
    if marks != num_images:
        wanted = f"{num_images} times" if num_images != 1 else "once"
        raise UserError(
            f"{IMAGE_MARK} must be in the prompt {wanted}, and it is there {marks} times.",
            hint=f"Write {IMAGE_MARK} where your picture belongs."
            if num_images
            else f"Take {IMAGE_MARK} out, or go to Edit.",
        )
    return _checked_length(prompt, "prompt")


def _checked_length(text: str, what: str) -> str:
    """The text, stripped; UserError for a long one, and for one that is not Unicode text."""
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise UserError(
            f"The {what} has {len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are read."
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"The {what} has characters that are not text.") from None
    return text.strip()


def _require_between(what: str, value: int | None, low: int, high: int) -> None:
    if value is None or not low <= value <= high:
        raise UserError(f"{what[0].upper()}{what[1:]} must be between {low} and {high}.")
