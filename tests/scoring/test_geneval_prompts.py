"""GenEval's prompts are made, and are the published file byte for byte."""

import hashlib
from collections import Counter

from tarkit.scoring.geneval import check
from tarkit.scoring.geneval_prompts import CLASSES, geneval_jsonl, geneval_prompts

PUBLISHED = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"


def test_the_text_is_the_published_file() -> None:
    assert hashlib.sha256(geneval_jsonl().encode()).hexdigest() == PUBLISHED


def test_another_seed_is_another_list() -> None:
    assert hashlib.sha256(geneval_jsonl(44).encode()).hexdigest() != PUBLISHED


def test_tasks_have_their_published_numbers() -> None:
    assert Counter(one["tag"] for one in geneval_prompts()) == {
        **{"single_object": 80, "two_object": 99, "counting": 80},
        **{"colors": 94, "position": 100, "color_attr": 100},
    }
    counts = Counter(o["include"][0]["count"] for o in geneval_prompts() if o["tag"] == "counting")
    assert counts == {2: 26, 3: 28, 4: 26}


def test_prompts_are_what_the_checker_reads_and_no_person_has_a_colour() -> None:
    for one in geneval_prompts():
        assert not check(one, []).correct
        assert all(clause["class"] in CLASSES for clause in one["include"])
        assert not any(c["class"] == "person" and "color" in c for c in one["include"])
