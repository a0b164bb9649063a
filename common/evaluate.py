"""Probes frozen features: ``python -m common.evaluate --workdir=DIR --train=SOURCE --test=SOURCE``.

Clips of every labelled video go through a trained encoder, a linear probe learns the labels of
--train from the features, and is scored on the videos of --test. The same is done with features
that know less (--baselines), so that the numbers can be judged. Features stay on disk: an
evaluation that was stopped continues, and another probe costs no new extraction.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from common import heap, launch, model_flags
from common.errors import UserError
from common.method import TextInput
from common.new_file import new_file

if TYPE_CHECKING:
    from common.data.sources import Source
    from common.evaluation.extraction import Extraction
    from common.evaluation.features import Features
    from common.evaluation.linear import Outcome, ProbeSettings
    from common.evaluation.protocols import Protocol

    Task = Mapping[str, Callable[[Features], Features]]
    """By split, from the features of its source to those that have a part, with their labels."""

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
    flags.DEFINE_string(
        "protocol", "released", "which clips: released, even, quick, hmdb51 or ucf101"
    )
    flags.DEFINE_enum(
        "probe", "svm", ["svm", "ridge", "logistic"],
        "svm is the published one; ridge is quick with many classes, logistic needs little memory",
    )  # fmt: skip
    flags.DEFINE_float(
        "C", 0.0, "inverse regularisation of the probe; 0: the protocol's, or its default", 0.0
    )
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
    flags.DEFINE_string(
        "splits", "", "official splits and labels: csv of HMDB-51, or its or UCF-101's lists"
    )
    flags.DEFINE_list("split_names", [], "which of --splits (split1, ...); none given: all of them")
    flags.DEFINE_string("output", "", "JSON file to write")
    flags.DEFINE_string("features", "", "folder that keeps features; default: WORKDIR/features")
    flags.DEFINE_integer("batch_size", 16, "clips per call of the encoder", 1)
    flags.DEFINE_integer("threads", 0, "videos read at once; 0 is one per core", 0)
    flags.DEFINE_integer("seed", 0, "of random clips, untrained weights and probes", 0)


def main(_: list[str]) -> None:
    """Evaluates every encoder asked for."""
    heap.keep_freed()
    unknown = [name for name in FLAGS.baselines if name not in BASELINES]
    if unknown:
        raise UserError(f"--baselines={unknown[0]}: choose among {', '.join(BASELINES)}.")
    launch.refuse_folder("output")
    from common.evaluation import extraction, protocols, result_tables

    heap.tidy_after_compiling()
    protocol = protocols.get(FLAGS.protocol)
    settings = _probe_settings(protocol)
    sources = {split: extraction.open_split(split, FLAGS[split].value) for split in _SPLITS}
    tasks = _tasks(sources)
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
        "splits": FLAGS.splits,
        "protocol": dataclasses.asdict(protocol),
        "seed": FLAGS.seed,
        "rows": rows,
    }
    result_tables.show(results)
    if FLAGS.output:
        write_results(results, pathlib.Path(FLAGS.output))


def _probe_settings(protocol: Protocol) -> ProbeSettings:
    from common.evaluation import linear

    fixed = protocol.C if FLAGS.probe == "svm" and not FLAGS.sweep else 0.0
    C = FLAGS.C or fixed
    return linear.ProbeSettings(FLAGS.probe, C, FLAGS.sweep, FLAGS.seed, protocol.standardise)


def _evaluate_encoder(
    extract: Extraction, name: str, settings: ProbeSettings, tasks: Mapping[str, Task]
) -> list[dict[str, Any]]:
    """Returns one row per kind of features and per task, the trained ones first."""
    from common.evaluation import linear

    rows, trained = [], {}
    for kind in ("trained", *FLAGS.baselines):
        splits = {split: extract(name, kind, split) for split in _SPLITS}
        for task, part in tasks.items():
            _log.info("%s, %s features, %s: fitting the probe", name, kind, task)
            train, test = (part[split](splits[split]) for split in _SPLITS)
            outcome = linear.run(train, test, settings)
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


def _tasks(sources: Mapping[str, Source]) -> dict[str, Task]:
    """Returns what is to be learned, by name: of all videos, or of those of an official split."""
    if FLAGS.splits:
        return _official_splits(sources)
    if FLAGS.split_names:
        raise UserError("--split_names goes with --splits, which lists the videos of each.")
    if not FLAGS.label_columns:
        if FLAGS.tables:
            raise UserError("--tables goes with --label_columns, which says what to take of them.")
        return {"labels": {split: lambda features: features for split in _SPLITS}}
    if len(FLAGS.tables) != 2:
        raise UserError("--label_columns needs --tables=TRAIN,TEST: the tables that were ingested.")
    from common.data import tables
    from common.evaluation import features

    def from_table(path: str, column: str) -> Callable[[Features], Features]:
        items = tables.read_source(path, label_column=column).items
        return functools.partial(
            features.relabelled, labels={item.id: item.labels for item in items}
        )

    return {
        column: {
            split: from_table(path, column)
            for split, path in zip(_SPLITS, FLAGS.tables, strict=True)
        }
        for column in FLAGS.label_columns
    }


def _official_splits(sources: Mapping[str, Source]) -> dict[str, Task]:
    if FLAGS.label_columns or FLAGS.tables:
        raise UserError("--splits brings its own labels: give no --label_columns and --tables.")
    from common.evaluation import captioned, official_splits

    names = {split: captioned.names(source) for split, source in sources.items()}
    found = official_splits.find(official_splits.read(FLAGS.splits), names)
    unknown = [name for name in FLAGS.split_names if name not in found]
    if unknown:
        raise UserError(f"--split_names={unknown[0]}: {FLAGS.splits} holds {', '.join(found)}.")
    return {
        name: {
            split: functools.partial(
                official_splits.select, labels=found[name][split], names=names[split]
            )
            for split in _SPLITS
        }
        for name in FLAGS.split_names or found
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
    if output.exists() and output.read_text() == text:
        print(f"{output} says the same already.")
        return
    if output.exists():
        number = 1
        while (kept := output.with_name(f"{output.stem}-{number}{output.suffix}")).exists():
            number += 1
        output.rename(kept)
        print(f"An older {output} is kept as {kept}.")
    with new_file(output) as partial:
        pathlib.Path(partial).write_text(text)
    print(f"Written to {output}.")


if __name__ == "__main__":
    launch.run(main, define_flags)
