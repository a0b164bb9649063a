"""How many cores does a chip need that trains a published config?

    python -m benchmarks.input_cores [--rates=brave_v_a=324,mil_nce_howto100m=530,...]

Measures the CPU seconds that the whole pipeline takes to make an example of each published config,
out of records of 10 s (256x340 JPEG frames at 25 frames/s, flow, 48 kHz sound, narrations). One
core makes the inverse of that in a second; a chip that trains on so many clips in a second, as
``benchmarks.step`` measures or ``common.plan`` forecasts, needs their ratio of cores.
"""

from __future__ import annotations

import importlib
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags

from benchmarks import input_pipeline
from common import launch

_CONFIGS = (
    "brave_v_a", "brave_v_fa", "brave_v_v", "brave_v_vvv", "mil_nce_howto100m", "frozen_msrvtt"
)  # fmt: skip
_WORDS = ("a", "man", "pours", "water", "into", "the", "bowl", "and", "stirs", "it", "twice")


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_list("configs", list(_CONFIGS), "published configs")
    flags.DEFINE_list("rates", [], "CONFIG=CLIPS_PER_SECOND of a chip; may name a config again")
    input_pipeline.define_flags()


def main(_: list[str]) -> None:
    """Prints the table."""
    values = flags.FLAGS
    plain = input_pipeline.make_records(pathlib.Path(values.cache), values.clips)
    folder = _with_words_and_flow(plain)
    print(f"machine: {input_pipeline.machine()}\ncommand: {' '.join(['python', *sys.argv])}")
    print(f"{'config':20}{'CPU ms/clip':>12}{'clips/s of a core':>19}  cores of a chip at clips/s")
    rates = [rate.partition("=") for rate in values.rates]
    for name in values.configs:
        _, cpu = input_pipeline.measure(_examples(name, folder), values.examples)
        needed = [f"{float(r) * cpu:.1f} at {r}" for config, _, r in rates if config == name]
        print(f"{name:20}{1000 * cpu:12.1f}{1 / cpu:19.1f}  {', '.join(needed)}", flush=True)


def _examples(name: str, folder: pathlib.Path) -> Iterator[Any]:
    from common import methods
    from common.data.pipeline import TrainData

    config = importlib.import_module(f"configs.{name}").get_config()
    with config.unlocked():
        config.batch_size, config.microbatches, config.curriculum = 8, 1, ()
        config.data.train, config.data.threads = str(folder), flags.FLAGS.threads
        if "text" in config.model:
            for key in {"vocabulary", "pieces"} & set(config.model.text):
                config.model.text[key] = str(folder / "words.txt")
    views = methods.create(config).views
    for _ in TrainData(config, views).batches(0):
        yield from [None] * config.batch_size


def _with_words_and_flow(plain: pathlib.Path) -> pathlib.Path:
    """Returns the same records with ten narrations each, and frames in place of flow."""
    from common.data import records, shards

    folder = plain.with_name(f"{plain.name}-with-words")
    if folder.exists():
        return folder
    unfinished = folder.with_name(f"{folder.name}.part")
    unfinished.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for path in sorted(plain.glob("*.tfrecord")):
        stored = shards.RecordSet.open(path)
        with (unfinished / path.name).open("wb") as file:
            for number in range(len(stored)):
                clip = records.deserialize(stored.read(number))
                clip.flow_jpeg = list(clip.frames_jpeg)
                clip.captions = [
                    (" ".join(random.permutation(_WORDS)[:9]), float(second), second + 1.0)
                    for second in range(10)
                ]
                file.write(shards.frame(records.serialize(clip)))
        shards.write_index(unfinished / path.name)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (unfinished / "words.txt").write_text("\n".join([*special, *sorted(set(_WORDS))]) + "\n")
    unfinished.rename(folder)
    return folder


if __name__ == "__main__":
    launch.run(main, define_flags)
