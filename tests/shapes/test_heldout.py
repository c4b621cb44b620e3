"""The held-out compositions: frozen bytes, and the numbers world.md asks for."""

import hashlib
from collections import Counter
from importlib import resources

from tarkit.shapes.heldout import COUNTS, draw, held_out, to_text
from tarkit.shapes.scene import COLOURS, INVERSE, SHAPES

SHA256 = "e9cb97a2a7639161d481b65dd27a1c2c9832a3eb84c5aea53d1bbc2fd9834a87"


def test_the_frozen_file_is_the_one_the_seed_draws() -> None:
    frozen = resources.files("tarkit.shapes").joinpath("heldout.json").read_bytes()
    assert to_text(draw()).encode() == frozen
    assert hashlib.sha256(frozen).hexdigest() == SHA256
    assert to_text(draw(8)).encode() != frozen


def test_two_colours_a_shape_at_most_and_two_shapes_a_colour_are_held_out() -> None:
    pairs = held_out().colour_shape
    assert len(pairs) == 20  # of 12 x 10 = 120
    assert Counter(colour for colour, _ in pairs) == dict.fromkeys(COLOURS, 2)
    assert max(Counter(shape for _, shape in pairs).values()) <= 2  # so each keeps 8 of 10


def test_a_fifth_of_the_relations_is_held_out_and_half_of_them_have_a_seen_mirror() -> None:
    rules = held_out()
    assert len(rules.relation) == 104  # 20 % of 12 x 11 x 4 = 528 is 105.6, to a multiple of four
    mirrors = [(b, INVERSE[rel], a) for a, rel, b in rules.relation]
    assert sum(mirror in rules.relation for mirror in mirrors) == 52
    assert all(rules.holds_relation(*triple) for triple in rules.relation)
    assert sum(rules.holds_both_forms(*triple) for triple in rules.relation) == 52


def test_no_relation_is_held_out_of_a_pair_that_is_held_out_whole() -> None:
    rules = held_out()
    assert not any(
        tuple(sorted((a, b), key=SHAPES.index)) in rules.pair for a, _, b in rules.relation
    )
    one, other = next(iter(rules.pair))
    assert rules.holds_relation(one, "left of", other)
    assert rules.holds_both_forms(other, "above", one)


def test_eight_cells_and_thirteen_pairs_are_held_out() -> None:
    rules = held_out()
    assert len(rules.shape_count) == 8  # of 12 x 3 = 36
    assert len({shape for shape, _ in rules.shape_count}) == 8
    assert set(Counter(count for _, count in rules.shape_count).values()) == {3, 2}
    assert {count for _, count in rules.shape_count} == set(COUNTS)
    assert len(rules.pair) == 13  # 20 % of 12 x 11 / 2 = 66 is 13.2
    assert max(Counter(shape for pair in rules.pair for shape in pair).values()) <= 3


def test_affinities_are_there_for_every_pair_and_lie_within_a_factor_of_2_46() -> None:
    values = held_out().affinity.values()
    assert len(values) == 66
    assert 2**-1.3 <= min(values) < 0.6 and 1.8 < max(values) <= 2**1.3
