"""Ingest as an Apache Beam pipeline: the same per-file function, the same files at the end.

For clusters: ``--runner=FlinkRunner``, ``SparkRunner``, ``DataflowRunner`` with their options in
``--beam_options``. Source and output must be folders that all machines see under one path, and this
package must be installed on them. Whole shards are written by one worker each, so a stopped
pipeline continues shard by shard.
"""

from __future__ import annotations

import functools
import logging
import re
import traceback
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from common.data import convert
from common.errors import UserError, told

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

    from common.data import writer

_log = logging.getLogger(__name__)


def run(
    output: writer.Output, settings: convert.Settings, runner: str, options: Sequence[str]
) -> None:
    """Makes the unfinished shards of `output`.

    Args:
      output: the split to finish; its folder by its absolute path, for workers stand elsewhere.
      settings: how clips are made.
      runner: name of a Beam runner.
      options: Beam pipeline options as on a command line.

    Raises:
      UserError: Apache Beam is not installed or does not know the runner, or the pipeline failed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            f"--runner={runner} needs Apache Beam: pip install -e '.[beam]' in the checkout; or "
            "use --runner=local."
        ) from error
    tasks = [task for shard in output.unfinished() for task in output.remaining(shard)]
    begun = {task.shard for task in tasks}
    tasks = [task for shard in sorted(begun) for task in output.tasks(shard)]
    try:
        pipeline = beam.Pipeline(runner=runner, options=PipelineOptions(list(options)))
    except (ValueError, AttributeError, ImportError) as error:
        raise UserError(f"--runner={runner} cannot be used: {error}") from error
    if unknown := _unknown(pipeline.options):
        _log.warning(
            "--beam_options: Apache Beam does not know %s; only the runner may.", ", ".join(unknown)
        )
    try:
        with pipeline:
            _ = (
                pipeline
                | "Clips" >> beam.Create(tasks)
                | "Spread" >> beam.Reshuffle()
                | "Convert" >> beam.Map(functools.partial(_convert, settings))
                | "ByShard" >> beam.GroupByKey()
                | "Write" >> beam.Map(functools.partial(_write, output))
            )
    except Exception as error:  # what an option, a server or a worker raises, Beam passes on
        if told(error):
            raise
        whole = output.keep_error("".join(traceback.format_exception(error)))
        raise UserError(
            f"--runner={runner} failed: {_last_line(error)}\n{whole} holds all of it. Finished "
            "shards stay: mend it and start the same command again."
        ) from error


def _unknown(options: PipelineOptions) -> list[str]:
    """Returns the options that no part of Apache Beam knows; a runner may have its own."""
    known = options.get_all_options(drop_default=True)
    given = options.get_all_options(drop_default=True, retain_unknown_options=True)
    return [f"--{name}" for name in sorted(given.keys() - known.keys())]


def _last_line(error: Exception) -> str:
    """Returns what an error says; of one that holds a worker's trace, the end of it."""
    lines = [line for line in str(error).splitlines() if re.search(r"\w", line)]
    return lines[-1].strip() if lines else type(error).__name__


def _convert(settings: convert.Settings, task: writer.Task) -> tuple[int, tuple]:
    return task.shard, (task, convert.convert(task.item, task.label_indices, settings))


def _write(output: writer.Output, shard: tuple[int, Iterable[tuple]]) -> None:
    number, outcomes = shard
    if output.shard_path(number).exists():  # Beam may run a step twice; a shard is written once
        return
    shard_writer = output.open_shard(number)
    outcomes = sorted(outcomes, key=lambda outcome: outcome[0].number)
    for task, outcome in outcomes[shard_writer.num_done :]:
        shard_writer.add(task, outcome)
    shard_writer.finish()
