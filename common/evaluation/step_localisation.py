"""Step localisation: where in a video each step of its task is done, as in CrossTask.

The scores of every second against every step become one place per step, in order, by dynamic
programming; recall is the share of steps whose place lies in an annotated interval (Zhukov et al.,
2019, github.com/DmZhukov/CrossTask).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np

from common.errors import UserError
from common.evaluation import intervals
from common.evaluation.intervals import Interval


@dataclasses.dataclass(frozen=True)
class Step:
    """One annotated interval: seconds of a video that show step `number` (from 1) of a task."""

    task: str
    video: str
    number: int
    start_s: float
    end_s: float


@dataclasses.dataclass(frozen=True)
class Recall:
    """Recall of each task, and the mean over tasks with its 95% interval over videos.

    Attributes:
        by_task: steps found of those shown.
        average: mean over tasks.
        shown_by_task: steps shown, summed over the videos of each task.
        num_videos: that show a step.
    """

    by_task: dict[str, float]
    average: Interval
    shown_by_task: dict[str, int]
    num_videos: int


def assign(scores_TS: np.ndarray) -> np.ndarray:
    """Returns the second at which each step is done, int64 (S,), strictly increasing.

    Every step gets exactly one second and no two the same, whether or not the video shows it; the
    sum of their scores is the highest possible. Of equally good seconds the earlier is taken, for
    the last step first.

    Args:
        scores_TS: scores of T seconds against S steps in order, higher is likelier.

    Raises:
        UserError: there are fewer seconds than steps, or a score is not a finite number.
    """
    scores_TS = np.asarray(scores_TS, np.float64)
    num_seconds, num_steps = scores_TS.shape
    if num_seconds < num_steps:
        raise UserError(
            f"{num_steps} steps do not fit one after the other into {num_seconds} seconds. Leave "
            "the video out."
        )
    if len(broken := np.argwhere(~np.isfinite(scores_TS))):
        second, step = broken[0]
        raise UserError(
            f"The score of second {second} and step {step + 1} is not a finite number. Look at the "
            "embeddings of the two."
        )
    place_ST = np.zeros((num_steps, num_seconds), np.int64)  # the step's best, no later than t
    before_T = np.zeros(num_seconds)  # best sum of the steps before, all of them before t
    for step in range(num_steps):
        total_T = before_T + scores_TS[:, step]
        reached_T = np.maximum.accumulate(total_T)
        better_T = np.concatenate([[True], total_T[1:] > reached_T[:-1]])
        place_ST[step] = np.maximum.accumulate(np.where(better_T, np.arange(num_seconds), 0))
        before_T = np.concatenate([[-np.inf], reached_T[:-1]])
    second_S, last = np.zeros(num_steps, np.int64), num_seconds - 1
    for step in reversed(range(num_steps)):
        second_S[step] = place_ST[step, last]
        last = second_S[step] - 1
    return second_S


def recall(
    scores: Mapping[tuple[str, str], np.ndarray],
    steps: Iterable[Step],
    resamples: int = 1000,
    seed: int = 0,
) -> Recall:
    """Returns the average recall over tasks of the places that `assign` finds.

    Second t is inside an interval when floor(start) <= t < ceil(end). A task's recall is the number
    of steps found over the number of steps shown, both summed over its videos: a step shown several
    times in a video counts once, one shown only after the last second that has scores does not.

    Args:
        scores: (T, S) by task and video; videos without annotation are passed over.
        steps: the annotation.
        resamples: sets of videos drawn for the interval.
        seed: of the draws.

    Raises:
        UserError: an annotated video has no scores, or a step's number is above S; and as `assign`.
    """
    shown: dict[tuple[str, str], dict[int, list[Step]]] = {}
    for step in steps:
        video = (step.task, step.video)
        if video not in scores:
            raise UserError(
                f"Video {step.video!r} of task {step.task!r} is annotated but has no scores. Embed "
                "it, or take it out of the annotation."
            )
        num_seconds, num_steps = scores[video].shape
        if step.number > num_steps:
            raise UserError(
                f"Video {step.video!r} shows step {step.number} of task {step.task!r}, but there "
                f"are scores for {num_steps} steps. Give every step of the task a column of scores."
            )
        if math.floor(step.start_s) < num_seconds:
            shown.setdefault(video, {}).setdefault(step.number, []).append(step)
    if not shown:
        raise UserError("No annotated step lies within the seconds that have scores.")
    tasks = sorted({task for task, _ in shown})
    task_V = np.array([tasks.index(task) for task, _ in shown])
    shown_V = np.array([len(by_number) for by_number in shown.values()])
    found_V = np.array([_found(video, scores, by_number) for video, by_number in shown.items()])

    def by_task(weights_V: np.ndarray) -> np.ndarray:
        found_K, shown_K = (
            np.bincount(task_V, weights_V * number_V, len(tasks)) for number_V in (found_V, shown_V)
        )
        return np.divide(found_K, shown_K, out=np.full(len(tasks), np.nan), where=shown_K > 0)

    average = intervals.over_videos(
        lambda weights_V: float(np.nanmean(by_task(weights_V))), len(shown), resamples, seed
    )
    of_each = by_task(np.ones(len(shown))).tolist()
    shown_K = np.bincount(task_V, shown_V, len(tasks)).astype(int)
    return Recall(
        dict(zip(tasks, of_each, strict=True)),
        average,
        dict(zip(tasks, shown_K.tolist(), strict=True)),
        len(shown),
    )


def _found(
    video: tuple[str, str],
    scores: Mapping[tuple[str, str], np.ndarray],
    by_number: Mapping[int, list[Step]],
) -> int:
    """Returns how many of the steps that a video shows are placed inside one of their intervals."""
    try:
        second_S = assign(scores[video])
    except UserError as error:
        raise UserError(f"Video {video[1]!r} of task {video[0]!r}: {error}") from error
    return sum(
        any(math.floor(s.start_s) <= second_S[number - 1] < math.ceil(s.end_s) for s in occurrences)
        for number, occurrences in by_number.items()
    )
