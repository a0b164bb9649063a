"""The largest batch is found in few compilations, and both its sides were tried."""

from hypothesis import given, settings
from hypothesis import strategies as st

from common.planning import batch_search


def search(needs, unit, first, capacity, fixed=0.0):
    tried = {}

    def used(batch):
        assert batch % unit == 0 and batch not in tried
        tried[batch] = needs(batch) <= capacity, float(needs(batch))
        return tried[batch]

    return batch_search.largest(used, unit, first, fixed, capacity), tried


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 5000), st.integers(0, 400), st.floats(0.5, 2.0))
def test_whatever_memory_does_the_answer_lies_between_two_that_were_tried(unit, first, most, power):
    (fits, too_large), tried = search(lambda b: b**power, unit, first, (most * unit) ** power)
    assert fits == 0 or tried[fits][0]
    assert not tried[too_large][0]
    assert too_large - fits <= max(unit, fits / 16)
    assert len(tried) < 30


def test_where_memory_grows_by_a_line_five_compilations_are_enough():
    (fits, too_large), tried = search(lambda b: 1e9 + 2e8 * b, 1, 512, 16e9, fixed=1e9)
    assert fits <= 75 < too_large
    assert len(tried) <= 5


def test_a_compiler_that_saves_memory_near_the_limit_takes_few_compilations():
    def needs(batch):
        return min(4e8 * batch, 15.9e9) if batch <= 50 else 17e9

    (fits, too_large), tried = search(needs, 1, 8, 16e9)
    assert fits <= 50 < too_large
    assert len(tried) <= 7


def test_no_batch_fits_where_the_parameters_do_not():
    assert search(lambda b: 20 + b, 4, 8, 10, fixed=20)[0] == (0, 4)
