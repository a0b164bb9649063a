"""Does MIL-NCE learn from misaligned narrations? Beside plain NCE and an untrained network.

    python -m benchmarks.narrated_learning --data=playground --seeds=1 --steps=100  # a quick check
    python -m benchmarks.narrated_learning --data=playground  # `make demo-mil-nce`, on more videos
    python -m benchmarks.narrated_learning --data=emoji       # real clips from a package registry

Trains on long narrated videos, half of whose sentences are said at another time or about something
else, once with several candidate narrations per clip (MIL-NCE) and once with a single one (NCE),
everything else the same; then looks for held-out clips by their captions. Everything can be stopped
and started again. Where the registry is out of reach, --data=emoji says so and is skipped.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Mapping

from absl import flags

from benchmarks import over_seeds
from common import launch
from common.stages import Stages

FLAGS = flags.FLAGS
_KINDS = ("MIL-NCE, K = 5", "NCE, K = 1", "untrained network")
_CANDIDATES = {_KINDS[0]: 5, _KINDS[1]: 1}


@dataclasses.dataclass(frozen=True)
class Data:
    """Records to learn from, and clips to be found.

    Attributes:
        config: what is trained.
        train: records of narrated videos.
        tests: records of captioned clips, by title.
    """

    config: str
    train: pathlib.Path
    tests: Mapping[str, pathlib.Path]


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_enum("data", "playground", ["playground", "emoji"], "what is learned from")
    flags.DEFINE_integer("seeds", 3, "independent runs", 1)
    flags.DEFINE_integer("steps", 0, "training steps; 0 keeps the config's", 0)
    flags.DEFINE_integer("train", 1600, "playground: narrated videos to learn from", 1)
    flags.DEFINE_integer("test", 400, "playground: clips held out", 1)
    flags.DEFINE_integer("packs", 4, "emoji: packs of clips to use, about 500 clips each", 1, 4)
    flags.DEFINE_string("output", "", "folder of the runs; default: runs/narrated/DATA")


def playground(output: pathlib.Path) -> Data:
    """Renders the playground and turns it into records."""
    stages, videos, records = Stages(), output / "videos", output / "records"
    stages.run(
        "Rendering the playground",
        "common.data.playground", f"--output={videos}", "--train=0", f"--test={FLAGS.test}",
        f"--long_train={FLAGS.train}", "--size=64", "--clutter=0",
    )  # fmt: skip
    for split, table in (("train", "long_train"), ("test", "test")):
        _ingest(stages, videos / f"{table}.jsonl", records, split)
    tests = {"held-out clips": records / "test"}
    return Data("configs/mil_nce_demo.py", records / "train", tests)


def emoji(output: pathlib.Path) -> Data:
    """Fetches and renders the emoji, joins them to narrated videos, and makes their records.

    Raises:
        Unavailable: the packages cannot be fetched from here.
    """
    from benchmarks import narrated_emoji
    from benchmarks import real_data_sources as sources

    splits, clips = sources.rendered(FLAGS.packs, os.cpu_count() or 1)
    videos, records = output / "videos", output / "records"
    tables = {
        "train": narrated_emoji.write_training(splits["pretrain"], clips, videos),
        "tone": narrated_emoji.write_test(splits["concept_test"], clips, output / "tone.jsonl"),
        "family": narrated_emoji.write_test(splits["group_test"], clips, output / "family.jsonl"),
    }
    for split, table in tables.items():
        _ingest(Stages(), table, records, split, "--frame_rate=12")
    tests = {"unseen skin tone": records / "tone", "unseen families": records / "family"}
    return Data("configs/mil_nce_emoji.py", records / "train", tests)


def _ingest(stages: Stages, table: pathlib.Path, records: pathlib.Path, split: str, *options: str):
    title, small = f"Records of {split}", ("--audio_rate=0", "--short_side=40")
    stages.ingest(title, table, records, split, *small, *options)


def train_and_search(data: Data, words: pathlib.Path, output: pathlib.Path, seed: int) -> dict:
    """Trains both losses from one seed; returns metrics by kind, title of the test and name."""
    stages, rows = Stages(), {kind: {} for kind in _KINDS}
    for kind, candidates in _CANDIDATES.items():
        workdir = output / f"candidates_{candidates}" / f"seed_{seed}"
        # Untrained, both networks are the same.
        baselines = ["--baselines=random"] if kind == _KINDS[0] else []
        over_seeds.train(
            data.config, workdir, seed, data.train, FLAGS.steps,
            f"--config.model.text.candidates={candidates}",
            f"--config.model.text.vocabulary={words}",
            f"--config.model.text.words={len(words.read_text().splitlines())}",
        )  # fmt: skip
        for number, (title, test) in enumerate(data.tests.items()):
            results = workdir / f"retrieval_{number}.json"
            stages.run(
                f"{kind}, seed {seed}: looking for {title}",
                "common.retrieve", f"--workdir={workdir}", f"--test={test}", "--protocol=quick",
                f"--seed={seed}", f"--output={results}", *baselines,
            )  # fmt: skip
            for features, metrics in over_seeds.retrieved(results).items():
                rows[kind if features == "trained" else _KINDS[2]][title] = metrics
    return rows


def main(_: list[str]) -> None:
    """Prepares the data, trains, searches and prints the table."""
    from benchmarks import real_data_sources as sources

    output = pathlib.Path(FLAGS.output or f"runs/narrated/{FLAGS.data}")
    try:
        data = {"playground": playground, "emoji": emoji}[FLAGS.data](output)
    except sources.Unavailable as error:
        print(f"skipped: the clips cannot be fetched from here: {error}")
        return
    words = output / "words.txt"
    Stages().make(words, "Listing the words", "common.vocabulary", f"--source={data.train}")
    began = time.monotonic()
    search = functools.partial(train_and_search, data, words, output)
    runs = [search(seed) for seed in range(FLAGS.seeds)]
    table, minutes = over_seeds.summarise_retrieval(runs), (time.monotonic() - began) / 60
    over_seeds.keep(over_seeds.report(table, FLAGS.seeds, minutes), output)


if __name__ == "__main__":
    launch.run(main, define_flags)
