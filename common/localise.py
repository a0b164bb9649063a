"""Finds steps: ``python -m common.localise --workdir=DIR --test=SOURCE --steps=FILE ...``.

Every second of every annotated video goes through the video encoder that shares a space with the
text encoder, the text of every step of its task through the text encoder; each step is placed at a
second, in order, where their inner products are highest in sum. Recall is the share of steps placed
where they are annotated. Features stay on disk: an evaluation that was stopped continues.
docs/step-localisation.md defines every number.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from common import evaluate, heap, launch, model_flags
from common.errors import UserError

if TYPE_CHECKING:
    from common.evaluation.protocols import Protocol
    from common.evaluation.step_localisation import Step
    from common.method import VideoInput

FLAGS = flags.FLAGS
BASELINES = ("random",)


def define_flags() -> None:
    """Defines the command line."""
    model_flags.define()
    flags.DEFINE_string("test", None, "source of the annotated videos", required=True)
    flags.DEFINE_string(
        "steps", None, "csv with columns task, video, step, start, end; or CrossTask's folder",
        required=True,
    )  # fmt: skip
    flags.DEFINE_string(
        "step_texts", None, "csv with columns task, step, text; or CrossTask's tasks_primary.txt",
        required=True,
    )  # fmt: skip
    flags.DEFINE_string("videos", "", "only these, as in CrossTask's videos_val.csv; none: all")
    flags.DEFINE_list("baselines", [], "also evaluate: random (the network untrained)")
    flags.DEFINE_string("output", "", "JSON file to write")
    flags.DEFINE_string("features", "", "folder that keeps features; default: WORKDIR/features")
    flags.DEFINE_integer("batch_size", 16, "seconds or texts per call of an encoder", 1)
    flags.DEFINE_integer("threads", 0, "parts of videos read at once; 0 is one per core", 0)
    flags.DEFINE_integer("seed", 0, "of untrained weights", 0)


def main(_: list[str]) -> None:
    """Places the steps of each task in its videos and compares with the annotation."""
    heap.keep_freed()
    unknown = [name for name in FLAGS.baselines if name not in BASELINES]
    if unknown:
        raise UserError(f"--baselines={unknown[0]}: choose among {', '.join(BASELINES)}.")
    from common.evaluation import (
        extraction,
        result_tables,
        step_tables,
        zero_shot,
        zero_shot_steps,
    )

    launch.refuse_folder("output")
    heap.tidy_after_compiling()
    tasks = step_tables.read_tasks(FLAGS.step_texts)
    steps = _steps()
    zero_shot_steps.check(steps, tasks, f"--step_texts={FLAGS.step_texts}")
    loaded = model_flags.open_model()
    encoders = zero_shot.shared_encoders(loaded)  # what cannot be is said before any work
    source = extraction.open_split("test", FLAGS.test)
    keys = [(step.task, step.video) for step in steps]
    rates = extraction.default_rates(loaded)
    videos = zero_shot_steps.find(source, keys, tasks, rates)
    protocol = _protocol(loaded.encoder(encoders[0]).inputs)
    results: dict[str, Any] = {
        "evaluation": result_tables.STEPS,
        "model": loaded.origin,
        "method": loaded.config.method,
        "test": FLAGS.test,
        "steps": FLAGS.steps,
        "step_texts": FLAGS.step_texts,
        "videos": FLAGS.videos,
        "protocol": dataclasses.asdict(protocol),
        "seed": FLAGS.seed,
        "rows": [],
    }
    with evaluate.features_folder() as root:
        extract = extraction.Extraction(
            root, loaded, {"test": source}, protocol, FLAGS.seed, FLAGS.batch_size, FLAGS.threads,
            videos.stretches(),
        )  # fmt: skip
        results["rows"] = [
            zero_shot_steps.evaluate(
                extract, loaded, encoders, kind, videos, steps, tasks, FLAGS.batch_size
            )
            for kind in ("trained", *FLAGS.baselines)
        ]
    result_tables.show(results)
    if FLAGS.output:
        evaluate.write_results(results, pathlib.Path(FLAGS.output))


def _steps() -> list[Step]:
    """Returns the annotation, of --videos alone where these are named."""
    from common.evaluation import step_tables

    steps = step_tables.read_steps(FLAGS.steps)
    if not FLAGS.videos:
        return steps
    listed = step_tables.read_videos(FLAGS.videos)
    if missing := sorted(listed - {(step.task, step.video) for step in steps}):
        (task, video), number = missing[0], len(missing)
        raise UserError(
            f"--videos={FLAGS.videos} lists {video!r} of task {task!r}, of which --steps="
            f"{FLAGS.steps} annotates nothing ({number} of {len(listed)} are not annotated)."
        )
    return [step for step in steps if (step.task, step.video) in listed]


def _protocol(inputs: VideoInput) -> Protocol:
    from common.evaluation import protocols

    if inputs.segments:
        raise UserError(
            "This model sees frames that are spread over a whole video; steps are found with clips "
            "of a second or so, for which it was not trained. Give a model such as mil_nce."
        )
    rate = inputs.frame_rate / inputs.stride
    about = (
        f"one window of {inputs.num_frames} frames at {rate:g} frames/s around every second "
        f"({inputs.num_frames / rate:.3g} s)"
    )
    return protocols.Protocol("every second", about, 0, 1, 1)


if __name__ == "__main__":
    launch.run(main, define_flags)
