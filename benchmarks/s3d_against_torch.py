"""Ours against PyTorch: S3D-G, forward and training step, the same weights, in turn on one CPU.

``python -m benchmarks.step --against=torch`` runs it. Adam is part of a training step, nothing
that reads data is. PyTorch runs in both memory layouts: the default one, which the published code
uses, and the one with channels last.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.errors import UserError

LEARNING_RATE = 1e-3
# Largest differences in float32, as shares of the largest value. In the gradients one value that is
# rounded to the other side of a ReLU shows; PyTorch's two layouts differ as much.
TOLERANCE = {"features": 1e-4, "gradients": 0.1}
OURS = "ours"

Seconds = Mapping[str, Sequence[float]]  # of each repeat, by who ran


def compare(clips: int, frames: int, size: int, repeats: int) -> None:
    """Prints the largest differences and the table of times.

    Args:
        clips: videos in a batch.
        frames: of a video.
        size: height and width in pixels.
        repeats: runs of each measured.

    Raises:
        UserError: PyTorch is not installed, or the two networks do not agree.
    """
    torch_s3d = _torch_s3d()
    import jax
    import numpy as np
    import torch

    jax.config.update("jax_platforms", "cpu")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__} with {threads} threads; {cores} cores to run on")
    video_BTHWC = np.random.default_rng(0).random((clips, frames, size, size, 3), np.float32)
    direction_BD = np.random.default_rng(1).standard_normal((clips, 1024), np.float32)
    ours = Ours(video_BTHWC, direction_BD)
    runners: dict[str, Any] = {OURS: ours}
    for layout in torch_s3d.LAYOUTS:
        runners[f"torch, {layout}"] = torch_s3d.Runner(
            ours.published(), video_BTHWC, direction_BD, layout, LEARNING_RATE
        )
    print(f"S3D-G on {clips} clips of {frames} frames of {size}x{size}, float32")
    seconds = {"forward": _time({name: run.forward for name, run in runners.items()}, repeats)}
    features = [runner.forward() for runner in runners.values()]
    for runner in runners.values():
        runner.train()
    gradients = [runner.gradients() for runner in runners.values()]
    for first, second in itertools.combinations(range(len(runners)), 2):
        names = " and ".join(list(runners)[number] for number in (first, second))
        _check("features", names, {"": features[first]}, {"": features[second]})
        _check("gradients", names, gradients[first], gradients[second])
    seconds["training step"] = _time({name: run.train for name, run in runners.items()}, repeats)
    print("\n".join(table(seconds)))


def _torch_s3d() -> Any:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--against=torch compares with PyTorch, which is not installed here (it is not needed "
            "for anything else): pip install torch"
        ) from error
    from benchmarks import torch_s3d

    return torch_s3d


class Ours:
    """Our network and Adam on one video; `torch_s3d.Runner` has the same methods."""

    def __init__(self, video_BTHWC: Any, direction_BD: Any):
        import jax
        import optax
        from flax import nnx

        from common import state

        model = untrained()
        model.eval()
        eval_graph = nnx.graphdef(model)
        model.train()
        graph = nnx.graphdef(model)
        adam = optax.adam(LEARNING_RATE)

        def forward(params: Any, rest: Any, video: Any) -> Any:
            return state.merge(eval_graph, params, rest)(video)

        def loss_of(params: Any, rest: Any, video: Any) -> Any:
            model = state.merge(graph, params, rest)
            return (model(video) * self._direction).mean(), state.split(model)[1]

        def train(params: Any, rest: Any, moments: Any, video: Any) -> Any:
            found = jax.value_and_grad(loss_of, has_aux=True)(params, rest, video)
            (loss, rest), gradients = found
            updates, moments = adam.update(gradients, moments, params)
            return loss, optax.apply_updates(params, updates), rest, moments

        self._forward, self._train = jax.jit(forward), jax.jit(train, donate_argnums=(0, 1, 2))
        self._graph, self._video = graph, jax.numpy.asarray(video_BTHWC)
        self._direction = jax.numpy.asarray(direction_BD)
        self._params, self._rest = state.split(model)
        self._moments = adam.init(self._params)

    def forward(self) -> Any:
        """Features (B, 1024) in evaluation mode."""
        import numpy as np

        return np.asarray(self._forward(self._params, self._rest, self._video))

    def train(self) -> float:
        """Loss of one training step: forward, backward and update."""
        import jax

        loss, *done = self._train(self._params, self._rest, self._moments, self._video)
        self._params, self._rest, self._moments = jax.block_until_ready(done)
        return float(loss)

    def gradients(self) -> dict[str, Any]:
        """Gradients of the first training step by published key: Adam's mean is a tenth of them."""
        found = self._published(self._moments[0].mu)
        trained = self._published(self._params)
        return {key: 10 * x for key, x in found.items() if key in trained}

    def published(self) -> dict[str, Any]:
        """Weights and running statistics in the layout of published checkpoints."""
        return self._published(self._params)

    def _published(self, params: Any) -> dict[str, Any]:
        from common import state
        from common.weights import s3d_layout

        model = state.merge(self._graph, params, self._rest)
        return s3d_layout.write(s3d_layout.layers_of(model))


def untrained() -> Any:
    """An S3D with normal kernels: features of PyTorch's uniform ones would be all but zero."""
    import jax
    import numpy as np
    from flax import nnx

    from common.backbones.s3d import S3D

    random = np.random.default_rng(2)

    def fill(leaf: Any) -> Any:
        values = np.ones(leaf.shape)
        if leaf.ndim > 1:
            values = random.standard_normal(leaf.shape) * (2 / np.prod(leaf.shape[:-1])) ** 0.5
        return jax.numpy.asarray(values, leaf.dtype)

    # JAX's initialisers take minutes to compile for so many shapes.
    graph, variables = nnx.split(nnx.eval_shape(lambda: S3D(pooling="torch", rngs=nnx.Rngs(0))))
    return nnx.merge(graph, jax.tree.map(fill, variables))


def _time(runs: Mapping[str, Callable[[], Any]], repeats: int) -> Seconds:
    """Seconds of every run; they take turns, so that what else the machine does meets all."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:  # the first one compiles
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _check(what: str, names: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Prints the largest difference as a share of the largest value."""
    import numpy as np

    largest = max(np.abs(x).max() for x in second.values())
    share = max(np.abs(first[key] - x).max() for key, x in second.items()) / largest
    print(f"largest difference of {what}, {names}: {share:.1e} of the largest value")
    if not share < TOLERANCE[what]:
        raise UserError(f"The {what} differ by more than {TOLERANCE[what]}: no comparison.")


def table(seconds: Mapping[str, Seconds]) -> list[str]:
    """Lines of median times, and the median over repeats of ours as a share of each.

    Args:
        seconds: by what was done.
    """
    lines = []
    for done, by_runner in seconds.items():
        ours = by_runner[OURS]
        cells = [f"ours {statistics.median(ours) * 1e3:.1f} ms"]
        for name, theirs in by_runner.items():
            if name == OURS:
                continue
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            cells.append(f"{name} {statistics.median(theirs) * 1e3:.1f} ms (ours {ratio:.2f}x)")
        lines.append(f"{done}: {'; '.join(cells)}")
    return lines
