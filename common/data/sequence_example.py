"""``tf.train.SequenceExample`` on the wire, without TensorFlow.

Ingest's worker processes and small tools read and write records by the hundred thousand; importing
TensorFlow for that costs seconds per process. The messages below are declared field by field as in
TensorFlow's ``example.proto`` and ``feature.proto``, in a descriptor pool of their own, so they
produce and accept the same bytes and do not clash with TensorFlow when it is loaded as well.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

Values = list[bytes] | np.ndarray
"""The values of one Feature: bytes strings, or an int64 or float32 array of shape (N,)."""

_PACKAGE = "zoetrope"
_FIELD = descriptor_pb2.FieldDescriptorProto


def encode(context: Mapping[str, Values], lists: Mapping[str, Sequence[Values]]) -> bytes:
    """Returns the serialized SequenceExample; equal inputs give equal bytes.

    Args:
      context: per key the values of its Feature.
      lists: per key the Features of its FeatureList, in order.

    Raises:
      TypeError: values that are neither bytes strings, integers nor floats.
    """
    record = _sequence_example()()
    for key, values in context.items():
        _fill(record.context.feature[key], values)
    for key, features in lists.items():
        feature_list = record.feature_lists.feature_list[key]
        for values in features:
            _fill(feature_list.feature.add(), values)
    return record.SerializeToString(deterministic=True)


def decode(serialized: bytes) -> tuple[dict[str, Values], dict[str, list[Values]]]:
    """Returns what `encode` takes: the context and the feature lists of one record.

    Raises:
      ValueError: the bytes are no SequenceExample.
    """
    record = _sequence_example()()
    try:
        record.ParseFromString(serialized)
    except message.DecodeError as error:
        raise ValueError("the record is not a tf.train.SequenceExample") from error
    context = {key: _values(feature) for key, feature in record.context.feature.items()}
    lists = {
        key: [_values(feature) for feature in feature_list.feature]
        for key, feature_list in record.feature_lists.feature_list.items()
    }
    return context, lists


def _fill(feature: message.Message, values: Values) -> None:
    if isinstance(values, np.ndarray):
        if np.issubdtype(values.dtype, np.floating):
            # The bytes of a packed float list are its little-endian array: merging them is many
            # times faster than handing over half a million Python floats.
            packed = np.ascontiguousarray(values, "<f4").tobytes()
            feature.float_list.MergeFromString(_packed_field(packed))
            return
        if np.issubdtype(values.dtype, np.integer):
            feature.int64_list.value.extend(values.tolist())
            return
        raise TypeError(f"a Feature holds bytes, int64 or float32, not {values.dtype}")
    feature.bytes_list.value.extend(values)


def _packed_field(packed: bytes) -> bytes:
    """Field 1 as length-delimited bytes (tag 0x0A, varint length, payload)."""
    if not packed:
        return b""
    length, varint = len(packed), bytearray()
    while length > 0x7F:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    varint.append(length)
    return b"\x0a" + bytes(varint) + packed


def _values(feature: message.Message) -> Values:
    kind = feature.WhichOneof("kind")
    if kind == "float_list":
        # As in `_fill`: the packed bytes are the array, at the end of the serialized list.
        packed, count = feature.float_list.SerializeToString(), len(feature.float_list.value)
        return np.frombuffer(packed, "<f4", count, len(packed) - 4 * count).astype(np.float32)
    if kind == "int64_list":
        return np.fromiter(feature.int64_list.value, np.int64, len(feature.int64_list.value))
    return list(feature.bytes_list.value)


@functools.cache
def _sequence_example() -> type[message.Message]:
    file = descriptor_pb2.FileDescriptorProto(
        name="zoetrope/sequence_example.proto", package=_PACKAGE, syntax="proto3"
    )
    _message(file, "BytesList", [("value", 1, _FIELD.TYPE_BYTES)])
    _message(file, "FloatList", [("value", 1, _FIELD.TYPE_FLOAT)])
    _message(file, "Int64List", [("value", 1, _FIELD.TYPE_INT64)])
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, kind) in enumerate(
        [("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")], 1
    ):
        feature.field.add(
            name=name,
            number=number,
            type=_FIELD.TYPE_MESSAGE,
            label=_FIELD.LABEL_OPTIONAL,
            type_name=f".{_PACKAGE}.{kind}",
            oneof_index=0,
        )
    _map_message(file, "Features", "feature", "FeatureEntry", "Feature")
    _message(file, "FeatureList", [("feature", 1, "Feature")])
    _map_message(file, "FeatureLists", "feature_list", "FeatureListEntry", "FeatureList")
    example = file.message_type.add(name="SequenceExample")
    _field(example, "context", 1, "Features", repeated=False)
    _field(example, "feature_lists", 2, "FeatureLists", repeated=False)

    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    descriptor = pool.FindMessageTypeByName(f"{_PACKAGE}.SequenceExample")
    return message_factory.GetMessageClass(descriptor)


def _field(parent, name: str, number: int, kind: int | str, repeated: bool) -> None:
    field = parent.field.add(
        name=name,
        number=number,
        label=_FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL,
    )
    if isinstance(kind, str):
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    else:
        field.type = kind


def _message(file, name: str, fields: list[tuple[str, int, int | str]]) -> None:
    parent = file.message_type.add(name=name)
    for field_name, number, kind in fields:
        _field(parent, field_name, number, kind, repeated=True)


def _map_message(file, name: str, field: str, entry: str, value: str) -> None:
    """Adds a message with one ``map<string, value>`` field; a map is a nested entry message."""
    parent = file.message_type.add(name=name)
    nested = parent.nested_type.add(name=entry)
    nested.options.map_entry = True
    _field(nested, "key", 1, _FIELD.TYPE_STRING, repeated=False)
    _field(nested, "value", 2, value, repeated=False)
    _field(parent, field, 1, f"{name}.{entry}", repeated=True)
