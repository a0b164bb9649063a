"""The linear evaluation: labelled features in, scores with intervals out."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from common.errors import UserError
from common.evaluation import intervals, metrics, probes
from common.evaluation.features import Features

DEFAULT_C = {"svm": 1e-4, "ridge": 1e-3, "logistic": 1e-2}
SWEEP_C = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_HELD_OUT = 0.2  # share of training videos on which C is chosen
_SWEEP_PASSES = 100  # of the solver, enough to rank values of C
_PATIENCE = 2  # values of C that may be no better than the best before the sweep ends


@dataclasses.dataclass(frozen=True)
class ProbeSettings:
    """How a probe is fitted.

    Attributes:
        name: in `DEFAULT_C`.
        C: inverse strength of the regularisation; 0 is its default.
        sweep: whether C is chosen on training videos.
        seed: of the probe.
        standardise: whether an SVM sees standardised features; the other probes always do.
    """

    name: str = "svm"
    C: float = 0.0
    sweep: bool = False
    seed: int = 0
    standardise: bool = True

    def __post_init__(self):
        if self.name not in DEFAULT_C:
            raise UserError(f"--probe={self.name}: it must be one of {', '.join(DEFAULT_C)}.")
        if self.sweep and self.C:
            raise UserError(f"--sweep chooses C; --C={self.C:g} does not go with it.")
        if not 0 <= self.C < math.inf:
            raise UserError(f"--C={self.C}: it must be positive, or 0 for the default.")


class Split:
    """The labelled videos of one split: which rows are whose, and what is right for each."""

    def __init__(
        self,
        flag: str,
        features: Features,
        classes: tuple[str, ...],
        single: bool,
    ):
        """Numbers the classes; raises `UserError` where no video has a label."""
        self.single = single
        self.videos = [video for video in features.videos if video.labels]
        if not self.videos:
            raise UserError(
                f"{flag}: none of its {len(features.videos)} videos has a label. Ingest them with "
                "labels: a table with a column 'labels', or --labels_from=folder. Where they come "
                "from --label_columns, --tables are those of --train and of --test, in that order."
            )
        self._rows_RD = features.rows_RD
        for video in self.videos:
            if not np.isfinite(self._rows_RD[video.start : video.start + video.count]).all():
                raise UserError(
                    f"{flag}: the features of {video.id} are not finite numbers, so no probe can "
                    "be fitted to them or scored. Look at the clip and at the weights."
                )
        number = {name: i for i, name in enumerate(classes)}
        numbers = [[number[name] for name in video.labels] for video in self.videos]
        if single:
            self.targets = np.array([own[0] for own in numbers])
        else:
            self.targets = np.zeros((len(numbers), len(classes)), bool)
            for i, own in enumerate(numbers):
                self.targets[i, own] = True

    def rows(self, which: np.ndarray | None = None) -> tuple[_Rows, np.ndarray, np.ndarray]:
        """Returns the rows of some videos, the target of each row, and each video's first row."""
        which = np.arange(len(self.videos)) if which is None else which
        chosen = [self.videos[i] for i in which]
        counts = np.array([video.count for video in chosen])
        index = np.concatenate([np.arange(v.start, v.start + v.count) for v in chosen])
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


def run(train: Features, test: Features, settings: ProbeSettings) -> Outcome:
    """Fits a probe on one split's features and scores it on another's.

    Where every video has one label, it is a choice among classes, scored by top-1 and top-5
    accuracy; otherwise every class is a question of its own, scored by mean average precision. The
    decision values of a video's rows are averaged, as published.

    Raises:
        UserError: a split has no labels, or there are fewer than two classes.
    """
    every = [video.labels for part in (train, test) for video in part.videos]
    single = all(len(own) <= 1 for own in every)
    classes = tuple(sorted({name for own in every for name in own}))
    known, held = (
        Split(flag, part, classes, single) for flag, part in (("--train", train), ("--test", test))
    )
    C, notes = settings.C or DEFAULT_C[settings.name], []
    if settings.sweep:
        C, note = _choose_C(known, len(classes), settings)
        notes.append(note)
    rows, targets, _ = known.rows()
    probe = _fit(settings, rows, targets, len(classes), C)
    unseen = [name for i, name in enumerate(classes) if not _occurs(known.targets, i)]
    if unseen:
        named = ", ".join(unseen[:5])
        notes.append(f"{len(unseen)} classes of --test do not occur in --train: {named}")
    statistics = _statistics(probe, held)
    row = {
        "probe": settings.name,
        "C": C,
        "standardised": settings.name != "svm" or settings.standardise,
        "classes": len(classes),
        "train_videos": len(known.videos),
        "test_videos": len(held.videos),
        "train_rows": len(rows),
        "left_out": {
            "train_unreadable": len(train.bad),
            "test_unreadable": len(test.bad),
            "train_unlabelled": len(train.videos) - len(known.videos),
            "test_unlabelled": len(test.videos) - len(held.videos),
        },
        "metrics": {
            name: intervals.over_videos(statistic, len(held.videos)).as_dict()
            for name, statistic in statistics.items()
        },
        "train_metrics": {
            name: statistic(np.ones(len(known.videos)))
            for name, statistic in _statistics(probe, known).items()
        },
        "notes": [*notes, *probe.notes],
    }
    if single:
        row["always_the_commonest"] = _commonest(known.targets, held.targets)
    ids = tuple(video.id for video in held.videos)
    return Outcome(row, next(iter(statistics.values())), ids)


def _fit(
    settings: ProbeSettings, rows: Any, targets: np.ndarray, classes: int, C: float, **options: Any
) -> probes.LinearProbe:
    if settings.name == "ridge":
        return probes.fit_ridge(rows, targets, classes, C=C)
    if settings.name == "svm":
        return probes.fit_svm(
            rows, targets, classes, C=C, seed=settings.seed, standardise=settings.standardise,
            **options,
        )  # fmt: skip
    return probes.fit_logistic(rows, targets, classes, C=C, **options)


def _statistics(
    probe: probes.LinearProbe, split: Split, which: np.ndarray | None = None
) -> dict[str, intervals.Statistic]:
    """Returns the metrics of (some of) a split's videos, the main one first."""
    rows, _, starts = split.rows(which)
    targets = split.targets if which is None else split.targets[which]
    scores_NC = probes.mean_per_video(probe.scores(rows), starts)
    if split.single:
        return {
            f"top{k}": intervals.weighted_mean(metrics.top_k_credit(scores_NC, targets, k))
            for k in (1, 5)
        }
    return {"mAP": metrics.MeanAveragePrecision(scores_NC, targets)}


def _choose_C(split: Split, classes: int, settings: ProbeSettings) -> tuple[float, str]:
    """Returns the C that does best on training videos held out from the fit, and a note."""
    if len(split.videos) < 2:
        raise UserError("--sweep holds out training videos, but --train has one with a label.")
    order = np.random.default_rng(settings.seed).permutation(len(split.videos))
    count = max(1, round(_HELD_OUT * len(order)))
    held, kept = np.sort(order[:count]), np.sort(order[count:])
    rows, targets, _ = split.rows(kept)
    if split.single and len(np.unique(targets)) < 2:
        raise UserError(
            f"--sweep holds {count} of the {len(order)} videos of --train out, and the others are "
            "all of one class. Name --C instead, or give more videos."
        )
    options = {} if settings.name == "ridge" else {"max_iter": _SWEEP_PASSES}
    reached: dict[float, float] = {}
    for C in SWEEP_C:  # from the strongest regularisation on, which is also the quickest to fit
        probe = _fit(settings, rows, targets, classes, C, **options)
        statistic = next(iter(_statistics(probe, split, held).values()))
        reached[C] = float(np.nan_to_num(statistic(np.ones(count))))
        best = max(reached, key=reached.get)  # the first of equals
        # As good counts: the strongest all answer with the commonest class.
        last = max(place for place, value in enumerate(reached.values()) if value == reached[best])
        if last < len(reached) - _PATIENCE:
            break
    tried = ", ".join(f"{C:g}: {100 * value:.1f}" for C, value in reached.items())
    note = f"C chosen on {count} of {len(order)} training videos, then refitted on all ({tried})"
    return best, note


def _occurs(targets: np.ndarray, number: int) -> bool:
    return bool((targets == number).any() if targets.ndim == 1 else targets[:, number].any())


def _commonest(train: np.ndarray, test: np.ndarray) -> float:
    """Returns the accuracy of always answering the class that training saw most."""
    return float((test == np.bincount(train).argmax()).mean())
