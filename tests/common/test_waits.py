"""Promise: a run that waits for its data says so, by how much, and what helps."""

from __future__ import annotations

import logging

import pytest

from common import waits
from configs import base


def lap(data, step=1.0, rate=10.0):
    return {"time/step": step, "time/data": data, "clips_per_second": rate}


def test_a_run_that_waits_is_told_how_much_faster_data_must_come():
    said = waits.verdict(waiting=0.6, step=1.0, clips_per_second=80)
    assert said == (
        "input-bound: 60% of the time is waiting for data. They come at 80 clips/s, and without "
        "waiting it would be 200: 2.5 times as many"
    )
    assert waits.verdict(waiting=0.1, step=1.0, clips_per_second=80) is None


def test_advice_is_of_this_configuration():
    data = base.get_config().data
    assert "config.data.threads" not in waits.advice(data, cores=8)
    data.threads, data.reduced_decode = 2, False
    said = waits.advice(data, cores=8)
    assert "raise config.data.threads=2 to 0, which takes all 8 cores" in said
    assert "config.data.reduced_decode=True" in said


def test_the_warning_is_of_many_steps_and_comes_once(caplog):
    watch = waits.Watch(base.get_config().data)
    with caplog.at_level(logging.WARNING):
        seen = [watch.see(step, lap(0.5)) for step in range(10, 600, 10)]
    assert seen.count(True) == 1 and seen.index(True) >= 5  # fifty steps after the first lap
    assert "step 60: input-bound: 50% of the time" in caplog.text


@pytest.mark.parametrize("data", [0.0, 0.19])
def test_a_run_that_does_not_wait_is_left_alone(data):
    watch = waits.Watch(base.get_config().data)
    assert not any(watch.see(step, lap(data)) for step in range(10, 600, 10))


def test_a_slow_first_lap_and_steps_that_are_not_timed_do_not_count():
    watch = waits.Watch(base.get_config().data)
    assert not watch.see(10, lap(100.0, step=101.0))
    assert not watch.see(15, {"loss": 1.0})
    assert not any(watch.see(step, lap(0.0)) for step in range(20, 200, 10))
