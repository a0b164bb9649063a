"""The TPU compiler itself, on a CPU: what it says of small steps is what can be counted by hand."""

import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from toy_method import Toy, get_config

pytest.importorskip(
    "libtpu", reason="the TPU compiler is not installed: pip install '.[tpu]' (Linux on x86-64)"
)

from common import target  # noqa: E402
from common.backbones import framed_attention, pooling  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.planning import compiled_program, hlo, planner, report, topology  # noqa: E402

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[3]

GRADIENTS = 4 * (8 * 16 + 16 + 16 * 4 + 4 + 16 + 16)  # bytes of the toy's in float32


def forecast(name, **changes):
    return planner.forecast(
        get_config(**changes), topology.describe(name), create=lambda config: Toy()
    )


def test_four_chips_exchange_the_gradients_and_little_else():
    found = forecast("v5e:2x2", batch_size=64)
    (part,) = found.parts
    assert part.fits and found.count == 4 and found.chip.kind == "TPU v5 lite"
    exchanged = {one.kind: one.size for one in part.compiled.collectives}
    # Beside gradients: sums of batch norm, of the loss and of what is logged about collapse.
    assert GRADIENTS <= exchanged["all-reduce"] <= 2 * GRADIENTS
    assert found.seconds(part) > 0 and found.link_seconds(part) > 0
    dearest = part.compiled.dearest
    assert [one.cycles for one in dearest] == sorted((one.cycles for one in dearest), reverse=True)
    assert any("toy_method.py:" in one.place for one in dearest)
    lines = part.compiled.lines
    assert [one.cycles for one in lines] == sorted((one.cycles for one in lines), reverse=True)
    assert len({one.place for one in lines}) == len(lines)
    assert 0 < sum(one.cycles for one in lines) <= part.compiled.cycles
    of_dearest = sum(one.cycles for one in dearest if one.place == lines[0].place)
    assert of_dearest <= lines[0].cycles
    assert "all-reduce" in "\n".join(report.lines(found))


def test_a_loop_of_large_products_takes_about_as_long_as_the_peak_allows():
    chips = topology.describe("v5e:1x1")
    (device,) = chips.devices
    assert device.device_kind == chips.chip.kind
    place = jax.sharding.SingleDeviceSharding(device)
    x, kernels = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)
        for shape in ((2048, 2048), (6, 2048, 2048))
    )

    def chain(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    module = hlo.parse(jax.jit(chain).lower(x, kernels).compile().as_text())
    assert module.loops_of_unknown_length() == 0
    least = 6 * 2 * 2048**3 / chips.chip.peak
    assert least < module.cycles() / chips.chip.clock < 2 * least


def test_a_batch_that_is_too_large_is_no_error_but_an_answer():
    found = forecast("v5e:1x1", batch_size=2**28)
    (part,) = found.parts
    assert part.fits is False and part.compiled is None
    assert part.memory.total > found.chip.memory
    assert found.hours is None
    assert "DOES NOT FIT" in "\n".join(report.lines(found))


def test_the_largest_batch_fits_and_what_the_search_names_as_too_large_does_not():
    chips, config = topology.describe("v5e:2x2"), get_config(batch_size=2**26)
    found = planner.forecast(config, chips, find_batch=True, create=lambda config: Toy())
    (part,) = found.parts
    largest, too_large = part.largest_batch
    assert 2**26 < largest < too_large and largest % 4 == too_large % 4 == 0
    assert too_large <= 1.1 * largest
    fits = [forecast("v5e:2x2", batch_size=size).parts[0].fits for size in part.largest_batch]
    assert fits == [True, False]
    assert f"fit: {largest}" in "\n".join(report.lines(found))


@pytest.mark.parametrize("name", topology.EXAMPLES)
def test_every_example_of_a_slice_works_and_a_chip_is_one_device(name):
    found = topology.describe(name)
    assert len(found.devices) == found.count


def test_a_slice_that_does_not_exist_is_refused_with_some_that_do():
    with pytest.raises(UserError, match="for example v5e:1x1"):
        topology.describe("v5e:3x7")


def _pool(x_BTHWC):
    return pooling.max_pool(x_BTHWC, (3, 3, 3), (2, 2, 2))


def _attention(x_BMD):
    heads = framed_attention.Heads(x_BMD.shape[-1] // 64, x_BMD.shape[-1])
    x = framed_attention.from_tokens(x_BMD, 2)
    y = framed_attention.space_attention(x, x, x, heads, 15)
    return framed_attention.time_attention(y, y, y, heads, 15)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (_pool, (32, 4, 9, 9, 128)),
        (_attention, (32, 1 + 2 * 15, 256)),
        (_attention, (32, 1 + 2 * 15, 128)),  # heads in one group, an axis of one element
    ],
)
def test_what_is_told_how_to_lie_in_memory_stays_on_its_chip(function, shape):
    devices = np.array(topology.describe("v5e:2x2").devices)
    place = NamedSharding(Mesh(devices, ("data",)), PartitionSpec("data"))

    def gradient(x):
        return jax.grad(lambda x: jnp.square(function(2 * x)).sum())(x)

    with target.described("tpu"), target.sharing(shape[0] // len(devices)):
        given = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)
        compiled = jax.jit(gradient).lower(given).compile()
    assert not compiled_program.summarise(hlo.parse(compiled.as_text())).collectives


def test_networks_alone_take_fewer_cycles_than_all_that_surrounds_them():
    def cycles(module, *flags):
        command = [sys.executable, "-m", module, "--config=configs/brave_v_a.py:smoke"]
        done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return int(re.search(r"cycles, estimated +([\d,]+)", done.stdout)[1].replace(",", ""))

    alone = cycles("benchmarks.networks_on_tpu")
    assert 0 < alone < cycles("common.plan", "--topology=v5e:1x1")
