"""What a stranger's .npy file may and may not do."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import sys
import types

import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.weights import safe_pickle


def _wrap(pickled: bytes) -> bytes:
    """An .npy file whose object payload is the given program."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    return file.getvalue() + pickled


def _saved(path, contents, protocol=4):
    array = np.empty((), dtype=object)
    array[()] = contents
    path.write_bytes(_wrap(pickle.dumps(array, protocol=protocol)))
    return path


class _Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self._reduced = (function, args)

    def __reduce__(self):
        return self._reduced


def _global(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _programs(canary) -> dict[str, bytes]:
    """Programs that make the file `canary` if any of their calls is ever executed."""
    command = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w')"
    call = pickle.dumps(_Calls(os.system, command))
    array = pickle.dumps(np.arange(3.0), protocol=4)
    stack_global = b"\x80\x04" + b"\x8c\x08builtins" + b"\x8c\x04eval" + b"\x93"
    dotted = b"\x80\x04" + b"\x8c\x05numpy" + b"\x8c\x0edtype.__init__" + b"\x93"
    os_by_numpy = b"\x80\x04\x8c\x05numpy\x8c\x0ef2py.os.system" + b"\x93"
    return {
        "os.system": call,
        "eval": pickle.dumps(_Calls(eval, code)),
        "exec": pickle.dumps(_Calls(exec, code)),
        "in a dictionary": pickle.dumps({"params": {"a": {"w": _Calls(os.system, command)}}}),
        "as a key": pickle.dumps({_Calls(os.system, command): 1}),
        "in an array": pickle.dumps(np.array([_Calls(os.system, command)], dtype=object)),
        "in the arguments of an allowed call": pickle.dumps(
            _Calls(collections.OrderedDict, [(_Calls(os.system, command), 1)])
        ),
        "a second program": array + call,
        "a nested reading": pickle.dumps(_Calls(pickle.loads, call)),
        "getattr": _global("builtins", "getattr") + _global("os", "system") + b"\x85R.",
        "import": pickle.dumps(_Calls(__import__, "os")),
        "old names": _global("posix", "system") + _text(command) + b"\x85R.",
        "python 2 names": _global("__builtin__", "eval") + _text(code) + b"\x85R.",
        "instance": b"(" + _text(command) + b"ios\nsystem\n.",
        "object opcode": b"(" + _global("os", "system") + _text(command) + b"o.",
        "stack global": stack_global + _text(code) + b"\x85R.",
        "dotted name": dotted + b".",
        "attribute chain": os_by_numpy + _text(command) + b"\x85R.",
        "numpy reader": _global("numpy", "load") + _text(str(canary)) + b"\x85R.",
        "numpy memmap": _global("numpy", "memmap") + _text(str(canary)) + b"\x85R.",
        "copyreg": _global("copyreg", "add_extension") + b".",
        "copyreg rebuild": _global("copyreg", "_reconstructor") + b".",
        "extension": b"\x82\x01.",
        "persistent": b"\x80\x04" + _text("id") + b"Q.",
        "dill": _global("dill._dill", "_create_function") + b".",
        "functools": _global("functools", "partial") + _global("os", "system") + b"\x85R.",
        "type": _global("builtins", "type") + b".",
        "change of an allowed function": _global("numpy", "dtype")
        + b"}"
        + _text("_call")
        + b"K\x01sb.",
        "slots of an allowed function": _global("numpy", "dtype")
        + b"N}"
        + _text("_call")
        + b"K\x01s\x86b.",
        "change of an allowed class": _global(
            "ml_collections.config_dict.config_dict", "ConfigDict"
        )
        + b"N}"
        + _text("__setstate__")
        + b"K\x01s\x86b.",
        "an allowed name as data": _global("numpy", "dtype") + b".",
    }


@pytest.mark.parametrize("name", sorted(_programs("x")))
def test_a_malicious_file_executes_nothing(name, tmp_path):
    canary = tmp_path / "canary"
    path = tmp_path / "weights.npy"
    path.write_bytes(_wrap(_programs(canary)[name]))
    modules = set(sys.modules)
    with pytest.raises(UserError, match="weights.npy"):
        safe_pickle.load_npy(path)
    assert not canary.exists()
    assert set(sys.modules) == modules, "reading must not import anything"


def test_the_canary_sings_where_pickles_are_executed(tmp_path):
    canary = tmp_path / "canary"
    pickle.loads(_programs(canary)["in a dictionary"])
    assert canary.exists()


def test_the_message_names_what_the_file_asked_for(tmp_path):
    path = _saved(tmp_path / "weights.npy", {"a": _Calls(os.system, "true")})
    with pytest.raises(UserError, match=r"posix\.system|nt\.system"):
        safe_pickle.load_npy(path)


def _checkpoint():
    return {
        "params": {"net/~/conv": {"w": np.arange(24, dtype=np.float32).reshape(2, 3, 4)}},
        "state": {
            "net/norm/~/mean_ema": {
                "counter": np.array(3, np.int32),
                "average": np.asfortranarray(np.ones((2, 3), ">f8")),
            }
        },
        "config": {
            "shards": ["a", b"b"],
            "rate": 25.0,
            "video": True,
            "none": None,
            "t": (1, 2),
            "scalar": np.float32(1.5),
            "flag": np.bool_(True),
            "set": {1, 2},
        },
    }


def _same(ours, wanted):
    if isinstance(wanted, dict):
        assert type(ours) is dict and ours.keys() == wanted.keys()
        for key in wanted:
            _same(ours[key], wanted[key])
    elif isinstance(wanted, np.ndarray):
        # NumPy itself turns foreign byte orders into the machine's in some protocols.
        assert type(ours) is np.ndarray
        assert ours.dtype.newbyteorder("=") == wanted.dtype.newbyteorder("=")
        np.testing.assert_array_equal(ours, wanted)
    else:
        assert type(ours) is type(wanted) and ours == wanted


@pytest.mark.parametrize("protocol", range(6))
def test_checkpoints_of_every_pickle_protocol_are_read_as_numpy_would(protocol, tmp_path):
    path = _saved(tmp_path / "weights.npy", _checkpoint(), protocol)
    _same(safe_pickle.load_npy(path), np.load(path, allow_pickle=True).item())


def test_files_of_old_and_new_numpy_are_read(tmp_path):
    path = _saved(tmp_path / "new.npy", _checkpoint(), protocol=2)
    new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
    data = path.read_bytes()
    for module in (new, old):
        variant = tmp_path / "variant.npy"
        variant.write_bytes(data.replace(new, old).replace(old, module))
        _same(safe_pickle.load_npy(variant), _checkpoint())


def test_mappings_of_haiku_and_config_dicts_become_dictionaries(tmp_path, monkeypatch):
    module = types.ModuleType("haiku._src.data_structures")

    class FlatMapping(dict):
        def __reduce__(self):
            return FlatMapping, (dict(self),)

    FlatMapping.__module__, FlatMapping.__qualname__ = module.__name__, "FlatMapping"
    module.FlatMapping = FlatMapping
    for name in ("haiku", "haiku._src"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    contents = _checkpoint()
    contents["params"] = FlatMapping({k: FlatMapping(v) for k, v in contents["params"].items()})
    contents["state"] = collections.OrderedDict(contents["state"])
    contents["config"] = ml_collections.ConfigDict({"a": 1, "b": {"c": (1, 2)}})
    path = _saved(tmp_path / "weights.npy", contents)
    for name in ("haiku", "haiku._src", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    wanted = {**_checkpoint(), "config": {"a": 1, "b": {"c": (1, 2)}}}
    _same(safe_pickle.load_npy(path), wanted)


def test_plain_arrays_are_read(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(safe_pickle.load_npy(tmp_path / "a.npy"), [[0, 1, 2], [3, 4, 5]])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.npy: there is no such file"):
        safe_pickle.load_npy(tmp_path / "nothing.npy")


def test_a_container_that_holds_itself_is_refused(tmp_path):
    loop = []
    loop.append(loop)
    with pytest.raises(UserError, match="holds itself"):
        safe_pickle.load_npy(_saved(tmp_path / "weights.npy", {"a": loop}))


def test_shared_containers_do_not_multiply(tmp_path):
    value = [1]
    for _ in range(200):
        value = [value, value]
    assert len(safe_pickle.load_npy(_saved(tmp_path / "weights.npy", value))) == 2


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_gives_a_message_or_data_and_never_anything_else(data, tmp_path_factory):
    array = np.empty((), dtype=object)
    array[()] = {"params": {"a": {"w": np.arange(5.0), "s": np.float32(2)}}, "n": [1, "x"]}
    contents = bytearray(_wrap(pickle.dumps(array, protocol=data.draw(st.sampled_from([2, 4, 5])))))
    if data.draw(st.booleans()):
        del contents[data.draw(st.integers(0, len(contents))) :]
    for _ in range(data.draw(st.integers(1, 4))):
        if contents:
            contents[data.draw(st.integers(0, len(contents) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    path.write_bytes(contents)
    try:
        safe_pickle.load_npy(path)
    except UserError as error:
        assert "damaged.npy" in str(error)
