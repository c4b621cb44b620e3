"""The test lists: sizes, columns, balance, disjointness, and the bytes they always had."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from tarkit.shapes.prompts import EXTRA_TASK, TASKS, held_out_kinds
from tarkit.shapes.questions import absent_shapes
from tarkit.shapes.sampling import holds_held_out_picture
from tarkit.shapes.suites import (
    CaptionItem,
    PromptItem,
    QuestionItem,
    caption_suite,
    column_of,
    geneval_suite,
    geneval_validation,
    pope_suite,
)

PROMPTS_SHA256 = "24d19d5b2bfe4999e6d6870dee9a72338343e37a8e18b0fb98805a37448a6bf9"


def six(items: list[PromptItem]) -> list[PromptItem]:
    return [item for item in items if item.task != EXTRA_TASK]


def test_geneval_has_430_prompts_over_six_tasks_and_60_apart() -> None:
    items = geneval_suite()
    counts = Counter(item.task for item in items)
    assert [counts[task] for task in TASKS] == [12, 88, 36, 94, 100, 100]  # sums to 430
    assert counts[EXTRA_TASK] == 60
    assert len({item.prompt for item in items}) == len({item.id for item in items}) == 490


def test_a_quarter_of_the_prompts_is_held_out_and_ten_are_extrapolation() -> None:
    items = six(geneval_suite())
    columns = Counter(item.column for item in items)
    # 22 pairs + 6 cells + 16 colours + 30 positions + 33 colour attributions = 107 of 430.
    assert columns == {"seen": 313, "heldout": 107, "extrapolation": 10}
    for item in items:
        assert item.column == column_of(item.metadata)
        assert (item.column == "seen") == (not held_out_kinds(item.metadata))
    ways = Counter(kind for item in items for kind in held_out_kinds(item.metadata))
    assert min(ways[kind] for kind in ("a", "b", "c", "d", "five")) >= 6


def test_the_validation_list_shares_only_the_single_shapes_with_the_test_list() -> None:
    test, validation = geneval_suite(), geneval_validation()
    assert len(validation) == 150 and len(six(validation)) == 130
    shared = {item.prompt for item in test} & {item.prompt for item in validation}
    assert shared == {item.prompt for item in test if item.task == "single_object"}

    def pairs(items: list[PromptItem]) -> set[frozenset[str]]:
        return {
            frozenset(clause["class"] for clause in item.metadata["include"])
            for item in items
            if item.task == "two_object"
        }

    assert not pairs(test) & pairs(validation)


def test_the_prompts_are_the_ones_they_always_were() -> None:
    lines = [json.dumps(item.metadata, sort_keys=True) for item in geneval_suite()]
    lines += [json.dumps(item.metadata, sort_keys=True) for item in geneval_validation()]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == PROMPTS_SHA256
    assert [item.prompt for item in geneval_suite(5)] != [item.prompt for item in geneval_suite()]


def test_pope_asks_600_of_each_kind_half_of_them_answered_yes() -> None:
    items = pope_suite()
    assert Counter((item.kind, item.answer) for item in items) == {
        (kind, answer): 300
        for kind in ("random", "popular", "adversarial")
        for answer in ("yes", "no")
    }
    assert len({item.id for item in items}) == 1800
    for item in items:
        shape = item.question.split()[3]
        present = {thing.shape for thing in item.scene.objects}
        assert (shape in present) == (item.answer == "yes")
        if item.answer == "no":
            assert shape in absent_shapes(item.scene, item.kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("suite", [pope_suite, caption_suite])
def test_a_quarter_of_the_pictures_is_held_out_and_the_column_is_true(
    suite: Callable[[], Sequence[QuestionItem | CaptionItem]],
) -> None:
    items = suite()
    assert len(items) == (1800 if suite is pope_suite else 300)
    assert sum(item.column == "heldout" for item in items) == len(items) / 4
    assert all((item.column == "heldout") == holds_held_out_picture(item.scene) for item in items)


def test_suites_are_pure_functions_of_their_seed() -> None:
    for suite in (pope_suite, caption_suite):
        first, again, other = suite(), suite(), suite(1)
        assert first == again
        assert [item.scene for item in first] != [item.scene for item in other]
