"""Checks a folder of records and says what is wrong: ``python -m common.inspect DIR``.

Works on what ``common.ingest`` wrote and on shards of DMVR, BraVe, Scenic or MediaSequence. With
``--config=configs/x.py`` it also says whether the records can feed that training, and how fast.
"""

from __future__ import annotations

import collections
import pathlib
import sys
import time
from typing import TYPE_CHECKING, Any

from absl import flags

from common import config as config_lib
from common import launch
from common.errors import UserError
from common.method import AudioInput, VideoInput

if TYPE_CHECKING:
    from common.data import check

_MEASURE_SECONDS = 8.0
_TRIED = 16  # records that are turned into examples one by one


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_integer("max_records", 1000, "records per split to look into; 0: all", 0)
    config_lib.define_flag()


def main(argv: list[str]) -> int:
    """Runs the tool; returns 1 when there are problems."""
    from common.data import check, writer

    if len(argv) != 2:
        raise UserError("Give one folder of records: python -m common.inspect DIR")
    folder = argv[1]
    config = config_lib.load() if flags.FLAGS.config is not None else None
    labels = writer.read_labels(folder) or writer.read_labels(pathlib.Path(folder).parent)
    healthy = True
    for name, source in check.record_folders(folder).items():
        findings = _check(name, source, labels)
        _print_findings(name, findings)
        healthy &= not findings.problems
        if config is not None:
            healthy &= _check_config(config, source, findings)
    return 0 if healthy else 1


def _check(name: str, source: str, labels: dict[str, int]) -> check.Findings:
    import tqdm

    from common.data import check

    with tqdm.tqdm(unit="record", desc=name, leave=False, disable=not sys.stderr.isatty()) as bar:
        return check.check_folder(source, labels, flags.FLAGS.max_records, bar.update)


def _print_findings(name: str, findings: check.Findings) -> None:
    from common.data import card

    summary = card.summarise(findings.clips)
    sound = summary["sound"]
    rows = {
        "shards": findings.num_shards,
        "records": f"{findings.num_records}, looked into {len(findings.clips)}",
        "size": f"{findings.gigabytes:.3f} GB",
        "duration": _spread(summary["seconds"], "s"),
        "frames": _spread(summary["frames"], ""),
        "frame rates": _counts(summary["frame_rates"]),
        "picture sizes": _counts(summary["sizes"]),
        "with sound": f"{sound['clips']} ({sound['silent']} silent)",
        "sound rates": _counts(sound["rates"]),
        "sound level": _spread(sound["rms_dbfs"], "dBFS"),
        "captions": summary["captions"],
        "labelled": f"{summary['labelled']}, {len(summary['clips_by_label'])} labels",
    }
    print(f"\n{name}")
    for key, value in rows.items():
        print(f"  {key:14}{value}")
    for line in findings.lines(findings.remarks):
        print(f"  note:    {line}")
    for line in findings.lines(findings.problems):
        print(f"  PROBLEM: {line}")
    if not findings.problems:
        print("  No problems found.")


def _spread(values: dict[str, float] | None, unit: str) -> str:
    if values is None:
        return "none stored"
    return f"{values['min']:g} to {values['max']:g} {unit} (median {values['median']:g})"


def _counts(values: dict[str, int]) -> str:
    return ", ".join(f"{value} ({count})" for value, count in values.items()) or "none stored"


def _check_config(config: Any, source: str, findings: check.Findings) -> bool:
    """Says whether the records can feed the method of a config, and how fast; True if they can."""
    from common import methods

    if "," in source:
        raise UserError(
            f"{source}: commas separate sources in a config; rename the folder to train on it."
        )
    config.unlock()
    config.data.train = f"{source}@1"  # the path may hold an "@"
    config.batch_size, config.microbatches = min(config.batch_size, 8), 1
    config.lock()
    method = methods.create(config)
    note_lengths(method, findings)
    failures = _try_examples(config, method, source)
    for reason, names in failures.items():
        print(f"  PROBLEM: {len(names)} of the tried records cannot feed {config.method}: {reason}")
    if failures:
        return False
    print(f"  Can feed {config.method}: {_clips_per_second(config, method):.1f} clips/s here.")
    return True


def note_lengths(method: Any, findings: check.Findings) -> None:
    """Notes how many clips are shorter than what the encoders look at."""
    seconds = [clip["seconds"] for clip in findings.clips if "seconds" in clip]
    for name, encoder in method.encoders.items():
        span = _seconds(encoder.inputs)
        short = sum(length < span for length in seconds)
        if short:
            print(
                f"  note:    {short} of {len(seconds)} clips are shorter than the {span:.2f} s "
                f"that the {name} encoder sees; they are repeated to fill it"
            )


def _seconds(inputs: Any) -> float:
    """Returns how long a recording must be for an encoder's clip; 0 where any will do."""
    if isinstance(inputs, AudioInput):
        return inputs.num_samples / inputs.sample_rate
    if isinstance(inputs, VideoInput) and not inputs.segments:
        return inputs.num_frames * inputs.stride / inputs.frame_rate
    return 0.0


def _try_examples(config: Any, method: Any, source: str) -> dict[str, list[str]]:
    """Turns some records into examples; returns the names of those that fail, by reason."""
    from common.data import card, records, shards
    from common.tf import tf

    def example(data: bytes) -> None:
        record = records.parse(
            tf.constant(data),
            method.views.modalities,
            config.data.default_frame_rate,
            config.data.default_audio_rate,
        )
        method.views.example(record, tf.constant([0, 0]))

    failures = collections.defaultdict(list)
    record_set = shards.RecordSet.open(source)
    for number in card.evenly(len(record_set), _TRIED):
        try:
            example(record_set.read(number))
        # What Python says in a graph comes through as it is.
        except (tf.errors.OpError, shards.BadRecord, ValueError) as error:
            # TensorFlow puts the name of its node in front, and which numbers failed behind.
            why = str(error).splitlines()[0].rpartition("}} ")[2].partition(" [Op:")[0]
            failures[why.partition("Condition ")[0].strip(" .")].append(record_set.name(number))
    return failures


def _clips_per_second(config: Any, method: Any) -> float:
    """Measures the whole way from shards to host batches for some seconds, after a first batch."""
    from common.data import pipeline

    batches = pipeline.TrainData(config, method.views).batches(0)
    next(batches)
    start, clips = time.monotonic(), 0
    while time.monotonic() - start < _MEASURE_SECONDS:
        next(batches)
        clips += config.batch_size
    return clips / (time.monotonic() - start)


if __name__ == "__main__":
    launch.run(main, define_flags, takes_arguments=True)
