"""Promises of the way to the devices: in order, ahead of time, and ended cleanly."""

import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from common.data.prefetch import SAMPLE_ID, DeviceBatches
from common.errors import UserError


@pytest.fixture
def sharding():
    return NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec("data"))


def count(stop=10**6, taken=None):
    for number in range(stop):
        if taken is not None:
            taken.append(number)
        ids = np.full((2, 2), number)
        yield {"video": np.full((2, 3), number, np.uint8), SAMPLE_ID: ids}


def batch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "batches"]


def test_batches_arrive_in_order_with_their_ids_on_the_host(sharding):
    with DeviceBatches(count(5), sharding, 2) as batches:
        found = list(batches)
    assert [int(batch["video"][0, 0]) for batch in found] == list(range(5))
    assert [int(batch[SAMPLE_ID][0, 0]) for batch in found] == list(range(5))
    batch = found[0]
    assert isinstance(batch["video"], jax.Array) and batch["video"].sharding == sharding
    assert batch["video"].dtype == np.uint8
    assert isinstance(batch[SAMPLE_ID], np.ndarray)


def test_only_so_many_batches_are_taken_ahead(sharding):
    taken = []
    with DeviceBatches(count(taken=taken), sharding, 2) as batches:
        next(batches)
        time.sleep(0.3)
        assert len(taken) <= 1 + 2 + 1  # used, ready, and the one that waits for room


def test_closing_ends_the_thread(sharding):
    batches = DeviceBatches(count(), sharding, 2)
    next(batches)
    batches.close()
    assert not batch_threads()
    with pytest.raises(StopIteration):
        next(batches)


def test_closing_ends_the_reading(sharding):
    ended = []

    def reading():
        try:
            yield from count()
        finally:
            ended.append(True)

    batches = DeviceBatches(reading(), sharding, 2)
    next(batches)
    batches.close()
    assert ended == [True]


def test_an_error_in_the_thread_is_raised_where_batches_are_taken(sharding):
    def failing():
        yield from count(2)
        raise UserError("the disk is gone")

    batches = DeviceBatches(failing(), sharding, 4)
    next(batches), next(batches)
    with pytest.raises(UserError, match="the disk is gone"):
        next(batches)
    assert not batch_threads()
