"""Commands run one after the other, as a user would type them: what demos and benchmarks are."""

from __future__ import annotations

import pathlib
import shlex
import subprocess
import sys
import time

from common.errors import UserError


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
        self._announce(title)
        print(f"      python -m {shlex.join(module_and_flags)}", flush=True)
        began = time.monotonic()
        status = subprocess.run([sys.executable, "-m", *module_and_flags], check=False).returncode
        if status:
            raise UserError(
                f"The stage {title!r} ended with status {status}; its message is above. What was "
                "made so far is kept: mend the cause and run the same command again."
            )
        now = time.monotonic()
        print(f"      {now - began:.0f} s (since the start: {now - self._start:.0f} s)", flush=True)

    def make(self, path: pathlib.Path, title: str, *module_and_flags: str) -> None:
        """Runs what makes `path`, given as its ``--output``, or keeps what is there."""
        if path.exists():
            self.skip(title, f"{path} is there already and is kept")
        else:
            self.run(title, *module_and_flags, f"--output={path}")

    def ingest(
        self, title: str, table: pathlib.Path, records: pathlib.Path, split: str, *flags: str
    ) -> None:
        """Turns the media of a table into a split of records, unless it lists none."""
        if not table.stat().st_size:
            self.skip(title, "there are none")
            return
        self.run(
            title,
            "common.ingest", f"--source={table}", f"--output={records}", f"--split={split}", *flags,
        )  # fmt: skip

    def skip(self, title: str, why: str) -> None:
        """Says that a stage has nothing to do."""
        self._announce(title)
        print(f"      skipped: {why}", flush=True)

    def _announce(self, title: str) -> None:
        self._number += 1
        number = f"[{self._number}/{self._total}] " if self._total else ""
        print(f"\n{number}{title}", flush=True)


def shorter_run(steps: int) -> list[str]:
    """Returns the overrides for a number of steps, a tenth of them to warm up; none for 0."""
    if not steps:
        return []
    return [f"--config.steps={steps}", f"--config.optimizer.warmup_steps={steps // 10}"]


def list_own_videos(
    stages: Stages, videos: pathlib.Path, tables: pathlib.Path, segment_s: float
) -> bool:
    """Lists a user's clips in tables "train" and "test", in place of rendering a world.

    Returns:
        Whether a probe can be trained and scored; see `own_videos.write_tables`.

    Raises:
        UserError: there is no such folder, or it holds no video.
    """
    from common.data import own_videos

    if not videos.is_dir():
        raise UserError(f"--videos={videos} is not a folder; give one that holds video files.")
    counts, can_probe = own_videos.write_tables(videos, tables, segment_s)
    listed = ", ".join(f"{count} {split}" for split, count in counts.items())
    stages.skip("Rendering videos", f"using those of {videos}; clips: {listed}")
    return can_probe
