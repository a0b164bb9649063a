"""Zero-shot retrieval: ``python -m common.retrieve --workdir=DIR --test=SOURCE``.

Every clip goes through the video encoder that shares a space with the text encoder, every caption
through the text encoder; captions are then looked for by clips and clips by captions, by the inner
product or by the cosine, whichever the encoders are made for. Captions are those of the records, or
of a published table (--table). Features of clips stay on disk: an evaluation that was stopped
continues. docs/evaluation-retrieval.md defines every number.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from common import evaluate, heap, launch, model_flags
from common.errors import UserError

if TYPE_CHECKING:
    from common.data.sources import Source
    from common.evaluation.captioned import Captioned
    from common.evaluation.protocols import Protocol
    from common.evaluation.stretches import Stretches

FLAGS = flags.FLAGS
BASELINES = ("random",)
WINDOWS, FROZEN = "windows", "frozen"


def define_flags() -> None:
    """Defines the command line."""
    from common.evaluation import tie_rules

    model_flags.define()
    flags.DEFINE_string("test", None, "source of the clips", required=True)
    flags.DEFINE_string("table", "", "csv of MSR-VTT or YouCook2; none: the records' own captions")
    flags.DEFINE_string("protocol", "even", "which clips: even, quick, released, frozen or windows")
    flags.DEFINE_integer(
        "windows", 10, "of each clip with --protocol=windows, MIL-NCE's published one", 1
    )
    flags.DEFINE_integer(
        "sliding_window_stride", 0, "with --protocol=frozen, frames between windows; 0: one clip", 0
    )
    flags.DEFINE_bool(
        "published_bound", False, "end the sliding window early, as Frozen's published code does"
    )
    flags.DEFINE_enum("ties", "middle", list(tie_rules.RULES), "what equal scores count")
    flags.DEFINE_bool("all_metrics", False, "also show R@50 and the geometric mean of R@1, 5, 10")
    flags.DEFINE_list("baselines", [], "also evaluate: random (the network untrained)")
    flags.DEFINE_float(
        "dual_softmax", 0.0, "also rank by dual softmax, scores times this inside; 0: do not", 0.0
    )
    flags.DEFINE_string("output", "", "JSON file to write")
    flags.DEFINE_string("features", "", "folder that keeps features; default: WORKDIR/features")
    flags.DEFINE_integer("batch_size", 16, "clips or captions per call of an encoder", 1)
    flags.DEFINE_integer("threads", 0, "videos read at once; 0 is one per core", 0)
    flags.DEFINE_integer("seed", 0, "of untrained weights", 0)


def main(_: list[str]) -> None:
    """Finds clips by captions and captions by clips."""
    heap.keep_freed()
    unknown = [name for name in FLAGS.baselines if name not in BASELINES]
    if unknown:
        raise UserError(f"--baselines={unknown[0]}: choose among {', '.join(BASELINES)}.")
    launch.refuse_folder("output")
    from common.evaluation import extraction, result_tables, zero_shot

    heap.tidy_after_compiling()
    protocol = _protocol()
    loaded = model_flags.open_model()
    encoders = zero_shot.shared_encoders(loaded)  # what cannot be is said before any work
    source = extraction.open_split("test", FLAGS.test)
    clips, stretches = _clips(source)
    results: dict[str, Any] = {
        "evaluation": result_tables.RETRIEVAL,
        "model": loaded.origin,
        "method": loaded.config.method,
        "test": FLAGS.test,
        "table": FLAGS.table,
        "protocol": dataclasses.asdict(protocol),
        "ties": FLAGS.ties,
        "all_metrics": FLAGS.all_metrics,
        "seed": FLAGS.seed,
        "rows": [],
    }
    with evaluate.features_folder() as root:
        extract = extraction.Extraction(
            root, loaded, {"test": source}, protocol, FLAGS.seed, FLAGS.batch_size, FLAGS.threads,
            stretches,
        )  # fmt: skip
        for kind in ("trained", *FLAGS.baselines):
            scored = zero_shot.embed(extract, loaded, encoders, kind, clips, FLAGS.batch_size)
            results["rows"] += zero_shot.rows(scored, FLAGS.ties, FLAGS.dual_softmax)
    result_tables.show(results)
    if FLAGS.output:
        evaluate.write_results(results, pathlib.Path(FLAGS.output))


def _protocol() -> Protocol:
    from common.evaluation import protocols

    stride = FLAGS.sliding_window_stride
    if stride and FLAGS.protocol != FROZEN:
        raise UserError(f"--sliding_window_stride goes with --protocol={FROZEN}.")
    if FLAGS.published_bound and not stride:
        raise UserError("--published_bound goes with --sliding_window_stride.")
    if stride:
        return protocols.sliding(stride, FLAGS.published_bound)
    if FLAGS.protocol != WINDOWS:
        if FLAGS["windows"].present:
            raise UserError(f"--windows goes with --protocol={WINDOWS}.")
        return protocols.get(FLAGS.protocol)
    about = f"{FLAGS.windows} windows of each clip, squares, as MIL-NCE's published retrieval"
    return protocols.Protocol(WINDOWS, about, 0, FLAGS.windows, 1)


def _clips(source: Source) -> tuple[list[Captioned], Stretches | None]:
    """Returns the clips with their captions, and what to embed where that is not all records."""
    from common.evaluation import captioned
    from common.evaluation.stretches import Stretches

    windows = FLAGS.windows if FLAGS.protocol == WINDOWS else 0
    if not FLAGS.table:
        clips = captioned.from_records(source)
        whole = tuple((number, None) for number in range(len(clips)))
        return clips, Stretches(whole, windows) if windows else None
    names = captioned.names(source)
    clips = captioned.from_table(FLAGS.table, names)
    if not windows and (spans := sum(clip.span_s is not None for clip in clips)):
        raise UserError(
            f"{spans} of the {len(clips)} clips of {FLAGS.table} are parts of a record of "
            f"{FLAGS.test}. Cut them with --protocol={WINDOWS}, or ingest each as a record of its "
            "own, from a table with columns path, start and end."
        )
    number_of = {name: number for number, name in enumerate(names)}
    chosen = tuple((number_of[clip.record], clip.span_s) for clip in clips)
    return clips, Stretches(chosen, windows)


if __name__ == "__main__":
    launch.run(main, define_flags)
