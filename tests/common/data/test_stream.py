"""Promises of handing examples over: each under its own number, and what an error says."""

import numpy as np
import pytest

from common.data.stream import Stream, message
from common.tf import tf


def make(bad, size):
    """Twelve examples, twice their numbers, `size` at a time; 0 for one by one."""

    def example(number):
        return number, {"double": 2 * number // tf.cast(tf.reduce_all(number != bad), tf.int64)}

    dataset = tf.data.Dataset.range(12).map(example)
    return Stream(dataset.batch(size) if size else dataset)


@pytest.mark.parametrize("size", [0, 1, 4, 20])
def test_what_is_not_lost_is_the_example_of_its_number(size):
    stream = make([-1], size)
    assert [stream.take(number)["double"] for number in range(12)] == list(range(0, 24, 2))


@pytest.mark.parametrize("size", [0, 1, 4])
@pytest.mark.parametrize("bad", [[2], [2, 3], [3, 5, 6], [0, 7]])
def test_a_bad_example_costs_no_more_than_those_it_comes_with(size, bad):
    stream, lost = make(bad, size), []
    for number in range(12 - 4):  # the data set ends, unlike a run's
        example = stream.take(number)
        if example is None:
            lost.append(number)
        else:
            assert example["double"] == 2 * number
    size = max(size, 1)
    assert {number // size for number in lost} == {number // size for number in bad}
    assert set(bad) <= set(lost)


def test_asking_ends_where_everything_is_bad():
    stream = make(np.arange(12), 4)
    assert [stream.take(number) for number in range(3)] == [None] * 3


def test_an_error_says_what_happened_whether_it_comes_from_a_graph_or_from_python():
    def fail(number):
        raise ValueError("it has no caption")

    @tf.function(autograph=False)
    def divided(number):
        return 1 // number

    @tf.function(autograph=False)
    def failed(number):
        return tf.numpy_function(fail, [number], tf.int64)

    for function, told in ((divided, "Integer division by zero"), (failed, "it has no caption")):
        with pytest.raises(tf.errors.OpError) as caught:
            function(tf.constant(0))
        assert message(caught.value).endswith(told)
