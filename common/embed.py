"""Embeds files with a bundle: ``python -m common.embed --bundle=DIR --output=OUT.npz FILE ...``.

The output holds ``features``, float32 (N, D), and ``paths`` in the same order.
"""

from __future__ import annotations

import os
import pathlib

from absl import flags

from common import launch
from common.errors import UserError

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string("bundle", None, "folder made by common.export", required=True)
    flags.DEFINE_string("output", None, ".npz file to make", required=True)
    flags.DEFINE_enum("encoder", "video", ["video", "audio"], "which encoder embeds the files")


def main(argv: list[str]) -> None:
    """Embeds the files that are named after the flags."""
    paths = argv[1:]
    if not paths:
        raise UserError("Name the files to embed after the flags.")
    output = pathlib.Path(FLAGS.output)
    if output.suffix != ".npz":
        raise UserError(f"--output={output} must end in .npz.")
    if output.exists():
        raise UserError(f"{output} exists already; nothing was done. Name another --output.")
    import numpy as np

    from common.weights import load_bundle

    bundle = load_bundle(FLAGS.bundle)
    embed = bundle.embed_videos if FLAGS.encoder == "video" else bundle.embed_audio
    features_ND = embed(paths)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.stem}.partial.npz")
    np.savez(partial, features=features_ND, paths=np.array(paths))
    os.replace(partial, output)
    print(f"{output}: features {features_ND.shape} of {len(paths)} files")


if __name__ == "__main__":
    launch.run(main, define_flags, takes_arguments=True)
