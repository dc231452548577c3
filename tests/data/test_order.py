"""The order of an epoch: a bijection for any number of samples and any cut into shards."""

import pickle
from collections.abc import Sequence
from functools import cache
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order import NUM_LANES, PLAIN_LIMIT, WINDOW_SIZE, Order, permute


def make_order(counts: Sequence[int], seed: int = 0) -> Order:
    return Order(np.cumsum([0, *counts]), seed)


def whole_epoch(order: Order, epoch: int = 0) -> np.ndarray:
    return order.samples(epoch, np.arange(order.num_samples))


def is_bijection(ids: np.ndarray) -> bool:
    return np.array_equal(np.sort(ids), np.arange(ids.size))


# ---------------------------------------------------------------- the permutation


@given(st.integers(1, 3_000), st.integers(-(2**63), 2**63 - 1))
def test_permute_is_a_bijection_of_any_size(size: int, key: int) -> None:
    index = np.arange(size)
    assert is_bijection(permute(index, np.full(size, size), np.full(size, key)))


@given(st.lists(st.tuples(st.integers(1, 2**40), st.integers(0, 2**40)), min_size=1, max_size=30))
def test_permute_works_elementwise(pairs: list[tuple[int, int]]) -> None:
    size = np.array([size for size, _ in pairs])
    index = np.array([index % size for size, index in pairs])
    key = np.arange(len(pairs))
    together = permute(index, size, key)
    assert np.all((together >= 0) & (together < size))
    alone = [permute(index[[i]], size[[i]], key[[i]])[0] for i in range(len(pairs))]
    assert together.tolist() == alone


def test_all_orders_of_four_are_reached_about_equally() -> None:
    num_keys = 24_000
    keys = np.repeat(np.arange(num_keys), 4)
    index = np.tile(np.arange(4), num_keys)
    drawn = permute(index, np.full(index.size, 4), keys).reshape(-1, 4)
    orders, counts = np.unique(drawn, axis=0, return_counts=True)
    assert sorted(map(tuple, orders.tolist())) == sorted(permutations(range(4)))
    # 1,000 each if uniform, with a deviation of 31; a Feistel network is only near it
    assert counts.min() > 600
    assert counts.max() < 1_400


# ---------------------------------------------------------------- the order


@given(st.lists(st.integers(0, 40), min_size=1, max_size=20).filter(any), st.integers(0, 2**63 - 1))
def test_each_sample_once_for_any_cut_into_shards(counts: list[int], seed: int) -> None:
    order = make_order(counts, seed)
    assert is_bijection(whole_epoch(order, epoch=3))


@pytest.mark.parametrize("counts", [[1], [2], [0, 1], [1, 1], [3], [0, 0, 5, 0]])
def test_a_handful_of_samples(counts: list[int]) -> None:
    for epoch in range(5):
        assert is_bijection(whole_epoch(make_order(counts), epoch))


@pytest.mark.parametrize("num_samples", [PLAIN_LIMIT - 1, PLAIN_LIMIT, PLAIN_LIMIT + 1, 300_007])
@pytest.mark.parametrize("num_shards", [1, 7, 1_000])
def test_each_sample_once_around_the_limit_of_the_plain_order(
    num_samples: int, num_shards: int
) -> None:
    generator = np.random.default_rng(num_samples)
    cuts = np.sort(generator.integers(0, num_samples, num_shards - 1))
    order = make_order(np.diff([0, *cuts, num_samples]).tolist())  # also empty shards
    assert order.num_lanes == (1 if num_samples <= PLAIN_LIMIT else NUM_LANES)
    assert is_bijection(whole_epoch(order))


@pytest.mark.slow
@settings(max_examples=20)
@given(st.integers(PLAIN_LIMIT + 1, 400_000), st.integers(0, 100))
def test_each_sample_once_in_lanes(num_samples: int, seed: int) -> None:
    third = num_samples // 3
    assert is_bijection(whole_epoch(make_order([third, 0, num_samples - third], seed), epoch=1))


LARGE = [60_000, 30_000, 10_000]


@cache
def large_epoch(epoch: int) -> np.ndarray:
    return whole_epoch(make_order(LARGE), epoch)


@given(st.lists(st.integers(0, 99_999), max_size=50), st.integers(0, 5))
def test_a_position_depends_on_nothing_but_seed_and_epoch(positions: list[int], epoch: int) -> None:
    order = make_order(LARGE)
    order.samples(epoch + 1, np.arange(10))  # other look-ups leave no trace
    found = order.samples(epoch, np.array(positions, np.int64))
    assert found.tolist() == large_epoch(epoch)[positions].tolist()


@pytest.mark.parametrize(("counts", "window"), [([40, 60], 100), ([50_000, 50_000], 390)])
def test_epochs_and_seeds_differ(counts: list[int], window: int) -> None:
    epochs = [whole_epoch(make_order(counts, seed), epoch) for seed in (0, 1) for epoch in (0, 1)]
    for one, other in [(i, j) for i in range(4) for j in range(i)]:
        agreement = np.mean(epochs[one] == epochs[other])
        assert agreement < 1.3 / window + 0.05 * (window == 100)  # 1 / window by chance


def test_locate_is_the_place_in_the_listed_shards() -> None:
    order = make_order([2, 0, 3])
    assert [order.locate(i) for i in range(5)] == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]


def test_a_batch_draws_from_all_lanes_and_a_lane_stays_in_its_window() -> None:
    num_samples = 2_000_000
    order = make_order([num_samples])
    ids = order.samples(0, np.arange(NUM_LANES * WINDOW_SIZE)).reshape(WINDOW_SIZE, NUM_LANES)
    lane_size = num_samples // NUM_LANES
    assert np.all(np.ptp(ids, axis=0) < 2 * WINDOW_SIZE)  # what one lane reads meanwhile
    assert sorted((ids[0] // lane_size).tolist()) == list(range(NUM_LANES))


def test_shards_are_visited_in_another_order_each_epoch() -> None:
    order = make_order([1_000] * 100)
    first = [order.locate(int(order.samples(epoch, np.array([0]))[0]))[0] for epoch in range(20)]
    assert len(set(first)) > 10


def test_a_position_outside_the_epoch_is_refused() -> None:
    with pytest.raises(AssertionError):
        make_order([5]).samples(0, np.array([5]))
    assert make_order([5]).samples(0, np.array([], np.int64)).size == 0


def test_the_constants_name_what_the_order_depends_on() -> None:
    assert make_order([5], seed=7).constants == {
        "seed": 7,
        "num_lanes": 1,
        "window_size": WINDOW_SIZE,
    }
    assert make_order([PLAIN_LIMIT + 1]).constants["num_lanes"] == NUM_LANES


def test_the_order_is_pinned() -> None:
    """A run that was begun with an older version must go on in the same order."""
    small, large = make_order([3, 4, 3], seed=5), make_order([100_000] * 10, seed=5)
    positions = np.array([0, 1, 2, 255, 256, 500_000, 999_999])
    assert whole_epoch(small, 0).tolist() == [0, 5, 7, 6, 1, 3, 9, 2, 4, 8]
    assert whole_epoch(small, 1).tolist() == [2, 6, 4, 3, 1, 5, 7, 9, 0, 8]
    first, later = (large.samples(epoch, positions).tolist() for epoch in (0, 7))
    assert first == [300186, 304163, 308047, 696288, 300023, 27025, 249834]
    assert later == [31, 4016, 7958, 296227, 131, 626982, 149812]


def test_an_order_goes_to_another_process() -> None:
    order = Order(np.arange(5) * 9, seed=3)
    again = pickle.loads(pickle.dumps(order))
    positions = np.arange(36)
    assert np.array_equal(again.samples(2, positions), order.samples(2, positions))
