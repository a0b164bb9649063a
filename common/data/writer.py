"""What ingest keeps on disk, arranged so that it can be killed at any moment and go on.

    DIR/train/train-00000-of-00010.tfrecord   a shard; it appears only when whole, index first
    DIR/train/.train-00001-of-00010.tfrecord.partial
    DIR/labels.json  dataset.json  rejects.jsonl  contact_sheet.jpg
    DIR/.ingest/train/plan.json               settings, and one line per item in items.jsonl
    DIR/.ingest/train/00000.jsonl             journal: one line per item that is done

A record goes into the partial shard first and its line into the journal second; on a restart both
are cut back to what they agree on. Everything beside the shards is derived from the journals.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from common import locks
from common.data import convert, files, shards, tables
from common.data.walk import DATA_SET_MARK
from common.errors import UserError

_FORMAT = 1  # of what is under .ingest
_HIDDEN = DATA_SET_MARK
LABELS = "labels.json"


@dataclasses.dataclass(frozen=True)
class Task:
    """One item with its place in the output; what a worker or a Beam pipeline is handed."""

    number: int
    shard: int
    item: tables.Item
    label_indices: tuple[int, ...]


class Output:
    """One split of one data set that is being written or continued."""

    def __init__(self, folder: str | os.PathLike, split: str):
        """Names the places; `begin` looks at them."""
        self.folder, self.split = pathlib.Path(folder), split
        self.split_folder = self.folder / split
        self._state = self.folder / _HIDDEN / split
        self._items: list[tables.Item] = []
        self._per_shard = 1
        self._labels: dict[str, int] = {}

    def begin(
        self, items: list[tables.Item], settings: convert.Settings, clips_per_shard: int
    ) -> None:
        """Takes the items as the work to do, or checks them against what was begun before.

        Raises:
          UserError: the folder holds other data, or was begun with other settings or items.
        """
        self._items, self._per_shard = items, clips_per_shard
        plan = {"format": _FORMAT, "clips_per_shard": clips_per_shard}
        plan |= dataclasses.asdict(settings)
        lines = [_item_line(item) for item in items]
        path = self._state / "plan.json"
        if path.exists():
            self._check_same(json.loads(path.read_text()), plan, lines)
        elif self.split_folder.exists() and any(self.split_folder.iterdir()):
            raise UserError(
                f"{self.split_folder} holds files that ingest did not write, and nothing is ever "
                "overwritten. Choose another --output or --split."
            )
        else:
            self._state.mkdir(parents=True, exist_ok=True)
            write_whole(self._state / "items.jsonl", "".join(line + "\n" for line in lines))
            write_whole(path, json.dumps(plan, indent=2) + "\n")
        self.split_folder.mkdir(parents=True, exist_ok=True)
        self._labels = extend_labels(self.folder, (name for item in items for name in item.labels))

    def _check_same(self, before: dict, now: dict, lines: list[str]) -> None:
        differences = [
            f"  --{key}: {before.get(key)!r} there, {now.get(key)!r} now"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        old = (self._state / "items.jsonl").read_text().splitlines()
        if old != lines:
            new, gone = len(set(lines) - set(old)), len(set(old) - set(lines))
            differences.append(f"  the source: {new} clips are new or changed, {gone} are gone")
        if differences:
            raise UserError(
                f"{self.split_folder} was begun with other settings:\n"
                + "\n".join(differences)
                + "\nRepeat the first command to finish it, or choose another --output or --split."
            )

    @property
    def num_shards(self) -> int:
        """Number of shards of the whole split."""
        return math.ceil(len(self._items) / self._per_shard)

    def shard_path(self, shard: int) -> pathlib.Path:
        """Where a finished shard lies."""
        return self.split_folder / f"{self.split}-{shard:05d}-of-{self.num_shards:05d}.tfrecord"

    def open_shard(self, shard: int) -> ShardWriter:
        """Opens an unfinished shard where it was left."""
        return ShardWriter(self.shard_path(shard), self._journal(shard))

    def remaining(self, shard: int) -> list[Task]:
        """Returns what is still to do of an unfinished shard; finishes it if that is nothing."""
        tasks = self.tasks(shard)
        if self._journal(shard).exists():
            writer = self.open_shard(shard)
            tasks = tasks[writer.num_done :]
            if tasks:
                writer.close()
            else:
                writer.finish()
        return tasks

    def _journal(self, shard: int) -> pathlib.Path:
        return self._state / f"{shard:05d}.jsonl"

    def keep_error(self, text: str) -> pathlib.Path:
        """Keeps the whole of what ended the work beside its journals; returns where."""
        path = self._state / "error.txt"
        write_whole(path, text)
        return path

    def unfinished(self) -> list[int]:
        """Returns the numbers of the shards that are not there yet."""
        return [shard for shard in range(self.num_shards) if not self.shard_path(shard).exists()]

    def tasks(self, shard: int) -> list[Task]:
        """Returns all tasks of one shard."""
        first = shard * self._per_shard
        items = self._items[first : first + self._per_shard]
        return [
            Task(number, shard, item, tuple(self._labels[name] for name in item.labels))
            for number, item in enumerate(items, first)
        ]


class ShardWriter:
    """Appends outcomes to a hidden partial shard; `finish` makes it appear."""

    def __init__(self, path: pathlib.Path, journal: pathlib.Path):
        """Opens the partial shard and its journal, cut back to what both agree on."""
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._journal_path = journal
        lines = _cut_back(self._partial, journal)
        self.num_done = len(lines)
        self._shard = open(self._partial, "ab")  # noqa: SIM115 - closed by finish or close
        self._journal = open(journal, "a", encoding="utf-8")  # noqa: SIM115

    def add(self, task: Task, outcome: convert.Outcome) -> None:
        """Writes down what became of the next item of the shard."""
        line = {"item": task.number, "id": task.item.id, "path": task.item.name}
        if outcome.record is None:
            line["reason"] = outcome.reason
        else:
            self._shard.write(shards.frame(outcome.record))
            self._shard.flush()
        self._journal.write(json.dumps(line | outcome.facts) + "\n")
        self._journal.flush()
        self.num_done += 1

    def finish(self) -> None:
        """Makes the shard appear under its name, whole and on the disk, with its index."""
        for file in (self._shard, self._journal):
            os.fsync(file.fileno())
        self.close()
        shards.write_index(self._partial)
        partial_index = f"{self._partial}{shards.INDEX_SUFFIX}"
        os.replace(partial_index, f"{self._path}{shards.INDEX_SUFFIX}")
        os.replace(self._partial, self._path)
        for leftover in files.left_by_killed(partial_index):
            leftover.unlink()
        _sync_folder(self._path.parent)
        _sync_folder(self._journal_path.parent)

    def close(self) -> None:
        """Leaves the shard for another time."""
        self._shard.close()
        self._journal.close()


def _cut_back(partial: pathlib.Path, journal: pathlib.Path) -> list[str]:
    """Truncates both files to the items whose record and line are whole; returns the lines."""
    lines = [line for line in _whole_lines(journal) if _is_json(line)]
    ends = [0]
    if partial.exists():
        index, problems = shards.scan(partial, verify=True)
        whole = problems[0].number if problems else len(index)
        offsets = [*index.offsets.tolist(), partial.stat().st_size]
        ends += offsets[1 : whole + 1]  # a record ends where the next one begins
    kept, records = [], 0
    for line in lines:
        written = "reason" not in json.loads(line)
        if written and records + 1 >= len(ends):
            break
        records += written
        kept.append(line)
    if partial.exists():
        os.truncate(partial, ends[records])
    if journal.exists():
        write_whole(journal, "".join(line + "\n" for line in kept))
    return kept


def _whole_lines(path: pathlib.Path) -> list[str]:
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return text.split("\n")[:-1]  # what follows the last line end is a line that was cut off


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def journal_entries(folder: str | os.PathLike) -> dict[str, list[dict[str, Any]]]:
    """Returns, by split, what became of every item so far, in order."""
    entries = {}
    for plan in sorted(pathlib.Path(folder, _HIDDEN).glob("*/plan.json")):
        journals = sorted(plan.parent.glob("[0-9]*.jsonl"))
        lines = [line for journal in journals for line in _whole_lines(journal)]
        entries[plan.parent.name] = [json.loads(line) for line in lines]
    return entries


def num_written(shard: str | os.PathLike) -> int | None:
    """Returns how many records a shard had when it was finished, None where ingest did not."""
    path = pathlib.Path(shard)
    name = shards.NUMBERED.match(path.name)
    if not name:
        return None
    journal = path.parent.parent / _HIDDEN / path.parent.name / f"{name['number']}.jsonl"
    if not journal.is_file():
        return None
    return sum("reason" not in json.loads(line) for line in _whole_lines(journal))


def read_plan(folder: str | os.PathLike, split: str) -> dict[str, Any]:
    """Returns the settings that a split was made with."""
    return json.loads(pathlib.Path(folder, _HIDDEN, split, "plan.json").read_text())


def read_labels(folder: str | os.PathLike) -> dict[str, int]:
    """Returns the label map of a data set, name to index; empty where there is none.

    Raises:
      UserError: the file is damaged.
    """
    path = pathlib.Path(folder, LABELS)
    if not path.exists():
        return {}
    try:
        labels = json.loads(path.read_text())
        if sorted(labels.values()) != list(range(len(labels))):
            raise ValueError("the indices are not 0 to the number of labels")
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it from a copy.") from error
    return labels


def extend_labels(folder: str | os.PathLike, names: Iterable[str]) -> dict[str, int]:
    """Adds names to the data set's label map and returns it.

    Names are sorted when the map is first made; later ones go to the end, sorted among themselves,
    so that no index ever changes its meaning. All splits share the map.
    """
    labels = read_labels(folder)
    new = sorted(set(names) - labels.keys())
    if new:
        labels |= {name: index for index, name in enumerate(new, len(labels))}
        text = json.dumps(labels, indent=1, ensure_ascii=False) + "\n"
        write_whole(pathlib.Path(folder, LABELS), text)
    return labels


@contextlib.contextmanager
def exclusive(folder: str | os.PathLike) -> Iterator[None]:
    """Holds the data set for this process; the lock ends with the process, however it ends.

    Raises:
      UserError: another ingest is writing there, or the folder cannot be written.
    """
    taken = f"Another ingest is writing to {folder}; wait for it, or stop it first."
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.exclusive(pathlib.Path(folder, _HIDDEN, "lock"), taken))
        except OSError as error:
            raise UserError(f"--output={folder} cannot be written: {error}") from error
        yield


def write_whole(path: pathlib.Path, data: str | bytes) -> None:
    """Replaces a small file such that a crash leaves the old or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _item_line(item: tables.Item) -> str:
    """One item as a line; without the absolute path, so that a data set can be moved meanwhile."""
    fields = dataclasses.asdict(item)
    del fields["path"]
    return json.dumps(fields)


def _sync_folder(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
