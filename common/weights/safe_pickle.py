"""Reads pickles from strangers without executing anything in them.

A pickle is a program: it may name any function and call it. Published checkpoints use that only to
rebuild arrays and dictionaries, so here every name a file may use stands for a small function of
our own that builds inert data, and any other name ends the reading, or is read past where the
caller allows that: an `Unknown` then stands in its place. No attribute is looked up and no foreign
module is imported on behalf of the file.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from common.errors import UserError

_PLAIN = (str, bytes, bool, int, float, complex, type(None), np.generic)
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c(8|16)|O8?|[SU]\d{1,6}")


def load_npy(path: str | os.PathLike) -> Any:
    """What ``np.load(path, allow_pickle=True)`` would return, for arrays and plain containers.

    Haiku's mappings and ``ConfigDict`` become dictionaries. An object array without dimensions, the
    usual wrapping of a checkpoint, is returned as the object in it.

    Raises:
        UserError: there is no such file, it is no .npy file or damaged, or it names anything that
            is not needed to rebuild data. The message says what.
    """
    return _checked(path, _read, ".npy file")


def load_pickle(path: str | os.PathLike) -> Any:
    """What ``pickle.load`` or ``dill.load`` would return, for arrays and plain containers.

    Raises:
        UserError: as `load_npy`.
    """
    return _checked(path, lambda file: inert(Unpickler(file).load()), "pickle")


def _checked(path: str | os.PathLike, read: Callable[[Any], Any], kind: str) -> Any:
    """Reads a file; whatever is wrong with it becomes a `UserError`."""
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such file.")
    with open(path, "rb") as file:
        try:
            return read(file)
        except Forbidden as error:
            raise UserError(
                f"{path}: the file asks for {error}, which rebuilding arrays does not need; it was "
                "not read. If you trust its origin, convert it there to plain NumPy arrays."
            ) from error
        except Exception as error:  # damaged input can make the readers fail in any way
            raise UserError(f"{path}: not a readable {kind} ({error}).") from error


def _read(file: Any) -> Any:
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"format version {version}")
    shape, _, dtype = readers[version](file)
    if not dtype.hasobject:
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)
    value = inert(Unpickler(file).load())
    if not isinstance(value, np.ndarray) or value.shape != shape:
        raise ValueError("the header does not describe the contents")
    return value.item() if shape == () else value


class Forbidden(Exception):
    """The file uses a name that is not on the list."""


class Allowed:
    """Stands for a name on the list: can be called, and neither changed nor looked into."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        """Calls the function; pickles pass nothing but positions."""
        return self._call(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Forbidden(f"a change of {name}")

    def __setstate__(self, state: Any) -> None:
        raise Forbidden("a change of a function")


class _Array(np.ndarray):
    """An array that checks what it is filled with, so that NumPy never sees inconsistent input."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        shape = tuple(int(size) for size in shape)
        dtype = dtype.resolve()
        count = math.prod(shape)
        size = count if dtype.hasobject else count * dtype.itemsize
        wanted = list if dtype.hasobject else bytes
        if min(shape, default=0) < 0 or not isinstance(data, wanted) or len(data) != size:
            raise ValueError("an array whose shape and data disagree")
        super().__setstate__((1, shape, dtype, bool(fortran), data))


class _DType:
    """A dtype of numbers, strings or objects; never a structured one."""

    def __init__(self, code: str, *_: Any):
        if not _DTYPE.fullmatch(code):
            raise ValueError(f"an array of type {code!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        _, self.order, *parts = state
        if self.order not in ("<", ">", "|", "=") or any(part is not None for part in parts[:3]):
            raise ValueError("an array of structured type")

    def resolve(self) -> np.dtype:
        code = self.code[0] if self.code.startswith("O") else self.code
        return np.dtype(code).newbyteorder(self.order)


class _Sealed(type):
    """Type of a class that a file cannot alter."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise Forbidden(f"a change of {name}")


class _Config(dict, metaclass=_Sealed):
    """An ``ml_collections.ConfigDict``; pickles make it by class and then set its state."""

    def __setstate__(self, state: Any) -> None:
        self.update(state["_fields"])


@dataclasses.dataclass(frozen=True)
class Unknown:
    """What stands for an object of a class, or for a function, that is not on the list."""

    name: str  # of the class or function, with its module


class _Placeholder(metaclass=_Sealed):
    """Takes whatever a pickle does with a class or an object of it, and keeps nothing of it.

    The reader wants a real class where objects are made, so each unknown name gets one below this.
    """

    __slots__ = ()
    name = ""

    def __new__(cls, *_: Any, **__: Any) -> _Placeholder:
        return object.__new__(cls)

    def __call__(self, *_: Any) -> _Placeholder:
        """Stands for the result as well: what is called may have been looked up by a call."""
        return self

    def _ignore(self, *_: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore


def _placeholder(module: str, name: str) -> type[_Placeholder]:
    return _Sealed("_Placeholder", (_Placeholder,), {"__slots__": (), "name": f"{module}.{name}"})


def _scalar(dtype: _DType, data: bytes) -> np.generic:
    return np.frombuffer(data, dtype.resolve(), count=1)[0]


def _from_buffer(data: bytes, dtype: _DType, shape: tuple, order: str) -> np.ndarray:
    return np.frombuffer(bytes(data), dtype.resolve()).reshape(shape, order=order).copy()


def _encoded(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"bytes written as {encoding}")
    return text.encode("latin1")


def _bytearray(data: Any = b"", *encoding: str) -> bytearray:
    if isinstance(data, int):
        raise ValueError("zeros of a length that only the file says")
    return bytearray(data, *encoding)


def _names() -> dict[tuple[str, str], Any]:
    """Every (module, name) a file may use; NumPy 1 and 2 keep theirs in different modules."""
    array = Allowed(lambda *_: np.ndarray.__new__(_Array, (0,), "b"))
    mapping = Allowed(lambda *args: dict(*args))
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): array,
        ("numpy", "dtype"): Allowed(_DType),
        ("_codecs", "encode"): Allowed(_encoded),
        ("collections", "OrderedDict"): mapping,
        ("haiku._src.data_structures", "FlatMapping"): mapping,
        ("haiku._src.data_structures", "FlatMap"): mapping,
        ("haiku._src.data_structures", "frozendict"): mapping,
        ("ml_collections.config_dict.config_dict", "ConfigDict"): _Config,
    }
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = array
        names[f"{core}.multiarray", "scalar"] = Allowed(_scalar)
        names[f"{core}.numeric", "_frombuffer"] = Allowed(_from_buffer)
    for module in ("builtins", "__builtin__"):
        for kind in (dict, list, tuple, set, frozenset):
            names[module, kind.__name__] = Allowed(kind)
        names[module, "bytearray"] = Allowed(_bytearray)
    return names


class Unpickler(pickle.Unpickler):
    """Reads one pickle; `inert` then copies the result into plain data.

    Args:
        file: opened for reading bytes.
        names: what the pickle may name beside plain containers and NumPy's arrays, by
            (module, name): `Allowed` functions, or plain values.
        find: from a persistent id, such as a storage that lies beside the pickle, to its object.
        placeholders: whether other names are read past, and become `Unknown`, instead of ending
            the reading.
    """

    _names = _names()

    def __init__(
        self,
        file: Any,
        names: Mapping[tuple[str, str], Any] | None = None,
        find: Callable[[Any], Any] | None = None,
        placeholders: bool = False,
    ):
        super().__init__(file)
        self._own_names = names or {}
        self._find = find
        self._placeholders: dict[tuple[str, str], Any] | None = {} if placeholders else None

    def find_class(self, module: str, name: str) -> Any:
        """Looks a name up whole: a dotted one is a key like any other, never a chain."""
        for names in (self._own_names, self._names):
            if (module, name) in names:
                return names[module, name]
        if self._placeholders is None:
            raise Forbidden(f"{module}.{name}")
        if (module, name) not in self._placeholders:
            self._placeholders[module, name] = _placeholder(module, name)
        return self._placeholders[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Finds what a persistent id stands for."""
        if self._find is None:
            raise Forbidden("an object outside the file")
        return self._find(pid)


def inert(value: Any) -> Any:
    """Copies what was read into plain containers and arrays, and `Unknown` for placeholders.

    Raises:
        ValueError: it holds anything else, or a container that holds itself.
    """
    return _inert(value, {})


def _inert(value: Any, seen: dict[int, Any]) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if issubclass(value if isinstance(value, type) else type(value), _Placeholder):
        return Unknown(value.name)
    if id(value) in seen:
        if seen[id(value)] is None:
            raise ValueError("a container that holds itself")
        return seen[id(value)]
    seen[id(value)] = None
    if isinstance(value, dict):
        result: Any = {_inert(key, seen): _inert(item, seen) for key, item in value.items()}
    elif isinstance(value, (list, tuple, set, frozenset)):
        result = type(value)(_inert(item, seen) for item in value)
    elif isinstance(value, np.ndarray):
        result = np.asarray(value)
        if value.dtype.hasobject:
            result = result.copy()
            for index in np.ndindex(value.shape):
                result[index] = _inert(value[index], seen)
    elif isinstance(value, bytearray):
        result = bytes(value)
    else:
        raise ValueError(f"it holds a {type(value).__name__.strip('_')}, which is not data")
    seen[id(value)] = result
    return result
