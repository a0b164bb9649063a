"""Chips are named as their makers do; what is wrong with a name is said with some that work."""

import importlib.util

import pytest

from common.errors import UserError
from common.planning import chips, topology


def test_graphics_cards_are_named_and_counted():
    found = topology.describe("a100-80:8")
    assert (found.platform, found.count, found.devices) == ("gpu", 8, None)
    assert found.chip is chips.GPUS["a100-80"]
    assert topology.describe("h100").count == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v9:2x2", "for example v5e:1x1"),
        ("v9:2x2", "h100"),
        ("v5e", "chips of v5e are wired as v5e:AxB, 256 at most, for example v5e:1x1"),
        ("v5p:2x2", "wired as v5p:AxBxC, 8960 at most, for example v5p:2x2x1"),
        ("v5e:0x2", "wired as v5e:AxB"),
        ("v5e:32x32", "256 at most"),
        ("h100:0", "write h100 or h100:COUNT"),
        ("h100:2x2", "write h100 or h100:COUNT"),
    ],
)
def test_an_unknown_name_is_answered_with_names_that_work(name, says):
    with pytest.raises(UserError) as error:
        topology.describe(name)
    assert says in str(error.value)


def test_a_missing_compiler_is_named_with_how_to_install_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name)
    )
    with pytest.raises(UserError, match=r"pip install -e '.\[tpu\]' in the checkout"):
        topology.describe("v5e:2x2")


def test_every_chip_has_a_known_peak():
    for chip in (*chips.TPUS.values(), *chips.GPUS.values()):
        assert chip.peak > 1e13, chip.kind


def test_clocks_of_tpus_agree_with_their_peaks():
    # Matrix units of a chip, and multiplications that one does in a cycle.
    units = {"v4": (8, 128**2), "v5e": (4, 128**2), "v5p": (8, 128**2), "v6e": (4, 256**2)}
    for name, (count, products) in units.items():
        chip = chips.TPUS[name]
        assert chip.clock * count * products * 2 == pytest.approx(chip.peak, rel=0.01), name
