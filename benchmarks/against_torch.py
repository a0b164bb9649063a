"""Ours against PyTorch: what the comparisons of all networks share.

``python -m benchmarks.step --against=torch`` runs them. Forward pass and training step take turns
with those of PyTorch in one process, on the same weights and inputs, on the CPU. The optimizer is
part of a training step, nothing that reads data is.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from common.errors import UserError

OURS = "ours"

Arrays = Mapping[str, Any]  # NumPy arrays by name


class Runner(Protocol):
    """One of those who are compared."""

    def forward(self) -> Arrays:
        """Features in evaluation mode."""
        ...

    def gradients(self) -> Arrays:
        """Gradients of the first training step, with nothing dropped, by published key."""
        ...

    def train(self) -> float:
        """Loss of one training step: forward, backward and update."""
        ...


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of one run."""

    wall: float
    cpu: float  # of all threads, in the program and in the system

    @classmethod
    def of(cls, run: Callable[[], Any]) -> Cost:
        """Measures a run."""
        start, before = time.perf_counter(), _cpu_seconds()
        run()
        return cls(time.perf_counter() - start, _cpu_seconds() - before)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def compare(network: str, sizes: Mapping[str, int], repeats: int) -> None:
    """Prints the largest differences and the table of times.

    Args:
        network: its module is ``benchmarks/{network}_against_torch.py``.
        sizes: of its inputs, where they are not the ``SIZES`` of that module.
        repeats: runs of each measured.

    Raises:
        UserError: PyTorch is not installed, sizes do not suit the network, or the two networks do
            not agree.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "--against=torch compares with PyTorch, which is not installed here (it is not needed "
            "for anything else): pip install torch"
        ) from error
    import jax

    jax.config.update("jax_platforms", "cpu")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__} with {threads} threads; {cores} cores to run on")
    module = importlib.import_module(f"benchmarks.{network}_against_torch")
    sizes = {**module.SIZES, **sizes}
    runners = module.runners(**sizes)
    print(f"{module.NAME}: {', '.join(f'{n} {name}' for name, n in sizes.items())}; float32")
    costs = {"forward": measure({name: run.forward for name, run in runners.items()}, repeats)}
    check("features", {name: run.forward() for name, run in runners.items()}, module.TOLERANCE)
    check("gradients", {name: run.gradients() for name, run in runners.items()}, module.TOLERANCE)
    costs["training step"] = measure({name: run.train for name, run in runners.items()}, repeats)
    print("\n".join(table(costs)))


class Ours:
    """One of our networks with an optimizer, on one batch: a `Runner`.

    Args:
        model: the network.
        forward: features by name, of a model and inputs.
        loss: a scalar, of the same.
        optimizer: one of Adam's kind, whose first state holds the mean of gradients.
        published: all tensors of a model by published name.
        inputs: of the training step.
        still: inputs with which nothing is dropped.
    """

    def __init__(
        self,
        model: Any,
        forward: Callable[[Any, Any], Any],
        loss: Callable[[Any, Any], Any],
        optimizer: Any,
        published: Callable[[Any], Arrays],
        inputs: Any,
        still: Any,
    ):
        import jax
        import optax
        from flax import nnx

        from common import state

        model.eval()
        eval_graph = nnx.graphdef(model)
        model.train()
        self._graph, self._write, self._inputs, self._still = (
            nnx.graphdef(model), published, inputs, still,
        )  # fmt: skip

        def evaluate(params: Any, rest: Any, inputs: Any) -> Any:
            return forward(state.merge(eval_graph, params, rest), inputs)

        def loss_of(params: Any, rest: Any, inputs: Any) -> Any:
            model = state.merge(self._graph, params, rest)
            return loss(model, inputs), state.split(model)[1]

        def train(params: Any, rest: Any, moments: Any, inputs: Any) -> Any:
            found = jax.value_and_grad(loss_of, has_aux=True)(params, rest, inputs)
            (loss, rest), gradients = found
            updates, moments = optimizer.update(gradients, moments, params)
            return loss, optax.apply_updates(params, updates), rest, moments

        self._forward, self._train = jax.jit(evaluate), jax.jit(train, donate_argnums=(0, 1, 2))
        self._params, self._rest = state.split(model)
        self._moments = optimizer.init(self._params)

    def forward(self) -> Arrays:
        """Features in evaluation mode."""
        import numpy as np

        found = self._forward(self._params, self._rest, self._still)
        return {name: np.asarray(x) for name, x in found.items()}

    def train(self) -> float:
        """Loss of one training step: forward, backward and update."""
        return self._step(self._inputs)

    def gradients(self) -> Arrays:
        """Gradients of the first training step: Adam's mean is a tenth of them.

        Beside them are tensors that are not trained, which have none.
        """
        self._step(self._still)
        return {key: 10 * x for key, x in self._published(self._moments[0].mu).items()}

    def published(self) -> Arrays:
        """All tensors by published key."""
        return self._published(self._params)

    def _step(self, inputs: Any) -> float:
        import jax

        loss, *done = self._train(self._params, self._rest, self._moments, inputs)
        self._params, self._rest, self._moments = jax.block_until_ready(done)
        return float(loss)

    def _published(self, params: Any) -> Arrays:
        from common import state

        return self._write(state.merge(self._graph, params, self._rest))


def drawn(build: Callable[[], Any], gain: float) -> Any:
    """A network with normal kernels of variance gain / inputs, everything else being ones.

    Features of initial weights would be all but zero, or those of a part that begins as nothing.
    """
    import jax
    import numpy as np
    from flax import nnx

    random = np.random.default_rng(2)

    def fill(leaf: Any) -> Any:
        values = np.ones(leaf.shape)
        if leaf.ndim > 1:
            values = random.standard_normal(leaf.shape) * (gain / np.prod(leaf.shape[:-1])) ** 0.5
        return jax.numpy.asarray(values, leaf.dtype)

    # JAX's initialisers take minutes to compile for so many shapes.
    graph, variables = nnx.split(nnx.eval_shape(build))
    return nnx.merge(graph, jax.tree.map(fill, variables))


def measure(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Cost]]:
    """Costs of every run; they take turns, so that what else the machine does meets all."""
    for run in runs.values():
        run()  # the first one compiles
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            costs[name].append(Cost.of(run))
    return costs


def check(what: str, found: Mapping[str, Arrays], tolerance: Mapping[str, float]) -> None:
    """Prints the largest difference of each two as a share of the largest value.

    Raises:
        UserError: it is more than the tolerance of `what`.
    """
    import numpy as np

    shares = []
    for (first, ours), (second, theirs) in itertools.combinations(found.items(), 2):
        largest = max(np.abs(x).max() for x in theirs.values())
        shares.append(max(np.abs(ours[key] - x).max() for key, x in theirs.items()) / largest)
        print(
            f"largest difference of {what}, {first} and {second}: {shares[-1]:.1e} of the largest"
        )
    if not all(share < tolerance[what] for share in shares):
        raise UserError(f"The {what} differ by more than {tolerance[what]}: no comparison.")


def table(costs: Mapping[str, Mapping[str, Sequence[Cost]]]) -> list[str]:
    """Lines of median times, and the median over repeats of ours as a share of each.

    Args:
        costs: by what was done, and by who did it.
    """
    lines = []
    for done, by_runner in costs.items():
        for kind, name in (("wall", "wall clock"), ("cpu", "CPU time")):
            seconds = {
                runner: [getattr(cost, kind) for cost in of_runner]
                for runner, of_runner in by_runner.items()
            }
            cells = [_cell(runner, seconds[runner], seconds[OURS]) for runner in seconds]
            lines.append(f"{done}, {name}: {'; '.join(cells)}")
    return lines


def _cell(name: str, seconds: Sequence[float], ours: Sequence[float]) -> str:
    cell = f"{name} {statistics.median(seconds) * 1e3:.1f} ms"
    if len(seconds) > 1:
        cell += f" (from {min(seconds) * 1e3:.1f} to {max(seconds) * 1e3:.1f})"
    if name == OURS:
        return cell
    ratio = statistics.median(a / b for a, b in zip(ours, seconds, strict=True))
    return f"{cell}, ours {ratio:.2f}x"
