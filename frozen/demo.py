"""Captioned videos through every part of Frozen in Time: `python -m frozen.demo`.

Runs the same commands a user would type, one after the other, says what each does, and can be
stopped and started again at any point: every stage continues where it was.
"""

from __future__ import annotations

import pathlib

from absl import flags

from common import launch
from common.errors import UserError
from common.stages import Stages, begin, list_own_videos, shorter_run

FLAGS = flags.FLAGS
_LONGEST_S = 14_400  # of the videos that are searched; their frames are small
_SEGMENT_S = 10.0  # of the user's long videos: about as much as a caption says
_PIECES = 400  # more than the world's captions have
_OWN_PIECES = 4000


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string("output", "runs/demo_frozen", "folder for everything the demo makes")
    flags.DEFINE_string("videos", "", "your own folder of videos; empty renders a small world")
    flags.DEFINE_string(
        "narrations", "", "with --videos: their captions, as `common.ingest` takes them"
    )
    flags.DEFINE_string("config_file", "configs/frozen_demo.py", "what is trained, and how")
    flags.DEFINE_integer("train_clips", 4500, "rendered captioned clips to learn from", 1)
    flags.DEFINE_integer("test_clips", 400, "rendered captioned clips held out", 1)
    flags.DEFINE_string("search", "a ring falls", "text to look for among the clips")
    flags.DEFINE_integer("steps", 0, "training steps; 0 keeps the config's", 0)
    flags.DEFINE_integer("seed", 0, "seed of the rendered world and of the training", 0)


def main(_: list[str]) -> None:
    """Runs every stage."""
    if bool(FLAGS.videos) != bool(FLAGS.narrations):
        raise UserError(
            "--videos and --narrations go together: a folder of videos, and their captions as "
            "NAME.srt, NAME.vtt or NAME.csv files, or one json."
        )
    output = begin(FLAGS.output, FLAGS.config_file)
    records, workdir, pieces = output / "records", output / "train", output / "pieces.txt"
    stages = Stages(total=11)
    tables = _tables(stages, output)
    clips = {
        split: stages.ingest(
            f"Turning the {split} videos into records: frames as JPEG, and their captions",
            table, records, split,
            "--audio_rate=0", "--short_side=40",  # clips are windows of it
        )
        for split, table in tables.items()
    }  # fmt: skip
    stages.make(
        pieces, "Learning word pieces of the captions",
        "common.vocabulary", f"--source={records / 'train'}",
        f"--pieces={_OWN_PIECES if FLAGS.videos else _PIECES}",
    )  # fmt: skip
    stages.run("Checking the records", "common.inspect", str(records), "--max_records=100")
    stages.run(
        "Training Frozen in Time: first what changes between two frames, then among five",
        "common.train", f"--config={FLAGS.config_file}", f"--workdir={workdir}",
        f"--config.data.train={records / 'train'}", f"--config.model.text.pieces={pieces}",
        f"--config.seed={FLAGS.seed}", *_shorter_run(FLAGS.steps),
    )  # fmt: skip
    _judge(stages, output, records, workdir, can_judge=clips["test"] > 1)
    print(_closing_words(output))


def _shorter_run(steps: int) -> list[str]:
    """Returns the overrides for a number of steps, half of them on two frames; none for 0."""
    if not steps:
        return []
    rows = ("0: model.video.num_frames=2", f"{(steps + 1) // 2}:")
    return [*shorter_run(steps), f"--config.curriculum={rows}"]


def _tables(stages: Stages, output: pathlib.Path) -> dict[str, pathlib.Path]:
    """Renders the playground, or lists the user's videos; returns the table of each split."""
    if FLAGS.videos:
        tables = output / "tables"
        videos = pathlib.Path(FLAGS.videos).expanduser()
        list_own_videos(stages, videos, tables, _SEGMENT_S, FLAGS.narrations)
    else:
        tables = output / "videos"
        stages.run(
            f"Rendering {FLAGS.train_clips} captioned clips to learn from and {FLAGS.test_clips} "
            "held out",
            "common.data.playground", f"--output={tables}", f"--train={FLAGS.train_clips}",
            f"--test={FLAGS.test_clips}", f"--seed={FLAGS.seed}", "--size=64", "--clutter=0",
        )  # fmt: skip
    return {split: tables / f"{split}.jsonl" for split in ("train", "test")}


def _judge(
    stages: Stages,
    output: pathlib.Path,
    records: pathlib.Path,
    workdir: pathlib.Path,
    can_judge: bool,
) -> None:
    """Searches among held-out clips, exports the model, and writes the page about it."""
    results, title = output / "retrieval.json", "Finding held-out clips by their captions"
    test = records / "test"
    if can_judge:
        stages.run(
            title,
            "common.retrieve", f"--workdir={workdir}", f"--test={test}", "--protocol=frozen",
            "--baselines=random", f"--output={results}",
        )  # fmt: skip
    else:
        stages.skip(title, "fewer than two are held out")
    with_results = [f"--results={results}"] if can_judge else []
    bundle, index = output / "bundle", output / "index.npz"
    stages.make(
        bundle, "Exporting a bundle that stands alone",
        "common.export", f"--workdir={workdir}", "--protocol=frozen", *with_results,
    )  # fmt: skip
    searched = pathlib.Path(FLAGS.videos or output / "videos" / "test").expanduser()
    stages.make(
        index, "Embedding videos, to search them by text",
        "common.embed", f"--bundle={bundle}", "--encoder=video_joint",
        f"--max_seconds={_LONGEST_S}", str(searched),
    )  # fmt: skip
    stages.run(
        "Searching them",
        "common.search", f"--bundle={bundle}", f"--index={index}", FLAGS.search,
    )  # fmt: skip
    stages.run(
        "Writing the report",
        "common.report", f"--workdir={workdir}",
        f"--records={test if can_judge else records / 'train'}",
        f"--output={output / 'report.html'}", *with_results,
    )  # fmt: skip


def _closing_words(output: pathlib.Path) -> str:
    made = (output / "retrieval.json").exists()
    results = "  retrieval.json  the evaluation\n" if made else ""
    return f"""
Everything lies in {output}:
  report.html     curves, example clips with their captions, and the table: open it in a browser
  records/        the videos as record shards, with a card and a contact sheet
  train/          checkpoints and metrics; tensorboard --logdir={output / "train"}
{results}  bundle/         the exported model and its card
  index.npz       features of the videos, to search them by text

What to type next:
  python -m common.search --bundle={output / "bundle"} --index={output / "index.npz"} "a star opens"
  make demo-frozen VIDEOS=~/videos NARRATIONS=~/subtitles OUTPUT=runs/mine
  python -m common.train --config=configs/frozen_msrvtt.py --workdir=runs/frozen ...
"""


if __name__ == "__main__":
    launch.run(main, define_flags)
