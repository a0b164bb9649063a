"""What to ingest from tar shards, as WebDataset and img2dataset write them.

Members of one tar whose paths agree up to the first dot of the file's name are one sample: a media
file (.mp4, .webm, .jpg, .wav, ...), its caption in ``.txt``, further facts in ``.json``
(``caption``, ``captions`` or ``text``; ``label`` or ``labels``), its class in ``.cls``
(https://github.com/webdataset/webdataset). Tars are not unpacked: their headers are read once for
the list of samples, and then each media file goes to a temporary place alone while it is read.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import glob
import json
import math
import os
import pathlib
import posixpath
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from common.data import tables
from common.data.walk import walk
from common.errors import UserError

SUFFIX = ".tar"
_MEDIA = (tables.VIDEO_SUFFIXES, tables.IMAGE_SUFFIXES, tables.AUDIO_SUFFIXES)  # first is taken
_ANY_MEDIA = frozenset().union(*_MEDIA)
_CAPTION_KEYS = ("caption", "captions", "text")
_LABEL_KEYS = ("labels", "label")
_TEXT, _JSON, _CLASS = ".txt", ".json", ".cls"
_BLOCK = 512  # bytes; a tar ends with empty blocks


@dataclasses.dataclass(frozen=True)
class TarItem(tables.Item):
    """A media file inside a tar; `path` is the tar.

    Attributes:
      offset: byte of the tar at which the file begins.
      size: bytes of the file.
    """

    offset: int = 0
    size: int = 0


@dataclasses.dataclass(frozen=True)
class _Member:
    suffix: str  # what follows the first dot, with it
    name: str
    offset: int
    size: int


def is_tars(source: str | os.PathLike) -> bool:
    """Says whether a source is a tar, a glob of tars, or a folder of tars without media files."""
    path = pathlib.Path(os.path.expanduser(source))
    if path.suffix.lower() == SUFFIX:
        return True
    if not path.is_dir():
        return False
    found = False
    for _, names in walk(path):
        suffixes = {os.path.splitext(name)[1].lower() for name in names}
        if suffixes & _ANY_MEDIA:
            return False
        found = found or SUFFIX in suffixes
    return found


def read_source(source: str | os.PathLike, label_key: str = "") -> tables.Source:
    """Lists the samples of tar shards; what is wrong with one makes it an item with a problem.

    An id is the tar's path below the folder, without its ending, and the sample's path in it. A tar
    that is cut off gives the samples before the cut; the last of them, which may lack members, is
    rejected with the place of the cut.

    Args:
      source: a tar, a glob of tars, or a folder that is searched for tars.
      label_key: key of the labels in the .json; "" means "labels" or "label".

    Raises:
      UserError: there are no tars, or no samples in them.
    """
    unread: list[str] = []
    base, paths = _tars(pathlib.Path(os.path.expanduser(source)), unread)
    items: list[tables.Item] = []
    unused: collections.Counter[str] = collections.Counter()
    for path in paths:
        name = os.path.relpath(path, base).replace(os.sep, "/")
        items += _Reader(path, name, label_key, unused).items()
    if not any(isinstance(item, TarItem) for item in items):
        raise UserError(
            f"--source={source}: {len(paths)} tars hold no media file, looked for by their endings"
            + (f"; {items[0].name}: {items[0].problem}." if items else ".")
        )
    return tables.Source(
        items, (*(f"{count} x {what}" for what, count in sorted(unused.items())), *unread)
    )


@contextlib.contextmanager
def on_disk(item: tables.Item) -> Iterator[tables.Item]:
    """Gives an item whose `path` is a media file: itself, or its copy from the tar, for a while.

    Raises:
      OSError: the tar cannot be read, or ends before the file does.
    """
    if not isinstance(item, TarItem):
        yield item
        return
    suffix = os.path.splitext(item.name)[1]
    with tempfile.NamedTemporaryFile(suffix=suffix) as copy:
        with open(item.path, "rb") as tar:
            tar.seek(item.offset)
            shutil.copyfileobj(_Part(tar, item.size), copy)
        copy.flush()
        if copy.tell() != item.size:
            raise OSError(f"{item.path} has changed: it ends before {item.name} does")
        yield dataclasses.replace(item, path=copy.name)


class _Part:
    """The next bytes of a file, as many as are wanted."""

    def __init__(self, file: Any, size: int):
        self._file, self._left = file, size

    def read(self, length: int) -> bytes:
        data = self._file.read(min(length, self._left))
        self._left -= len(data)
        return data


def _tars(source: pathlib.Path, unread: list[str]) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """Returns the tars in order, and the folder that their names are relative to."""
    if source.is_dir():
        paths = [folder / name for folder, names in walk(source, unread) for name in names]
        return source, sorted(path for path in paths if path.suffix == SUFFIX)
    paths = (
        [source] if source.is_file() else [pathlib.Path(path) for path in glob.glob(str(source))]
    )
    if not paths:
        raise UserError(f"--source={source}: there is no such tar.")
    return pathlib.Path(os.path.commonpath([path.parent for path in paths])), sorted(paths)


class _Reader:
    """Reads the list of samples of one tar."""

    def __init__(
        self,
        path: pathlib.Path,
        name: str,
        label_key: str,
        unused: collections.Counter[str],
    ):
        self._path, self._name = path, name
        self._label_keys = (label_key,) if label_key else _LABEL_KEYS
        self._unused = unused

    def items(self) -> list[tables.Item]:
        """Returns one item per sample, and one for the tar where nothing can be read of it."""
        samples: dict[str, list[_Member]] = {}
        last, problem = "", ""
        try:
            with open(self._path, "rb") as file:
                for member in _members(file, self._unused):
                    folder, base = posixpath.split(member.name)
                    stem, dot, rest = base.partition(".")
                    key = last = posixpath.join(folder, stem)
                    samples.setdefault(key, []).append(
                        dataclasses.replace(member, suffix=dot + rest)
                    )
                problem = _cut(file)
                items = [self._item(file, key, members) for key, members in samples.items()]
        except (OSError, tarfile.TarError) as error:
            return [tables.Item(self._name, "", self._name, problem=f"not a tar: {error}")]
        if not problem:
            return items
        if not items:
            return [tables.Item(self._name, "", self._name, problem=problem)]
        place = list(samples).index(last)
        reason = f"{problem}; this is the last sample before the cut, and may lack a part"
        items[place] = dataclasses.replace(items[place], problem=reason)
        return items

    def _item(self, file: Any, key: str, members: Sequence[_Member]) -> tables.Item:
        identity = f"{self._name.removesuffix(SUFFIX)}/{key}"
        repeated = [s for s, n in collections.Counter(m.suffix for m in members).items() if n > 1]
        if repeated:
            problem = f"the sample has several members {repeated[0]}"
            return tables.Item(identity, "", identity, problem=problem)
        media = next(
            (m for kind in _MEDIA for m in members if os.path.splitext(m.name)[1].lower() in kind),
            None,
        )
        if media is None:
            endings = " ".join(sorted(m.suffix for m in members))
            problem = f"the sample has no media file; its members: {endings}"
            return tables.Item(identity, "", identity, problem=problem)
        path, name = os.path.abspath(self._path), f"{self._name}/{media.name}"
        item = TarItem(identity, path, name, offset=media.offset, size=media.size)
        try:
            captions, labels = self._facts(file, [m for m in members if m is not media])
        except ValueError as error:
            return dataclasses.replace(item, problem=str(error))
        return dataclasses.replace(item, captions=captions, labels=labels)

    def _facts(
        self, file: Any, members: Iterable[_Member]
    ) -> tuple[tuple[tuple[str, float, float], ...], tuple[str, ...]]:
        """Returns captions and labels; raises `ValueError` where a member is malformed."""
        captions: list[str] = []
        told: list[str] = []
        labels: list[str] = []
        for member in members:
            if member.suffix == _TEXT:
                captions = [_text(file, member)]
            elif member.suffix == _JSON:
                facts = _json(file, member)
                told = _texts(facts, _CAPTION_KEYS, member)
                labels += _texts(facts, self._label_keys, member)
                for key in facts.keys() - {*_CAPTION_KEYS, *self._label_keys}:
                    self._unused[f"json key {key!r}"] += 1
            elif member.suffix == _CLASS:
                labels.append(_text(file, member))
            else:
                self._unused[
                    f"{member.suffix or 'members without an ending'} beside the media"
                ] += 1
        texts = map(tables.plain_text, captions or told)  # both say the same where both exist
        names = dict.fromkeys(map(tables.plain_text, labels))
        return (
            tuple((text, math.nan, math.nan) for text in texts if text),
            tuple(name for name in names if name),
        )


def _members(file: Any, unused: collections.Counter[str]) -> Iterator[_Member]:
    """Yields the files of a tar whose bytes are all there; `_cut` says where the tar ends early."""
    file.seek(0)
    size = os.fstat(file.fileno()).st_size
    with tarfile.open(fileobj=file, mode="r:", errors="backslashreplace") as tar:
        while True:
            try:
                info = tar.next()
            except tarfile.ReadError:
                if not tar.offset:
                    raise
                break
            if info is None or info.offset_data + info.size > size:
                break
            tar.members = []  # it would keep them all
            if info.issym() or info.islnk():
                unused["links inside tars"] += 1
            if info.isfile() and not posixpath.basename(info.name).startswith("."):
                yield _Member("", info.name, info.offset_data, info.size)
        file.seek(min(tar.offset, size))


def _cut(file: Any) -> str:
    """Says what is wrong with the end of a tar, where its list of files was left; "" is nothing.

    The standard module takes a damaged header, and the end of the file, for the end of the tar.
    """
    begin, size = file.tell(), os.fstat(file.fileno()).st_size
    if begin < size and file.read(_BLOCK) == bytes(_BLOCK):
        return ""
    return f"the tar is cut off or damaged at byte {begin} of {size}"


def _text(file: Any, member: _Member) -> str:
    file.seek(member.offset)
    try:
        return file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{member.name} is not UTF-8: {error}") from error


def _json(file: Any, member: _Member) -> Mapping[str, Any]:
    try:
        facts = json.loads(_text(file, member))
    except json.JSONDecodeError as error:
        raise ValueError(f"{member.name} is not json: {error}") from error
    if not isinstance(facts, Mapping):
        raise ValueError(f"{member.name} holds a {type(facts).__name__}, expected an object")
    return facts


def _texts(facts: Mapping[str, Any], keys: Iterable[str], member: _Member) -> list[str]:
    """Returns the value of the first key that has one, a text or number or a list of these."""
    value = next((facts[key] for key in keys if facts.get(key) is not None), [])
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str | int | float) for one in values):
        raise ValueError(f"{member.name}: {value!r} should be a text or a list of texts")
    return list(map(str, values))
