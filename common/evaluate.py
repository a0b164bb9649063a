"""Probes frozen features: ``python -m common.evaluate --workdir=DIR --train=SOURCE --test=SOURCE``.

Clips of every labelled video go through a trained encoder, a linear probe learns the labels of
--train from the features, and is scored on the videos of --test. The same is done with features
that know less (--baselines), so that the numbers can be judged. Features stay on disk: an
evaluation that was stopped continues, and another probe costs no new extraction.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import pathlib
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import flags

from common import launch, model_flags
from common.errors import UserError
from common.method import TextInput

if TYPE_CHECKING:
    from common.evaluation.extraction import Extraction
    from common.evaluation.linear import Labels, Outcome, ProbeSettings

FLAGS = flags.FLAGS
BASELINES = ("random", "pixels", "noise")
_SPLITS = ("train", "test")

_log = logging.getLogger(__name__)


def define_flags() -> None:
    """Defines the command line."""
    model_flags.define()
    flags.DEFINE_string("train", None, "source the probe learns from", required=True)
    flags.DEFINE_string("test", None, "source the probe is scored on", required=True)
    flags.DEFINE_list("encoder", [], "which encoders; none given: all of them")
    flags.DEFINE_string("protocol", "released", "which clips: released, even or quick")
    flags.DEFINE_enum(
        "probe", "svm", ["svm", "ridge", "logistic"],
        "svm is the published one; ridge is quick with many classes, logistic needs little memory",
    )  # fmt: skip
    flags.DEFINE_float("C", 0.0, "inverse regularisation of the probe; 0 is its default", 0.0)
    flags.DEFINE_bool("sweep", False, "choose C on a fifth of the training videos, held out")
    flags.DEFINE_list(
        "baselines",
        [],
        "also evaluate: random (the network untrained), pixels (the raw input, made small), noise",
    )
    flags.DEFINE_list(
        "tables", [], "the tables that --train and --test were ingested from, for --label_columns"
    )
    flags.DEFINE_list("label_columns", [], "columns of --tables to probe instead of the labels")
    flags.DEFINE_string("output", "", "JSON file to write")
    flags.DEFINE_string("features", "", "folder that keeps features; default: WORKDIR/features")
    flags.DEFINE_integer("batch_size", 16, "clips per call of the encoder", 1)
    flags.DEFINE_integer("threads", 0, "videos read at once; 0 is one per core", 0)
    flags.DEFINE_integer("seed", 0, "of random clips, untrained weights and probes", 0)


def main(_: list[str]) -> None:
    """Evaluates every encoder asked for."""
    unknown = [name for name in FLAGS.baselines if name not in BASELINES]
    if unknown:
        raise UserError(f"--baselines={unknown[0]}: choose among {', '.join(BASELINES)}.")
    from common.evaluation import extraction, linear, protocols, result_tables

    settings = linear.ProbeSettings(FLAGS.probe, FLAGS.C, FLAGS.sweep, FLAGS.seed)
    protocol = protocols.get(FLAGS.protocol)
    tasks = _tasks()
    sources = {split: extraction.open_split(split, FLAGS[split].value) for split in _SPLITS}
    loaded = model_flags.open_model(FLAGS.encoder)
    names = FLAGS.encoder or [
        name
        for name, encoder in loaded.method.encoders.items()
        if not isinstance(encoder.inputs, TextInput)
    ]
    for name in names:  # what cannot be is said before anything is computed
        if isinstance(loaded.encoder(name).inputs, TextInput):
            raise UserError(f"--encoder={name}: it embeds text; probes are of videos and sounds.")
    rows: list[dict[str, Any]] = []
    with features_folder() as root:
        extract = extraction.Extraction(
            root, loaded, sources, protocol, FLAGS.seed, FLAGS.batch_size, FLAGS.threads
        )
        for name in names:
            rows += _evaluate_encoder(extract, name, settings, tasks)
    results = {
        "evaluation": result_tables.PROBES,
        "model": loaded.origin,
        "method": loaded.config.method,
        "train": FLAGS.train,
        "test": FLAGS.test,
        "protocol": dataclasses.asdict(protocol),
        "seed": FLAGS.seed,
        "rows": rows,
    }
    result_tables.show(results)
    if FLAGS.output:
        write_results(results, pathlib.Path(FLAGS.output))


def _evaluate_encoder(
    extract: Extraction, name: str, settings: ProbeSettings, tasks: dict[str, dict[str, Labels]]
) -> list[dict[str, Any]]:
    """Returns one row per kind of features and per task, the trained ones first."""
    from common.evaluation import linear

    rows, trained = [], {}
    for kind in ("trained", *FLAGS.baselines):
        splits = {split: extract(name, kind, split) for split in _SPLITS}
        for task, labels in tasks.items():
            _log.info("%s, %s features, %s: fitting the probe", name, kind, task)
            outcome = linear.run(
                splits["train"], splits["test"], settings, labels["train"], labels["test"]
            )
            row = {"encoder": name, "features": kind, "labels": task, **outcome.row}
            if kind == "trained":
                trained[task] = outcome
            else:
                margin = _margin(trained[task], outcome)
                row["trained_is_better_by"] = margin.as_dict() if margin else None
            rows.append(row)
    return rows


def _margin(trained: Outcome, other: Outcome) -> Any:
    """Returns by how much trained features are better, where both scored the same videos."""
    from common.evaluation import intervals

    if trained.video_ids != other.video_ids:
        return None
    return intervals.over_videos(
        intervals.difference(trained.statistic, other.statistic), len(other.video_ids)
    )


def _tasks() -> dict[str, dict[str, Labels]]:
    """Returns by task and split where a video's labels come from."""
    if not FLAGS.label_columns:
        if FLAGS.tables:
            raise UserError("--tables goes with --label_columns, which says what to take of them.")
        return {"labels": {split: lambda video: video.labels for split in _SPLITS}}
    if len(FLAGS.tables) != 2:
        raise UserError("--label_columns needs --tables=TRAIN,TEST: the tables that were ingested.")
    from common.data import tables

    def from_table(path: str, column: str) -> Labels:
        items = tables.read_source(path, label_column=column).items
        known = {item.id: item.labels for item in items}
        return lambda video: known.get(video.id, ())

    return {
        column: {
            split: from_table(path, column)
            for split, path in zip(_SPLITS, FLAGS.tables, strict=True)
        }
        for column in FLAGS.label_columns
    }


@contextlib.contextmanager
def features_folder() -> Iterator[pathlib.Path]:
    """Yields the folder of features: --features, the run's own, or one that will be gone."""
    if FLAGS.features or FLAGS.workdir:
        yield pathlib.Path(FLAGS.features or pathlib.Path(FLAGS.workdir, "features"))
        return
    _log.info("Features are not kept; --features=DIR keeps them for further probes.")
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder)


def write_results(results: dict[str, Any], output: pathlib.Path) -> None:
    """Writes the results; another file of that name is kept beside."""
    text = json.dumps(results, indent=2) + "\n"
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.exists() and output.read_text() != text:
        number = 1
        while (kept := output.with_name(f"{output.stem}-{number}{output.suffix}")).exists():
            number += 1
        output.rename(kept)
        print(f"An older {output} is kept as {kept}.")
    partial = output.with_name(output.name + ".partial")
    partial.write_text(text)
    partial.replace(output)
    print(f"Written to {output}.")


if __name__ == "__main__":
    launch.run(main, define_flags)
