"""Commands run one after the other, as a user would type them: what demos and benchmarks are."""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import UserError

_NOTHING_READ = 1  # status of common.ingest where no file could be read


class Stages:
    """Runs commands one by one, saying which of how many and how long each took.

    Every command continues where it was stopped, and so does the whole.

    Args:
        total: how many there will be; 0 where that is not known, and none is numbered.
    """

    def __init__(self, total: int = 0):
        self._total = total
        self._number = 0
        self._start = time.monotonic()

    def run(self, title: str, *module_and_flags: str) -> None:
        """Runs ``python -m MODULE FLAGS...``; raises `UserError` where it fails."""
        self._run(title, module_and_flags)

    def _run(self, title: str, module_and_flags: Sequence[str], also: int = 0) -> None:
        """Runs a command that may end with status 0 or ``also``; what stops it stops the whole."""
        self._announce(title)
        print(f"      python -m {shlex.join(module_and_flags)}", flush=True)
        began = time.monotonic()
        with subprocess.Popen([sys.executable, "-m", *module_and_flags]) as child:
            before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
            try:
                status = child.wait()
            except KeyboardInterrupt:  # it was told as well, and saves what it has
                child.wait()
                raise
            finally:
                signal.signal(signal.SIGTERM, before)
        if status in (128 + signal.SIGTERM, -signal.SIGTERM):
            raise SystemExit(128 + signal.SIGTERM)
        if status not in (0, also):
            raise UserError(
                f"The stage {title!r} ended with status {status}; its message is above. What was "
                "made so far is kept: mend the cause and run the same command again."
            )
        now = time.monotonic()
        print(f"      {now - began:.0f} s (since the start: {now - self._start:.0f} s)", flush=True)

    def make(self, path: pathlib.Path, title: str, *module_and_flags: str) -> None:
        """Runs what makes `path`, given as its ``--output``, or keeps what is there."""
        if path.exists():
            self.skip(title, f"{path} is there already and is kept; remove it to make it anew")
        else:
            self.run(title, *module_and_flags, f"--output={path}")

    def ingest(
        self, title: str, table: pathlib.Path, records: pathlib.Path, split: str, *flags: str
    ) -> int:
        """Turns the media of a table into a split of records; returns how many clips it has.

        Raises:
            UserError: it failed, or of what is to be trained on nothing can be read.
        """
        if not table.stat().st_size:
            self.skip(title, "there are none")
            return 0
        command = ("common.ingest", f"--source={table}", f"--output={records}", f"--split={split}")
        self._run(title, (*command, *flags), also=_NOTHING_READ)
        clips = int(split_card(records, split)["clips"])
        if not clips and split == "train":
            raise UserError(
                f"No video to train on can be read; {records / 'rejects.jsonl'} says why. What was "
                "rejected is not tried again: mend the files and name another --output."
            )
        return clips

    def skip(self, title: str, why: str) -> None:
        """Says that a stage has nothing to do."""
        self._announce(title)
        print(f"      skipped: {why}", flush=True)

    def _announce(self, title: str) -> None:
        self._number += 1
        number = f"[{self._number}/{self._total}] " if self._total else ""
        print(f"\n{number}{title}", flush=True)


def split_card(records: pathlib.Path, split: str) -> Mapping[str, Any]:
    """Returns what ``dataset.json`` says of a split."""
    card = json.loads((records / "dataset.json").read_text(encoding="utf-8"))
    return card["splits"].get(split, {"clips": 0, "clips_by_label": {}})


def begin(output: str, config_file: str) -> pathlib.Path:
    """Returns the folder of a demo; raises `UserError` where it or the config cannot be."""
    for sign in ",@":
        if sign in output:
            raise UserError(
                f"--output={output}: {sign!r} has a meaning where data are named (it mixes "
                "sources); name a folder without."
            )
    if not pathlib.Path(config_file.partition(":")[0]).is_file():
        raise UserError(f"--config_file={config_file}: there is no such file in {os.getcwd()}.")
    return pathlib.Path(output)


def shorter_run(steps: int) -> list[str]:
    """Returns the overrides for a number of steps, a tenth of them to warm up; none for 0."""
    if not steps:
        return []
    return [f"--config.steps={steps}", f"--config.optimizer.warmup_steps={steps // 10}"]


def list_own_videos(
    stages: Stages,
    videos: pathlib.Path,
    tables: pathlib.Path,
    segment_s: float,
    narrations: str = "",
) -> None:
    """Lists a user's clips in tables "train" and "test", in place of rendering a world.

    Raises:
        UserError: there is no such folder, or it holds no video.
    """
    from common.data import own_videos

    if not videos.is_dir():
        raise UserError(f"--videos={videos} is not a folder; give one that holds video files.")
    counts = own_videos.write_tables(videos, tables, segment_s, narrations)
    listed = ", ".join(f"{count} {split}" for split, count in counts.items())
    stages.skip("Rendering videos", f"using those of {videos}; clips: {listed}")
