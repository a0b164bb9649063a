"""What does a store far away cost the input pipeline, and how much of it do parallel reads hide?

    python -m benchmarks.input_latency [--delays_ms=0,20,100 --reads=2,64]

Shards are read as those of an object store are, by TensorFlow and a stretch at a time, only that
every request waits for so long before it begins. Prints the clips per second of the published BraVe
V->A examples for each delay and number of reads at a time (``config.data.reads``), as a share of
those without delay.
"""

from __future__ import annotations

import os
import pathlib
import sys
import time

from absl import flags

from benchmarks import input_pipeline
from common import launch


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string("delays_ms", "0,20,100", "waits before a read")
    flags.DEFINE_string("reads", f"{os.cpu_count()},64", "reads at a time")
    input_pipeline.define_flags()


def main(_: list[str]) -> None:
    """Prints the table."""
    from common.data import files

    values = flags.FLAGS
    delays = [float(text) for text in values.delays_ms.split(",")]
    reads = [int(text) for text in values.reads.split(",")]
    folder = input_pipeline.make_records(pathlib.Path(values.cache), values.clips)
    print(f"machine: {input_pipeline.machine()}\ncommand: {' '.join(['python', *sys.argv])}")
    read = files.File.read
    rates = {}
    for delay in delays:

        def later(self, offset, length, delay=delay):
            time.sleep(delay / 1000)
            return read(self, offset, length)

        files.File.read = later if delay else read
        for number in reads:
            rates[delay, number] = _clips_per_second(f"file://{folder}", number)
    files.File.read = read
    fastest = max(rate for (delay, _), rate in rates.items() if delay == min(delays))
    print(f"{'delay ms':>10}{'reads':>8}{'clips/s':>10}{'share':>8}")
    for (delay, number), rate in rates.items():
        print(f"{delay:10g}{number:8}{rate:10.1f}{rate / fastest:8.0%}")


def _clips_per_second(source: str, reads: int) -> float:
    """Measures over many times what is read ahead."""
    from brave.views import BraveViews
    from common.data.pipeline import TrainData

    config = input_pipeline.config_of("brave_v_a", source)
    config.data.reads = reads
    batches = TrainData(config, BraveViews(config)).batches(0)
    for _ in range(2):
        next(batches)
    number = max(flags.FLAGS.examples, 6 * reads) // config.batch_size
    start = time.perf_counter()
    for _ in range(number):
        next(batches)
    return number * config.batch_size / (time.perf_counter() - start)


if __name__ == "__main__":
    launch.run(main, define_flags)
