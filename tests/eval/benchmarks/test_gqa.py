"""How answers to GQA are read."""

from tarkit.eval.benchmarks.gqa import exact


def test_gqa_accepts_the_same_words() -> None:
    assert exact("Yes.", "yes") and exact("T-shirt", "tshirt") and not exact("a dog", "dog")
