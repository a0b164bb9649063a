"""Features of many videos on disk: extracted once, resumed where it was stopped, read by mapping.

A folder of features holds ``description.json`` (all that decides the numbers; its hash is in the
folder's name), ``rows.f32`` (float32 rows, one after the other) and ``videos.jsonl`` (one line per
video in order: which rows are its own, its labels, or why it has none).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import logging
import os
import pathlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from common.errors import UserError

_log = logging.getLogger(__name__)
_MAX_THREADS = 16  # unless asked for more: each holds the clips of a video or two
_NAMED = 20  # bad videos named in the log; all of them are in videos.jsonl


class BadClip(Exception):
    """A video that gives no clips; the message says why."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One video as an encoder sees it.

    Attributes:
        id: the video's name.
        labels: its classes.
        inputs: its clips, (clips, ...), in whatever dtype the encoder takes.
    """

    id: str
    labels: tuple[str, ...]
    inputs: np.ndarray


Read = Callable[[int], Example]
"""Makes the clips of a video, by number; raises `BadClip`. Called from several threads."""

Embed = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Maps clips (B, ...) and their (video, clip) numbers (B, 2) to float32 features (B, D)."""


@dataclasses.dataclass(frozen=True)
class Video:
    """One line of ``videos.jsonl``: rows [start, start + count) of a video, or what is wrong."""

    id: str
    labels: tuple[str, ...] = ()
    start: int = 0
    count: int = 0
    bad: str = ""


@dataclasses.dataclass(frozen=True)
class Features:
    """Extracted features: memory-mapped rows and the videos they belong to."""

    rows_RD: np.ndarray
    videos: tuple[Video, ...]  # those with rows, in order
    bad: tuple[Video, ...]


def relabelled(features: Features, labels: Mapping[str, tuple[str, ...]]) -> Features:
    """Returns the same features with labels by video's name; a video without any is unlabelled."""
    videos = tuple(
        dataclasses.replace(video, labels=labels.get(video.id, ())) for video in features.videos
    )
    return dataclasses.replace(features, videos=videos)


def extract(
    root: str | os.PathLike[str],
    description: Mapping[str, Any],
    num_videos: int,
    dim: int,
    read: Read,
    embed: Embed,
    batch_size: int,
    threads: int = 0,
) -> Features:
    """Returns the features of all videos, computing only what is not in `root` yet.

    Stopped at any point and called again, it continues; the rows are the same as without the stop.
    Videos that `read` refuses are logged, counted and left out.

    Args:
        root: folder that keeps features; those of other descriptions are left alone.
        description: what decides the numbers (weights, source, protocol), in JSON's types.
        num_videos: videos are numbered from 0.
        dim: D, numbers per row.
        read: see `Read`.
        embed: see `Embed`; always called with `batch_size` clips of one shape, the last ones
            padding where no more are left, or the next one has another shape.
        batch_size: clips per call of `embed`.
        threads: how many videos are read at once; 0 is one per core, at most 16.

    Raises:
        UserError: no video could be read, or another process is writing the same features.
    """
    description = {**description, "dim": dim, "num_videos": num_videos}
    text = json.dumps(description, indent=2, sort_keys=True)
    folder = pathlib.Path(root) / hashlib.sha256(text.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "description.json").write_text(text + "\n")
    with _only_writer(folder):
        videos, num_rows = _whole_part(folder, dim)
        if before := sum(1 for video in videos if video.bad):
            _log.warning(
                "%d videos could not be read before and are left out; delete %s to try again",
                before, folder,
            )  # fmt: skip
        if len(videos) < num_videos:
            with _Writer(folder, num_rows * dim * 4) as writer:
                _run(videos, num_rows, num_videos, read, embed, batch_size, threads, writer)
            videos, num_rows = _whole_part(folder, dim)
    good = tuple(video for video in videos if not video.bad)
    bad = tuple(video for video in videos if video.bad)
    if not good:
        raise UserError(
            f"None of the {num_videos} videos of {description.get('source', 'the source')} could "
            f"be read. The first is {bad[0].id}: {bad[0].bad}"
        )
    rows_RD = np.memmap(folder / "rows.f32", np.float32, "r", shape=(num_rows, dim))
    return Features(rows_RD, good, bad)


class _Writer:
    """Appends rows, then the lines of the videos they complete."""

    def __init__(self, folder: pathlib.Path, num_bytes: int):
        self._rows = open(folder / "rows.f32", "ab")  # noqa: SIM115 - closed by __exit__
        self._rows.truncate(num_bytes)  # rows of a video that was not finished
        self._lines = open(folder / "videos.jsonl", "a", encoding="utf-8")  # noqa: SIM115

    def rows(self, rows_RD: np.ndarray) -> None:
        self._rows.write(np.ascontiguousarray(rows_RD, np.float32).tobytes())

    def video(self, video: Video) -> None:
        self._rows.flush()  # a line must never be there before its rows
        self._lines.write(json.dumps(dataclasses.asdict(video)) + "\n")
        self._lines.flush()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()
        self._lines.close()


def _run(
    done: list[Video],
    num_rows: int,
    num_videos: int,
    read: Read,
    embed: Embed,
    batch_size: int,
    threads: int,
    writer: _Writer,
) -> None:
    """Extracts the videos after those in `done`, in order."""
    from common import progress

    waiting: deque[Video] = deque()  # videos whose rows are not all written
    clips, clip_ids, written = [], [], num_rows
    num_bad = 0
    with progress.bar(total=num_videos, initial=len(done), unit="video", desc="features") as bar:

        def flush(last: bool) -> None:
            nonlocal written
            while clips:
                count = _alike(clips, batch_size)
                if count == len(clips) < batch_size and not last:
                    break
                padded = [*range(count)] + [count - 1] * (batch_size - count)
                rows_BD = embed(
                    np.stack([clips[i] for i in padded]), np.array([clip_ids[i] for i in padded])
                )
                writer.rows(np.asarray(rows_BD)[:count])
                written += count
                del clips[:count], clip_ids[:count]
            while waiting and waiting[0].start + waiting[0].count <= written:
                writer.video(waiting.popleft())
                bar.update()

        for number, outcome in in_order(range(len(done), num_videos), read, threads):
            if isinstance(outcome, BadClip):
                num_bad += 1
                if num_bad <= _NAMED:
                    _log.warning("left out: %s", outcome)
                waiting.append(Video(str(number), start=num_rows, bad=str(outcome)))
            else:
                count = len(outcome.inputs)
                waiting.append(Video(outcome.id, outcome.labels, num_rows, count))
                clips.extend(outcome.inputs)
                clip_ids.extend((number, clip) for clip in range(count))
                num_rows += count
            flush(last=False)
        flush(last=True)
    if num_bad:
        _log.warning("%d of %d videos could not be read and are left out", num_bad, num_videos)


def _alike(clips: list[np.ndarray], batch_size: int) -> int:
    """Returns how many of the first clips have one shape, so that they make a batch.

    Videos and pictures differ in their number of frames where an encoder says so.
    """
    shape = clips[0].shape
    return sum(1 for _ in itertools.takewhile(lambda c: c.shape == shape, clips[:batch_size]))


def in_order(numbers: range, read: Read, threads: int) -> Iterator[tuple[int, Example | BadClip]]:
    """Reads videos in parallel and yields them in order, a few ahead of the consumer."""
    threads = threads or min(os.cpu_count() or 1, _MAX_THREADS)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        ahead: deque[tuple[int, concurrent.futures.Future[Example]]] = deque()
        remaining = iter(numbers)
        try:
            while True:
                while len(ahead) <= threads and (number := next(remaining, None)) is not None:
                    ahead.append((number, pool.submit(read, number)))
                if not ahead:
                    return
                number, future = ahead.popleft()
                try:
                    yield number, future.result()
                except BadClip as error:
                    yield number, error
        finally:
            for _, future in ahead:
                future.cancel()


def _whole_part(folder: pathlib.Path, dim: int) -> tuple[list[Video], int]:
    """Returns the videos whose lines and rows are whole, and how many rows they have together.

    What follows them (a line cut off by a crash) is removed from ``videos.jsonl``.
    """
    path = folder / "videos.jsonl"
    if not path.exists():
        return [], 0
    rows = folder / "rows.f32"
    stored = rows.stat().st_size // (4 * dim) if rows.exists() else 0
    videos, num_rows, num_bytes = [], 0, 0
    data = path.read_bytes()
    for line in data.splitlines(keepends=True):
        try:
            entry = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            entry = None
        if entry is None or num_rows + entry["count"] > stored:
            break
        videos.append(Video(**{**entry, "labels": tuple(entry["labels"])}))
        num_rows += entry["count"]
        num_bytes += len(line)
    if num_bytes < len(data):
        os.truncate(path, num_bytes)
    return videos, num_rows


@contextlib.contextmanager
def _only_writer(folder: pathlib.Path) -> Iterator[None]:
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"Another process is writing features to {folder}. Wait for it, or give this one a "
                "--features folder of its own."
            ) from None
        yield
