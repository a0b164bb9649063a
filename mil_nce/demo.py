"""From narrated videos to a model that finds clips by text: `python -m mil_nce.demo`.

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
_SEGMENT_S = 30.0  # of the user's long videos: several narrations, not the whole talk


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string("output", "runs/demo_mil_nce", "folder for everything the demo makes")
    flags.DEFINE_string("videos", "", "your own folder of videos; empty renders a small world")
    flags.DEFINE_string(
        "narrations", "", "with --videos: what is said in them, as `common.ingest` takes it"
    )
    flags.DEFINE_string("config_file", "configs/mil_nce_demo.py", "what is trained, and how")
    flags.DEFINE_integer("train_videos", 1600, "rendered narrated videos to learn from", 1)
    flags.DEFINE_integer("test_clips", 400, "rendered captioned clips held out", 1)
    flags.DEFINE_integer("steps", 0, "training steps; 0 keeps the config's", 0)
    flags.DEFINE_integer("seed", 0, "seed of the rendered world and of the training", 0)


def main(_: list[str]) -> None:
    """Runs every stage."""
    if bool(FLAGS.videos) != bool(FLAGS.narrations):
        raise UserError(
            "--videos and --narrations go together: a folder of videos, and what is said in them "
            "as NAME.srt, NAME.vtt or NAME.csv files, or one json."
        )
    output = begin(FLAGS.output, FLAGS.config_file)
    records, workdir, words = output / "records", output / "train", output / "words.txt"
    stages = Stages(total=10)
    tables = _tables(stages, output)
    clips = {
        split: stages.ingest(
            f"Turning the {split} videos into records: frames as JPEG, and what is said",
            table, records, split,
            "--audio_rate=0", "--short_side=40",  # clips are squares of 32 px of it
        )
        for split, table in tables.items()
    }  # fmt: skip
    stages.make(
        words, "Listing the words of the narrations",
        "common.vocabulary", f"--source={records / 'train'}",
    )  # fmt: skip
    stages.run("Checking the records", "common.inspect", str(records), "--max_records=100")
    stages.run(
        "Training MIL-NCE: a clip finds its narration among several, half of them misplaced",
        "common.train", f"--config={FLAGS.config_file}", f"--workdir={workdir}",
        f"--config.data.train={records / 'train'}", f"--config.model.text.vocabulary={words}",
        f"--config.model.text.words={_count(words)}", f"--config.seed={FLAGS.seed}",
        *shorter_run(FLAGS.steps),
    )  # fmt: skip
    _judge(stages, output, records, workdir, can_judge=clips["test"] > 1)
    print(_closing_words(output))


def _tables(stages: Stages, output: pathlib.Path) -> dict[str, pathlib.Path]:
    """Renders the playground, or lists the user's videos; returns the table of each split."""
    if FLAGS.videos:
        tables = output / "tables"
        videos = pathlib.Path(FLAGS.videos).expanduser()
        list_own_videos(stages, videos, tables, _SEGMENT_S, FLAGS.narrations)
        return {split: tables / f"{split}.jsonl" for split in ("train", "test")}
    videos = output / "videos"
    stages.run(
        f"Rendering {FLAGS.train_videos} narrated videos to learn from and {FLAGS.test_clips} "
        "captioned clips held out",
        "common.data.playground", f"--output={videos}", "--train=0", f"--test={FLAGS.test_clips}",
        f"--long_train={FLAGS.train_videos}", f"--seed={FLAGS.seed}", "--size=64", "--clutter=0",
    )  # fmt: skip
    return {"train": videos / "long_train.jsonl", "test": videos / "test.jsonl"}


def _count(words: pathlib.Path) -> int:
    return len(words.read_text(encoding="utf-8").splitlines())


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
            "common.retrieve", f"--workdir={workdir}", f"--test={test}",
            f"--protocol={'even' if FLAGS.videos else 'quick'}", "--baselines=random",
            f"--output={results}",
        )  # fmt: skip
    else:
        stages.skip(title, "fewer than two are held out")
    with_results = [f"--results={results}"] if can_judge else []
    bundle, index = output / "bundle", output / "index.npz"
    stages.make(
        bundle, "Exporting a bundle that stands alone",
        "common.export", f"--workdir={workdir}", *with_results,
    )  # fmt: skip
    searched = pathlib.Path(FLAGS.videos or output / "videos" / "test").expanduser()
    stages.make(
        index, "Embedding videos, to search them by text",
        "common.embed", f"--bundle={bundle}", "--encoder=video_joint",
        f"--max_seconds={_LONGEST_S}", str(searched),
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
  report.html     curves, example clips with their narrations, and the table: open it in a browser
  records/        the videos as record shards, with a card and a contact sheet
  train/          checkpoints and metrics; tensorboard --logdir={output / "train"}
{results}  bundle/         the exported model and its card
  index.npz       features of the videos, to search them by text

What to type next:
  python -m common.search --bundle={output / "bundle"} --index={output / "index.npz"} "a ring falls"
  make demo-mil-nce VIDEOS=~/videos NARRATIONS=~/subtitles OUTPUT=runs/mine
  python -m common.train --config=configs/mil_nce_howto100m.py --workdir=runs/mil_nce ...
"""


if __name__ == "__main__":
    launch.run(main, define_flags)
