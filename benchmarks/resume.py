"""How long from starting the command again to the first new step?

    python benchmarks/resume.py [--config_file=configs/brave_demo.py:smoke]

Starts a run in a process of its own, twice: from nothing, with nothing compiled before, and then
again to continue, with one step more. Measured is the time from the start of the process to the
first line of metrics; the data are noise, so reading records is not part of it.
"""

from __future__ import annotations

import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

from absl import flags

from common import launch
from common.errors import UserError

_POLL_SECONDS = 0.02


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string("config_file", "configs/brave_demo.py:smoke", "configuration to run")


def main(_: list[str]) -> None:
    """Prints the machine, the command and the two times."""
    print(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(f"command: {' '.join(['python', *sys.argv])}")
    with tempfile.TemporaryDirectory() as folder:
        fresh = first_step(pathlib.Path(folder), steps=2)
        again = first_step(pathlib.Path(folder), steps=3)
    print(f"first start to first step: {fresh:.1f} s")
    print(f"restart to first new step: {again:.1f} s")
    print(f"ratio: {again / fresh:.2f}")


def first_step(folder: pathlib.Path, steps: int) -> float:
    """Returns the seconds from starting the run to its next line of metrics; lets it end."""
    metrics = folder / "run" / "metrics.jsonl"
    before = metrics.read_text().count("\n") if metrics.exists() else 0
    command = [
        sys.executable, "-m", "common.train", f"--workdir={folder / 'run'}",
        f"--config={flags.FLAGS.config_file}", "--config.data.train=fake",
        f"--config.steps={steps}", "--config.log_every=1",
        "--config.optimizer.schedule=constant", "--config.optimizer.warmup_steps=0",
        "--config.optimizer.final_fraction=0",
    ]  # fmt: skip
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    root = pathlib.Path(__file__).parents[1]
    with (folder / "log").open("wb") as log:
        start = time.perf_counter()
        run = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)
        elapsed = None
        while elapsed is None and run.poll() is None:
            time.sleep(_POLL_SECONDS)
            if metrics.exists() and metrics.read_text().count("\n") > before:
                elapsed = time.perf_counter() - start
        if run.wait() or elapsed is None:
            raise UserError(f"the run failed:\n{(folder / 'log').read_text()[-2000:]}")
    lines = (folder / "log").read_text().splitlines()
    print(f"steps={steps}:", *[line for line in lines if "compiled in" in line])
    return elapsed


if __name__ == "__main__":
    launch.run(main, define_flags)
