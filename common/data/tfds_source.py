"""TensorFlow Datasets as a source of clips, read at random and without decoding what is not used.

``tfds:NAME[:SPLIT]``: NAME is a registered data set (``ucf101``, ``ucf101/ucf101_1:2.0.0``) in
``$TFDS_DATA_DIR`` (~/tensorflow_datasets), or the folder of a prepared one; SPLIT is ``train``
unless given and may be a part, such as ``train[:10%]``. The first Video feature gives the frames,
or the first Image feature one frame; a ClassLabel feature gives the label, a Text feature the
caption.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from common.data.shards import RecordSet
from common.data.sources import Source
from common.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

_SOURCE = re.compile(r"tfds:(?P<name>.+?)(:(?P<split>[A-Za-z]\w*(\[.*\])?))?")
_CAPTION_NAMES = ("caption", "captions", "text")


def open_source(name: str, weight: float = 1.0) -> Source:
    """Opens ``tfds:NAME[:SPLIT]``.

    Raises:
        UserError: there is no such data set or split, it has not been prepared, is not stored as
            TFRecord, or has neither a Video nor an Image feature.
    """
    builder, split = _builder(name)
    features = _clip_features(name, builder.info.features)
    parts = _parts(name, builder, split)
    records = RecordSet(
        [str(part.filename) for part in parts],
        [(part.skip, part.skip + part.take) for part in parts],
    )
    optional = {"labels": features["label"], "captions": features["caption"]}
    modalities = frozenset({"frames"} | {part for part, feature in optional.items() if feature})
    return Source(name, weight, records, _parser(builder.info.features, features), modalities)


def _builder(source: str) -> tuple[Any, str]:
    """Returns the builder and the name of the split."""
    import tensorflow_datasets as tfds

    from common.tf import tf

    name, split = _SOURCE.fullmatch(source).group("name", "split")
    try:
        if tf.io.gfile.isdir(name):
            builder = tfds.builder_from_directory(name)
        else:
            builder = tfds.builder(name)
    except Exception as error:  # TFDS has no common kind of error
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{source}: TensorFlow Datasets cannot open {name!r}: {reason}") from error
    if not builder.info.splits:
        raise UserError(
            f"{source}: the data set is not in {builder.data_dir}. Prepare it once with "
            f"`tfds build {name}`, or set TFDS_DATA_DIR to where it is."
        )
    return builder, split or "train"


def _parts(source: str, builder: Any, split: str) -> list[Any]:
    """Returns which records of which files make up the split."""
    if builder.info.file_format.value != "tfrecord":
        raise UserError(
            f"{source} is stored as {builder.info.file_format.value}; only tfrecord can be read. "
            "Prepare it with `tfds build --file_format=tfrecord`."
        )
    try:
        return builder.info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError) as error:
        known = ", ".join(sorted(builder.info.splits))
        raise UserError(f"{source} has no split {split!r}; it has {known}.") from error


def _clip_features(source: str, features: Mapping[str, Any]) -> dict[str, str]:
    """Returns which features are the frames, the label and the caption; "" for none."""
    import tensorflow_datasets as tfds

    def named(kind: type) -> list[str]:
        return [name for name, feature in features.items() if type(feature) is kind]

    frames = named(tfds.features.Video) + named(tfds.features.Image)
    if not frames:
        raise UserError(f"{source} has no Video or Image feature; it has {sorted(features)}.")
    texts = named(tfds.features.Text)
    texts = [name for name in _CAPTION_NAMES if name in texts] or texts
    labels = named(tfds.features.ClassLabel)
    return {
        "frames": frames[0],
        "label": labels[0] if labels else "",
        "caption": texts[0] if texts else "",
    }


def _parser(features: Any, chosen: Mapping[str, str]) -> Any:
    """Returns a function like `common.data.records.parse`."""
    import tensorflow_datasets as tfds

    wanted = {name: True for name in chosen.values() if name}
    wanted_features = tfds.decode.PartialDecoding(wanted).extract_features(features)
    encoded = {chosen["frames"]: tfds.decode.SkipDecoding()}

    def parse(
        serialized: tf.Tensor,
        modalities: Collection[str],
        default_frame_rate: float,
        default_audio_rate: int,
    ) -> dict[str, tf.Tensor]:
        del default_audio_rate  # no sound
        from common.tf import tf

        example = wanted_features.deserialize_example(serialized, decoders=encoded)
        frames_T = tf.reshape(example[chosen["frames"]], [-1])
        some = tf.debugging.assert_positive(tf.size(frames_T), "the record has no frames")
        with tf.control_dependencies([some]):
            record = {
                "id": tf.constant(""),
                "frame_rate": tf.constant(default_frame_rate, tf.float32),
                "frames": tf.identity(frames_T),
            }
        if "labels" in modalities:
            names = tf.constant(features[chosen["label"]].names)
            record["labels"] = tf.reshape(example[chosen["label"]], [-1])
            record["label_texts"] = tf.gather(names, record["labels"])
        if "captions" in modalities:
            record["captions"] = tf.reshape(example[chosen["caption"]], [-1])
            unknown = tf.fill(tf.shape(record["captions"]), float("nan"))
            record["caption_starts"] = record["caption_ends"] = unknown
        return record

    return parse
