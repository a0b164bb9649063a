"""What memory does the MIL-NCE objective need, with all scores at once and block by block?

    python -m benchmarks.contrastive_memory [--largest=65536] [--timed=2048]

For batches of 1,024 clips, doubled up to --largest, the gradient of the loss is compiled and XLA's
plan printed: arguments, results and everything between. Nothing of that is run. Then both forms
run in turn, at batches up to --timed. With several devices the batch is split over them and the
memory is that of one: ``XLA_FLAGS=--xla_force_host_platform_device_count=8`` shows it on a CPU.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

from common import launch

_FIRST = 1024


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_integer("largest", 65_536, "largest batch compiled", lower_bound=1)
    flags.DEFINE_integer("timed", 2048, "largest batch run", lower_bound=0)
    flags.DEFINE_integer("candidates", 5, "narrations of a clip", lower_bound=1)
    flags.DEFINE_integer("dimensions", 512, "of an embedding", lower_bound=1)
    flags.DEFINE_integer("block", 1024, "clips in a block", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "runs of each form", lower_bound=1)


def main(_: list[str]) -> None:
    """Prints one table of memory and one of time."""
    import jax

    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    print(f"machine: {machine}, {jax.device_count()} x {jax.devices()[0].device_kind}, ", end="")
    print(f"jax {jax.__version__}")
    print(f"command: {' '.join(['python -m benchmarks.contrastive_memory', *sys.argv[1:]])}")
    print(
        f"{'MiB per device':>14}{'embeddings':>12}{'all at once':>14}{'in blocks':>12}{'ratio':>8}"
    )
    for clips in _batches(flags.FLAGS.largest):
        inputs = sum(x.size * x.dtype.itemsize for x in _inputs(clips)) / jax.device_count()
        dense, blocks = (_memory(form, clips) for form in _forms())
        sizes = f"{inputs / 2**20:12,.0f}{dense / 2**20:14,.0f}{blocks / 2**20:12,.0f}"
        print(f"{clips:14,}{sizes}{dense / blocks:7.1f}x", flush=True)
    print(f"{'ms per gradient':>14}{'all at once':>14}{'in blocks':>12}{'ratio':>8}")
    for clips in _batches(flags.FLAGS.timed):
        dense, blocks = _seconds(clips)
        print(
            f"{clips:15,}{1e3 * dense:14.1f}{1e3 * blocks:12.1f}{blocks / dense:8.2f}", flush=True
        )


def _batches(largest: int) -> Iterator[int]:
    clips = _FIRST
    while clips <= largest:
        yield clips
        clips *= 2


def _forms() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Gradients by both embeddings, of the dense and of the blockwise loss."""
    import jax

    from mil_nce.loss import dense_mil_nce, mil_nce_loss

    def in_blocks(video_BD: Any, text_BKD: Any) -> Any:
        return mil_nce_loss(video_BD, text_BKD, block=flags.FLAGS.block)[0]

    dense, blocks = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1))) for loss in (dense_mil_nce, in_blocks)
    )
    return dense, blocks


def _inputs(clips: int) -> list[Any]:
    """Shapes of the embeddings, split over all devices."""
    import jax

    from common import sharding

    mesh = jax.make_mesh(
        (jax.device_count(), 1), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    split, dim = sharding.batch_sharding(mesh), flags.FLAGS.dimensions
    shapes = (clips, dim), (clips, flags.FLAGS.candidates, dim)
    return [jax.ShapeDtypeStruct(shape, "float32", sharding=split) for shape in shapes]


def _memory(form: Any, clips: int) -> int:
    """Bytes on one device by XLA's plan."""
    from common.program import step_memory

    return step_memory(form.lower(*_inputs(clips)).compile().memory_analysis())


def _seconds(clips: int) -> list[float]:
    """Seconds of the fastest run of each form; they take turns."""
    import jax
    import numpy as np

    random, forms = np.random.default_rng(0), _forms()
    arrays = [
        jax.device_put(0.2 * random.standard_normal(x.shape, "float32"), x.sharding)
        for x in _inputs(clips)
    ]
    fastest = [float("inf")] * len(forms)
    for repeat in range(flags.FLAGS.repeats + 1):
        for number, form in enumerate(forms):
            start = time.perf_counter()
            jax.block_until_ready(form(*arrays))
            if repeat:  # the first one compiles
                fastest[number] = min(fastest[number], time.perf_counter() - start)
    return fastest


if __name__ == "__main__":
    launch.run(main, define_flags)
