"""What does a training step cost? Time, FLOPs, memory, utilisation; and the loop's share of it.

    python -m benchmarks.step --config=configs/brave_v_a.py --config.batch_size=64
    python -m benchmarks.step --overhead
    python -m benchmarks.step --against=torch [--clips=2 --frames=16 --size=112]
    python -m benchmarks.step --against=torch --network=frozen [--clips=2 --frames=4 --size=224]

The first form compiles the step of a configuration for the devices at hand and runs it on one
batch of noise that already lies there. The second compares the loop with the bare compiled step,
for a step that keeps the device busy for 50 ms and the host not at all: the ratio is what reading
metrics, writing them and timing cost. The others compare S3D-G, and Frozen in Time, with the same
network in PyTorch.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from typing import Any

import numpy as np
from absl import flags

from common import config as config_lib
from common import heap, launch
from common.errors import UserError

STEP_SECONDS = 0.05
NETWORKS = ("s3d", "frozen")
SIZES = {
    "clips": "videos in a batch",
    "frames": "of a video",
    "size": "height and width in pixels",
}


def define_flags() -> None:
    """Defines the command line."""
    config_lib.define_flag()
    flags.DEFINE_integer("repeats", 20, "steps measured", lower_bound=1)
    flags.DEFINE_bool("overhead", False, "measure the loop over a bare step of 50 ms")
    flags.DEFINE_enum("against", None, ["torch"], "compare a network with it, on the CPU")
    flags.DEFINE_enum("network", "s3d", NETWORKS, "with --against: which one")
    for name, meaning in SIZES.items():
        flags.DEFINE_integer(name, None, f"with --against: {meaning}", lower_bound=1)


def main(_: list[str]) -> None:
    """Prints the machine, the command and the numbers."""
    _check_flags()
    heap.keep_freed()
    import jax

    launch.keep_compiled_programs()
    heap.tidy_after_compiling()
    print(
        f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, ", end=""
    )
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"command: {' '.join(['python -m benchmarks.step', *sys.argv[1:]])}")
    if flags.FLAGS.against:
        from benchmarks import against_torch

        sizes = {name: flags.FLAGS[name].value for name in SIZES if flags.FLAGS[name].present}
        against_torch.compare(flags.FLAGS.network, sizes, flags.FLAGS.repeats)
    elif flags.FLAGS.overhead:
        measure_overhead(flags.FLAGS.repeats)
    else:
        measure_step(config_lib.load(), flags.FLAGS.repeats)


def _check_flags() -> None:
    """Raises `UserError` where a flag would have no effect."""
    given = [name for name in ("network", *SIZES) if flags.FLAGS[name].present]
    if given and not flags.FLAGS.against:
        raise UserError(f"--{given[0]} has an effect with --against=torch only.")
    others = [name for name in ("overhead", "config") if flags.FLAGS[name].present]
    if others and flags.FLAGS.against:
        raise UserError(f"--against and --{others[0]} are two measurements; ask for one.")


def measure_step(config: Any, repeats: int) -> None:
    """Prints what one step of ``config`` costs."""
    import jax

    from common import clock, methods
    from common.data import fake
    from common.program import build, step_memory

    method = methods.create(config)
    program = build(method, config)
    start = time.perf_counter()
    step = program.compile()
    print(f"compilation: {time.perf_counter() - start:.1f} s")
    noise = next(fake.batches(method.views.spec(), np.arange(config.batch_size), config.seed))
    batch = {name: jax.device_put(x, program.batch_sharding) for name, x in noise.items()}
    state, metrics = step(program.init(), batch)
    jax.block_until_ready(metrics)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    print(
        f"batch {config.batch_size}, microbatches {config.microbatches}, "
        f"compute_dtype {config.compute_dtype}, remat {config.remat}"
    )
    print(f"step: {median * 1e3:.1f} ms (median of {repeats}; fastest {min(seconds) * 1e3:.1f} ms)")
    print(f"speed: {config.batch_size / median:.1f} clips/s")
    flops, peak = program.flops, clock.peak_flops(jax.devices()[0].device_kind)
    print(f"FLOPs per step and device: {flops:.4g}, at {flops / median / 1e12:.3g} TFLOP/s")
    print(f"utilisation: {flops / median / peak:.1%}" if peak else "utilisation: peak unknown")
    planned = step_memory(step.memory_analysis())
    print(f"memory planned per device: {planned / 2**20:,.0f} MiB")
    used = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    print(
        f"memory peak on device: {used / 2**20:,.0f} MiB" if used else "memory peak: not reported"
    )


def measure_overhead(repeats: int) -> None:
    """Prints how much longer a step takes inside the loop than called on its own."""
    import jax

    from common import loop
    from common.program import build

    config, method, data = _busy()
    with config.unlocked():
        config.steps = repeats + 1
    with tempfile.TemporaryDirectory() as folder:
        loop.train(method, config, folder, data)
        lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    # The first line holds the start, the last one no step of its own.
    inside = [json.loads(line)["time/step"] for line in lines[1:-1]]
    program = build(method, config)
    step, state = program.compile(), program.init()
    clip = next(data.batches(0))["clip"]
    batch = {"clip": jax.device_put(clip, program.batch_sharding)}
    state, metrics = step(state, batch)
    jax.block_until_ready(state)
    laps, cpu = [], time.process_time()
    for _ in range(max(repeats // config.log_every, 1)):
        start = time.perf_counter()
        for _ in range(config.log_every):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        laps.append((time.perf_counter() - start) / config.log_every)
    bare_cpu = (time.process_time() - cpu) / (len(laps) * config.log_every)
    taken = data.cpu[config.log_every : repeats]  # the first ones while the step is compiled
    loop_cpu = (taken[-1] - taken[0]) / (len(taken) - 1)
    # Other programs only ever make a lap longer, so the fastest one is the least disturbed.
    for name, of in (("fastest", min), ("median", statistics.median)):
        ratio = of(inside) / of(laps)
        print(
            f"{name} lap of {config.log_every} steps: bare {of(laps) * 1e3:.3f} ms/step, "
            f"in the loop {of(inside) * 1e3:.3f} ms/step, ratio {ratio:.4f} ({ratio - 1:+.2%})"
        )
    extra = loop_cpu - bare_cpu
    print(
        f"CPU time of the host: bare {bare_cpu * 1e3:.3f} ms/step, in the loop "
        f"{loop_cpu * 1e3:.3f} ms/step: {extra / STEP_SECONDS:+.2%} of {STEP_SECONDS * 1e3:.0f} ms"
    )


def _busy() -> tuple[Any, Any, Any]:
    """Returns configuration, method and data of a step that takes `STEP_SECONDS` of the device."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from common.data.pipeline import SAMPLE_ID
    from configs import base

    def wait(x: np.ndarray) -> np.ndarray:
        time.sleep(STEP_SECONDS)  # as a busy accelerator leaves the host's cores alone
        return x

    class Views:
        modalities = frozenset()

        def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
            return {"clip": jax.ShapeDtypeStruct((64,), jnp.uint8)}

    class Busy:
        views = Views()
        encoders: dict[str, Any] = {}

        def build(self, rngs: nnx.Rngs) -> nnx.Module:
            return nnx.Linear(64, 16, rngs=rngs)

        def augment(self, batch: Any, keys_B: jax.Array) -> dict[str, jax.Array]:
            clip = batch["clip"].astype(jnp.float32)
            # Timed from when the step begins, as it depends on nothing that the step computes.
            return {
                "x": jax.pure_callback(wait, jax.ShapeDtypeStruct(clip.shape, clip.dtype), clip)
            }

        def embed(self, model: nnx.Module, inputs: Any) -> dict[str, jax.Array]:
            return {"z": model(inputs["x"])}

        def objective(self, embeddings: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            return jnp.mean(embeddings["z"] ** 2) * 1e-6, {}

    class Data:
        cpu: list[float] = []  # CPU seconds of the process when each batch was taken

        def batches(self, start_step: int) -> Any:
            clip = np.zeros((32, 64), np.uint8)
            clip[:] = np.arange(64)
            while True:
                if len(self.cpu) <= config.steps:
                    self.cpu.append(time.process_time())
                yield {"clip": clip, SAMPLE_ID: np.zeros((32, 2), np.int64)}

    config = base.get_config()
    config.steps, config.batch_size, config.checkpoint_every = 1, 32, 10**9
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 1e-6
    config.optimizer.exclude = ()
    return config.lock(), Busy(), Data()


if __name__ == "__main__":
    launch.run(main, define_flags)
