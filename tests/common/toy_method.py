"""A method small enough to train in milliseconds, with everything that a real one has.

Run as a program it trains in a real process: ``python toy_method.py WORKDIR [KEY=VALUE ...]``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from common import config as config_lib
from common import launch, loop, sharding, validation, watchdog
from common.cluster import supervisor
from common.data.pipeline import SAMPLE_ID
from common.errors import UserError
from common.program import Program, build
from configs import base

SIZE = 8


def get_config(**changes):
    """Returns a small locked configuration; ``data__threads=1`` sets ``config.data.threads``."""
    config = base.get_config()
    config.method = "toy"
    config.steps = 8
    config.batch_size = 16
    config.compute_dtype = "float32"
    config.log_every = 1
    config.checkpoint_every = 3
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.05
    config.optimizer.exclude = (r".*bias", r".*scale")
    config.data.train = "fake"
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in changes.items()}
    )
    return config.lock()


class Net(nnx.Module):
    """Two layers with batch norm, in a list, so that paths with numbers occur."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [nnx.Linear(SIZE, 2 * SIZE, rngs=rngs), nnx.Linear(16, 4, rngs=rngs)]
        )
        self.norm = nnx.BatchNorm(2 * SIZE, rngs=rngs)

    def __call__(self, x_BD):
        return self.layers[1](nnx.relu(self.norm(self.layers[0](x_BD))))


class Views:
    modalities = frozenset()

    def spec(self):
        return {"clip": jax.ShapeDtypeStruct((SIZE,), jnp.uint8)}


class Toy:
    """Maps an input and a noisy copy of it to the same place."""

    title = "Toy"
    views = Views()
    encoders = {}

    def build(self, rngs):
        return Net(rngs)

    def augment(self, batch, keys_B):
        x_BD = batch["clip"].astype(jnp.float32) / 128 - 1

        def noisy(x_D, key):
            return x_D + 0.1 * jax.random.normal(key, x_D.shape)

        # A clip of nothing but 255 stands for data that make the loss infinite.
        broken = jnp.all(batch["clip"] == 255)
        x_BD = jnp.where(broken, jnp.inf, x_BD)
        return {"a": x_BD, "b": jax.vmap(noisy)(x_BD, keys_B)}

    def embed(self, model, inputs):
        return {"a": model(inputs["a"]), "b": model(inputs["b"])}

    def objective(self, embeddings):
        a_BD, b_BD = embeddings["a"], embeddings["b"]
        agreement = jnp.mean((a_BD - b_BD) ** 2)
        spread = jnp.mean((a_BD.std(axis=0) - 1) ** 2)
        return agreement + spread, {"agreement": agreement}


class ToyData:
    """Noise that is a function of the step; ``broken_step`` yields data that end in infinity."""

    def __init__(self, batch_size=16, broken_step=None, before=lambda step: None, rows=slice(None)):
        self._batch_size, self._broken_step, self._before = batch_size, broken_step, before
        self._rows = rows  # of every batch, that this process reads

    def batches(self, start_step):
        step = start_step
        while True:
            self._before(step)
            generator = np.random.default_rng(step)
            clip = generator.integers(0, 255, (self._batch_size, SIZE), np.uint8)
            if step == self._broken_step:
                clip[:] = 255
            ids = step * 100 + np.arange(self._batch_size)
            ids = np.stack([np.zeros_like(ids), ids], axis=1)
            yield {"clip": clip[self._rows], SAMPLE_ID: ids[self._rows]}
            step += 1


def compile_once(monkeypatch):
    """Lets runs of one configuration in this process share what they compile."""
    monkeypatch.setattr(loop, "build", _build)
    monkeypatch.setattr(Program, "compile", _compile)
    monkeypatch.setattr(validation, "make_validation_step", _make_validation_step)


def trained(workdir, **changes):
    """Trains in a folder, where fixtures outlive single tests; returns it and the last state."""
    import pytest  # which the runs in processes of their own do not need

    with pytest.MonkeyPatch.context() as monkeypatch:
        compile_once(monkeypatch)
        return workdir, loop.train(Toy(), get_config(**changes), workdir, ToyData())


def _key(config):
    ignored = config_lib.HARMLESS - {"mesh.data", "mesh.fsdp", "mesh.rules"}
    return str({k: v for k, v in config_lib.flatten(config).items() if k not in ignored})


def _build(method, config, build=build, built={}):  # noqa: B006, a cache
    if _key(config) not in built:
        built[_key(config)] = build(method, config)
    return dataclasses.replace(built[_key(config)], config=config)


def _compile(program, compile=Program.compile, compiled={}):  # noqa: B006, a cache
    if _key(program.config) not in compiled:
        compiled[_key(program.config)] = compile(program)
    return compiled[_key(program.config)]


def _make_validation_step(method, config, make=validation.make_validation_step, made={}):  # noqa: B006
    if _key(config) not in made:
        made[_key(config)] = make(method, config)
    return made[_key(config)]


def losses(workdir):
    """Returns ``{step: the metrics that do not depend on time}``, as text, from metrics.jsonl."""
    result = {}
    timed = ("time/", "clips_per_second", "flops", "utilisation", "host_memory")
    for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        assert values["step"] not in result, "a step was written twice"
        result[values.pop("step")] = {
            name: value for name, value in values.items() if not name.startswith(timed)
        }
    return result


def same_bits(a, b):
    """Whether two trees hold the same arrays to the last bit."""
    same = jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(same)


def main(workdir: str, *changes: str) -> None:
    """Trains; ``kill=N`` sends this process the signal ``with`` when it reads batch N.

    With ``kill_at=PLACE`` it does so when it comes to a place of that name, see `common.watchdog`.
    """
    pairs = (change.split("=", 1) for change in changes)
    values = {key.replace(".", "__"): json.loads(value) for key, value in pairs}
    kill, signum = values.pop("kill", None), values.pop("with", signal.SIGKILL)
    kill_at, at = values.pop("kill_at", None), watchdog.at
    launch.set_up_logging()
    config = get_config(**values)

    def before(step):
        if step == kill:
            os.kill(os.getpid(), signum)

    def at_or_never(place, quick=False):
        at(place, quick)
        if kill_at and kill_at in place:
            os.kill(os.getpid(), signum)

    watchdog.at = at_or_never

    def train():
        launch.keep_compiled_programs()
        rows = sharding.local_rows(sharding.make_mesh(config), config.batch_size)
        try:
            loop.train(Toy(), config, workdir, ToyData(config.batch_size, None, before, rows))
        except loop.Stopped as stopped:
            return 128 + stopped.signum
        return 0

    try:
        status = supervisor.run_here(config, workdir, train)
    except UserError as error:
        sys.exit(f"error: {error}")
    sys.exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
