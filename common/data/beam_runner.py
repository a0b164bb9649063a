"""Ingest as an Apache Beam pipeline: the same per-file function, the same files at the end.

For clusters: ``--runner=FlinkRunner``, ``SparkRunner``, ``DataflowRunner`` with their options in
``--beam_options``. Source and output must be folders that all machines see under one path. Whole
shards are written by one worker each, so a stopped pipeline continues shard by shard.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from common.data import convert
from common.errors import UserError

if TYPE_CHECKING:
    from common.data import writer


def run(
    output: writer.Output, settings: convert.Settings, runner: str, options: Sequence[str]
) -> None:
    """Makes the unfinished shards of `output`.

    Args:
      output: the split to finish.
      settings: how clips are made.
      runner: name of a Beam runner.
      options: Beam pipeline options as on a command line.

    Raises:
      UserError: Apache Beam is not installed or does not know the runner.
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
    with pipeline:
        _ = (
            pipeline
            | "Clips" >> beam.Create(tasks)
            | "Spread" >> beam.Reshuffle()
            | "Convert" >> beam.Map(functools.partial(_convert, settings))
            | "ByShard" >> beam.GroupByKey()
            | "Write" >> beam.Map(functools.partial(_write, output))
        )


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
