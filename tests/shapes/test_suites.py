"""The test lists: sizes, columns, balance, disjointness, and the bytes they always had."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from tarkit.shapes.grammar import facts_of, parse
from tarkit.shapes.prompts import EXTRA_TASK, TASKS
from tarkit.shapes.questions import absent_shapes
from tarkit.shapes.sampling import holds_held_out_picture
from tarkit.shapes.scene import Scene, satisfies, scene_to_json
from tarkit.shapes.scene_edits import never_satisfies
from tarkit.shapes.suites import (
    CaptionItem,
    PromptItem,
    QuestionItem,
    caption_suite,
    column_of,
    dpg_suite,
    geneval_suite,
    geneval_validation,
    gqa_suite,
    mme_suite,
    pope_suite,
    reflect_suite,
    seed_suite,
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
        assert (item.column == "seen") == (not item.held_out)
    ways = Counter(kind for item in items for kind in item.held_out)
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


def test_mme_asks_a_yes_and_a_no_on_every_picture() -> None:
    groups: dict[str, list[QuestionItem]] = {}
    for item in mme_suite():
        groups.setdefault(item.group, []).append(item)
    assert len(groups) == 240  # four kinds of 60 pictures
    for pair in groups.values():
        assert [item.answer for item in pair] == ["yes", "no"]
        assert pair[0].scene == pair[1].scene and pair[0].seed == pair[1].seed
        assert pair[0].question != pair[1].question


def test_reflect_shows_each_prompt_right_and_wrong() -> None:
    items = reflect_suite()
    assert len(items) == 400
    for right, wrong in zip(items[::2], items[1::2], strict=True):
        assert right.question == wrong.question and right.scene != wrong.scene
        assert (right.answer, wrong.answer) == ("yes", "no")
    kinds = Counter(item.kind for item in items)
    assert kinds["true"] == 200
    names = ("drop", "reshape", "add", "recolour", "swap_colours", "swap_positions")
    assert min(kinds[name] for name in names) >= 10


@pytest.mark.parametrize("suite", [pope_suite, mme_suite, gqa_suite, seed_suite, caption_suite])
def test_a_quarter_of_the_pictures_is_held_out_and_the_column_is_true(
    suite: Callable[[], Sequence[QuestionItem | CaptionItem]],
) -> None:
    items = suite()
    assert sum(item.column == "heldout" for item in items) == len(items) / 4
    assert all((item.column == "heldout") == holds_held_out_picture(item.scene) for item in items)


def test_captions_come_with_the_facts_of_their_picture() -> None:
    items = caption_suite()
    assert len(items) == 300
    assert all(item.facts == facts_of(item.scene) for item in items)


def test_dense_prompts_ask_nine_questions_each_all_true_of_their_scene() -> None:
    items = dpg_suite()
    assert len(items) == 200 and len({item.prompt for item in items}) == 200
    assert sum(len(item.propositions) for item in items) / 200 == pytest.approx(9, abs=1)
    empty = Scene((), items[0].scene.background)
    for item in items:
        assert parse(item.prompt).groups == facts_of(item.scene).groups
        for fact in item.propositions:
            assert fact.metadata is not None and satisfies(item.scene, fact.metadata)
            if fact.category != "background":
                assert never_satisfies(empty, fact.metadata)


def test_suites_are_pure_functions_of_their_seed() -> None:
    for suite in (reflect_suite, gqa_suite):
        first, again, other = suite(), suite(), suite(1)
        assert [scene_to_json(item.scene) for item in first] == [
            scene_to_json(item.scene) for item in again
        ]
        assert [item.question for item in first] == [item.question for item in again]
        assert [item.scene for item in first] != [item.scene for item in other]
