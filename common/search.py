"""Finds videos by text: ``python -m common.search --bundle=DIR --index=OUT.npz "a ring falls"``.

The index is what `common.embed` makes of video files with an encoder that shares a space with the
bundle's text encoder (for MIL-NCE ``--encoder=video_joint``). Every video is scored, by the inner
product with the text or by the cosine, whichever the encoders are made for, as in
`common.retrieve`.
"""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

from absl import flags

from common import launch
from common.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from common.weights.bundle import Bundle

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string("bundle", None, "folder made by common.export", required=True)
    flags.DEFINE_string("index", None, ".npz file made by common.embed", required=True)
    flags.DEFINE_integer("top", 10, "videos shown for each text", 1)


def main(argv: list[str]) -> None:
    """Prints the videos that fit each text best."""
    texts = argv[1:]
    if not texts:
        raise UserError("Give what to look for after the flags, in quotes.")
    from common.data import tables
    from common.evaluation import zero_shot
    from common.weights import load_bundle

    bundle = load_bundle(FLAGS.bundle)
    video, text = zero_shot.shared_encoders(bundle.model)
    paths, features_ND = _read_index(FLAGS.index, bundle, video)
    inputs = bundle.encoders[text].inputs
    known_Q = inputs.known(inputs.tokenise(texts))
    similarity = bundle.encoders[video].similarity
    scores_QN = zero_shot.scores(bundle.embed_texts(texts), features_ND, similarity)
    for query, known, scores_N in zip(texts, known_Q, scores_QN, strict=True):
        print(f"\n{query}")
        if not known:
            print("  (has no word that the text encoder knows: the order says nothing)")
        for place in scores_N.argsort(kind="stable")[::-1][: FLAGS.top]:
            print(f"  {scores_N[place]:9.3f}  {tables.printable(paths[place])}")


def _read_index(path: str, bundle: Bundle, encoder: str) -> tuple[list[str], np.ndarray]:
    """Returns the videos of an index and their features (N, D).

    Raises:
        UserError: it is no such file, or was made with another encoder.
    """
    import numpy as np

    from common.weights import loading

    how = f"Make it with: python -m common.embed --encoder={encoder} --bundle=... --output={path}"
    try:
        with np.load(path, allow_pickle=False) as index:
            features_ND, made_with = index["features"], str(index["encoder"])
            model = str(index["model"])
            paths = [str(name) for name in index["paths"]]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"--index={path} is no index of videos: {error}. {how}") from error
    if made_with != encoder or features_ND.shape != (len(paths), bundle.encoders[encoder].dim):
        raise UserError(
            f"--index={path} was made with the encoder {made_with} and holds "
            f"{features_ND.shape[-1]} numbers a video; {encoder} of {bundle.path} shares its space "
            f"with text. {how}"
        )
    if model != loading.fingerprint(bundle.model.model):
        raise UserError(
            f"--index={path} was made with other weights than those of {bundle.path}: what they "
            f"make does not compare. {how}"
        )
    if not np.isfinite(features_ND).all():
        bad = paths[int(np.argmin(np.isfinite(features_ND).all(axis=1)))]
        raise UserError(f"--index={path}: the features of {bad} are no finite numbers. {how}")
    return paths, features_ND


if __name__ == "__main__":
    launch.run(main, define_flags, takes_arguments=True)
