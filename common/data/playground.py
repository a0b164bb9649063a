"""Renders the playground: a small narrated world in real mp4 files, to learn from and to test on.

    python -m common.data.playground --output=DIR --train=2000 --test=400

Objects of several kinds, materials and textures do things that only time tells apart, and sound as
they do them (see `playground_motion` and `playground_sound`). ``DIR/train.jsonl`` and its like are
tables for ``common.ingest``: path, labels (the action), captions with times, and the further
columns object, material, duration and events. Held-out splits use textures, backgrounds and timbres
that the training splits never show.

The world is a pure function of ``--seed``. Files that are there already are kept, so a run that was
stopped continues, and a larger ``--train`` adds clips to a world that exists.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import pathlib
from collections.abc import Mapping
from fractions import Fraction

from absl import flags

from common import launch, locks
from common.errors import UserError

_SETTINGS_FILE = "playground.json"
_VERSION = 1  # of the world: raised when the same seed gives other videos
_TIMEOUT_SECONDS = 600.0  # for one video, however slow the machine
_log = logging.getLogger(__name__)


def create(
    output: str | os.PathLike, counts: Mapping[str, int], settings=None, workers: int = 0
) -> None:
    """Renders ``counts`` videos per split ("train", "test", "long_train", "long_test") to a folder.

    ``settings`` is a `playground_video.Settings`; ``workers`` is the number of processes, 0 for one
    per core. Raises `UserError` for impossible settings, a folder that holds another world or is
    being filled by another process, or a worker that dies.
    """
    from common.data import playground_video  # OpenCV and PyAV, which `--help` does not need

    settings = settings or playground_video.Settings()
    _check(settings, counts)
    folder = pathlib.Path(output)
    taken = f"Another process renders videos to {folder}. Run this again when it has ended."
    with locks.exclusive(folder / ".lock", taken):
        _claim(folder, settings)
        _fill(folder, settings, counts, workers)


def _fill(folder: pathlib.Path, settings, counts: Mapping[str, int], workers: int) -> None:
    """Renders what is missing, and lists every split."""
    jobs = [(split, number) for split, count in counts.items() for number in range(count)]
    for split in counts:
        (folder / split).mkdir(exist_ok=True)
    rows = _in_parallel(functools.partial(_make, os.fspath(folder), settings), jobs, workers)
    kept = sum(row.pop("kept") for row in rows)
    if kept:
        _log.info("%d videos were there already and are kept", kept)
    for split, count in counts.items():
        if count:
            listed = [row for row, job in zip(rows, jobs, strict=True) if job[0] == split]
            _write_whole(folder / f"{split}.jsonl", "".join(json.dumps(r) + "\n" for r in listed))
            _log.info("%d videos listed in %s", count, folder / f"{split}.jsonl")


def _make(folder: str, settings, job: tuple[str, int]) -> dict:
    """Renders one video unless it is there, and returns its line of the table."""
    from common.data import playground_video

    kept = os.path.exists(os.path.join(folder, playground_video.path(*job)))
    if not kept:
        playground_video.write(folder, settings, *job)
    return {**playground_video.row(settings, *job), "kept": kept}


def _in_parallel(make, jobs: list[tuple[str, int]], workers: int) -> list[dict]:
    from common import progress
    from common.data.workers import run_ordered

    # Cores this process may use, where the system can tell.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = max(1, min(workers or cores or 1, len(jobs) // 4))
    rows = map(make, jobs)
    if workers > 1:
        rows = run_ordered(make, jobs, workers, _give_up, _TIMEOUT_SECONDS)
    return list(progress.bar(rows, total=len(jobs), unit="video", desc="render"))


def _give_up(job: tuple[str, int], why: str) -> dict:
    split, number = job
    raise UserError(
        f"rendering video {number} of {split} failed: {why}. Run the same command again to continue"
        " where it stopped, perhaps with a smaller --workers."
    )


def _check(settings, counts: Mapping[str, int]) -> None:
    from common.data.playground_video import SPLITS

    try:
        rate = Fraction(settings.frame_rate)
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"--frame_rate={settings.frame_rate} is no number; give one like 25 or 25/2."
        ) from error
    if not 5 <= rate <= 120 or Fraction(settings.audio_rate) % rate:
        raise UserError(
            f"--frame_rate={settings.frame_rate} does not divide the {settings.audio_rate} samples"
            " of a second, or is not within 5 to 120; 12.5, 20, 25 and 50 do."
        )
    if settings.size < 32 or settings.size % 2:
        raise UserError(f"--size={settings.size} must be even and at least 32 pixels.")
    if not 0 <= settings.clutter <= 1:
        raise UserError(f"--clutter={settings.clutter} must be between 0 and 1.")
    if settings.seed < 0:
        raise UserError(f"--seed={settings.seed} must not be negative.")
    for split, count in counts.items():
        if split not in SPLITS or count < 0:
            raise UserError(f"--{split}={count}: splits are {SPLITS}, counts 0 or more.")


def _claim(folder: pathlib.Path, settings) -> None:
    """Writes down which world a folder holds, or refuses a folder that holds another."""
    wanted = {"version": _VERSION, **dataclasses.asdict(settings)}
    wanted["frame_rate"] = str(Fraction(settings.frame_rate))  # 12.5 and 25/2 are the same world
    file = folder / _SETTINGS_FILE
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write_whole(file, json.dumps(wanted, indent=2) + "\n")
        return
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is damaged; choose another --output.") from error
    if found != wanted:
        raise UserError(
            f"{folder} holds another playground ({found}); this run asks for {wanted}. Choose"
            " another --output, or the same settings to continue."
        )


def _write_whole(file: pathlib.Path, text: str) -> None:
    partial = file.with_suffix(file.suffix + ".part")
    partial.write_text(text)
    os.replace(partial, file)


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string("output", None, "folder to write to", required=True)
    flags.DEFINE_integer("train", 2000, "short clips to train on")
    flags.DEFINE_integer("test", 400, "short clips held out")
    flags.DEFINE_integer("long_train", 0, "narrated videos of 15 to 40 s to train on")
    flags.DEFINE_integer("long_test", 0, "narrated videos held out")
    flags.DEFINE_integer("seed", 0, "of the whole world")
    flags.DEFINE_integer("size", 128, "width and height in pixels")
    flags.DEFINE_string("frame_rate", "12.5", "frames per second, a number or a fraction")
    flags.DEFINE_float(
        "clutter",
        1.0,
        "0 to 1: drifting cameras and bystanders, contrast of textures, background noise",
    )
    flags.DEFINE_integer("workers", 0, "processes; 0 means one per core")


def main(_: list[str]) -> None:
    """Renders what the flags ask for."""
    from common.data.playground_video import SPLITS, Settings

    values = flags.FLAGS
    settings = Settings(
        seed=values.seed,
        size=values.size,
        frame_rate=values.frame_rate,
        clutter=values.clutter,
    )
    counts = {split: getattr(values, split) for split in SPLITS}
    create(values.output, counts, settings, values.workers)


if __name__ == "__main__":
    launch.run(main, define_flags)
