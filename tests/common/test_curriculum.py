"""A run changes what it trains on at the promised steps, and continues inside any of them."""

import itertools
import os
import signal

import numpy as np
import pytest
from toy_method import Toy, ToyData, compile_once, get_config, losses, same_bits

from common import curriculum, loop
from common.errors import UserError

ROWS = ("0: batch_size=8", "3: batch_size=16 | batch_size=8", "6:")
SIZES = [8, 8, 8, 16, 8, 16, 16, 16]  # by step


@pytest.fixture(autouse=True)
def shared_programs(monkeypatch):
    compile_once(monkeypatch)


def _config(*rows):
    return get_config(curriculum=rows, data__prefetch=1)


def _train(workdir, rows=ROWS, before=lambda step: None):
    config = _config(*rows)
    parts = [
        loop.Part(of_part, Toy(), _Data(of_part, before))
        for of_part in curriculum.Curriculum(config).configs
    ]
    return loop.train_parts(parts, config, workdir)


class _Data(ToyData):
    """Other noise for every part, as other seeds draw other examples."""

    def __init__(self, config, before):
        super().__init__(config.batch_size, before=before)
        self._seed = config.seed

    def batches(self, start_step):
        return super().batches(start_step + self._seed)


def test_every_step_is_trained_with_the_part_that_the_table_says():
    table = curriculum.Curriculum(_config(*ROWS))
    assert [table.configs[table.part(step)].batch_size for step in range(8)] == SIZES
    assert [table.before(step) for step in range(8)] == [0, 1, 2, 0, 0, 1, 0, 1]
    assert len({of_part.seed for of_part in table.configs}) == 4, "parts draw other examples"
    assert table.configs[0].seed == _config().seed


def test_without_a_table_a_run_is_as_it_is():
    table = curriculum.Curriculum(_config())
    assert [table.part(step) for step in (0, 5, 10**6)] == [0, 0, 0]
    assert table.before(7) == 7 and table.configs == (_config(),)


@pytest.mark.parametrize("start", range(9))
def test_batches_go_on_inside_any_row_as_if_never_stopped(start):
    table = curriculum.Curriculum(_config(*ROWS))

    class Counted:
        def __init__(self, part):
            self.part = part

        def batches(self, start_step):
            return ((self.part, number) for number in itertools.count(start_step))

    data = [Counted(part) for part in range(len(table.configs))]

    def take(begin, count):
        return list(itertools.islice(curriculum.batches(table, data, begin), count))

    assert take(start, 3) == take(0, start + 3)[start:]


@pytest.mark.slow
def test_a_run_with_a_table_trains_and_is_stopped_and_resumed_to_the_same_bits(tmp_path):
    whole = _train(tmp_path / "whole")
    assert sorted(losses(tmp_path / "whole")) == list(range(1, 9))
    for stop in range(3, 8):  # batches are read two ahead of the loop, which minds signals
        workdir, taken = tmp_path / str(stop), itertools.count()

        def before(_, stop=stop, taken=taken):
            if next(taken) == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(loop.Stopped):
            _train(workdir, before=before)
        assert same_bits(_train(workdir), whole)
        assert losses(workdir) == losses(tmp_path / "whole")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("5: batch_size=8",), "begin at step 0"),
        (("0:", "0: batch_size=8"), "later step"),
        (("batch_size=8",), "STEP: KEY=VALUE"),
        (("0: batch_size",), "'batch_size' is not KEY=VALUE"),
        (("0: batch_sise=8",), "no config.batch_sise"),
        (("0: steps=8",), "cannot change during a run"),
        (("0: batch_size=many",), "must be of type int"),
        (("0: batch_size=0",), "must be at least 1"),
    ],
)
def test_a_table_that_cannot_be_says_which_row_and_why(rows, message):
    with pytest.raises(UserError, match=message):
        curriculum.Curriculum(_config(*rows))


def test_a_part_may_not_change_a_file_of_the_model():
    config = get_config(curriculum=("0: model.words=b.txt",))
    config = config.copy_and_resolve_references().unlock()
    config.files, config.model.words = ("model.words",), "a.txt"
    with pytest.raises(UserError, match="names model.words, which cannot change during a run"):
        curriculum.Curriculum(config)


def test_a_part_may_not_change_what_is_trained(tmp_path):
    class Wider(Toy):
        def build(self, rngs):
            model = super().build(rngs)
            model.more = type(model.layers[0].bias)(np.zeros(3, np.float32))
            return model

    config = _config("0:", "2: batch_size=8")
    parts = [
        loop.Part(of_part, method, _Data(of_part, lambda step: None))
        for of_part, method in zip(
            curriculum.Curriculum(config).configs, (Toy(), Wider()), strict=True
        )
    ]
    with pytest.raises(UserError, match="batch_size=8.*not what it is"):
        loop.train_parts(parts, config, tmp_path)
