"""Streams: every row once an epoch, any position by arithmetic, ranks that share a step's rows."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarkit.artifacts.artifact import open_artifact
from tarkit.errors import UserError
from tarkit.seeds import training_seed
from tarkit.train.streams import (
    MixedStream,
    Order,
    Rounds,
    Stream,
    draw_scale,
    mixed_pictures,
    picture_stream,
    sized,
)
from tarkit.vocab import Scale
from tests import parts

Row = tuple[int, int]


def stream(counts: Sequence[int], *, seed: int = 0, together: int = 2) -> Stream[Row]:
    """Rows that know their shard and their place in it."""
    return Stream(
        counts,
        lambda s: [(s, row) for row in range(counts[s])],
        seed=seed,
        shards_together=together,
    )


repeatable = settings(derandomize=True)
COUNTS = st.lists(st.integers(0, 5), min_size=1, max_size=7).filter(any)


@repeatable
@given(counts=COUNTS, seed=st.integers(0, 99), together=st.integers(1, 4))
def test_every_epoch_visits_each_row_once(counts: list[int], seed: int, together: int) -> None:
    made = stream(counts, seed=seed, together=together)
    rows = {(s, row) for s, count in enumerate(counts) for row in range(count)}
    for epoch in range(3):
        seen = [made[epoch * made.total + i] for i in range(made.total)]
        assert len(seen) == len(rows) and set(seen) == rows


@repeatable
@given(counts=COUNTS, data=st.data())
def test_a_position_does_not_depend_on_what_was_read_before(
    counts: list[int], data: st.DataObject
) -> None:
    made = stream(counts)
    in_order = [made[i] for i in range(4 * made.total)]
    places = data.draw(st.permutations(range(4 * made.total)))
    fresh = stream(counts)
    assert [fresh[i] for i in places] == [in_order[i] for i in places]


@repeatable
@given(counts=COUNTS, world=st.integers(1, 4), size=st.integers(1, 3), step=st.integers(0, 9))
def test_ranks_share_a_steps_rows(counts: list[int], world: int, size: int, step: int) -> None:
    made = stream(counts)
    parts_ = [made.batch(step, size, rank=rank, world=world) for rank in range(world)]
    assert [row for part in parts_ for row in part] == made.batch(step, size * world)
    first = step * size * world
    assert made.batch(step, size * world) == [made[first + i] for i in range(size * world)]


def test_two_ranks_see_each_row_once_between_them() -> None:
    # 3 + 4 + 5 = 12 rows: three steps of two ranks with two rows each.
    made = stream([3, 4, 5])
    seen = Counter(
        row
        for step in range(3)
        for rank in (0, 1)
        for row in made.batch(step, 2, rank=rank, world=2)
    )
    assert len(seen) == 12 and set(seen.values()) == {1}


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    made, other = stream([20, 20]), stream([20, 20], seed=1)
    first, second = [made[i] for i in range(40)], [made[40 + i] for i in range(40)]
    assert first != second and first != [other[i] for i in range(40)]
    assert first == [stream([20, 20])[i] for i in range(40)]
    # Rows of shards read together are mixed, and shards do not come in their numbers' order.
    assert len({s for s, _ in first[:10]}) == 2


def test_shards_are_read_a_few_at_a_time_and_not_again_within_their_turn() -> None:
    loads: list[int] = []

    def load(shard: int) -> list[Row]:
        loads.append(shard)
        return [(shard, row) for row in range(10)]

    made = Stream([10] * 6, load, seed=0, shards_together=2)
    for i in range(20):
        assert made[i][0] in loads
    assert len(loads) == 2
    for i in range(20, 60):
        _ = made[i]
    assert sorted(loads) == [0, 1, 2, 3, 4, 5]


@repeatable
@given(counts=COUNTS, seed=st.integers(0, 99), together=st.integers(1, 4))
def test_the_order_is_the_one_that_runs_begun_before_have(
    counts: list[int], seed: int, together: int
) -> None:
    """Written out: all (shard, row) pairs of a group of shards, in one random order."""
    order = Order(counts, seed=seed, shards_together=together)
    expected = []
    for epoch in range(2):
        rng = np.random.default_rng(training_seed(seed, epoch, "shards"))
        shards = rng.permutation(len(counts)).tolist()
        for group in range(-(-len(shards) // together)):
            own = shards[group * together : (group + 1) * together]
            pairs = [(shard, row) for shard in own for row in range(counts[shard])]
            rng = np.random.default_rng(training_seed(seed, epoch, group, "rows"))
            expected += [pairs[i] for i in rng.permutation(len(pairs))]
    assert [order[i] for i in range(2 * order.total)] == expected


def test_a_stream_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        stream([0, 0])


# ---- pictures


def test_only_usable_pictures_of_the_split_are_read_and_each_is_its_own(pictures: Path) -> None:
    artifact = open_artifact(pictures, "images")
    made = picture_stream(artifact, seed=0)
    keys = {made[i]["key"] for i in range(made.total)}
    # Shard 1 holds train, test, train, failed and one without a split.
    assert made.total == 12 == len(keys)
    assert {key for key in keys if key.startswith("00001")} == {
        "00001-000000",
        "00001-000002",
        "00001-000004",
    }
    assert picture_stream(artifact, seed=0, split=None).total == 13
    for i in range(12):
        shard, place = (int(part) for part in made[i]["key"].split("-"))
        expected = np.random.default_rng([shard, place]).integers(0, 256, (16, 16, 3), np.uint8)
        assert np.array_equal(made[i].pixels(), expected)


def test_a_split_without_pictures_is_refused(tmp_path: Path) -> None:
    made = parts.write_pictures(tmp_path / "p", [["test", "failed"]])
    with pytest.raises(UserError, match=r"holds no usable picture of split 'train'") as error:
        picture_stream(made, seed=0)
    assert error.value.hint == f"tarkit inspect {made.path}"


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert sized(picture, 8) is picture
    assert sized(picture[:, :4], 8).shape == (8, 8, 3)


# ---- scales


def test_scales_are_drawn_in_their_ratio_by_step_and_seed() -> None:
    drawn = [draw_scale((2, 1, 1), 0, step) for step in range(2000)]
    shares = {scale: drawn.count(scale) / 2000 for scale in Scale}
    # Standard error of a share of a half in 2,000 draws: .011.
    assert shares == pytest.approx({Scale.FULL: 0.5, Scale.HALF: 0.25, Scale.THIRD: 0.25}, abs=0.04)
    assert drawn[:50] == [draw_scale((2, 1, 1), 0, step) for step in range(50)]
    assert drawn[:50] != [draw_scale((2, 1, 1), 1, step) for step in range(50)]
    assert {draw_scale((0, 1, 0), 0, step) for step in range(50)} == {Scale.HALF}


# ---- mixtures

WEIGHTS = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@repeatable
@given(weights=WEIGHTS, seed=st.integers(0, 99))
def test_a_round_takes_its_weight_of_each_source_and_none_of_its_rows_twice(
    weights: list[int], seed: int
) -> None:
    rounds = Rounds(weights, seed=seed)
    slots = [rounds[i] for i in range(5 * sum(weights))]
    for number in range(5):
        first = number * sum(weights)
        sources = [source for source, _ in slots[first : first + sum(weights)]]
        assert [sources.count(i) for i in range(len(weights))] == weights
    # Every source is read in its own order, from its first position on.
    for source, weight in enumerate(weights):
        assert [p for s, p in slots if s == source] == list(range(5 * weight))


def test_rounds_differ_from_each_other_and_by_seed() -> None:
    def order(seed: int, number: int) -> tuple[int, ...]:
        rounds = Rounds([3, 3], seed=seed)
        return tuple(rounds[6 * number + i][0] for i in range(6))

    # Three and three have 20 orders.
    assert len({order(0, number) for number in range(8)}) > 2
    assert len({order(seed, 0) for seed in range(8)}) > 2


def test_a_far_position_of_a_mixture_reads_no_earlier_row() -> None:
    loaded: list[int] = []

    def load(shard: int) -> list[int]:
        loaded.append(shard)
        return [10 * shard + i for i in range(3)]

    small = [Stream([3] * 400, load, seed=i, shards_together=2) for i in range(2)]
    mixed = MixedStream(small, [2, 1], seed=0)
    assert mixed.total == 2 * 400 * 3
    far = mixed[3 * 10**12]
    assert len(loaded) == 1 and far == MixedStream(small, [2, 1], seed=0)[3 * 10**12]


def test_ranks_share_a_mixtures_rows() -> None:
    mixed = MixedStream([stream([4, 3]), stream([5], seed=1)], [1, 2], seed=3)
    whole = mixed.batch(7, 6)
    assert whole == [mixed[42 + i] for i in range(6)]
    assert [row for rank in range(3) for row in mixed.batch(7, 2, rank=rank, world=3)] == whole


def test_pictures_of_several_artifacts_are_mixed_and_one_is_read_as_ever(tmp_path: Path) -> None:
    made = [
        parts.write_pictures(tmp_path / name, [["train"] * count, ["train"] * count])
        for name, count in (("raw", 4), ("aesthetic", 3))
    ]
    alone = mixed_pictures(made[:1], None, seed=5)
    plain = picture_stream(made[0], seed=5)
    assert [alone[i]["key"] for i in range(20)] == [plain[i]["key"] for i in range(20)]
    assert alone.total == plain.total == 8
    folders = [
        [Path(mixed[i]._place.tar).parent.name for i in range(40)]
        for mixed in (mixed_pictures(made, None, seed=5), mixed_pictures(made, [3, 1], seed=5))
    ]
    assert [names.count("raw") for names in folders] == [20, 30]
    with pytest.raises(UserError, match="has 3 weights, but there are 2 --images"):
        mixed_pictures(made, [1, 1, 1], seed=5)
