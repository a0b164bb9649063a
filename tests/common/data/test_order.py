"""Promises of the order: a permutation per pass, exact shares, and nothing but (seed, step)."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.data.order import MIXING_BLOCK, Order
from common.errors import UserError

seeds = st.integers(-(2**40), 2**40)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 300), seed=seeds, block=st.integers(1, 40), epoch=st.integers(0, 10**6))
def test_every_pass_visits_each_record_exactly_once(size, seed, block, epoch):
    order = Order([size], [1.0], batch_size=8, seed=seed, block_size=block)
    _, record_BK = order.draws(np.arange(epoch * size, (epoch + 1) * size))
    assert sorted(record_BK[:, 0]) == list(range(size))


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=3), seed=seeds)
def test_in_a_mixture_too_every_pass_over_a_source_is_complete(sizes, seed):
    order = Order(sizes, [1.0 + i for i in range(len(sizes))], batch_size=500, seed=seed)
    batches = [order.batch(step) for step in range(2)]
    sources = np.concatenate([source_B for source_B, _ in batches])
    records = np.concatenate([record_BK[:, 0] for _, record_BK in batches])
    for source, size in enumerate(sizes):
        mine = records[sources == source]
        for begin in range(0, len(mine) - size + 1, size):
            assert sorted(mine[begin : begin + size]) == list(range(size))


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 100), min_size=2, max_size=9),
    seed=seeds,
    blocks=st.integers(1, 12),
)
@example(weights=[1.0, 3.0, 0.01, 17.0], seed=0, blocks=4)  # a share of far below one draw
def test_mixtures_keep_their_weights_within_one_draw(weights, seed, blocks):
    order = Order([10] * len(weights), weights, batch_size=1, seed=seed)
    sources, _ = order.draws(np.arange(blocks * order.mixing_block))
    counts = np.bincount(sources, minlength=len(weights))
    wanted = blocks * order.mixing_block * np.array(weights) / sum(weights)
    assert np.abs(counts - wanted).max() <= 1.001


def test_round_weights_are_kept_exactly_in_every_block():
    order = Order([10, 10], [0.7, 0.3], batch_size=MIXING_BLOCK, seed=5)
    for step in range(5):
        assert list(np.bincount(order.batch(step)[0])) == [700, 300]


@settings(max_examples=30, deadline=None)
@given(size=st.integers(2, 400), block=st.integers(2, 30), seed=seeds)
def test_blocks_keep_neighbours_together(size, block, seed):
    order = Order([size], [1.0], batch_size=size, seed=seed, block_size=block)
    record_B = order.batch(0)[1][:, 0]
    followed = (record_B[1:] - record_B[:-1]) % size == 1
    blocks = -(-size // block)
    assert followed.sum() >= size - blocks


@settings(max_examples=30, deadline=None)
@given(seed=seeds, step=st.integers(0, 10**9))
def test_a_batch_depends_on_nothing_but_seed_and_step(seed, step):
    def make():
        return Order([1000, 50], [1, 2], batch_size=16, seed=seed)

    walked = make()
    walked.batch(3), walked.batch(step + 1)
    for one, other in zip(walked.batch(step), make().batch(step), strict=True):
        assert np.array_equal(one, other)


def test_the_order_does_not_change_between_releases():
    """A run must go on after an upgrade: these numbers are a promise, not a measurement."""
    order = Order([1000, 77], [0.25, 0.75], batch_size=8, seed=42, block_size=2)
    source_B, record_BK = order.batch(12345)
    assert source_B.tolist() == GOLDEN_SOURCES
    assert record_BK[:, 0].tolist() == GOLDEN_RECORDS


GOLDEN_SOURCES = [1, 1, 1, 1, 1, 1, 1, 0]
GOLDEN_RECORDS = [62, 63, 11, 12, 49, 53, 54, 414]


def test_seeds_and_passes_give_different_orders():
    def first_pass(seed, epoch=0):
        order = Order([200], [1.0], batch_size=200, seed=seed)
        return order.batch(epoch)[1][:, 0].tolist()

    assert first_pass(0) != first_pass(1)
    assert first_pass(0) != first_pass(0, epoch=1)
    agreeing = np.mean(np.array(first_pass(0)) == np.array(first_pass(1)))
    assert agreeing < 0.1


@pytest.mark.slow
def test_every_record_is_equally_likely_at_every_place():
    order = Order([7], [1.0], batch_size=7, seed=1)
    seen = np.zeros((7, 7))
    for step in range(4000):
        seen[np.arange(7), order.batch(step)[1][:, 0]] += 1
    assert np.abs(seen / 4000 - 1 / 7).max() < 0.03


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 60), batch=st.integers(1, 64), seed=seeds, step=st.integers(0, 1000))
def test_reserves_are_other_records_of_the_same_source(size, batch, seed, step):
    order = Order([size], [1.0], batch_size=batch, seed=seed, reserves=4)
    _, record_BK = order.batch(step)
    assert record_BK.min() >= 0 and record_BK.max() < size
    for row in record_BK:
        assert len(set(row)) == min(4, size)


def test_a_data_set_smaller_than_a_batch_is_repeated_evenly():
    order = Order([3], [1.0], batch_size=32, seed=0)
    counts = np.bincount(order.batch(9)[1][:, 0], minlength=3)
    assert counts.max() - counts.min() <= 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"sizes": [0], "weights": [1.0], "batch_size": 4, "seed": 0},
        {"sizes": [], "weights": [], "batch_size": 4, "seed": 0},
        {"sizes": [5], "weights": [1.0], "batch_size": 0, "seed": 0},
        {"sizes": [5, 5], "weights": [1.0, 0.0], "batch_size": 4, "seed": 0},
        {"sizes": [5, 5], "weights": [1.0, float("nan")], "batch_size": 4, "seed": 0},
        {"sizes": [5], "weights": [1.0], "batch_size": 4, "seed": 0, "block_size": 0},
        {"sizes": [3, 3], "weights": [1.0, 1e-300], "batch_size": 1, "seed": 0},
    ],
)
def test_impossible_orders_are_refused(arguments):
    with pytest.raises(UserError):
        Order(**arguments)
