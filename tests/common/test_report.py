"""The page about a run is there above all where the run went wrong."""

from types import SimpleNamespace

import pytest

from common import report

CONFIG = SimpleNamespace(steps=8, batch_size=4, seed=0, data=SimpleNamespace(train="a <b>"))


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        (2.0, 0.5, "went from 2.000 (step 1) to 0.500."),
        (2.0, None, "from 2.000 (step 1) on until it was no finite number."),
        (None, None, "was no finite number from the first step on."),
    ],
)
def test_the_loss_is_told_from_its_first_to_its_last(first, last, said):
    rows = [{"step": 1, "loss": first}, {"step": 6, "loss": last}]
    text = report._heading("BraVe", CONFIG, rows)
    assert said in text and "6 of 8 steps" in text and "a &lt;b&gt;" in text
