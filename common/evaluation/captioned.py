"""Clips with the captions that describe them, from record folders or from published tables."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from common.data import parts, records, tables
from common.errors import UserError
from common.evaluation import csv_rows

if TYPE_CHECKING:
    from common.data.sources import Source

MSRVTT_COLUMNS = ("video_id", "sentence")
YOUCOOK2_COLUMNS = ("video_id", "start", "end", "text")
_CUT = re.compile(r"#(\d+\.\d{3})?-(\d+\.\d{3})?$")
_SPAN = "{:.3f}-{:.3f}"  # as ingest marks the clips of a table that gives them no id


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A clip and what is said of it.

    Attributes:
        record: the record it is in: its id, or its shard and number where it has none.
        captions: each is right for this clip; may be empty.
        span_s: start and end of the clip in the record, seconds; None is the whole record.
    """

    record: str
    captions: tuple[str, ...]
    span_s: tuple[float, float] | None = None


def pairs(clips: Sequence[Captioned]) -> tuple[list[str], np.ndarray]:
    """Returns all captions, clip after clip, and the number of the clip of each, int64 (Q,).

    The numbers are what `retrieval.ranks` takes as right for text-to-video; for video-to-text that
    is ``numbers == np.arange(len(clips))[:, None]``.
    """
    texts = [caption for clip in clips for caption in clip.captions]
    number_Q = np.repeat(np.arange(len(clips)), [len(clip.captions) for clip in clips])
    return texts, number_Q


def from_records(source: Source) -> list[Captioned]:
    """Returns the clips of a source in order, those without captions too.

    Raises:
        UserError: the source has no captions, or a record cannot be read: retrieval among the
            others would be another, easier task.
    """
    from common.data.shards import BadRecord

    if "captions" not in source.modalities:
        raise UserError(f"{source.name} has no captions; it has {sorted(source.modalities)}.")
    clips = []
    for number in range(len(source.records)):
        try:
            name, captions = of_record(source, number)
        except (BadRecord, ValueError) as error:
            raise UserError(
                f"{source.name}: {error} ({source.records.name(number)}). Ingest it again: "
                "retrieval among the other records would be easier."
            ) from error
        texts = [caption.strip() for caption in captions]
        named = name or source.records.name(number)
        clips.append(Captioned(named, tuple(text for text in texts if text)))
    if not any(clip.captions for clip in clips):
        raise UserError(f"No record of {source.name} has a caption, so there is nothing to find.")
    return clips


def of_record(source: Source, number: int) -> tuple[str, list[str]]:
    """Returns id and captions of a record, reading no frames where that can be helped.

    Raises:
        BadRecord: its bytes are damaged.
        ValueError: it is no record.
    """
    record_set = source.records
    if source.parse is not records.parse:
        return _parsed(source, record_set.read(number))
    if record_set.has_parts:
        part_P4 = record_set.parts(number)
        (serialized,) = record_set.read_parts(number, part_P4[part_P4[:, 0] == parts.CONTEXT])
    else:
        serialized = record_set.read(number)
    clip = records.deserialize(serialized)
    return clip.id, [text for text, _, _ in clip.captions]


def names(source: Source) -> list[str]:
    """Returns the id of every record, or its shard and number where it has none.

    Raises:
        UserError: a record cannot be read.
    """
    from common.data.shards import BadRecord

    found = []
    for number in range(len(source.records)):
        place = source.records.name(number)
        try:
            found.append(of_record(source, number)[0] or place)
        except (BadRecord, ValueError) as error:
            raise UserError(f"{source.name}: {error} ({place}). Ingest it again.") from error
    return found


def _parsed(source: Source, serialized: bytes) -> tuple[str, list[str]]:
    from common.tf import tf

    try:
        parsed = source.parse(tf.constant(serialized), {"captions"}, 1.0, 1)  # no rate is used
    except tf.errors.OpError as error:
        raise ValueError(error.message) from error
    texts = [text.decode(errors="replace") for text in parsed["captions"].numpy()]
    return parsed["id"].numpy().decode(errors="replace"), texts


def from_table(path: str | os.PathLike[str], record_ids: Iterable[str]) -> list[Captioned]:
    """Returns the clips of a published csv in its order, found among records.

    MSR-VTT's table has columns video_id and sentence, a clip being a whole video; YouCook2's has
    video_id, start, end and text. Rows of the same clip are its several captions. A record belongs
    to a video when its id is the video's, or the path of a file of that name as ingest gives it
    ("validation/113/ID.mp4"); for YouCook2 a record of just the clip ("ID.mp4#12.000-17.000") is
    taken before the whole video.

    Raises:
        UserError: the table is wrong, or a row has no record or several; names file, line, column.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for record in record_ids:
        found.setdefault(video_and_span(record), []).append(record)
    captions: dict[tuple[str, tuple[float, float] | None], list[str]] = {}
    missing: list[csv_rows.Row] = []
    for row in (rows := csv_rows.read(path, MSRVTT_COLUMNS, YOUCOOK2_COLUMNS)):
        whole = "sentence" in row.cells
        video, span = row.text("video_id"), None if whole else row.span()
        cut = () if whole else found.get((video, _SPAN.format(*span)), ())
        matches = cut or found.get((video, ""), ())
        if len(matches) > 1:
            row.refuse("video_id", f"several records are {video!r}: {', '.join(matches)}")
        if not matches:
            missing.append(row)
            continue
        clip = (matches[0], None if cut else span)
        captions.setdefault(clip, []).append(row.text("sentence" if whole else "text"))
    if missing:
        missing[0].refuse(
            "video_id",
            f"no record is {missing[0].text('video_id')!r} ({len(missing)} of {len(rows)} rows "
            "have none). Ingest the missing videos, or take the rows out of a copy of the table, "
            "whose numbers then do not compare with those of the whole",
        )
    return [Captioned(record, tuple(texts), span) for (record, span), texts in captions.items()]


def video_and_span(record: str) -> tuple[str, str]:
    """Returns the video's name and the clip's times, or "" for a whole video, of a record's id."""
    cut = _CUT.search(record)
    name = video_name(record[: cut.start()] if cut else record)
    return name, cut[0][1:] if cut else ""


def video_name(path: str) -> str:
    """Returns the name of a video's file without folders and without its ending, if it has one."""
    file = pathlib.PurePosixPath(path)
    return file.stem if file.suffix.lower() in tables.VIDEO_SUFFIXES else file.name
