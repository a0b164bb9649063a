"""The linear evaluation: labelled features in, scores with intervals out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from common.errors import UserError
from common.evaluation import intervals, metrics, probes
from common.evaluation.features import Features, Video

DEFAULT_C = {"svm": 1e-4, "logistic": 1e-2}
SWEEP_C = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_HELD_OUT = 0.2  # share of training videos on which C is chosen

Labels = Callable[[Video], tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class ProbeSettings:
    """How a probe is fitted: "svm" or "logistic", its C (0: its default; sweep: chosen)."""

    name: str = "svm"
    C: float = 0.0
    sweep: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.name not in DEFAULT_C:
            raise UserError(f"--probe={self.name}: it must be one of {', '.join(DEFAULT_C)}.")
        if self.C < 0:
            raise UserError(f"--C={self.C}: it must be positive, or 0 for the default.")


class Split:
    """The labelled videos of one split: which rows are whose, and what is right for each."""

    def __init__(self, features: Features, labels: Labels, classes: tuple[str, ...], single: bool):
        number = {name: i for i, name in enumerate(classes)}
        self.videos = [video for video in features.videos if labels(video)]
        self._rows_RD = features.rows_RD
        self._single = single
        numbers = [[number[name] for name in labels(video)] for video in self.videos]
        if single:
            self.targets = np.array([own[0] for own in numbers])
        else:
            self.targets = np.zeros((len(numbers), len(classes)), bool)
            for i, own in enumerate(numbers):
                self.targets[i, own] = True

    def rows(self, which: np.ndarray | None = None) -> tuple[_Rows, np.ndarray, np.ndarray]:
        """Returns the rows of some videos, the target of each row, and each video's first row."""
        which = np.arange(len(self.videos)) if which is None else which
        counts = np.array([self.videos[i].count for i in which])
        index = np.concatenate(
            [
                np.arange(self.videos[i].start, self.videos[i].start + n)
                for i, n in zip(which, counts, strict=True)
            ]
        )
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        return _Rows(self._rows_RD, index), np.repeat(self.targets[which], counts, axis=0), starts


class _Rows:
    """Some rows of a memory-mapped array, read when asked for."""

    def __init__(self, rows_RD: np.ndarray, index: np.ndarray):
        self._rows_RD, self._index = rows_RD, index
        self.shape = (len(index), rows_RD.shape[1])
        self.size = self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._rows_RD[self._index[rows]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a probe says of the test videos, and the statistics to bootstrap."""

    row: dict[str, Any]  # for JSON
    statistic: intervals.Statistic  # the main metric
    video_ids: tuple[str, ...]


def run(
    train: Features,
    test: Features,
    settings: ProbeSettings,
    labels: Labels = lambda video: video.labels,
) -> Outcome:
    """Fits a probe on one split's features and scores it on another's.

    Videos with exactly one label each make it a choice among classes, scored by top-1 and top-5
    accuracy; otherwise every class is a question of its own, scored by mean average precision. The
    decision values of a video's rows are averaged, as published.

    Raises:
        UserError: a split has no labels, or there are fewer than two classes.
    """
    single = all(len(labels(v)) <= 1 for part in (train, test) for v in part.videos)
    names = {name for part in (train, test) for v in part.videos for name in labels(v)}
    classes = tuple(
        sorted(
            names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name)
        )
    )
    splits = {}
    for flag, part in (("--train", train), ("--test", test)):
        splits[flag] = Split(part, labels, classes, single)
        if not splits[flag].videos:
            raise UserError(
                f"{flag}: none of its {len(part.videos)} videos has a label. Ingest them with "
                "labels (a table with a column 'labels', or --labels_from=folder)."
            )
    split, held = splits["--train"], splits["--test"]
    C, notes = settings.C or DEFAULT_C[settings.name], []
    if settings.sweep:
        C, note = _choose_C(split, len(classes), settings)
        notes.append(note)
    rows, targets, _ = split.rows()
    probe = _fit(settings, rows, targets, len(classes), C)
    unseen = [name for i, name in enumerate(classes) if not _occurs(split.targets, i)]
    if unseen:
        notes.append(
            f"{len(unseen)} classes of --test do not occur in --train: {', '.join(unseen[:5])}"
        )
    scored, statistic = _score(probe, held, single)
    trained, _ = _score(probe, split, single, intervals_too=False)
    row = {
        "probe": settings.name,
        "C": C,
        "classes": len(classes),
        "train_videos": len(split.videos),
        "test_videos": len(held.videos),
        "train_rows": len(rows),
        "left_out": {
            "train_unreadable": len(train.bad),
            "test_unreadable": len(test.bad),
            "train_unlabelled": len(train.videos) - len(split.videos),
            "test_unlabelled": len(test.videos) - len(held.videos),
        },
        "metrics": scored,
        "train_metrics": trained,
        "notes": notes + list(probe.notes),
    }
    if single:
        row["always_the_commonest"] = _commonest(split.targets, held.targets)
    return Outcome(row, statistic, tuple(video.id for video in held.videos))


def _fit(settings: ProbeSettings, rows: Any, targets: np.ndarray, classes: int, C: float):
    fit = probes.fit_svm if settings.name == "svm" else probes.fit_logistic
    return fit(rows, targets, classes, C=C, seed=settings.seed)


def _score(
    probe: probes.LinearProbe,
    split: Split,
    single: bool,
    which: np.ndarray | None = None,
    intervals_too: bool = True,
) -> tuple[dict[str, Any], intervals.Statistic]:
    """Returns the metrics of a split's videos, and the main one as a statistic of them."""
    rows, _, starts = split.rows(which)
    targets = split.targets if which is None else split.targets[which]
    scores_NC = probes.mean_per_video(probe.scores(rows), starts)
    statistics: Mapping[str, intervals.Statistic]
    if single:
        credit = {k: metrics.top_k_credit(scores_NC, targets, k) for k in (1, 5)}
        statistics = {f"top{k}": intervals.weighted_mean(credit[k]) for k in credit}
    else:
        statistics = {"mAP": metrics.MeanAveragePrecision(scores_NC, targets)}
    everyone = np.ones(len(targets))
    values: dict[str, Any] = {}
    for name, statistic in statistics.items():
        if intervals_too:
            values[name] = intervals.over_videos(statistic, len(targets)).as_dict()
        else:
            values[name] = statistic(everyone)
    return values, next(iter(statistics.values()))


def _choose_C(split: Split, classes: int, settings: ProbeSettings) -> tuple[float, str]:
    """Returns the C that does best on training videos held out from the fit, and a note."""
    order = np.random.default_rng(settings.seed).permutation(len(split.videos))
    count = max(1, round(_HELD_OUT * len(order)))
    held, kept = np.sort(order[:count]), np.sort(order[count:])
    rows, targets, _ = split.rows(kept)
    reached = []
    for C in SWEEP_C:
        probe = _fit(settings, rows, targets, classes, C)
        values, _ = _score(probe, split, split.targets.ndim == 1, held, intervals_too=False)
        reached.append(next(iter(values.values())))
    best = SWEEP_C[int(np.argmax(reached))]  # the first of equals: the stronger regularisation
    tried = ", ".join(
        f"{C:g}: {100 * value:.1f}" for C, value in zip(SWEEP_C, reached, strict=True)
    )
    note = f"C chosen on {count} of {len(order)} training videos, then refitted on all ({tried})"
    return best, note


def _occurs(targets: np.ndarray, number: int) -> bool:
    return bool((targets == number).any() if targets.ndim == 1 else targets[:, number].any())


def _commonest(train: np.ndarray, test: np.ndarray) -> float:
    """Returns the accuracy of always answering the class that training saw most."""
    return float((test == np.bincount(train).argmax()).mean())
