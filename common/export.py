"""Writes a trained model for use elsewhere: ``python -m common.export --workdir=DIR --output=DIR``.

A bundle is a folder that stands alone (see ``common/weights/bundle.py``). ``--format=published``
writes the layout of the method's published checkpoints instead. Nothing is overwritten.
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from common import launch, model_flags
from common.errors import UserError

if TYPE_CHECKING:
    from common.data.convert import Settings

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the command line."""
    model_flags.define()
    flags.DEFINE_string("output", None, "folder or file to make", required=True)
    flags.DEFINE_enum("format", "bundle", ["bundle", "published"], "what to write")
    flags.DEFINE_list(
        "results", [], "JSON of common.evaluate, retrieve or localise, for the bundle's model card"
    )
    flags.DEFINE_string("protocol", "even", "which clips of a file a bundle embeds and averages")


def main(_: list[str]) -> None:
    """Opens the model and writes it."""
    output = pathlib.Path(FLAGS.output)
    if output.exists():  # said before anything slow is done
        raise UserError(f"{output} exists already; nothing was written. Name another --output.")
    if FLAGS.format == "published" and (FLAGS.results or FLAGS["protocol"].present):
        raise UserError("--results and --protocol are of bundles, not of --format=published.")
    from common.evaluation import protocols, result_tables

    results = [result_tables.read(path) for path in FLAGS.results]
    protocol = protocols.get(FLAGS.protocol)
    loaded = model_flags.open_model()
    if FLAGS.format == "published":
        from common.weights import published

        layout = published.layout_of(loaded.config)
        output.parent.mkdir(parents=True, exist_ok=True)
        layout.save(output, loaded.model, loaded.config.model)
        print(f"{output}: weights of {_describe(loaded.origin)} in the published layout")
        return
    from common.weights import bundle

    if FLAGS.bundle:
        source = bundle.load_bundle(FLAGS.bundle)
        stored = source.stored
        if not FLAGS["protocol"].present:
            protocol = source.protocol
    else:
        stored = _stored_settings(loaded.config.data.train)
    bundle.save_bundle(loaded, output, protocol, stored, results)
    print(f"{output}: a bundle of {_describe(loaded.origin)}")
    print(f"Files are reduced to a short side of {stored.short_side} pixels before clips are cut.")
    print(f"Try it: python -m common.embed --bundle={output} --output=features.npz VIDEO.mp4 ...")


def _describe(origin: dict[str, Any]) -> str:
    step = f", step {origin['step']}" if "step" in origin else ""
    return f"{origin['kind']} {origin['path']}{step}"


def _stored_settings(train: str) -> Settings:
    """Returns how the training records were made, or ingest's defaults where that is not known."""
    import dataclasses

    from common.data import convert, sources, writer

    names = {field.name for field in dataclasses.fields(convert.Settings)}
    for name, _ in sources.split_mixture(train) if train else ():
        split = pathlib.Path(name)
        try:
            plan = writer.read_plan(split.parent, split.name)
        except (OSError, ValueError):  # records of another writer
            continue
        known = {key: value for key, value in plan.items() if key in names}
        return dataclasses.replace(convert.Settings(**known), flow="none", require_sound=False)
    return convert.Settings()


if __name__ == "__main__":
    launch.run(main, define_flags)
