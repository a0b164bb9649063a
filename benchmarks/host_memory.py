"""Does the memory of the host stay what it was over a long run?

    python -m benchmarks.host_memory [--steps=50000]

Reads, decodes and moves to the device that many batches of small clips with sound, through the
whole pipeline, and prints the memory that the process holds along the way. A run that leaks a
hundredth of an example each step would be seen.
"""

from __future__ import annotations

import io
import pathlib
import sys
import tempfile
import time

import numpy as np
from absl import flags

from common import heap, launch

_BATCH, _CLIPS, _FRAMES, _SIDE, _RATE = 4, 64, 12, 48, 8000


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_integer("steps", 50_000, "batches", lower_bound=10)


def main(_: list[str]) -> None:
    """Prints a line for every tenth of the way, and the growth over the last nine tenths."""
    heap.keep_freed()
    import jax

    from brave.views import BraveViews
    from common import sharding
    from common.clock import host_memory
    from common.data import pipeline

    steps = flags.FLAGS.steps
    print(f"command: {' '.join(['python', '-m', 'benchmarks.host_memory', *sys.argv[1:]])}")
    with tempfile.TemporaryDirectory() as folder:
        _make_records(pathlib.Path(folder))
        config = _config(folder)
        mesh = sharding.make_mesh(config, jax.devices()[:1])
        batches = pipeline.TrainData(config, BraveViews(config)).batches(0)
        held = []
        start = time.perf_counter()
        with pipeline.device_batches(batches, sharding.batch_sharding(mesh), 2) as on_device:
            for step in range(1, steps + 1):
                next(on_device)
                if step % (steps // 10) == 0:
                    held.append(host_memory() or 0)
                    rate = step * _BATCH / (time.perf_counter() - start)
                    print(f"step {step:7,}  {held[-1] / 2**20:8.1f} MiB  {rate:7.0f} clips/s")
    grown = held[-1] - held[0]
    print(
        f"from step {steps // 10:,} to {steps:,}: {grown / 2**20:+.1f} MiB ({grown / held[0]:+.1%})"
    )


def _config(folder: str):
    from configs import brave_demo

    config = brave_demo.get_config("smoke").copy_and_resolve_references()
    with config.unlocked():
        config.batch_size = _BATCH
        config.data.train = folder
    return config


def _make_records(folder: pathlib.Path) -> None:
    from PIL import Image

    from common.data import records, shards

    path = folder / "clips-00000-of-00001.tfrecord"
    with path.open("wb") as file:
        for clip in range(_CLIPS):
            random = np.random.default_rng(clip)
            jpegs = []
            for frame in random.integers(0, 256, (_FRAMES, _SIDE, _SIDE, 3), np.uint8):
                buffer = io.BytesIO()
                Image.fromarray(frame).save(buffer, "JPEG")
                jpegs.append(buffer.getvalue())
            sound = (random.standard_normal(_RATE) * 0.1).astype(np.float32)
            clip = records.Clip(str(clip), "", jpegs, float(_FRAMES), sound, _RATE)
            file.write(shards.frame(records.serialize(clip)))
    shards.write_index(path)


if __name__ == "__main__":
    launch.run(main, define_flags)
