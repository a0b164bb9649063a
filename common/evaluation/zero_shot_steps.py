"""Zero-shot step localisation with one set of weights: every second against the text of each step.

Videos are embedded in parts of some seconds, so that none of them has to be in memory as a whole
and an evaluation that was stopped loses no more than a part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data import records
from common.errors import UserError
from common.evaluation import captioned, reading, step_localisation, zero_shot
from common.evaluation.embedding import Embedder
from common.evaluation.features import BadClip
from common.evaluation.step_localisation import Step
from common.evaluation.step_tables import Task
from common.evaluation.stretches import Stretches, num_seconds

if TYPE_CHECKING:
    from common.data.sources import Source
    from common.evaluation.extraction import Extraction
    from common.weights.loading import Loaded

PART_S = 16  # seconds read at once: 77 MB of clips for MIL-NCE's network
_LATE_S = 0.5  # files that are whole, too, show their first frame a little late
Key = tuple[str, str]  # task and video


@dataclasses.dataclass(frozen=True)
class Videos:
    """The annotated videos.

    Attributes:
        record_by_key: number of the record that holds the video.
        seconds_by_record: length of each of these that is embedded.
        left_out: why a video is not, by task and video.
    """

    record_by_key: dict[Key, int]
    seconds_by_record: dict[int, int]
    left_out: dict[Key, str]

    def stretches(self) -> Stretches:
        """Returns the parts that are embedded, video after video."""
        return Stretches(
            tuple(
                (record, (float(first), float(min(first + PART_S, seconds))))
                for record, seconds in self.seconds_by_record.items()
                for first in range(0, seconds, PART_S)
            ),
            every_second=True,
        )


def check(steps: Iterable[Step], tasks: Mapping[str, Task], where: str) -> None:
    """Raises `UserError` where an annotated step has no text; `where` says what to complete."""
    for step in steps:
        known = len(tasks[step.task].texts) if step.task in tasks else 0
        if step.number > known:
            raise UserError(
                f"Video {step.video!r} shows step {step.number} of task {step.task!r}, of which "
                f"{where} has {known} steps. Add their texts there."
            )


def find(
    source: Source,
    keys: Iterable[Key],
    tasks: Mapping[str, Task],
    rates: reading.DefaultRates,
) -> Videos:
    """Finds the records of annotated videos and how long they are; reads no pictures.

    A record is a video's when its id is the video's, or the path of a file of that name. Left out
    are videos that cannot be read and those with fewer seconds than their task has steps.

    Raises:
        UserError: a video has no record or several, its record begins after the video does, or all
            are left out.
    """
    keys = list(dict.fromkeys(keys))
    numbers_by_name: dict[tuple[str, str], list[int]] = {}
    names = captioned.names(source)
    for number, name in enumerate(names):
        numbers_by_name.setdefault(captioned.video_and_span(name), []).append(number)
    if missing := [video for _, video in keys if (video, "") not in numbers_by_name]:
        raise UserError(
            f"{source.name} has no record of {missing[0]!r}, which is annotated ({len(missing)} of "
            f"{len(keys)} annotated videos have none). Ingest them whole, or take them out of the "
            "annotation, whose recall then does not compare with that of all."
        )
    record_by_key = {}
    for task, video in keys:
        first, *others = numbers_by_name[video, ""]
        if others:
            several = ", ".join(names[number] for number in (first, *others))
            raise UserError(f"Several records of {source.name} are {video!r}: {several}.")
        record_by_key[task, video] = first
    lengths = {number: _length(source, number, rates) for number in set(record_by_key.values())}
    left_out = {}
    for (task, video), number in record_by_key.items():
        length, num_steps = lengths[number], len(tasks[task].texts)
        if isinstance(length, BadClip):
            left_out[task, video] = str(length)
        elif length < num_steps:
            left_out[task, video] = f"its {length} seconds are fewer than the {num_steps} steps"
    kept = {number for key, number in record_by_key.items() if key not in left_out}
    if not kept:
        (_, video), why = next(iter(left_out.items()))
        raise UserError(f"No annotated video of {source.name} can be used. {video}: {why}.")
    return Videos(record_by_key, {number: lengths[number] for number in sorted(kept)}, left_out)


def _length(source: Source, number: int, rates: reading.DefaultRates) -> int | BadClip:
    """Returns the seconds of a record, or why it cannot be read."""

    def measured(clip: records.Clip, _: int) -> np.ndarray:
        if not len(clip.frames_jpeg):
            raise BadClip("it has no frames")
        if clip.start_s >= _LATE_S:
            raise UserError(
                f"{source.name}: record {clip.id!r} begins {clip.start_s:g} s after its video "
                "does, but steps are annotated in seconds of the video. Ingest it whole."
            )
        return np.array(num_seconds(clip, rates))

    try:
        return int(reading.SourceReader(source, "frames", measured, rates)(number).inputs)
    except BadClip as error:
        return error


def evaluate(
    extract: Extraction,
    loaded: Loaded,
    encoders: tuple[str, str],
    kind: str,
    videos: Videos,
    steps: Sequence[Step],
    tasks: Mapping[str, Task],
    batch_size: int,
) -> dict[str, Any]:
    """Returns a row of results.

    Args:
        extract: gives the features of ``videos.stretches()`` as "test".
        loaded: the model.
        encoders: names of the video and the text encoder.
        kind: "trained" or "random".
        videos: those annotated.
        steps: the annotation.
        tasks: with a text for each step.
        batch_size: texts per call.

    Raises:
        UserError: no video can be read.
    """
    rows_by_record, unreadable = _seconds(extract, encoders[0], kind, videos)
    left_out = {**videos.left_out}
    for key, number in videos.record_by_key.items():
        if number in unreadable:
            left_out.setdefault(key, unreadable[number])
    kept = [key for key in videos.record_by_key if key not in left_out]
    if not kept:
        (_, video), why = next(iter(left_out.items()))
        raise UserError(f"No annotated video can be read. {video}: {why}.")
    encoder = loaded.encoder(encoders[1])
    used = list(dict.fromkeys(task for task, _ in kept))
    ids_QW = encoder.inputs.tokenise([text for task in used for text in tasks[task].texts])
    texts_QD = Embedder(encoder, extract.model(kind), batch_size).all(ids_QW)
    ends = np.cumsum([len(tasks[task].texts) for task in used])
    texts_by_task = dict(zip(used, np.split(texts_QD, ends[:-1]), strict=True))
    scores = {
        (task, video): zero_shot.scores(
            rows_by_record[videos.record_by_key[task, video]],
            texts_by_task[task],
            encoder.similarity,
        )
        for task, video in kept
    }
    counted = [step for step in steps if (step.task, step.video) in scores]
    found = step_localisation.recall(scores, counted)
    return {
        "video_encoder": encoders[0],
        "text_encoder": encoders[1],
        "features": kind,
        "recall": found.average.as_dict(),
        "by_task": {
            task: {
                "title": tasks[task].title,
                "recall": recall,
                "steps_shown": found.shown_by_task[task],
            }
            for task, recall in found.by_task.items()
        },
        "num_videos": found.num_videos,
        "steps_after_the_end": len({(step.task, step.video, step.number) for step in counted})
        - sum(found.shown_by_task.values()),
        "left_out": [
            {"task": task, "video": video, "reason": why} for (task, video), why in left_out.items()
        ],
        "texts_without_known_words": int((~encoder.inputs.known(ids_QW)).sum()),
        "places": [
            {"task": task, "video": video, "seconds": step_localisation.assign(s).tolist()}
            for (task, video), s in scores.items()
        ],
    }


def _seconds(
    extract: Extraction, encoder: str, kind: str, videos: Videos
) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    """Returns by record the rows of its seconds, (T, D), and why a record cannot be read."""
    record_of_part = [record for record, _ in videos.stretches().clips]
    found = extract(encoder, kind, "test")
    unreadable: dict[int, str] = {}
    bad = {int(part.id): part.bad for part in found.bad}  # their ids are their numbers
    for part, why in bad.items():
        unreadable.setdefault(record_of_part[part], why)
    spans: dict[int, list[slice]] = {}
    good = (number for number in range(len(record_of_part)) if number not in bad)
    for number, part in zip(good, found.videos, strict=True):
        spans.setdefault(record_of_part[number], []).append(
            slice(part.start, part.start + part.count)
        )
    rows = {
        record: np.concatenate([found.rows_RD[span] for span in of_record])
        for record, of_record in spans.items()
        if record not in unreadable
    }
    return rows, unreadable
