"""From mp4 files to a trained, evaluated, exported model and a report: `python -m common.demo`.

Runs the same commands a user would type, one after the other, says what each does, and can be
stopped and started again at any point: every stage continues where it was.
"""

from __future__ import annotations

import pathlib
import shlex
import subprocess
import sys
import time

from absl import flags

from common import launch
from common.errors import UserError

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the tool's flags."""
    flags.DEFINE_string("output", "runs/demo", "folder for everything the demo makes")
    flags.DEFINE_string("videos", "", "your own folder of videos; empty renders a small world")
    flags.DEFINE_string("config_file", "configs/brave_demo.py", "what is trained, and how")
    flags.DEFINE_integer("train_clips", 2000, "rendered clips to train on", 1)
    flags.DEFINE_integer("test_clips", 400, "rendered clips held out", 1)
    flags.DEFINE_integer("steps", 0, "training steps; 0 keeps the config's", 0)
    flags.DEFINE_integer("seed", 0, "seed of the rendered world and of the training", 0)


class _Stages:
    """Runs commands one by one, saying which of how many and how long each took."""

    def __init__(self, total: int):
        self._total = total
        self._number = 0
        self._start = time.monotonic()

    def run(self, title: str, *module_and_flags: str) -> None:
        """Runs ``python -m MODULE FLAGS...``; raises `UserError` where it fails."""
        self._number += 1
        print(f"\n[{self._number}/{self._total}] {title}", flush=True)
        print(f"      python -m {shlex.join(module_and_flags)}", flush=True)
        began = time.monotonic()
        status = subprocess.run([sys.executable, "-m", *module_and_flags], check=False).returncode
        if status:
            raise UserError(
                f"Stage {self._number} ({title}) ended with status {status}; its message is above. "
                "What was made so far is kept: mend the cause and run the same command again."
            )
        now = time.monotonic()
        print(f"      {now - began:.0f} s (since the start: {now - self._start:.0f} s)", flush=True)


def _videos_to_records(stages: _Stages, videos: pathlib.Path, records: pathlib.Path) -> None:
    """Ingests the user's own folder, with a fifth of its files held out."""
    if not videos.is_dir():
        raise UserError(f"--videos={videos} is not a folder; give one that holds video files.")
    stages.run(
        f"Turning the videos of {videos} into records, a fifth of them held out",
        "common.ingest", f"--source={videos}", f"--output={records}", "--held_out=0.2",
        "--labels_from=folder", "--short_side=128", "--audio_rate=16000",
    )  # fmt: skip


def _world_to_records(stages: _Stages, world: pathlib.Path, records: pathlib.Path) -> None:
    """Renders the playground and ingests its two tables."""
    stages.run(
        f"Rendering {FLAGS.train_clips} videos to learn from and {FLAGS.test_clips} held out",
        "common.data.playground", f"--output={world}", f"--train={FLAGS.train_clips}",
        f"--test={FLAGS.test_clips}", f"--seed={FLAGS.seed}",
    )  # fmt: skip
    for split in ("train", "test"):
        stages.run(
            f"Turning the {split} videos into records",
            "common.ingest", f"--source={world / split}.jsonl", f"--output={records}",
            f"--split={split}", "--audio_rate=16000",
        )  # fmt: skip


def main(argv: list[str]) -> None:
    """Runs every stage."""
    if len(argv) > 1:
        raise UserError(f"Unexpected argument {argv[1]!r}: every setting is a --flag=value.")
    output = pathlib.Path(FLAGS.output)
    records, workdir = output / "records", output / "train"
    bundle, results = output / "bundle", output / "results.json"
    own = bool(FLAGS.videos)
    stages = _Stages(6 if own else 8)
    if own:
        _videos_to_records(stages, pathlib.Path(FLAGS.videos).expanduser(), records)
    else:
        _world_to_records(stages, output / "videos", records)
    stages.run("Checking the records", "common.inspect", str(records / "train"))
    overrides = [f"--config.steps={FLAGS.steps}"] if FLAGS.steps else []
    stages.run(
        "Training BraVe: a short clip and the sound of the whole video predict each other",
        "common.train", f"--config={FLAGS.config_file}", f"--workdir={workdir}",
        f"--config.data.train={records / 'train'}", f"--config.seed={FLAGS.seed}", *overrides,
    )  # fmt: skip
    stages.run(
        "Evaluating the frozen features on held-out clips, against random and raw-pixel features",
        "common.evaluate", f"--workdir={workdir}", f"--train={records / 'train'}",
        f"--test={records / 'test'}", "--protocol=quick", "--baselines=random,pixels",
        f"--output={results}",
    )  # fmt: skip
    stages.run(
        "Exporting a bundle that stands alone",
        "common.export", f"--workdir={workdir}", f"--output={bundle}", f"--results={results}",
    )  # fmt: skip
    stages.run(
        "Writing the report",
        "common.report", f"--workdir={workdir}", f"--records={records / 'test'}",
        f"--results={results}", f"--output={output / 'report.html'}",
    )  # fmt: skip
    print(_closing_words(output, bundle))


def _closing_words(output: pathlib.Path, bundle: pathlib.Path) -> str:
    return f"""
Everything lies in {output}:
  report.html   curves, example clips with their views, and the table: open it in a browser
  records/      the videos as record shards, with a card and a contact sheet
  train/        checkpoints and metrics (tensorboard --logdir={output / "train"})
  results.json  the evaluation
  bundle/       the exported model

What to type next:
  make demo VIDEOS=~/videos
  python -m common.embed --bundle={bundle} --output=features.npz VIDEO.mp4 ...
  python -m common.train --config=configs/brave_v_a.py --workdir=runs/brave --config.data.train=...
"""


if __name__ == "__main__":
    launch.run(main, define_flags)
