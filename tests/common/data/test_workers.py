"""The pool keeps order, and a process that dies costs one item."""

import os
import signal
import time

import pytest

from common.data import workers


def double(item):
    if item == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "exit":
        os._exit(3)
    if item == "hang":
        time.sleep(60)
    return item * 2


def run(items, num_workers=2, timeout_s=30.0):
    blame = lambda item, why: (item, why)  # noqa: E731
    return list(workers.run_ordered(double, items, num_workers, blame, timeout_s))


def test_results_come_in_order_for_any_number_of_items():
    assert run(range(25)) == [2 * item for item in range(25)]
    assert run([]) == []


def test_a_crashing_decoder_costs_its_item_alone():
    results = run([1, "crash", 2, "exit", 3])
    assert results[0::2] == [2, 4, 6]
    assert results[1] == ("crash", "the decoder crashed (SIGSEGV)")
    assert "exit code 3" in results[3][1]


@pytest.mark.slow
def test_an_item_that_hangs_is_given_up():
    results = run(["hang", 1], timeout_s=4.0)
    assert results == [("hang", "took longer than 4 s"), 2]


def test_few_items_are_taken_ahead_of_a_slow_reader():
    taken = []

    def items():
        for item in range(1000):
            taken.append(item)
            yield item

    results = workers.run_ordered(double, items(), 1, lambda item, why: why, 30.0)
    assert next(results) == 0
    assert len(taken) < 10
    results.close()
