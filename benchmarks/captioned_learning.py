"""What does Frozen in Time learn from captions, and which part of its training helps?

    python -m benchmarks.captioned_learning --data=emoji       # real clips from package registries
    python -m benchmarks.captioned_learning --data=playground  # actions that only time tells apart

Trains on videos alone, on images and videos that take turns, and with the curriculum: first one
frame of both, then turns with all frames; as many steps each. On emoji once more with the real
MiniLM as text network, on the playground once more with what changes between frames in place of the
frames, as its demo does; images have nothing that changes. Then looks for held-out clips by their
captions, beside an untrained network. Everything can be stopped and started again. Where a registry
is out of reach, what needs it is skipped with a message.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import time
from collections.abc import Mapping

from absl import flags

from benchmarks import over_seeds
from common import launch
from common.stages import Stages

FLAGS = flags.FLAGS
_UNTRAINED = "untrained network"
_FIRST = 0.6  # of the steps, that the curriculum spends on single frames
_ONE = "model.video.num_frames=1"


@dataclasses.dataclass(frozen=True)
class Kind:
    """One way to train.

    Attributes:
        curriculum: rows of ``config.curriculum``.
        settings: more flags of ``common.train``.
        minilm: whether the text network begins as MiniLM.
    """

    curriculum: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    minilm: bool = False


@dataclasses.dataclass(frozen=True)
class Data:
    """Records to learn from, and clips to be found.

    Attributes:
        config: what is trained.
        videos, images: records with captions.
        tests: records of captioned clips, by title.
        minilm: folder of the network, or None.
        differences: whether the config is one of a network that is given frame differences.
    """

    config: str
    videos: pathlib.Path
    images: pathlib.Path
    tests: Mapping[str, pathlib.Path]
    minilm: pathlib.Path | None = None
    differences: bool = False

    def kinds(self, steps: int) -> dict[str, Kind]:
        """Returns each kind of training by its title."""
        turns = f"data.train={self.images} {_ONE} | data.train={self.videos}"
        first = f"0: data.train={self.images},{self.videos} {_ONE}"
        curriculum = (first, f"{round(_FIRST * steps)}: {turns}")
        frames = ("--config.model.video.input=rgb",)
        kinds = {
            "videos alone": Kind((), frames),
            "images and videos": Kind((f"0: {turns}",), frames),
            "with curriculum": Kind(curriculum, frames),
        }
        if self.minilm:
            kinds["with curriculum, from MiniLM"] = Kind(curriculum, frames, minilm=True)
        if self.differences:
            kinds["videos alone, differences"] = Kind()
        return kinds


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_enum("data", "emoji", ["emoji", "playground"], "what is learned from")
    flags.DEFINE_integer("seeds", 3, "independent runs", 1)
    flags.DEFINE_integer("steps", 600, "training steps", 1)
    flags.DEFINE_bool("smoke", False, "tiny networks, to see whether everything runs")
    flags.DEFINE_integer("train", 3000, "playground: clips to learn from", 1)
    flags.DEFINE_integer("test", 400, "playground: clips held out", 1)
    flags.DEFINE_integer("packs", 4, "emoji: packs of clips to use, about 500 clips each", 1, 4)
    flags.DEFINE_string("output", "", "folder of the runs; default: runs/captioned/DATA")


def playground(output: pathlib.Path) -> Data:
    """Renders the playground; its images are single frames from the middle of other clips."""
    stages, videos, records = Stages(), output / "videos", output / "records"
    stages.run(
        "Rendering the playground",
        "common.data.playground", f"--output={videos}", f"--train={2 * FLAGS.train}",
        f"--test={FLAGS.test}", "--size=64", "--clutter=0",
    )  # fmt: skip
    rows = [json.loads(line) for line in (videos / "train.jsonl").read_text().splitlines()]
    moving, still = rows[: FLAGS.train], [_middle(row) for row in rows[FLAGS.train :]]
    for split, kept in (("videos", moving), ("images", still)):
        table = videos / f"{split}.jsonl"
        table.write_text("".join(json.dumps(row) + "\n" for row in kept))
        _ingest(table, records, split)
    _ingest(videos / "test.jsonl", records, "test")
    tests = {"held-out clips": records / "test"}
    return Data(
        "configs/frozen_demo.py", records / "videos", records / "images", tests, differences=True
    )


def _middle(row: Mapping) -> dict:
    """A row of a table for a single frame of its clip."""
    at = round(row["duration"] / 2, 3)
    captions = [{"text": caption["text"]} for caption in row["captions"]]
    return {**row, "start": at, "end": at + 0.02, "captions": captions}


def emoji(output: pathlib.Path) -> Data:
    """Fetches and renders the emoji, moving and still, and makes their records.

    Raises:
        Unavailable: the packages cannot be fetched from here.
    """
    from benchmarks import narrated_emoji, text_weights
    from benchmarks import real_data_sources as sources

    splits, clips = sources.rendered(FLAGS.packs, os.cpu_count() or 1)
    moving = list({clip.code: clip for part in splits.values() for clip in part}.values())
    images, pictures = sources.stills(FLAGS.packs, moving)
    output.mkdir(parents=True, exist_ok=True)
    tables = {split: output / f"{split}.jsonl" for split in ("videos", "images", "tone", "family")}
    sources.write_table(tables["videos"], splits["pretrain"], clips)
    sources.write_table(tables["images"], images, pictures, ".png")
    narrated_emoji.write_test(splits["concept_test"], clips, tables["tone"])
    narrated_emoji.write_test(splits["group_test"], clips, tables["family"])
    records = output / "records"
    for split, table in tables.items():
        _ingest(table, records, split, "--frame_rate=12")
    try:
        minilm = None if FLAGS.smoke else text_weights.minilm()
    except sources.Unavailable as error:
        print(f"MiniLM is left out: {error}")
        minilm = None
    tests = {"unseen skin tone": records / "tone", "unseen families": records / "family"}
    return Data("configs/frozen_emoji.py", records / "videos", records / "images", tests, minilm)


def _ingest(table: pathlib.Path, records: pathlib.Path, split: str, *options: str) -> None:
    small = ("--audio_rate=0", "--short_side=64")
    Stages().ingest(f"Records of {split}", table, records, split, *small, *options)


def train_and_search(data: Data, pieces: pathlib.Path, output: pathlib.Path, seed: int) -> dict:
    """Trains every kind from one seed; returns metrics by kind, title of the test and name."""
    from benchmarks import text_weights

    stages, rows = Stages(), {}
    kinds = data.kinds(FLAGS.steps)
    for number, (kind, training) in enumerate(kinds.items()):
        workdir = output / kind.replace(", ", "_").replace(" ", "_") / f"seed_{seed}"
        words, variant, begin = pieces, ":smoke" if FLAGS.smoke else "", ()
        if training.minilm:
            variant = ":minilm"
            words = data.minilm / text_weights.VOCABULARY
            begin = (f"--config.init={(str(data.minilm / text_weights.WEIGHTS),)}",)
        over_seeds.train(
            data.config + variant, workdir, seed, data.videos, FLAGS.steps,
            f"--config.curriculum={training.curriculum}", f"--config.model.text.pieces={words}",
            *training.settings, *begin,
        )  # fmt: skip
        # Untrained, the kinds do not differ, but for MiniLM, which is no baseline.
        baselines = [] if number else ["--baselines=random"]
        for test, (title, clips) in enumerate(data.tests.items()):
            results = workdir / f"retrieval_{test}.json"
            stages.run(
                f"{kind}, seed {seed}: looking for {title}",
                "common.retrieve", f"--workdir={workdir}", f"--test={clips}", "--protocol=frozen",
                f"--seed={seed}", f"--output={results}", *baselines,
            )  # fmt: skip
            for features, metrics in over_seeds.retrieved(results).items():
                rows.setdefault(kind if features == "trained" else _UNTRAINED, {})[title] = metrics
    rows[_UNTRAINED] = rows.pop(_UNTRAINED)  # last in the table
    return rows


def main(_: list[str]) -> None:
    """Prepares the data, trains, searches and prints the table."""
    from benchmarks import real_data_sources as sources

    output = pathlib.Path(FLAGS.output or f"runs/captioned/{FLAGS.data}")
    try:
        data = {"playground": playground, "emoji": emoji}[FLAGS.data](output)
    except sources.Unavailable as error:
        print(f"skipped: the clips cannot be fetched from here: {error}")
        return
    pieces = output / "pieces.txt"
    Stages().make(
        pieces, "Learning word pieces", "common.vocabulary", "--pieces=1000",
        f"--source={data.videos}",
    )  # fmt: skip
    began = time.monotonic()
    search = functools.partial(train_and_search, data, pieces, output)
    runs = [search(seed) for seed in range(FLAGS.seeds)]
    columns = ("R@1", "R@5", "R@10", "median rank")
    table, minutes = over_seeds.summarise_retrieval(runs, columns), (time.monotonic() - began) / 60
    over_seeds.keep(over_seeds.report(table, FLAGS.seeds, minutes), output)


if __name__ == "__main__":
    launch.run(main, define_flags)
