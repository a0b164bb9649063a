"""Turns media files into record shards: ``python -m common.ingest --source=... --output=...``.

The source is a folder, searched recursively, a csv, tsv, json or jsonl table with a column
``path`` and optionally ``id``, ``start``, ``end``, ``captions`` and ``labels``, or tar shards
(``common/data/tar_source.py``). Captions of public data sets are read as they are published
(``--annotations``, see ``common/data/annotations``), and what is said in the videos from files of
its own (``--narrations``, see ``common/data/narrations.py``). The same command continues an
interrupted run. What comes out is described in ``common/data/writer.py``.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from absl import flags

from common import launch
from common.errors import UserError

if TYPE_CHECKING:
    from common.data import convert, tables, writer

_LOCAL = "local"
_OF_ANNOTATIONS = ("annotations_folder", "cut", "paragraph")
_OF_OTHER_SOURCES = ("labels_from", "label_column")


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string("source", None, "folder, table or tars of media files", required=True)
    flags.DEFINE_string("output", None, "folder of the data set", required=True)
    flags.DEFINE_string("split", "train", "name of this part of the data set")
    flags.DEFINE_enum("labels_from", "", ["", "folder"], "'folder': the file's folder is its label")
    flags.DEFINE_string("label_column", "", "table column of the labels; '': labels or label")
    flags.DEFINE_string(
        "annotations", "", "captions: a public data set, such as webvid, whose split is --split"
    )
    flags.DEFINE_string("annotations_folder", "", "of --annotations' files; '': in the source")
    flags.DEFINE_string("cut", "", "variant of --annotations' lists, such as 2M or 1k-A")
    flags.DEFINE_bool("paragraph", False, "join the captions of a video of --annotations to one")
    flags.DEFINE_string(
        "narrations", "", "captions: folder of NAME.csv, .srt, .vtt, or a json or pickle by NAME"
    )
    flags.DEFINE_float("frame_rate", 0.0, "frames/s; 0: the file's own, at most 25", 0, 1000)
    flags.DEFINE_integer("short_side", 256, "pixels of the short side, at most", 16, 4096)
    flags.DEFINE_integer("jpeg_quality", 95, "of the stored frames", 1, 100)
    flags.DEFINE_integer("audio_rate", 48000, "Hz of the stored sound; 0: none", 0, 192000)
    flags.DEFINE_bool("require_sound", False, "reject files without sound")
    flags.DEFINE_enum("flow", "none", ["none", "dis", "tvl1"], "optical flow to store as well")
    flags.DEFINE_float("max_seconds", 600.0, "longest clip; a clip is held in memory", 0.001)
    flags.DEFINE_integer("clips_per_shard", 100, "clips in one shard file", 1)
    flags.DEFINE_integer("workers", 0, "processes; 0: one per core", 0)
    flags.DEFINE_float("timeout", 1800.0, "seconds after which a file is given up", 1)
    flags.DEFINE_string(
        "runner", _LOCAL, "'local', or an Apache Beam runner: DirectRunner, FlinkRunner, ..."
    )
    flags.DEFINE_list("beam_options", [], "Beam pipeline options, e.g. --beam_options=--x=1,--y=2")


def main(argv: list[str]) -> int:
    """Runs the tool; returns 1 when no file could be read."""
    from common.data import card, narrations, writer

    args = flags.FLAGS
    if argv[1:]:
        raise UserError(f"What is {argv[1]!r}? Give the folder or table as --source={argv[1]}.")
    for flag in ("source", "output"):
        if "://" in args[flag].value:
            raise UserError(
                f"--{flag}={args[flag].value}: ingest reads and writes folders of this machine; "
                "mount the bucket, or copy the finished data set there: training reads it from any "
                "address."
            )
    if os.path.realpath(args.source) == os.path.realpath(args.output):
        raise UserError(
            f"--source and --output are both {args.output}; give records a folder of their own, "
            "which may lie in the source."
        )
    if args.beam_options and args.runner == _LOCAL:
        raise UserError("--beam_options are of Apache Beam; name the --runner that takes them.")
    settings = _settings(args)
    folder = args.output
    if args.runner != _LOCAL:
        folder = os.path.abspath(folder)  # workers elsewhere stand in other folders
    output = writer.Output(folder, _checked_split(args.split))
    source = _read_source(args)
    if source.unused:
        print(f"Not used of {args.source}: {', '.join(source.unused)}.", file=sys.stderr)
    items = source.items
    if args.narrations:
        found = narrations.attach(items, args.narrations)
        items = found.items
        print(found, file=sys.stderr)
    with writer.exclusive(args.output):
        output.begin(items, settings, args.clips_per_shard)
        if not output.unfinished():
            print(f"{output.split_folder} is already finished.")
        elif args.runner == _LOCAL:
            _run_local(output, settings, args.workers or _cores(), args.timeout)
        else:
            from common.data import beam_runner

            beam_runner.run(output, settings, args.runner, args.beam_options)
        summary = card.write_card(args.output)["splits"][args.split]
    return _report(args.output, summary)


def _read_source(args: flags.FlagValues) -> tables.Source:
    """Lists the clips; refuses flags that another kind of source has."""
    from common.data import annotations, tables, tar_source

    refused = _OF_OTHER_SOURCES if args.annotations else _OF_ANNOTATIONS
    if given := [flag for flag in refused if args[flag].value]:
        how = "does not go with" if args.annotations else "goes with"
        raise UserError(f"--{given[0]} {how} --annotations; see docs/data.md.")
    if args.annotations:
        return annotations.read(
            args.annotations,
            args.source,
            args.split,
            args.cut,
            args.annotations_folder,
            args.paragraph,
        )
    if tar_source.is_tars(args.source):
        for flag in ("labels_from", "narrations"):
            if args[flag].value:
                raise UserError(f"--{flag} is for media files in folders, not in tars.")
        return tar_source.read_source(args.source, args.label_column)
    return tables.read_source(args.source, args.labels_from, args.label_column)


def _settings(args: flags.FlagValues) -> convert.Settings:
    from common.data import convert, flow

    for flag in ("frame_rate", "max_seconds", "timeout"):
        if math.isnan(args[flag].value):
            raise UserError(f"--{flag}=nan is not a number.")
    if args.require_sound and not args.audio_rate:
        raise UserError("--require_sound does not go with --audio_rate=0, which stores no sound.")
    if args.flow != "none":
        flow.estimator(args.flow)  # a missing package is told before any work
    return convert.Settings(
        frame_rate=args.frame_rate,
        short_side=args.short_side,
        jpeg_quality=args.jpeg_quality,
        audio_rate=args.audio_rate,
        flow=args.flow,
        max_seconds=args.max_seconds,
        require_sound=args.require_sound,
    )


def _checked_split(split: str) -> str:
    if not split or split.startswith(".") or "/" in split:
        raise UserError(f"--split={split!r} must be a plain name such as train or test.")
    return split


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


class _Convert:
    """The per-file function with its settings, in a form that processes can be sent."""

    def __init__(self, settings: convert.Settings):
        self._settings = settings

    def __call__(self, task: writer.Task) -> convert.Outcome:
        import cv2

        from common.data import convert

        cv2.setNumThreads(1)  # the processes share the cores already
        return convert.convert(task.item, task.label_indices, self._settings)


def _run_local(
    output: writer.Output, settings: convert.Settings, num_workers: int, timeout_s: float
) -> None:
    from common.data import convert, workers

    tasks = [task for shard in output.unfinished() for task in output.remaining(shard)]
    outcomes = workers.run_ordered(
        _Convert(settings),
        tasks,
        max(1, min(num_workers, len(tasks))),
        on_death=lambda task, why: convert.Outcome(None, {}, why),
        timeout_s=timeout_s,
    )
    try:
        with contextlib.closing(outcomes):
            _write(output, tasks, outcomes)
    except OSError as error:
        raise UserError(
            f"{output.split_folder} cannot be written: {error}. Make room, then repeat the "
            "command; what is done stays done."
        ) from error


def _write(
    output: writer.Output, tasks: list[writer.Task], outcomes: Iterable[convert.Outcome]
) -> None:
    from common.progress import bar

    rejected, shard_writer = 0, None
    with bar(total=len(tasks), unit="clip", desc=output.split, smoothing=0.05) as progress:
        for task, outcome in zip(tasks, outcomes, strict=True):
            shard_writer = shard_writer or output.open_shard(task.shard)
            shard_writer.add(task, outcome)
            if shard_writer.num_done == len(output.tasks(task.shard)):
                shard_writer.finish()
                shard_writer = None
            rejected += outcome.record is None
            progress.set_postfix(rejected=rejected, refresh=False)
            progress.update()


def _report(folder: str, summary: dict) -> int:
    from common.data import card

    sound = summary["sound"]
    print(
        f"{summary['clips']} clips, {summary['hours'] * 60:.1f} minutes, "
        f"{summary['gigabytes']:.3f} GB in {folder}; {sound['clips']} with sound."
    )
    if summary["rejected"]:
        print(
            f"{summary['rejected']} files were rejected, see {os.path.join(folder, card.REJECTS)}:"
        )
        for reason, count in summary["reject_reasons"].items():
            print(f"  {count} x {reason}")
    if summary["captions_outside"]:
        print(f"{summary['captions_outside']} captions lay outside their clips and were left out.")
    if not summary["clips"]:
        print("No file could be read.", file=sys.stderr)
        return 1
    print(f"Next: python -m common.inspect {folder}")
    return 0


if __name__ == "__main__":
    launch.run(main, define_flags, takes_arguments=True)
