"""BraVe on real clips from a package registry: fetch, train, evaluate, print one table.

    python -m benchmarks.real_data --packs=1 --steps=200 --seeds=1   # a quick check
    python -m benchmarks.real_data                                   # all clips, three seeds
    python -m benchmarks.real_data --input=rgb                       # of whole frames

The clips are animated emoji (see benchmarks/real_data_sources.py for what, whose and which splits).
BraVe V<->V learns from them without labels; linear probes on its frozen features are compared with
the same network untrained and with raw pixels. Two probes, on clips that training never saw: the
concept in a held-out skin tone, and the group of held-out families of concepts. Everything can be
stopped and started again. Where the registry is out of reach, the benchmark says so and is skipped.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib

from absl import flags

from benchmarks import over_seeds
from common import launch
from common.stages import Stages

FLAGS = flags.FLAGS
CONFIGS = {"difference": "configs/brave_emoji.py", "rgb": "configs/brave_emoji.py:rgb"}
TASKS = {"concept": "concept, unseen skin tone", "group": "group, unseen families"}


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_integer("packs", 4, "packs of clips to use, about 500 clips each", 1, 4)
    flags.DEFINE_enum("input", "difference", list(CONFIGS), "what the networks see of the clips")
    flags.DEFINE_integer("seeds", 3, "independent runs", 1)
    flags.DEFINE_integer("steps", 0, "training steps; 0 keeps the config's", 0)
    flags.DEFINE_string("output", "runs/real_data", "folder of the runs and their results")
    flags.DEFINE_integer("workers", 0, "processes that render and ingest; 0: one per core", 0)
    flags.DEFINE_string("protocol", "quick", "clips per video; see common.evaluate")


def prepare(packs: int, workers: int) -> pathlib.Path:
    """Makes the clips of the first packs and their records; returns the folder of the records.

    Raises:
        Unavailable: the packages cannot be fetched from here.
        UserError: a package is not the pinned one.
    """
    from benchmarks import real_data_sources as sources

    splits, videos = sources.rendered(packs, workers or os.cpu_count() or 1)
    made = sources.rendering_folder() / f"packs_1_to_{packs}"
    for name, clips in splits.items():
        task, _, split = name.partition("_")
        column = task if task in TASKS else "group"
        print(f"  {name}: {len(clips)} clips, {len({clip.concept for clip in clips})} concepts")
        sources.write_table(made / "tables" / f"{name}.jsonl", clips, videos)
        Stages().run(
            f"Records of {name}",
            "common.ingest", f"--source={made / 'tables' / name}.jsonl",
            f"--output={made / 'records' / task}", f"--split={split or 'train'}",
            f"--label_column={column}", "--frame_rate=12", "--audio_rate=0",
            f"--workers={workers}",
        )  # fmt: skip
    return made / "records"


def train_and_evaluate(records: pathlib.Path, output: pathlib.Path, seed: int) -> dict:
    """Trains one run and probes its features; returns the rows of results by task."""
    workdir = output / FLAGS.input / f"seed_{seed}"
    clips = records / "pretrain" / "train"
    over_seeds.train(CONFIGS[FLAGS.input], workdir, seed, clips, FLAGS.steps)
    rows = {}
    for task, title in TASKS.items():
        results = workdir / f"{task}.json"
        Stages().run(
            f"Probing the features of seed {seed}: {title}",
            "common.evaluate", f"--workdir={workdir}", f"--train={records / task / 'train'}",
            f"--test={records / task / 'test'}", "--encoder=video", "--baselines=random,pixels",
            f"--protocol={FLAGS.protocol}", "--probe=ridge", "--sweep", f"--seed={seed}",
            f"--output={results}",
            f"--features={output / 'features'}",  # one folder: the pixels of all seeds are the same
        )  # fmt: skip
        rows[task] = json.loads(results.read_text())["rows"]
    return rows


def main(_: list[str]) -> None:
    """Fetches, trains, evaluates and prints the table."""
    from benchmarks import real_data_sources as sources

    output = pathlib.Path(FLAGS.output)
    try:
        records = prepare(FLAGS.packs, FLAGS.workers)
    except sources.Unavailable as error:
        print(f"skipped: the clips cannot be fetched from here: {error}")
        return
    train_seed = functools.partial(train_and_evaluate, records, output)
    over_seeds.measure(train_seed, FLAGS.seeds, TASKS, output / FLAGS.input)


if __name__ == "__main__":
    launch.run(main, define_flags)
