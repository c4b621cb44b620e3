"""Samples on disk: batches, resuming, failures kept in their place."""

import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from tarkit.errors import UserError
from tarkit.eval.sample_files import (
    Failure,
    attempt,
    make_answers,
    make_pictures,
    open_pictures,
    read_answers,
)


def grey(levels: Sequence[int]) -> list[Image.Image]:
    """One picture a level; a level above 255 cannot be drawn."""
    if max(levels) > 255:
        raise ValueError(f"no grey {max(levels)}")
    return [Image.new("RGB", (4, 4), (level, level, level)) for level in levels]


def places(folder: Path, levels: Sequence[int]) -> list[tuple[Path, int]]:
    return [(folder / f"{index:04d}.png", level) for index, level in enumerate(levels)]


def levels_in(folder: Path, items: Sequence[tuple[Path, int]]) -> list[int | str]:
    found: list[int | str] = []
    for picture in open_pictures([file for file, _ in items]):
        if isinstance(picture, Failure):
            found.append(picture.reason)
        else:
            pixel = picture.getpixel((0, 0))
            assert isinstance(pixel, tuple)
            found.append(int(pixel[0]))
    return found


def test_one_failure_costs_one_sample_and_not_its_batch(tmp_path: Path) -> None:
    items = places(tmp_path, [10, 300, 30, 40, 50])
    make_pictures("p", items, grey, batch_size=3)
    assert levels_in(tmp_path, items) == [10, "ValueError: no grey 300", 30, 40, 50]


def test_a_failure_stays_until_it_is_asked_for_again(tmp_path: Path) -> None:
    items = places(tmp_path, [10, 300])
    make_pictures("p", items, grey, batch_size=2)
    mended = places(tmp_path, [10, 20])
    make_pictures("p", mended, grey, batch_size=2)
    assert levels_in(tmp_path, items) == [10, "ValueError: no grey 300"]
    make_pictures("p", mended, grey, batch_size=2, retry_failed=True)
    assert levels_in(tmp_path, items) == [10, 20]


def test_a_batch_that_lacks_a_picture_is_made_whole_and_the_others_not_at_all(
    tmp_path: Path,
) -> None:
    items = places(tmp_path, [1, 2, 3, 4])
    make_pictures("p", items, grey, batch_size=2)
    items[2][0].unlink()
    batches: list[list[int]] = []

    def noting(levels: Sequence[int]) -> list[Image.Image]:
        batches.append(list(levels))
        return grey(levels)

    make_pictures("p", items, noting, batch_size=2)
    assert batches == [[3, 4]]
    assert levels_in(tmp_path, items) == [1, 2, 3, 4]


def test_a_run_in_which_everything_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="all 2 pictures failed, the first with: ValueError: no"):
        make_pictures("p", places(tmp_path, [300, 400]), grey, batch_size=2)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_never_made_is_an_error_and_a_damaged_one_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "0000.png"
    with pytest.raises(UserError, match="has not been made"):
        list(open_pictures([file]))
    file.write_bytes(b"\x89PNG")
    (found,) = open_pictures([file])
    assert isinstance(found, Failure) and "0000.png" in found.reason


def test_a_damaged_picture_is_drawn_again_with_its_batch_where_failures_are(
    tmp_path: Path,
) -> None:
    items = places(tmp_path, [1, 2, 3, 4])
    make_pictures("p", items, grey, batch_size=2)
    before = [file.read_bytes() for file, _ in items]
    items[2][0].write_bytes(before[2][: len(before[2]) // 2])
    make_pictures("p", items, grey, batch_size=2)
    assert items[2][0].read_bytes() != before[2]
    batches: list[list[int]] = []

    def noting(levels: Sequence[int]) -> list[Image.Image]:
        batches.append(list(levels))
        return grey(levels)

    make_pictures("p", items, noting, batch_size=2, retry_failed=True)
    assert batches == [[3, 4]]
    assert [file.read_bytes() for file, _ in items] == before


def shout(texts: Sequence[str]) -> list[str]:
    if "" in texts:
        raise UserError("nothing to shout")
    return [text.upper() for text in texts]


def test_answers_are_kept_by_batch_and_read_back_in_order(tmp_path: Path) -> None:
    texts = ["a", "b\nc", "", "ä"]
    make_answers("s", tmp_path, texts, shout, batch_size=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.jsonl", "00001.jsonl"]
    answers = read_answers(tmp_path, 4, batch_size=3)
    assert answers == ["A", "B\nC", Failure("nothing to shout"), "Ä"]
    with pytest.raises(UserError, match="00001.jsonl is damaged: 1 answers to 3 questions"):
        read_answers(tmp_path, 6, batch_size=3)
    (tmp_path / "00001.jsonl").unlink()
    with pytest.raises(UserError, match="00001.jsonl has not been made"):
        read_answers(tmp_path, 4, batch_size=3)


def test_failed_answers_are_redone_with_their_batch_alone(tmp_path: Path) -> None:
    make_answers("s", tmp_path, ["a", "b", "", "d"], shout, batch_size=2)
    questions: list[str] = []

    def noting(texts: Sequence[str]) -> list[str]:
        questions.extend(texts)
        return shout(texts)

    make_answers("s", tmp_path, ["a", "b", "c", "d"], noting, batch_size=2, retry_failed=True)
    assert questions == ["c", "d"]
    assert read_answers(tmp_path, 4, batch_size=2) == ["A", "B", "C", "D"]


def test_damaged_answers_are_told_and_made_again_where_failures_are(tmp_path: Path) -> None:
    texts = ["a", "b", "c", "d"]
    make_answers("s", tmp_path, texts, shout, batch_size=2)
    file = tmp_path / "00001.jsonl"
    whole = file.read_bytes()
    first = whole[: whole.index(b"\n") + 1]
    line_2 = "00001.jsonl:2 is not an answer: "
    for damaged, message in (
        (first + b'{"answer": "D", "err', line_2),
        (first + b"\xff", "00001.jsonl:2 cannot be read: it is not UTF-8"),
        (first + b"[]\n", line_2),
        (first + b'{"error": null}\n', line_2),
        (first + b'{"answer": ' + b"9" * 5000 + b"}\n", line_2),  # int() takes 4300 digits
        (first + b"[" * 100_000, line_2),
        (first, "00001.jsonl is damaged: 1 answers to 2 questions"),  # cut where a line ends
        (b"", "00001.jsonl is damaged: 0 answers to 2 questions"),
        (whole + first, "00001.jsonl is damaged: 3 answers to 2 questions"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=message) as made:
            make_answers("s", tmp_path, texts, shout, batch_size=2)
        with pytest.raises(UserError, match=message) as read:
            read_answers(tmp_path, 4, batch_size=2)
        assert made.value.hint == read.value.hint == "--retry-failed with the command that made it"
        make_answers("s", tmp_path, texts, shout, batch_size=2, retry_failed=True)
        assert read_answers(tmp_path, 4, batch_size=2) == ["A", "B", "C", "D"]


def test_answers_about_what_has_changed_are_made_again_with_their_batch(tmp_path: Path) -> None:
    questions: list[str] = []

    def noting(texts: Sequence[str]) -> list[str]:
        questions.extend(texts)
        return shout(texts)

    def answered(marks: dict[str, str | None]) -> list[str]:
        questions.clear()
        make_answers("s", tmp_path, list("abcd"), noting, batch_size=2, about=marks.__getitem__)
        assert read_answers(tmp_path, 4, batch_size=2) == ["A", "B", "C", "D"]
        return list(questions)

    marks: dict[str, str | None] = {"a": "1", "b": "2", "c": "3", "d": None}  # d's is not there yet
    assert answered(marks) == ["a", "b", "c", "d"]
    assert answered(marks) == []
    assert answered({**marks, "b": "another"}) == ["a", "b"]
    assert answered({**marks, "b": "another", "d": "now it is"}) == ["c", "d"]


def test_a_reason_that_is_no_text_is_told_and_its_picture_made_again(tmp_path: Path) -> None:
    items = places(tmp_path, [1, 300])
    make_pictures("p", items, grey, batch_size=2)
    (tmp_path / "0001.error").write_bytes(b"ValueError:\nno grey \xff")
    with pytest.raises(UserError, match="0001.error:2 cannot be read: it is not UTF-8") as error:
        levels_in(tmp_path, items)
    assert error.value.hint == "--retry-failed with the command that made it"
    mended = places(tmp_path, [1, 3])
    make_pictures("p", mended, grey, batch_size=2, retry_failed=True)
    assert levels_in(tmp_path, items) == [1, 3]


def test_a_maker_that_returns_too_few_fails(tmp_path: Path) -> None:
    results = attempt(lambda texts: texts[1:], ["a", "b"])
    assert all(isinstance(each, Failure) for each in results)


def test_being_stopped_is_no_failure(tmp_path: Path) -> None:
    def stopped(levels: Sequence[int]) -> list[Image.Image]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_pictures("p", places(tmp_path, [1]), stopped, batch_size=1)
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_process_left_beside_a_finished_picture_is_swept(tmp_path: Path) -> None:
    items = places(tmp_path / "samples", [10])
    make_pictures("p", items, grey, batch_size=1)
    left = tmp_path / "samples" / f".0000.png.{socket.gethostname()}.999999999.tmp"
    left.mkdir()
    make_pictures("p", items, grey, batch_size=1)
    assert not left.exists()


def test_what_a_killed_run_left_beside_whole_answers_is_swept(tmp_path: Path) -> None:
    make_answers("s", tmp_path, ["a"], lambda texts: list(texts), batch_size=1)
    left = tmp_path / f".00000.jsonl.{socket.gethostname()}.999999999.tmp"
    left.mkdir()
    make_answers("s", tmp_path, ["a"], lambda texts: list(texts), batch_size=1)
    assert not left.exists()
