"""Trains a method: ``python -m common.train --config=configs/x.py --workdir=DIR``.

The same command continues a run that was stopped, wherever it was stopped. A value of the
configuration is changed with ``--config.KEY=VALUE``. Exit status: 0 when the last step is done, 2
for a mistake that the message explains, 128 + N when signal N stopped the run (its state is saved),
75 when another of several processes was lost.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from common import config as config_lib
from common import heap, launch
from common.cluster import job, supervisor

if TYPE_CHECKING:
    from common.method import Method


def define_flags() -> None:
    """Defines the command line."""
    config_lib.define_flag()
    flags.DEFINE_string("workdir", None, "folder of the run: made, or continued", required=True)
    job.define_flags()


def main(_: list[str]) -> int:
    """Checks the configuration, then trains: alone, or as one of the processes of a job."""
    heap.keep_freed()
    config = config_lib.load()
    return supervisor.run_here(config, flags.FLAGS.workdir, lambda: train(config))


def train(config: ConfigDict) -> int:
    """Trains; returns the exit status."""
    from common import attachments, curriculum, loop, methods, sharding
    from common.data import pipeline

    launch.keep_compiled_programs()
    heap.tidy_after_compiling()
    parts = []
    for of_part in curriculum.Curriculum(config).configs:
        # A run has copies of the files it needs, and goes on when the originals are gone.
        method = methods.create(attachments.found(of_part, flags.FLAGS.workdir))
        _read_vocabularies(method, of_part)
        rows = sharding.local_rows(sharding.make_mesh(of_part), of_part.batch_size)
        data = pipeline.TrainData(of_part, method.views, rows)
        parts.append(loop.Part(of_part, method, data))
    try:
        loop.train_parts(parts, config, flags.FLAGS.workdir)
    except loop.Stopped as stopped:
        logging.getLogger(__name__).info("%s; the same command continues it.", stopped)
        return 128 + stopped.signum
    return 0


def _read_vocabularies(method: Method, config: ConfigDict) -> None:
    """Reads what text is made numbers by now, before anything is compiled."""
    from common.data import sources
    from common.method import TextInput

    if config.data.train != sources.FAKE:
        for encoder in method.encoders.values():
            if isinstance(encoder.inputs, TextInput):
                encoder.inputs.tokenise(["a word"])


if __name__ == "__main__":
    launch.run(main, define_flags)
