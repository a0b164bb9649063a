"""PyTorch's checkpoint files, read and written without PyTorch and without executing anything.

Two containers exist: a zip archive (since PyTorch 1.6) and a sequence of pickles followed by raw
storages (before). In both, a pickle describes the objects and names the storages of its tensors;
it is read as in `common.weights.safe_pickle`.
"""

from __future__ import annotations

import math
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from common.errors import UserError
from common.new_file import new_file
from common.weights import safe_pickle

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
ENDINGS = (".pth", ".pt", ".bin", ".tar")
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LARGEST_SIDE_FILE = 1 << 31  # bytes of a pickle in an archive; weights lie beside it
_LARGEST_SPREAD = 1 << 24  # elements of a tensor that has more than its storage


class _Fixed:
    """What a pickle may make, but not change afterwards."""

    def __setstate__(self, state: Any) -> None:
        raise safe_pickle.Forbidden("a change of a tensor")


class _Storage(_Fixed):
    """The elements of one or several tensors; known when the pickle is read, or later."""

    def __init__(self, dtype: np.dtype, count: int):
        self.dtype, self.count = np.dtype(dtype), count
        self.values: np.ndarray | None = None


class _Described(_Fixed):
    """A tensor whose storage may not have been read yet."""

    def __init__(self, storage: Any, offset: int, shape: Any, strides: Any, *_: Any):
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor without a storage")
        self.storage, self.offset = storage, int(offset)
        self.shape = tuple(int(size) for size in shape)
        self.strides = tuple(int(step) for step in strides)
        last = self.offset + sum(
            (size - 1) * step for size, step in zip(self.shape, self.strides, strict=True)
        )
        if min((*self.shape, *self.strides, self.offset), default=0) < 0 or (
            math.prod(self.shape) and last >= storage.count
        ):
            raise ValueError("a tensor that reaches beyond its storage")
        if math.prod(self.shape) > max(storage.count, _LARGEST_SPREAD):
            raise ValueError("a tensor many times as large as its storage")

    def array(self) -> np.ndarray:
        """Returns a copy of the tensor."""
        values, size = self.storage.values, self.storage.dtype.itemsize
        if not math.prod(self.shape):
            return np.zeros(self.shape, self.storage.dtype)
        strides = [step * size for step in self.strides]
        view = np.lib.stride_tricks.as_strided(
            values[self.offset :], self.shape, strides, writeable=False
        )
        return view.copy()


def load(path: str | os.PathLike, placeholders: bool = False) -> Any:
    """What ``torch.load(path)`` would return, with NumPy arrays for tensors.

    Args:
        path: the file.
        placeholders: whether the file may hold objects of other classes beside its tensors, as
            those of trainers that keep their configuration there do; a `safe_pickle.Unknown`, which
            has the name of the class and nothing else, stands in the place of each.

    Raises:
        UserError: there is no such file, it is damaged or no PyTorch file, or it names anything
            that is not needed to rebuild tensors and plain containers and `placeholders` is False.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such file.")
    try:
        with open(path, "rb") as file:
            begins_as_zip = file.read(4) == b"PK\x03\x04"
        is_zip = zipfile.is_zipfile(path)
        if begins_as_zip and not is_zip:
            raise ValueError("it is cut short; fetch it again")
        read = _load_zip if is_zip else _load_legacy
        return read(path, placeholders)
    except safe_pickle.Forbidden as error:
        raise UserError(
            f"{path}: the file asks for {error}, which rebuilding tensors does not need; it was "
            "not read. If you trust its origin, load it with PyTorch and save its state_dict alone."
        ) from error
    except Exception as error:  # damaged input can make the readers fail in any way
        raise UserError(f"{path}: not a readable PyTorch checkpoint ({error}).") from error


def _load_zip(path: str | os.PathLike, placeholders: bool) -> Any:
    with zipfile.ZipFile(path) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("a compressed archive, which PyTorch does not write")
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = pickled.removesuffix("data.pkl")
        order = "little"
        if f"{root}byteorder" in archive.namelist():
            order = archive.read(f"{root}byteorder").decode()
        if order != "little":
            raise ValueError(f"{order}-endian storages")
        if archive.getinfo(pickled).file_size > _LARGEST_SIDE_FILE:
            raise ValueError("an implausibly large description")

        def read(storage: _Storage, key: str) -> None:
            info = archive.getinfo(f"{root}data/{key}")
            if info.file_size != storage.count * storage.dtype.itemsize:
                raise ValueError(f"storage {key} has {info.file_size} bytes")
            storage.values = np.frombuffer(archive.read(info), storage.dtype)

        storages = _Storages(read)
        with archive.open(pickled) as file:
            value = storages.unpickle(file, placeholders)
        return safe_pickle.inert(_tensors(value, {}))


def _load_legacy(path: str | os.PathLike, placeholders: bool) -> Any:
    with open(path, "rb") as file:
        if safe_pickle.Unpickler(file).load() != _LEGACY_MAGIC:
            raise ValueError("it does not begin as one")
        if safe_pickle.Unpickler(file).load() != _LEGACY_PROTOCOL:
            raise ValueError("another version of the format")
        if safe_pickle.Unpickler(file).load().get("little_endian") is not True:
            raise ValueError("big-endian storages")
        storages = _Storages(lambda storage, key: None)
        value = storages.unpickle(file, placeholders)
        for key in safe_pickle.Unpickler(file).load():
            storage = storages.found[key]
            count = int(np.frombuffer(file.read(8), np.int64)[0])
            if count != storage.count:
                raise ValueError(f"storage {key} has {count} elements")
            content = file.read(count * storage.dtype.itemsize)
            storage.values = np.frombuffer(content, storage.dtype, count)
        return safe_pickle.inert(_tensors(value, {}))


class _StateDict(dict):
    """A dictionary to which PyTorch attaches versions of modules, which nothing here needs."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Storages:
    """The storages that a pickle names, by key."""

    def __init__(self, read: Callable[[_Storage, str], None]):
        self.found: dict[str, _Storage] = {}
        self._read = read

    def find(self, reference: Any) -> _Storage:
        """Returns the storage of a persistent id of a pickle."""
        kind, name, key, _, count, *view = reference
        if kind != "storage" or name not in _DTYPES or any(view):
            raise ValueError(f"a reference of kind {kind!r}")
        dtype = np.dtype(_DTYPES[name])
        if key not in self.found:
            self.found[key] = _Storage(dtype, int(count))
            self._read(self.found[key], key)
        storage = self.found[key]
        if (storage.dtype, storage.count) != (dtype, count):
            raise ValueError(f"two descriptions of storage {key}")
        return storage

    def unpickle(self, file: Any, placeholders: bool) -> Any:
        """Reads the pickle whose tensors lie in these storages."""
        return safe_pickle.Unpickler(file, self._names(), self.find, placeholders).load()

    def _names(self) -> dict[tuple[str, str], Any]:
        """Returns what a checkpoint may name beside plain containers and NumPy arrays."""
        names: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): safe_pickle.Allowed(_StateDict),
            ("torch._utils", "_rebuild_tensor_v2"): safe_pickle.Allowed(_Described),
            ("torch._utils", "_rebuild_parameter"): safe_pickle.Allowed(lambda data, *_: data),
        }
        return names | {("torch", name): name for name in _DTYPES}


def _tensors(value: Any, seen: dict[int, Any]) -> Any:
    """Replaces described tensors by arrays in nested containers."""
    if isinstance(value, _Described):
        return value.array()
    if not isinstance(value, (dict, list, tuple)):
        return value
    if id(value) not in seen:
        seen[id(value)] = ()  # what holds itself is cut there: no checkpoint does
        if isinstance(value, dict):
            seen[id(value)] = {key: _tensors(item, seen) for key, item in value.items()}
        else:
            seen[id(value)] = type(value)(_tensors(item, seen) for item in value)
    return seen[id(value)]


# ------------------------------------------------------------------------------------ writing


def save(path: str | os.PathLike, contents: Mapping[str, Any]) -> None:
    """Writes nested containers of arrays and plain values so that ``torch.load`` reads them.

    The file is a zip archive as PyTorch 1.6 and later write it, and appears only when whole.

    Raises:
        UserError: the file exists, or its name has another ending than files of PyTorch.
        ValueError: an array has a type that PyTorch lacks.
    """
    if not os.fspath(path).lower().endswith(ENDINGS):
        raise UserError(
            f"{path}: files of PyTorch are known by their ending when they are read; let it be one "
            f"of {', '.join(ENDINGS)}."
        )
    root = os.path.splitext(os.path.basename(path))[0] or "archive"
    with (
        new_file(path) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive,
    ):
        with archive.open(f"{root}/data.pkl", "w") as file:
            writer = _Pickler(file)
            writer.dump(_ordered(contents))
        archive.writestr(f"{root}/byteorder", "little")
        for key, array in enumerate(writer.arrays):
            archive.writestr(f"{root}/data/{key}", array.tobytes())
        archive.writestr(f"{root}/version", "3\n")


def _ordered(value: Any) -> Any:
    """Copies containers; mappings become plain dictionaries."""
    if isinstance(value, Mapping):
        return {key: _ordered(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_ordered, value))
    return value


class _Pickler(pickle._Pickler):  # the one in C cannot name functions that are not there
    """Writes arrays as PyTorch writes tensors."""

    _NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}

    def __init__(self, file: Any):
        super().__init__(file, protocol=2)
        self.arrays: list[np.ndarray] = []

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if not isinstance(obj, np.ndarray):
            super().save(obj, save_persistent_id)
            return
        if obj.dtype not in self._NAMES:
            raise ValueError(f"PyTorch has no tensors of type {obj.dtype}")
        array = np.asarray(obj, order="C")
        self._name("torch._utils", "_rebuild_tensor_v2")
        self.write(pickle.MARK)
        self.write(pickle.MARK)
        super().save("storage")
        self._name("torch", self._NAMES[obj.dtype])
        super().save(str(len(self.arrays)))
        super().save("cpu")
        super().save(array.size)
        self.write(pickle.TUPLE + pickle.BINPERSID)
        super().save(0)
        super().save(array.shape)
        super().save(tuple(step // array.itemsize for step in array.strides))
        super().save(False)
        super().save(OrderedDict())
        self.write(pickle.TUPLE + pickle.REDUCE)
        self.arrays.append(array)

    def _name(self, module: str, name: str) -> None:
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
