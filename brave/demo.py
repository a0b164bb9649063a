"""From mp4 files to a trained, evaluated, exported model and a report: `python -m brave.demo`.

Runs the same commands a user would type, one after the other, says what each does, and can be
stopped and started again at any point: every stage continues where it was.
"""

from __future__ import annotations

import pathlib

from absl import flags

from common import launch
from common.stages import Stages, begin, list_own_videos, shorter_run, split_card

FLAGS = flags.FLAGS
_SPLITS = ("train", "test")


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string("output", "runs/demo", "folder for everything the demo makes")
    flags.DEFINE_string("videos", "", "your own folder of videos; empty renders a small world")
    flags.DEFINE_string("config_file", "configs/brave_demo.py", "what is trained, and how")
    flags.DEFINE_integer("train_clips", 2000, "rendered clips to train on", 1)
    flags.DEFINE_integer("test_clips", 400, "rendered clips held out", 1)
    flags.DEFINE_integer("steps", 0, "training steps; 0 keeps the config's", 0)
    flags.DEFINE_integer("seed", 0, "seed of the rendered world and of the training", 0)


def main(_: list[str]) -> None:
    """Runs every stage."""
    output = begin(FLAGS.output, FLAGS.config_file)
    records, workdir = output / "records", output / "train"
    stages = Stages(total=8)
    tables = output / "tables"
    if FLAGS.videos:
        videos = pathlib.Path(FLAGS.videos).expanduser()
        list_own_videos(stages, videos, tables, segment_s=10.0)
    else:
        tables = output / "videos"
        stages.run(
            f"Rendering {FLAGS.train_clips} videos to learn from and {FLAGS.test_clips} held out",
            "common.data.playground", f"--output={tables}", f"--train={FLAGS.train_clips}",
            f"--test={FLAGS.test_clips}", f"--seed={FLAGS.seed}",
        )  # fmt: skip
    clips = {
        split: stages.ingest(
            f"Turning the {split} videos into records: frames as JPEG, sound as samples",
            tables / f"{split}.jsonl", records, split,
            "--audio_rate=16000", "--short_side=128", "--require_sound",
        )
        for split in _SPLITS
    }  # fmt: skip
    # Counted after ingest: of what was listed, not everything can be read or has sound.
    known = [set(split_card(records, split)["clips_by_label"]) for split in _SPLITS]
    can_probe = len(set.intersection(*known)) > 1
    stages.run("Checking the records", "common.inspect", str(records), "--max_records=200")
    stages.run(
        "Training BraVe: a short clip and the sound of the whole video predict each other",
        "common.train", f"--config={FLAGS.config_file}", f"--workdir={workdir}",
        f"--config.data.train={records / 'train'}", f"--config.seed={FLAGS.seed}",
        *shorter_run(FLAGS.steps),
    )  # fmt: skip
    shown = records / ("test" if clips["test"] else "train")
    _judge(stages, output, records, workdir, shown, can_probe)
    print(_closing_words(output))


def _judge(
    stages: Stages,
    output: pathlib.Path,
    records: pathlib.Path,
    workdir: pathlib.Path,
    shown: pathlib.Path,
    can_probe: bool,
) -> None:
    """Evaluates and exports the trained model, and writes the page about it."""
    results, bundle = output / "results.json", output / "bundle"
    title = "Evaluating the frozen features on held-out clips, beside untrained and random ones"
    if can_probe:
        stages.run(
            title,
            "common.evaluate", f"--workdir={workdir}", f"--train={records / 'train'}",
            f"--test={records / 'test'}", "--protocol=quick", "--probe=ridge", "--sweep",
            "--baselines=random,pixels,noise", f"--output={results}",
        )  # fmt: skip
    else:
        stages.skip(title, "no two labels on both sides (the folders of the videos are labels)")
    with_results = [f"--results={results}"] if can_probe else []
    stages.make(
        bundle, "Exporting a bundle that stands alone",
        "common.export", f"--workdir={workdir}", *with_results,
    )  # fmt: skip
    stages.run(
        "Writing the report",
        "common.report", f"--workdir={workdir}", f"--records={shown}",
        f"--output={output / 'report.html'}", *with_results,
    )  # fmt: skip


def _closing_words(output: pathlib.Path) -> str:
    made = (output / "results.json").exists()
    results = "  results.json  the evaluation\n" if made else ""
    return f"""
Everything lies in {output}:
  report.html   curves, example clips with their views, and the table: open it in a browser
  records/      the videos as record shards, with a card and a contact sheet
  train/        checkpoints and metrics; tensorboard --logdir={output / "train"}
{results}  bundle/       the exported model and its card

What to type next:
  make demo VIDEOS=~/videos OUTPUT=runs/mine
  python -m common.embed --bundle={output / "bundle"} --output=features.npz VIDEO.mp4 ...
  python -m common.train --config=configs/brave_v_a.py --workdir=runs/brave --config.data.train=...
"""


if __name__ == "__main__":
    launch.run(main, define_flags)
