"""A run is forecast from its own step: part by part, and to the byte where that can be counted."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from toy_method import Toy, get_config

from common import sharding, target
from common.errors import UserError
from common.planning import chips, compiled_program, hlo, planner, report, topology
from common.planning import forecast as forecasts
from common.precision import compute_dtype
from common.program import build

# Of the toy: two kernels, two biases, scale and offset of batch norm, in float32.
PARAMETERS = 4 * (8 * 16 + 16 + 16 * 4 + 4 + 16 + 16)


def forecast(name="h100:4", **changes):
    options = {key: changes.pop(key) for key in ("price", "find_batch") if key in changes}
    return planner.forecast(
        get_config(**changes), topology.describe(name), create=lambda config: Toy(), **options
    )


def program(devices, **changes):
    config = get_config(**changes)
    return build(Toy(), config, sharding.abstract_mesh(config, devices))


def test_what_a_chip_holds_is_counted_by_kind():
    memory = compiled_program.known_memory(program(4, batch_size=16, optimizer__name="adam"))
    assert memory.parameters == PARAMETERS
    assert memory.optimizer == pytest.approx(2 * PARAMETERS, abs=64)  # and counters
    assert memory.batch == 16 * 8 / 4
    split = program(4, mesh__fsdp=4, mesh__rules=("layers/0/kernel=1",))
    assert compiled_program.known_memory(split).parameters == PARAMETERS - 4 * 8 * 16 * 3 / 4


def test_flops_and_bytes_of_a_graphics_card_are_those_of_the_products():
    found = forecast(batch_size=16)
    (part,) = found.parts
    # Two inputs pass two layers; each product has a gradient of its kernel, and of its input but
    # for the first. Two outputs are measured for collapse.
    first, second, collapse = 2 * 16 * 8 * 16, 2 * 16 * 16 * 4, 2 * 16 * 4 * 4
    assert part.flops == 2 * (2 * first + 3 * second + collapse) / 4
    assert found.seconds(part) == part.moved / found.chip.bandwidth  # nothing so small computes
    assert part.fits is None and part.compiled is None


def test_what_does_not_fit_even_without_temporaries_is_told_of_any_chip():
    cards = topology.describe("h100:4")
    cards = dataclasses.replace(cards, chip=dataclasses.replace(cards.chip, memory=1000))
    found = planner.forecast(get_config(), cards, create=lambda config: Toy())
    assert [part.fits for part in found.parts] == [False]
    text = "\n".join(report.lines(found))
    assert "DOES NOT FIT" in text and "The run does not fit as it is" in text


def test_every_part_of_a_curriculum_is_reported_with_its_steps():
    found = forecast(
        steps=100, batch_size=16, curriculum=("0:", "60: batch_size=32 | batch_size=16"), price=3.0
    )
    assert [(part.steps, part.batch_size) for part in found.parts] == [(60, 16), (20, 32), (20, 16)]
    assert "batch_size=32" in found.parts[1].what
    seconds = sum(part.steps * found.seconds(part) for part in found.parts)
    assert found.hours == pytest.approx(seconds / 3600)
    assert found.cost == pytest.approx(found.hours * 4 * 3.0)
    text = "\n".join(report.lines(found))
    assert "part 3 of 3" in text and "roofline" in text and "chip-hour" in text


def test_no_price_means_no_cost():
    found = forecast()
    assert found.cost is None
    assert "a chip-hour" not in "\n".join(report.lines(found))


def test_the_file_holds_what_the_page_says():
    found = forecast()
    tree = json.loads(report.as_json(found))
    (part,) = tree["parts"]
    assert part["seconds_per_step"] == found.seconds(found.parts[0])
    assert part["memory"]["total"] == found.parts[0].memory.total
    assert (tree["topology"], tree["count"], tree["cost"]) == ("h100:4", 4, None)


def test_programs_are_made_for_the_chips_and_not_for_this_machine():
    assert forecast(compute_dtype="auto").parts[0].compute_dtype == "bfloat16"
    assert compute_dtype("auto") == jnp.float32
    with target.described("tpu"):
        assert compute_dtype("auto") == jnp.bfloat16


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="must be a multiple of 3"):
        forecast("h100:3", batch_size=16)


def test_the_largest_batch_is_not_guessed_where_no_compiler_says():
    with pytest.raises(UserError, match="--find_batch needs a compiler"):
        forecast(find_batch=True)


def test_the_largest_batch_is_searched_in_multiples_of_what_the_mesh_divides(monkeypatch):
    chip = dataclasses.replace(chips.TPUS["v5e"], memory=10_000)
    described = topology.Topology("here", "tpu", chip, 1, tuple(jax.devices()[:1]))
    compiled = []

    def compile_step(program):
        compiled.append(program.config.batch_size)
        known = compiled_program.known_memory(program)
        memory = dataclasses.replace(known, temporaries=100 * program.config.batch_size)
        cycles = 1500 if len(compiled) == 1 else 1_000_000 * program.config.batch_size
        done = forecasts.Compiled(cycles, (), (), (), 0, {"pad": 2**21})
        fits = memory.total <= chip.memory
        return compiled_program.Result(memory, 0.0, done if fits else None)

    monkeypatch.setattr(compiled_program, "compile_step", compile_step)
    config = get_config(batch_size=16, microbatches=4)
    found = planner.forecast(config, described, find_batch=True, create=lambda config: Toy())
    (part,) = found.parts
    assert part.fastest_batch == (16, 16 * chip.clock / 1500)
    assert "fastest of the batches tried: 16, " in "\n".join(report.lines(found))
    fits, too_large = part.largest_batch
    # What the state leaves, over 100 bytes of temporaries and 8 of input.
    exact = (chip.memory - compiled_program.known_memory(program(1)).total + 16 * 8) / 108
    assert fits <= exact < too_large == fits + 4
    assert fits % 4 == 0 and len(compiled) == len(set(compiled)) <= 5
    text = "\n".join(report.lines(found))
    assert f"largest batch found to fit: {fits}" in text
    assert "none are estimated of pad, which makes 2 MiB" in text


EXCHANGES = """\
ENTRY %main (p0: f32[1024], p1: bf16[64]) -> f32[1024] {
  %p0 = f32[1024]{0:T(1024)} parameter(0)
  %p1 = bf16[64]{0:T(256)(2,1)} parameter(1)
  %all-reduce.1 = (f32[1024]{0:T(1024)}, bf16[64]{0:T(256)(2,1)}) all-reduce(%p0, %p1), \
channel_id=1, to_apply=%sum
  %all-gather-start.1 = (bf16[64]{0:T(256)(2,1)}, bf16[256]{0:T(256)(2,1)}) \
all-gather-start(%p1), channel_id=2, dimensions={0}
  %all-gather-done.1 = bf16[256]{0:T(256)(2,1)} all-gather-done(%all-gather-start.1)
  %collective-permute-start.1 = (f32[1024]{0:T(1024)}, f32[1024]{0:T(1024)S(1)}, u32[]{:S(2)}, \
u32[]{:S(2)}) collective-permute-start(%p0), channel_id=3
  %piece.1 = f32[1024]{0:T(1024)} fusion(%p0), kind=kCustom, calls=%half
  %piece.2 = f32[1024]{0:T(1024)} fusion(%p0), kind=kCustom, calls=%half
}
"""
HALF = """\
%half (h: f32[1024]) -> f32[256] {
  %h = f32[1024]{0:T(1024)} parameter(0)
  ROOT %reduce-scatter.1 = f32[256]{0:T(256)} reduce-scatter(%h), channel_id=4, to_apply=%sum
}

"""


def test_exchanges_count_once_with_the_larger_of_their_sides():
    found = compiled_program.exchanges(hlo.parse(HALF + EXCHANGES))
    assert {one.kind: (one.count, one.size) for one in found} == {
        "all-reduce": (1, 4 * 1024 + 2 * 64),
        "all-gather": (1, 2 * 256),
        "collective-permute": (1, 4 * 1024),
        "reduce-scatter": (1, 4 * 1024),  # in two fusions that overlap with something else
    }


def test_what_does_not_fit_is_told_apart_from_what_is_broken():
    read = compiled_program._out_of_memory
    needed = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G."
    )
    temporaries = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (71.00G) exceeds available HBM (15.75G)."
    )
    assert read(needed) == {"needed": 20.5 * 2**30}
    assert read(temporaries) == {"temporaries": 71 * 2**30}
    assert read("RESOURCE_EXHAUSTED: in other words, too little HBM") == {}
    assert read("INTERNAL: the compiler is broken") is None
