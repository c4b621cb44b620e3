"""Samples of an evaluation on disk: they are made in batches, resumed, and their failures kept.

A batch is cut from the whole list and made completely, so that a sample never depends on which
others existed already. A sample that fails leaves its reason in a file (`0000.error` instead of
`0000.png`). Only `retry_failed` makes a failed or damaged sample again. An answer about a file that
has changed is made again in any case.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from tarkit.artifacts.files import read_lines, read_text, sweep, write_whole
from tarkit.errors import UserError
from tarkit.images import png_bytes, read_picture
from tarkit.progress import Progress

ItemT = TypeVar("ItemT")
MadeT = TypeVar("MadeT")

RETRY = "--retry-failed with the command that made it"


@dataclass(frozen=True)
class Failure:
    """The reason why a sample could not be made or read."""

    reason: str


def make_pictures(
    name: str,
    items: Sequence[tuple[Path, ItemT]],
    make: Callable[[Sequence[ItemT]], Sequence[Image.Image]],
    *,
    batch_size: int,
    retry_failed: bool = False,
) -> None:
    """Write the PNG files that are missing; with `retry_failed` also those failed or damaged.

    `make` draws the pictures of a batch. Raises UserError if every picture fails.
    """
    for folder in sorted({file.parent for file, _ in items}):
        sweep(folder)  # in which this run may have nothing to write
    if retry_failed:
        for file, _ in items:
            if _failed(file) or _damaged(file):
                _error_file(file).unlink(missing_ok=True)
                file.unlink(missing_ok=True)
    with Progress(name, total=len(items), unit="pictures") as progress:
        for batch in _batches(items, batch_size):
            missing = {file for file, _ in batch if not (file.exists() or _failed(file))}
            made = attempt(make, [item for _, item in batch]) if missing else []
            for (file, _), picture in zip(batch, made, strict=bool(missing)):
                if file not in missing:
                    continue
                if isinstance(picture, Failure):
                    write_whole(_error_file(file), picture.reason.encode())
                else:
                    write_whole(file, png_bytes(picture))
            progress.advance(len(batch), failed=sum(_failed(file) for file, _ in batch))
    if items and all(_failed(file) for file, _ in items):
        reason = read_text(_error_file(items[0][0]), hint=RETRY)
        for file, _ in items:
            _error_file(file).unlink()
        raise UserError(f"{name}: all {len(items)} pictures failed, the first with: {reason}")


def open_pictures(files: Sequence[Path]) -> Iterator[Image.Image | Failure]:
    """Each picture, or the reason why it failed.

    Raises UserError for a picture that was never made, and for an unreadable reason.
    """
    for file in files:
        if _failed(file):
            yield Failure(read_text(_error_file(file), hint=RETRY))
            continue
        if not file.exists():
            raise UserError(
                f"{file} has not been made", hint="the command that began the evaluation, again"
            )
        try:
            yield read_picture(file)
        except UserError as error:
            yield Failure(error.message)


def make_answers(
    name: str,
    folder: Path,
    items: Sequence[ItemT],
    make: Callable[[Sequence[ItemT]], Sequence[str]],
    *,
    batch_size: int,
    retry_failed: bool = False,
    about: Callable[[ItemT], str | None] | None = None,
) -> None:
    """Write the files of answers that are missing, `00000.jsonl` for the first batch.

    With `retry_failed` also those with a failed answer and those that are damaged. `about` gives
    the fingerprint of the file that a question is about, None where there is no such file. It is
    written with the answer, and a batch whose fingerprints have changed is made again. Raises
    UserError for a damaged file, and if every answer fails.
    """
    first, num_failed, files = "", 0, []
    sweep(folder)  # in which this run may have nothing to write
    with Progress(name, total=len(items), unit="answers") as progress:
        for number, batch in enumerate(_batches(items, batch_size)):
            file = folder / f"{number:05d}.jsonl"
            files.append(file)
            fingerprints = [about(item) if about is not None else None for item in batch]
            answers = _valid_answers(file, fingerprints, retry_failed) if file.exists() else []
            if not answers:
                answers = attempt(make, batch)
                write_whole(file, "".join(map(_line, answers, fingerprints)).encode())
            reasons = [answer.reason for answer in answers if isinstance(answer, Failure)]
            num_failed += len(reasons)
            first = first or "".join(reasons[:1])
            progress.advance(len(batch), failed=len(reasons))
    if items and num_failed == len(items):
        for file in files:
            file.unlink()
        raise UserError(f"{name}: all {len(items)} answers failed, the first with: {first}")


def read_answers(folder: Path, count: int, *, batch_size: int) -> list[str | Failure]:
    """The answers in order; raises UserError where some are missing or a file is damaged."""
    answers: list[str | Failure] = []
    for number, first in enumerate(range(0, count, batch_size)):
        file = folder / f"{number:05d}.jsonl"
        if not file.exists():
            raise UserError(
                f"{file} has not been made", hint="the command that began the evaluation, again"
            )
        answers += [answer for answer, _ in _read(file, min(batch_size, count - first))]
    return answers


def attempt(
    make: Callable[[Sequence[ItemT]], Sequence[MadeT]], items: Sequence[ItemT]
) -> list[MadeT | Failure]:
    """The samples of a batch; if `make` raises, those of each item alone, so that few fail."""
    try:
        made = list(make(items))
        assert len(made) == len(items), f"{len(made)} made of {len(items)}"
        return [*made]
    except Exception as error:  # any error of a model on one sample must not end the others
        if len(items) == 1:
            name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            return [Failure(f"{name}{error}")]
    return [result for item in items for result in attempt(make, [item])]


def _batches(items: Sequence[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _error_file(picture: Path) -> Path:
    return picture.with_suffix(".error")


def _failed(picture: Path) -> bool:
    return _error_file(picture).exists()


def _damaged(picture: Path) -> bool:
    """Whether the file exists and cannot be read as a picture."""
    if not picture.exists():
        return False
    try:
        read_picture(picture)
    except UserError:
        return True
    return False


def _line(answer: str | Failure, about: str | None) -> str:
    text, error = (None, answer.reason) if isinstance(answer, Failure) else (answer, None)
    row = {"answer": text, "error": error, **({} if about is None else {"about": about})}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _valid_answers(
    file: Path, fingerprints: Sequence[str | None], retry_failed: bool
) -> list[str | Failure]:
    """The answers in a file; [] if they must be made again."""
    try:
        answers = _read(file, len(fingerprints))
    except UserError:
        if not retry_failed:
            raise
        return []
    stale = any(about != now for (_, about), now in zip(answers, fingerprints, strict=True))
    failed = any(isinstance(answer, Failure) for answer, _ in answers)
    return [] if stale or (retry_failed and failed) else [answer for answer, _ in answers]


def _read(file: Path, count: int) -> list[tuple[str | Failure, str | None]]:
    """(answer, fingerprint) of every line; raises UserError unless there are `count`."""
    answers: list[tuple[str | Failure, str | None]] = []
    for number, line in read_lines(file, hint=RETRY):
        try:
            row = json.loads(line)
            text = row["answer"]
            answer = Failure(str(row["error"])) if text is None else str(text)
            answers.append((answer, row.get("about")))
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise UserError(f"{file}:{number} is not an answer: {error}", hint=RETRY) from None
    if len(answers) != count:
        raise UserError(
            f"{file} is damaged: {len(answers)} answers to {count} questions", hint=RETRY
        )
    return answers
