"""Writes a run's metrics: JSON lines for programs, TensorBoard events for eyes.

``WORKDIR/metrics.jsonl`` holds one object per written step, with the step under "step" and every
metric under its name. A metric that is not finite is written as null, which JSON can hold.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import socket
import time
from collections.abc import Mapping
from types import TracebackType

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

FILE_NAME = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class MetricsWriter:
    """Appends to the metrics of one run; a context manager."""

    def __init__(self, workdir: str | os.PathLike[str], step: int):
        """Continues after ``step``: what an earlier process wrote of later steps is taken back.

        Those steps are about to be done again; without this the file would hold them twice.
        """
        workdir = pathlib.Path(workdir)
        path = workdir / FILE_NAME
        _drop_after(path, step)
        self._file = path.open("a", encoding="utf-8")
        self._events = _Events(workdir / TENSORBOARD_FOLDER, step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the metrics of one step; they are in the file when this returns."""
        line = {"step": step}
        line |= {name: v if math.isfinite(v) else None for name, v in values.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._events.write(step, values)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._events.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Nowhere:
    """Takes the place of `MetricsWriter` in the processes of a run that write nothing."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Does nothing."""

    def __enter__(self) -> Nowhere:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _drop_after(path: pathlib.Path, step: int) -> None:
    """Takes the lines of steps after ``step``, and a last line cut short, out of the file."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)

    def stays(line: str) -> bool:
        try:
            return json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            return line.endswith("\n")  # not ours, so not ours to remove

    kept = [line for line in lines if stays(line)]
    if len(kept) != len(lines):
        # Written beside and renamed, so that no crash can lose the lines that stay.
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        os.replace(partial, path)


class _Events:
    """A TensorBoard event file, through TensorBoard's own protocol buffers and record framing.

    ``tensorboard.summary.Writer`` would do the same, but imports TensorFlow for its file system.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter((folder / name).open("wb"))
        self._add(event_pb2.Event(file_version="brain.Event:2"))
        # Tells TensorBoard to forget what earlier files say about the steps to come.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(event_pb2.Event(step=step + 1, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        summary = summary_pb2.Summary(
            value=[
                summary_pb2.Summary.Value(tag=name, simple_value=v) for name, v in values.items()
            ]
        )
        self._add(event_pb2.Event(step=step, summary=summary))

    def _add(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
