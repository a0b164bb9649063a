"""What do a method's networks and its loss take on a TPU, without all that surrounds them?

    python -m benchmarks.networks_on_tpu --config=configs/brave_v_a.py --config.batch_size=8 \
        --config.optimizer.name=sgd --config.model.audio.num_samples=163840 \
        --config.model.audio.sample_rate=16000  # as the published code of BraVe was compiled

As ``python -m common.plan --topology=v5e:1x1``, but the step is given what augmentation would
return: float32 clips and spectrograms. So it does the work that a published training loop does on
its device where augmentation belongs to the host.
"""

from __future__ import annotations

from typing import Any

import jax
from absl import flags

from common import config as config_lib
from common import launch, methods
from common.method import Batch
from common.planning import planner, report, topology


def define_flags() -> None:
    """Defines the command line."""
    config_lib.define_flag()
    flags.DEFINE_string("topology", "v5e:1x1", "chips, as for common.plan")


class _Augmented:
    """What another method's augmentation returns, as if records held it."""

    def __init__(self, method: Any):
        self._method = method

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        batch = {
            name: jax.ShapeDtypeStruct((1, *entry.shape), entry.dtype)
            for name, entry in self._method.views.spec().items()
        }
        keys_B = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
        inputs = jax.eval_shape(self._method.augment, batch, keys_B)
        return {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in inputs.items()}


class _Networks:
    """A method that leaves its batch as it is."""

    def __init__(self, method: Any):
        self.build, self.embed, self.objective = method.build, method.embed, method.objective
        self.views = _Augmented(method)

    def augment(self, batch: Batch, keys_B: jax.Array) -> Batch:
        return batch


def main(_: list[str]) -> None:
    """Prints the forecast."""
    jax.config.update("jax_platforms", "cpu")
    config, chips = config_lib.load(), topology.describe(flags.FLAGS.topology)
    found = planner.forecast(config, chips, create=lambda c: _Networks(methods.create(c)))
    print(*report.lines(found), sep="\n")


if __name__ == "__main__":
    launch.run(main, define_flags)
