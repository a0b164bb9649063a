"""Does BraVe learn? Its features of the playground beside untrained ones and the raw input.

    python -m benchmarks.playground_learning --steps=100 --seeds=1  # a quick check
    python -m benchmarks.playground_learning  # what `make demo` trains, with three seeds

Renders the world of the demo, trains the demo's config on it once per seed and probes the action of
held-out clips from frozen features. Everything can be stopped and started again.
"""

from __future__ import annotations

import functools
import json
import pathlib

from absl import flags

from benchmarks import over_seeds
from common import launch
from common.stages import Stages

FLAGS = flags.FLAGS
CONFIG = "configs/brave_demo.py"
TASKS = {"video": "action from video", "audio": "action from sound"}


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_integer("train", 2000, "clips to train on", 1)
    flags.DEFINE_integer("test", 400, "clips held out", 1)
    flags.DEFINE_float("clutter", 1.0, "of the world; see common.data.playground", 0.0, 1.0)
    flags.DEFINE_integer("seeds", 3, "independent runs on the same clips", 1)
    flags.DEFINE_integer("steps", 0, "training steps; 0 keeps the config's", 0)
    flags.DEFINE_string("output", "runs/playground", "folder of the clips, runs and results")


def prepare(output: pathlib.Path) -> pathlib.Path:
    """Renders the clips and turns them into records; returns the folder of the records."""
    Stages().run(
        "Rendering the playground",
        "common.data.playground", f"--output={output / 'videos'}", f"--train={FLAGS.train}",
        f"--test={FLAGS.test}", f"--clutter={FLAGS.clutter}",
    )  # fmt: skip
    for split in ("train", "test"):
        Stages().run(
            f"Records of {split}",
            "common.ingest", f"--source={output / 'videos' / split}.jsonl",
            f"--output={output / 'records'}", f"--split={split}", "--audio_rate=16000",
            "--short_side=128", "--require_sound",
        )  # fmt: skip
    return output / "records"


def train_and_evaluate(records: pathlib.Path, output: pathlib.Path, seed: int) -> dict:
    """Trains one run and probes its features; returns the rows of results by encoder."""
    workdir = output / f"seed_{seed}"
    over_seeds.train(CONFIG, workdir, seed, records / "train", FLAGS.steps)
    results = workdir / "results.json"
    Stages().run(
        f"Probing the features of seed {seed}",
        "common.evaluate", f"--workdir={workdir}", f"--train={records / 'train'}",
        f"--test={records / 'test'}", "--protocol=quick", "--sweep", "--baselines=random,pixels",
        f"--seed={seed}", f"--output={results}",
    )  # fmt: skip
    rows = json.loads(results.read_text())["rows"]
    return {name: [row for row in rows if row["encoder"] == name] for name in TASKS}


def main(_: list[str]) -> None:
    """Renders, trains, evaluates and prints the table."""
    output = pathlib.Path(FLAGS.output)
    records = prepare(output)
    train_seed = functools.partial(train_and_evaluate, records, output)
    over_seeds.measure(train_seed, FLAGS.seeds, TASKS, output)


if __name__ == "__main__":
    launch.run(main, define_flags)
