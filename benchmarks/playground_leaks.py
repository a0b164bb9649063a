"""Does the playground give its actions away? Linear probes on what needs no sense of time.

    python benchmarks/playground_leaks.py [--data=DIR] [--train=2000 --test=400]

Probes the action of held-out clips from one frame, from the colours of the whole clip, from the
frame averaged over time and from the first and last frame: all should be at chance. Optical flow
and the loudness of frequency bands over time, which do have a sense of time, show what there is to
be found. A forest of random trees on the same features looks for what a linear probe cannot see.
Without --data a playground is rendered first; one that is there already is used as it is.
"""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import platform
import sys
import tempfile
import time

import numpy as np
from absl import flags

from common import launch
from common.errors import UserError

_PIXELS = 32  # width of the frames that are probed
_FLOW_PIXELS = 64
_SEGMENTS = 6  # of a clip, over which moving features are averaged
_BANDS = 20


def clip_features(file: str) -> dict[str, np.ndarray]:
    """Decodes one mp4 and returns its features by name, each a float vector."""
    import av
    import cv2

    cv2.setNumThreads(0)
    with av.open(file) as container:
        container.streams.video[0].thread_count = 1
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        container.seek(0)
        sound = [f.to_ndarray()[0] for f in container.decode(audio=0)]
        rate = container.streams.audio[0].rate
    shape = (_PIXELS, _PIXELS)
    small = np.stack([cv2.resize(f, shape, interpolation=cv2.INTER_AREA) for f in frames]) / 255.0
    histograms = [np.histogram(small[..., c], 12, (0, 1))[0] / small[..., c].size for c in range(3)]
    colours = [small.mean((0, 1, 2)), small.std((0, 1, 2)), *histograms]
    return {
        "one frame (middle)": small[len(small) // 2].ravel(),
        "one frame (first)": small[0].ravel(),
        "colours of the clip": np.concatenate(colours),
        "frame averaged over time": small.mean(0).ravel(),
        "first and last frame": small[[0, -1]].ravel(),
        "optical flow over time": _flow(cv2, frames),
        "sound bands over time": _bands(np.concatenate(sound), rate),
    }


def _flow(cv2, frames: list[np.ndarray]) -> np.ndarray:
    """Moments of the flow that stands out from the camera's, by part of the clip."""
    shape = (_FLOW_PIXELS, _FLOW_PIXELS)
    grey = [cv2.cvtColor(cv2.resize(f, shape), cv2.COLOR_RGB2GRAY) for f in frames]
    finder = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    moments = []
    for before, after in zip(grey[:-1], grey[1:], strict=True):
        flow = finder.calc(before, after, None)
        flow = flow - np.median(flow, axis=(0, 1))
        weight = np.hypot(flow[..., 0], flow[..., 1]) + 1e-3
        weight = weight / weight.sum()
        y, x = np.mgrid[: shape[1], : shape[0]] / _FLOW_PIXELS
        x, y = x - (weight * x).sum(), y - (weight * y).sum()
        u, v = flow[..., 0], flow[..., 1]
        products = (u, v, x * u + y * v, x * v - y * u, np.hypot(u, v), x * x + y * y)
        moments.append([(weight * product).sum() for product in products])
    return np.concatenate([p.mean(0) for p in np.array_split(np.array(moments), _SEGMENTS)])


def _bands(sound_N: np.ndarray, rate: int) -> np.ndarray:
    """Log power in bands of equal width in octaves, by part of the clip."""
    edges = np.geomspace(80, rate / 2, _BANDS + 1)
    rows = []
    for part in np.array_split(sound_N, 2 * _SEGMENTS):
        power = np.abs(np.fft.rfft(part * np.hanning(len(part)))) ** 2
        band = np.digitize(np.fft.rfftfreq(len(part), 1 / rate), edges) - 1
        rows.append(np.log([power[band == b].sum() + 1e-6 for b in range(_BANDS)]))
    return np.concatenate(rows)


def load(folder: pathlib.Path, split: str, count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the features (N, D) of a split by name, and its labels (N,)."""
    table = folder / f"{split}.jsonl"
    if not table.exists():
        raise UserError(f"{table} is missing; --data must be a folder made by the playground.")
    rows = [json.loads(line) for line in table.read_text().splitlines()][:count]
    spawn = multiprocessing.get_context("spawn")  # forks of a process with threads can hang
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), spawn) as pool:
        files = [os.fspath(folder / row["path"]) for row in rows]
        features = list(pool.map(clip_features, files, chunksize=16))
    stacked = {name: np.stack([f[name] for f in features]) for name in features[0]}
    return stacked, np.array([row["labels"][0] for row in rows])


def linear_probe(train_ND, train_y, test_ND, test_y) -> int:
    """Returns how many are right, with the penalty chosen on a fifth of the training clips.

    Logistic regression on at most 256 principal components, which are linear as well.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    components = min(256, train_ND.shape[1])
    reduce = make_pipeline(StandardScaler(), PCA(components, random_state=0), StandardScaler())
    train_ND, test_ND = reduce.fit_transform(train_ND), reduce.transform(test_ND)

    def fit(penalty: float, features_ND, labels):
        return LogisticRegression(C=penalty, max_iter=200).fit(features_ND, labels)

    held = len(train_y) // 5
    scores = {
        penalty: fit(penalty, train_ND[held:], train_y[held:]).score(
            train_ND[:held], train_y[:held]
        )
        for penalty in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    }
    best = fit(max(scores, key=scores.get), train_ND, train_y)
    return int((best.predict(test_ND) == test_y).sum())


def forest_probe(train_ND, train_y, test_ND, test_y) -> int:
    """Returns how many are right by a forest of 300 random trees."""
    from sklearn.ensemble import ExtraTreesClassifier

    forest = ExtraTreesClassifier(300, n_jobs=-1, random_state=0).fit(train_ND, train_y)
    return int((forest.predict(test_ND) == test_y).sum())


def interval(right: int, total: int) -> tuple[float, float]:
    """Returns the 95% Clopper-Pearson interval of a share."""
    from scipy.stats import beta

    low = beta.ppf(0.025, right, total - right + 1) if right else 0.0
    high = beta.ppf(0.975, right + 1, total - right) if right < total else 1.0
    return float(low), float(high)


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string("data", None, "folder of a playground; one is rendered where none is given")
    flags.DEFINE_integer("train", 2000, "clips to fit the probes on")
    flags.DEFINE_integer("test", 400, "held-out clips")


def main(_: list[str]) -> None:
    """Prints the table."""
    from common.data import playground

    values, begin = flags.FLAGS, time.monotonic()
    folder = pathlib.Path(values.data or os.path.join(tempfile.gettempdir(), "playground_leaks"))
    if values.data is None:
        playground.create(folder, {"train": values.train, "test": values.test})
    train, train_y = load(folder, "train", values.train)
    test, test_y = load(folder, "test", values.test)
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores; command: {' '.join(sys.argv)}")
    classes = len(set(train_y))
    print(f"{len(train_y)} training and {len(test_y)} held-out clips, {classes} actions")
    print(f"chance: {1 / classes:.1%}\n")
    print("| feature | linear probe | 95% interval | forest | 95% interval |")
    print("|---|---|---|---|---|")
    for name in train:
        cells = []
        for probe in (linear_probe, forest_probe):
            right = probe(train[name], train_y, test[name], test_y)
            low, high = interval(right, len(test_y))
            cells += [f"{right / len(test_y):.1%}", f"{low:.1%} to {high:.1%}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(f"\n{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    launch.run(main, define_flags)
