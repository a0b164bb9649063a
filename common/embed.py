"""Embeds files with a bundle: ``python -m common.embed --bundle=DIR --output=OUT.npz FILE ...``.

A folder stands for all media files below it. The output holds ``features``, float32 (N, D),
``paths`` in the same order, the name of the ``encoder`` and the digest of the ``model``'s weights.
Files that cannot be read are named and left out. Made with an encoder that shares a
space with text, such as MIL-NCE's ``--encoder=video_joint``, it is what `common.search` searches.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys

from absl import flags

from common import heap, launch
from common.errors import UserError
from common.new_file import new_file

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string("bundle", None, "folder made by common.export", required=True)
    flags.DEFINE_string("output", None, ".npz file to make", required=True)
    flags.DEFINE_string(
        "encoder", "video", "which encoder embeds the files: video, audio, video_joint, ..."
    )
    flags.DEFINE_float(
        "max_seconds", None, "longest file that is taken, held in memory whole; by default that "
        "of the clips it was trained on", 0.001,
    )  # fmt: skip


def main(argv: list[str]) -> None:
    """Embeds the files that are named after the flags."""
    heap.keep_freed()
    paths = argv[1:]
    if not paths:
        raise UserError("Name the files to embed after the flags.")
    output = pathlib.Path(FLAGS.output)
    if output.suffix != ".npz":
        raise UserError(f"--output={output} must end in .npz.")
    if output.exists():
        raise UserError(f"{output} exists already; nothing was done. Name another --output.")
    import numpy as np

    from common.weights import load_bundle, loading
    from common.weights.bundle import named

    heap.tidy_after_compiling()
    files = _files(paths)
    bundle = load_bundle(FLAGS.bundle)
    if FLAGS.max_seconds:
        stored = dataclasses.replace(bundle.stored, max_seconds=FLAGS.max_seconds)
        bundle = dataclasses.replace(bundle, stored=stored)
    output.parent.mkdir(parents=True, exist_ok=True)
    # What cannot be written is told before the work.
    with new_file(output) as partial, open(partial, "wb") as file:
        features_ND, bad = bundle.embed_readable(files, FLAGS.encoder)
        read = [path for path in files if path not in bad]
        if not read:
            raise UserError(f"none of {len(files)} files can be embedded:\n{named(bad)}")
        model = loading.fingerprint(bundle.model.model)
        np.savez(file, features=features_ND, paths=read, encoder=FLAGS.encoder, model=model)
    if bad:
        print(f"{len(bad)} of {len(files)} files are left out:\n{named(bad)}", file=sys.stderr)
    print(f"{output}: features {features_ND.shape} of {len(read)} files")


def _files(paths: list[str]) -> list[str]:
    """Returns the files themselves, in place of folders those below them."""
    from common.data import tables

    files: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            files += [os.fspath(item.path) for item in tables.read_source(path).items]
        else:
            files.append(path)
    return files


if __name__ == "__main__":
    launch.run(main, define_flags, takes_arguments=True)
