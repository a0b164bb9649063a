"""Official splits of HMDB-51 and UCF-101: which videos train, which test, and what they show.

Three forms are read: the csv of MIL-NCE's published evaluation of HMDB-51
(github.com/antoine77340/MIL-NCE_HowTo100M), and the folders of lists that HMDB-51 and UCF-101 are
distributed with. Where the videos of all splits lie in one record set, features are computed once.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

from common.errors import UserError
from common.evaluation import captioned, csv_rows
from common.evaluation.features import Features

ROLES = ("train", "test")
_NUMBERED = re.compile(r"split(\d+)")
_UCF_LIST = re.compile(r"(train|test)list(\d+)\.txt")
_HMDB_LIST = re.compile(r"(.+)_test_split(\d+)\.txt")
_HMDB_ROLES = {"0": "", "1": "train", "2": "test"}
_LABEL_END = "_test"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One video's place in one split.

    Attributes:
        split: "split1", ...
        role: "train" or "test".
        video: name of its file, without folder and ending.
        label: its class.
        where: file and line, for people.
    """

    split: str
    role: str
    video: str
    label: str
    where: str


Parts = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Of one split: by role the labels of its records, by id."""


def read(path: str | os.PathLike[str]) -> list[Entry]:
    """Reads a split file or folder.

    A csv has columns ``video_id`` (a file name), ``label`` (a ``_test`` at its end is no part of
    it) and ``split1``, ``split2``, ...: 1 is train, 2 is test, 0 neither. A folder holds
    ``LABEL_test_split1.txt``, ... with lines of a file name and such a number (HMDB-51), or
    ``trainlist01.txt``, ``testlist01.txt``, ... with lines ``LABEL/FILE`` whatever follows
    (UCF-101).

    Raises:
        UserError: it is none of them, or a line cannot be understood; names file and line.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        entries = [entry for file in sorted(path.iterdir()) for entry in _of_list(file)]
        if not entries:
            raise UserError(
                f"--splits={path} holds neither trainlist01.txt and testlist01.txt (UCF-101) nor "
                "LABEL_test_split1.txt (HMDB-51)."
            )
        return entries
    return list(_of_csv(path))


def find(entries: Sequence[Entry], names: Mapping[str, Sequence[str]]) -> dict[str, Parts]:
    """Returns by split and role the labels of the records that are listed.

    A record is a video's when its id is the video's name, or the path of a file of that name as
    ingest gives it; of several, the one in a folder named like the label.

    Args:
        entries: see `read`.
        names: by role the ids of the records of its source.

    Raises:
        UserError: a listed video has no record or several, is listed twice, or a split has no
            videos to train on or none to test on.
    """
    records = {role: _by_video(names[role]) for role in ROLES}
    found: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {}
    listed: dict[tuple[str, str], str] = {}
    missing = []
    for entry in entries:
        matches = records[entry.role].get(entry.video, [])
        if len(matches) > 1:
            inside = [m for m in matches if pathlib.PurePosixPath(m).parent.name == entry.label]
            matches = inside or matches
        if len(matches) > 1:
            raise UserError(
                f"{entry.where}: several records of --{entry.role} are {entry.video!r}: "
                f"{', '.join(matches)}."
            )
        if not matches:
            missing.append(entry)
            continue
        before = listed.setdefault((entry.split, matches[0]), entry.where)
        if before != entry.where:
            raise UserError(f"{entry.where}: {entry.video!r} is listed before, in {before}.")
        parts = found.setdefault(entry.split, {role: {} for role in ROLES})
        parts[entry.role][matches[0]] = (entry.label,)
    if missing:
        first = missing[0]
        raise UserError(
            f"{first.where}: no record of --{first.role} is {first.video!r} ({len(missing)} of "
            f"{len(entries)} entries have none). Ingest the missing videos, or take them out of a "
            "copy of the list, whose numbers then do not compare with those of the whole."
        )
    for split, parts in found.items():
        for role in ROLES:
            if not parts[role]:
                raise UserError(f"{entries[0].where}: {split} has no videos to {role} on.")
    return dict(sorted(found.items()))


def select(
    features: Features, labels: Mapping[str, tuple[str, ...]], names: Sequence[str]
) -> Features:
    """Returns the features of the listed records alone, with the labels of the list.

    Args:
        features: of all records of a source.
        labels: by id of a record.
        names: the id of every record of the source; those that gave no features go by number.
    """
    videos = tuple(
        dataclasses.replace(video, labels=labels[video.id])
        for video in features.videos
        if video.id in labels
    )
    bad = tuple(video for video in features.bad if names[int(video.id)] in labels)
    return Features(features.rows_RD, videos, bad)


def _of_csv(path: pathlib.Path) -> Iterator[Entry]:
    for row in csv_rows.read(path, ("video_id", "label", "split1")):
        video, label = (
            captioned.video_name(row.text("video_id")),
            row.text("label").removesuffix(_LABEL_END),
        )
        for column in (name for name in row.cells if _NUMBERED.fullmatch(name or "")):
            value = row.text(column)
            if value not in _HMDB_ROLES:
                row.refuse(column, f"{value!r} is none of 0 (neither), 1 (train), 2 (test)")
            if role := _HMDB_ROLES[value]:
                yield Entry(column, role, video, label, f"{path}, line {row.line}")


def _of_list(path: pathlib.Path) -> Iterator[Entry]:
    """Yields the entries of a list of HMDB-51 or UCF-101; other files have none."""
    hmdb, ucf = _HMDB_LIST.fullmatch(path.name), _UCF_LIST.fullmatch(path.name)
    if not hmdb and not ucf:
        return
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text in UTF-8: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        if ucf:
            folder, slash, file = line.split()[0].rpartition("/")
            if not slash:
                raise UserError(f"{where}: expected LABEL/FILE, got {line[:60]!r}.")
            label = pathlib.PurePosixPath(folder).name
            yield Entry(f"split{int(ucf[2])}", ucf[1], captioned.video_name(file), label, where)
            continue
        file, _, value = line.strip().rpartition(" ")
        if not file or value not in _HMDB_ROLES:
            raise UserError(f"{where}: expected FILE and 0, 1 or 2, got {line[:60]!r}.")
        if role := _HMDB_ROLES[value]:
            yield Entry(
                f"split{int(hmdb[2])}", role, captioned.video_name(file.strip()), hmdb[1], where
            )


def _by_video(names: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(captioned.video_and_span(name)[0], []).append(name)
    return found
