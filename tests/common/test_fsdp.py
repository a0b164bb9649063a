"""Promise: any model can be shared out over devices by the rules that ship, and trains the same.

Run as a program it trains on eight devices and on one: ``python test_fsdp.py METHOD`` prints JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def main(name):
    import jax
    import numpy as np

    from common import methods, program, sharding
    from common.data import fake
    from common.state import flatten

    sharding._WORTH_SPLITTING = 64  # the models are tiny
    config = importlib.import_module(f"configs.{name}").get_config("smoke")
    with config.unlocked():
        config.batch_size, config.microbatches = 8, 1
        config.ema_decay = 0.9
    found = {}
    for devices in (1, 8):
        with config.unlocked():
            config.mesh.fsdp = devices
        method = methods.create(config)
        mesh = sharding.make_mesh(config, jax.devices()[:devices])
        built = program.build(method, config, mesh)
        state, step = built.start(), built.compile()
        batch = next(fake.batches(method.views.spec(), np.arange(8), 0))
        batch = {name: jax.device_put(x, built.batch_sharding) for name, x in batch.items()}
        losses = []
        for _ in range(3):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
        whole = {path: np.asarray(leaf) for path, leaf in flatten(state.params).items()}
        held = sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(state))
        total = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        found[devices] = {"losses": losses, "share": held / total, "params": whole}
    one, eight = found[1].pop("params"), found[8].pop("params")
    apart = max(float(np.abs(one[path] - eight[path]).max()) for path in one)
    split = sum("fsdp" in spec for spec in built.specs.values())
    print(json.dumps({**found, "apart": apart, "split": split / len(built.specs)}))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brave_v_a", "mil_nce_demo", "frozen_msrvtt"])
def test_eight_devices_that_share_a_model_train_what_one_does(name):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'common'}"
    done = subprocess.run(
        [sys.executable, __file__, name],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # Batch norm over eight clips makes more of roundings with every step.
    assert found["8"]["losses"][0] == pytest.approx(found["1"]["losses"][0], rel=1e-4)
    assert found["8"]["losses"] == pytest.approx(found["1"]["losses"], rel=5e-3)
    assert found["apart"] < 1e-2
    # Parameters, moments and moving average are all shared out, but for what is too small.
    assert found["1"]["share"] == 1 and found["8"]["share"] < 0.25 and found["split"] > 0.3


if __name__ == "__main__":
    main(*sys.argv[1:])
