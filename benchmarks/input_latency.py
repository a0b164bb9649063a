"""What does a bucket far away cost the input pipeline, and how much of it do parallel reads hide?

    python -m benchmarks.input_latency [--delays_ms=0,20,100 --reads=2,64]

TensorFlow's own client of Google Cloud Storage reads the records from a server on this machine that
holds every request up for so long (`benchmarks.bucket`; it and TLS take their share of the cores).
Prints the clips per second of the published BraVe V->A examples for each delay and number of reads
at a time (``config.data.reads``), as a share of those from the disk, and what was asked for a clip.
The last line reads as TensorFlow does when it is not told otherwise, 64 MiB wherever a byte is
wanted.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time

from absl import flags

from benchmarks import bucket, input_pipeline
from common import launch

_AHEAD = "GCS_READAHEAD_BUFFER_SIZE_BYTES"


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string("delays_ms", "0,20,100", "waits before a request is answered")
    flags.DEFINE_string("reads", f"{os.cpu_count()},64", "reads at a time")
    flags.DEFINE_string("source", "", "what to measure alone, as this benchmark calls itself")
    input_pipeline.define_flags()


def main(_: list[str]) -> None:
    """Prints the table."""
    values = flags.FLAGS
    if values.source:
        print(_clips_per_second(values.source, int(values.reads)))
        return
    delays = [float(text) for text in values.delays_ms.split(",")]
    reads = [int(text) for text in values.reads.split(",")]
    folder = input_pipeline.make_records(pathlib.Path(values.cache), values.clips)
    print(f"machine: {input_pipeline.machine()}\ncommand: {' '.join(['python', *sys.argv])}")
    disk, _ = _measure(str(folder), os.cpu_count(), {})
    print(f"from the disk: {disk:.1f} clips/s")
    print(f"{'delay ms':>10}{'reads':>8}{'clips/s':>10}{'share':>8}{'requests':>10}{'MB':>8}")
    ways = [(delay, number, {}) for delay in delays for number in reads]
    ways.append((delays[-1], reads[-1], {_AHEAD: str(64 << 20)}))
    with bucket.serve(folder) as store:
        for delay, number, environment in ways:
            store.delay_s.value = delay / 1000
            store.requests.value = store.bytes.value = 0
            rate, clips = _measure(f"gs://{bucket.NAME}", number, environment | store.environment)
            asked = f"{store.requests.value / clips:10.1f}{store.bytes.value / clips / 1e6:8.2f}"
            print(f"{delay:10g}{number:8}{rate:10.1f}{rate / disk:8.0%}{asked}")


def _measure(source: str, reads: int, environment: dict[str, str]) -> tuple[float, int]:
    """Returns clips per second and clips read, from a process of its own."""
    values = flags.FLAGS
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.input_latency", f"--source={source}",
         f"--reads={reads}", f"--examples={values.examples}", f"--threads={values.threads}"],
        env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    rate, clips = done.stdout.split()
    return float(rate), int(clips)


def _clips_per_second(source: str, reads: int) -> str:
    """Measures over many times what is read ahead; counts what was begun, too."""
    from brave.views import BraveViews
    from common.data import shards
    from common.data.pipeline import TrainData

    begun, read = [], shards.RecordSet.parts

    def parts(self, record):
        begun.append(record)
        return read(self, record)

    shards.RecordSet.parts = parts
    config = input_pipeline.config_of("brave_v_a", source)
    config.data.reads = reads
    batches = TrainData(config, BraveViews(config)).batches(0)
    for _ in range(2):
        next(batches)
    number = max(flags.FLAGS.examples, 6 * reads) // config.batch_size
    start = time.perf_counter()
    for _ in range(number):
        next(batches)
    rate = number * config.batch_size / (time.perf_counter() - start)
    batches.close()
    return f"{rate} {len(begun)}"


if __name__ == "__main__":
    launch.run(main, define_flags)
