"""Seeds: what is on disk was drawn with them, so each formula's values are written down."""

from tarkit.seeds import chat_seed, generator_seed, row_seed, sample_seed, scene_seed, training_seed

KEY = "00003-000017"


def test_no_formula_has_changed() -> None:
    # From the stages' own functions, before the formulas were brought together.
    assert row_seed(7, KEY, 2) == 1759096804
    assert scene_seed(7, "test", KEY) == 3491245772798285748
    assert chat_seed(7, KEY) == 13021728060266221718
    assert sample_seed(7, "geneval", "colors-100", 2) == 133611124204106
    assert sample_seed(7, "candidate", 3) == 9825118948282
    assert training_seed(0, 1, "rows") == 891782328499148357
    assert [generator_seed(7, "words"), generator_seed(7, "pixels")] == [14, 15]


def test_each_seed_has_as_many_bits_as_it_says() -> None:
    # Of 200 draws the greatest lies in the upper half with all but certainty (2**-200).
    numbers = range(200)
    assert 30 < max(row_seed(0, KEY, n) for n in numbers).bit_length() <= 31
    assert 62 < max(scene_seed(n, "train", KEY) for n in numbers).bit_length() <= 63
    assert 63 < max(chat_seed(n, KEY) for n in numbers).bit_length() <= 64
    assert 47 < max(sample_seed(n) for n in numbers).bit_length() <= 48
    assert 62 < max(training_seed(n) for n in numbers).bit_length() <= 63


def test_parts_are_kept_apart() -> None:
    assert training_seed(1, 23) != training_seed(12, 3)
    assert sample_seed(1, 23) != sample_seed(12, 3)
