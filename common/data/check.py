"""What is wrong with stored records: of ours and of any other writer of the same keys.

Nothing is changed on the disk, and TensorFlow is not needed.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from common.data import card, convert, files, records, sequence_example, shards, writer
from common.errors import UserError

_EXAMPLES = 5  # places named per kind of problem
_LOUDEST = 1.5  # a waveform in [-1, 1] may overshoot a little, not more
_TINY = 1e-12  # nothing that was ever recorded is this quiet in floats


@dataclasses.dataclass
class Findings:
    """Problems by kind with the first places, and the facts of the sound records."""

    problems: dict[str, list[str]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    remarks: dict[str, list[str]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    clips: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    num_shards: int = 0
    num_records: int = 0
    gigabytes: float = 0.0

    def lines(self, kinds: Mapping[str, list[str]]) -> list[str]:
        """Returns one line per kind, with its number and the first places."""
        found = []
        for kind, places in sorted(kinds.items(), key=lambda entry: -len(entry[1])):
            more = ", ..." if len(places) > _EXAMPLES else ""
            found.append(f"{len(places)} x {kind}: {', '.join(places[:_EXAMPLES])}{more}")
        return found


def record_folders(folder: str | os.PathLike) -> dict[str, str]:
    """Returns the record sets of a data set by name: its splits, or the folder itself.

    Raises:
      UserError: nothing there looks like shards.
    """
    path = pathlib.Path(folder)
    if not path.is_dir():
        shards.find_shards(folder)  # a glob or a single shard; or an error that says what is wrong
        return {str(folder): str(folder)}
    splits = {}
    for inner in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        if not inner.name.startswith(".") and _shard_names(inner):
            splits[inner.name] = str(inner)
    if _shard_names(path) or not splits:
        return {path.name or str(path): str(path)} | splits
    return splits


def _shard_names(folder: pathlib.Path) -> list[str]:
    names = (entry.name for entry in folder.iterdir() if entry.is_file())
    return [n for n in names if ".tfrecord" in n or "-of-" in n]


def check_folder(
    source: str,
    labels: Mapping[str, int],
    max_records: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Findings:
    """Checks a folder or glob of shards.

    Every checksum is verified; what the records hold is looked at for `max_records` of them, spread
    evenly, or for all if that is 0.

    Args:
      source: folder or glob.
      labels: the data set's label map; empty if it has none.
      max_records: how many records to look into.
      progress: called with the number of records that one step has dealt with.

    Raises:
      UserError: there are no shards at all.
    """
    findings = Findings()
    if os.path.isdir(source):
        for name in sorted(os.listdir(source)):
            if name.endswith(".partial"):
                findings.problems["unfinished shard (repeat the ingest command)"].append(name)
    try:
        paths = shards.find_shards(source)
    except UserError as error:
        paths = (
            shards.find_shards(os.path.join(source, "*-of-*")) if "missing" in str(error) else []
        )
        if not paths:
            if findings.problems:  # an ingest was interrupted before its first whole shard
                return findings
            raise
        findings.problems["shards are missing"].append(str(error))
    whole = _check_shards(paths, findings)
    looked_at = _Looked(labels)
    wanted = max_records or len(whole)
    for index in card.evenly(len(whole), wanted):
        path, number, offset, length = whole[index]
        name = f"{os.path.basename(path)}:{number}"
        data = shards.read_record(path, number, offset, length)
        _check_record(name, data, looked_at, findings)
        progress(1)
    return findings


def _check_shards(paths: list[str], findings: Findings) -> list[tuple[str, int, int, int]]:
    """Verifies all checksums; returns (path, number, offset, length) of the whole records."""
    whole = []
    for path in paths:
        name = os.path.basename(path)
        findings.num_shards += 1
        try:
            findings.gigabytes += files.size(path) / 1e9
            index, problems = shards.scan(path, verify=True)
        except UserError as error:
            findings.problems["unreadable shard"].append(str(error))
            continue
        for problem in problems:
            findings.problems[problem.why].append(f"{name}:{problem.number}")
        _check_index(path, index, findings)
        written = writer.num_written(path)
        if written is not None and written != len(index):
            problem = "records were lost or added; delete the shard and repeat the ingest command"
            findings.problems[problem].append(f"{name} ({len(index)}, written were {written})")
        bad = {problem.number for problem in problems}
        findings.num_records += len(index)
        for number, (offset, length) in enumerate(zip(index.offsets, index.lengths, strict=True)):
            if number not in bad:
                whole.append((path, number, int(offset), int(length)))
        if not len(index):
            findings.remarks["empty shard"].append(name)
    return whole


def _check_index(path: str, index: shards.Index, findings: Findings) -> None:
    name = os.path.basename(path)
    if not files.gfile(path).exists(path + shards.INDEX_SUFFIX):
        findings.remarks["no index; it is made when training first reads the shard"].append(name)
        return
    stored = shards.stored_index(path)
    same = stored is not None and (
        np.array_equal(stored.offsets, index.offsets)
        and np.array_equal(stored.lengths, index.lengths)
    )
    if not same:
        findings.problems["the index is damaged or of another file; delete it"].append(
            name + shards.INDEX_SUFFIX
        )


class _Looked:
    """What must be unique or agree over all records of a set."""

    def __init__(self, labels: Mapping[str, int]):
        self.labels = labels
        self.names = {index: name for name, index in labels.items()}
        self.ids: dict[str, str] = {}
        self.contents: dict[bytes, str] = {}


def _check_record(name: str, data: bytes, looked: _Looked, findings: Findings) -> None:
    try:
        context, lists = sequence_example.decode(data)
    except ValueError as error:
        findings.problems[str(error)].append(name)
        return
    for key in (records.IMAGE, records.FLOW):
        _check_images(name, key, lists.get(key, []), findings)
    _check_waveform(name, lists.get(records.WAVEFORM, []), findings)
    _check_labels(name, context, looked, findings)
    if not lists.get(records.IMAGE) and not lists.get(records.WAVEFORM):
        keys = sorted([*context, *lists])
        findings.problems[f"neither {records.IMAGE} nor {records.WAVEFORM}, only {keys}"].append(
            name
        )
    try:
        clip = records.deserialize(data)
    except (ValueError, AttributeError, TypeError) as error:
        if not any(name in places for places in findings.problems.values()):
            findings.problems[str(error)].append(name)
        return
    _check_times(name, clip, findings)
    _check_unique(name, clip, looked, findings)
    findings.clips.append(convert.facts(clip) | {"bytes": len(data)})


def _check_images(name: str, key: str, features: list, findings: Findings) -> None:
    for values in features:
        if not isinstance(values, list):
            findings.problems[f"{key} holds numbers, expected JPEG bytes"].append(name)
            return
        if len(values) != 1:
            problem = f"{key}: {len(values)} values in one Feature, expected one JPEG in each"
            findings.problems[problem].append(name)
            return
    sizes = set()
    for index in card.evenly(len(features), 3):
        jpeg = features[index][0]
        if not jpeg.startswith(b"\xff\xd8"):
            kind = "PNG" if jpeg.startswith(b"\x89PNG") else "not a picture"
            findings.problems[f"{key}: {kind}, expected JPEG"].append(name)
            return
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            findings.problems[f"{key}: a JPEG cannot be decoded"].append(name)
            return
        sizes.add(picture.shape)
    if len(sizes) > 1:
        findings.problems[f"{key}: frames of different sizes in one clip"].append(name)


def _check_waveform(name: str, features: list, findings: Findings) -> None:
    if not features:
        return
    key, waveform = records.WAVEFORM, features[0]
    problem = ""
    if len(features) > 1:
        problem = f"{key}: {len(features)} Features, expected one with the whole waveform"
    elif not isinstance(waveform, np.ndarray) or waveform.dtype != np.float32:
        problem = f"{key}: not floats"
    elif not len(waveform):
        problem = f"{key}: no samples"
    elif not np.isfinite(waveform).all() or 0 < _typical(waveform) < _TINY:
        problem = f"{key}: integers stored as if they were floats; make the record again"
    elif np.abs(waveform).max() > _LOUDEST:
        problem = (
            f"{key}: up to {np.abs(waveform).max():.3g}, expected [-1, 1]; divide by full scale"
        )
        problem = (
            problem if np.abs(waveform).max() < 10 else f"{key}: far outside [-1, 1]; unscaled"
        )
    elif card.is_silent(convert.rms_dbfs(waveform)):
        findings.remarks["silence"].append(name)
    if problem:
        findings.problems[problem].append(name)


def _typical(waveform: np.ndarray) -> float:
    """The median size of the samples that are not zero; 0 where all are."""
    sizes = np.abs(waveform[waveform != 0])
    return float(np.median(sizes)) if len(sizes) else 0.0


def _check_labels(name: str, context: Mapping[str, Any], looked: _Looked, findings) -> None:
    indices = context.get(records.LABEL_INDEX, [])
    if isinstance(indices, list) and indices:
        findings.problems[f"{records.LABEL_INDEX} holds text, expected int64"].append(name)
        return
    texts = [bytes(text).decode(errors="replace") for text in context.get(records.LABEL_TEXT, [])]
    if texts and len(indices) and len(texts) != len(indices):
        findings.problems["as many label names as label ids are expected"].append(name)
        return
    for position, index in enumerate(map(int, indices)):
        if index < 0 or (looked.labels and index >= len(looked.labels)):
            problem = f"label id out of range 0 to {max(len(looked.labels) - 1, 0)}"
            findings.problems[problem].append(f"{name} ({index})")
        elif texts:
            # Without a label map the first name that an id comes with counts.
            expected = looked.names.setdefault(index, texts[position])
            if expected != texts[position]:
                findings.problems["one label id with several names"].append(
                    f"{name} ({index}: {texts[position]!r}, elsewhere {expected!r})"
                )


def _check_times(name: str, clip: records.Clip, findings: Findings) -> None:
    facts = convert.facts(clip)
    if clip.frames_jpeg and clip.frame_rate is None and len(clip.frames_jpeg) > 1:
        findings.remarks["no frame rate; config.data.default_frame_rate is taken"].append(name)
    if clip.waveform is not None and clip.audio_rate is None:
        findings.remarks["no sound rate; config.data.default_audio_rate is taken"].append(name)
    if clip.waveform is None:
        findings.remarks["no sound"].append(name)
    if clip.flow_jpeg and len(clip.flow_jpeg) < len(clip.frames_jpeg) - 1:
        findings.problems["fewer flow frames than frames"].append(name)
    if clip.frame_rate and clip.audio_rate and clip.frames_jpeg and clip.waveform is not None:
        difference = len(clip.waveform) / clip.audio_rate - facts["seconds"]
        if abs(difference) > max(0.25, 0.02 * facts["seconds"]):
            longer = "longer" if difference > 0 else "shorter"
            findings.problems[f"the sound is much {longer} than the frames"].append(
                f"{name} ({abs(difference):.2f} s)"
            )
    for _, start, end in clip.captions:
        if start >= facts.get("seconds", np.inf) or end <= 0:
            findings.problems["a caption outside its clip"].append(name)
            break


def _check_unique(name: str, clip: records.Clip, looked: _Looked, findings: Findings) -> None:
    if clip.id:
        first = looked.ids.setdefault(clip.id, name)
        if first != name:
            findings.problems["one id twice"].append(f"{name} and {first} ({clip.id})")
    digest = hashlib.blake2b(digest_size=16)
    for frame in clip.frames_jpeg:
        digest.update(frame)
    if clip.waveform is not None:
        digest.update(clip.waveform.tobytes())
    first = looked.contents.setdefault(digest.digest(), name)
    if first != name:
        findings.remarks["the same content twice"].append(f"{name} and {first}")
