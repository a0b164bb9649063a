"""Objects of unknown classes in files of strangers leave their name, and nothing of them runs."""

from __future__ import annotations

import collections
import functools
import io
import pathlib
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import test_safe_pickle
import test_torch_file
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.weights import safe_pickle, torch_file
from common.weights.safe_pickle import Unknown

PROGRAMS = test_safe_pickle._programs


def _read(program: bytes):
    reader = safe_pickle.Unpickler(io.BytesIO(program), placeholders=True)
    return safe_pickle.inert(reader.load())


def _inert_to_the_bottom(value):
    """Whether there is nothing but data and names of what is none."""
    if isinstance(value, dict):
        return all(map(_inert_to_the_bottom, (*value.keys(), *value.values())))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_inert_to_the_bottom, value))
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return all(map(_inert_to_the_bottom, value.flat))
    plain = (str, bytes, int, float, complex, type(None), np.generic, np.ndarray)
    return type(value) is Unknown or isinstance(value, plain)


@pytest.mark.parametrize("container", ["pickle", "archive"])
@pytest.mark.parametrize("name", sorted(PROGRAMS("x")))
def test_a_malicious_file_executes_nothing(name, container, tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "weights.pth"
    program = PROGRAMS(canary)[name]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", program)
    zipfile.ZipFile(path).close()  # which imports a codec
    modules = set(sys.modules)
    try:
        if container == "archive":
            found = torch_file.load(path, placeholders=True)
        else:
            found = _read(program)
    except Exception as error:  # unreadable, which is as good
        assert container == "pickle" or isinstance(error, UserError)
    else:
        assert _inert_to_the_bottom(found)
    assert not canary.exists()
    assert set(sys.modules) == modules, "reading must not import anything"


def test_most_malicious_files_are_read_past_what_they_ask_for(tmp_path):
    found = _read(PROGRAMS(tmp_path / "canary")["in a dictionary"])
    (unknown,) = (array["w"] for array in found["params"].values())
    assert unknown.name in ("posix.system", "nt.system")
    found = _read(PROGRAMS(tmp_path / "canary")["functools"])
    assert found == Unknown("functools.partial")


@pytest.fixture
def written(monkeypatch):
    """Pickles of every protocol whose class is gone when they are read."""
    module = types.ModuleType("parse_config")
    made = []

    class ConfigParser:
        def __new__(cls, *args, **kwargs):
            made.append(args)
            return super().__new__(cls)

        def __setstate__(self, state):
            made.append(state)

    class Lines(list):
        pass

    class Table(dict):
        pass

    for kind in (ConfigParser, Lines, Table):
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    config = ConfigParser()
    config.folder, config.read = pathlib.Path("exps"), functools.partial(print, "x")
    config.itself = config
    contents = {
        "config": config,
        "kind": ConfigParser,
        "lines": Lines(["a", "b"]),
        "table": Table(a=[1]),
        "counts": collections.Counter("aab"),
        "path": pathlib.PurePosixPath("a/b"),
        "plain": [1, ("x", {2})],
        "again": config,
    }
    pickles = [pickle.dumps(contents, protocol) for protocol in range(6)]
    monkeypatch.delitem(sys.modules, module.__name__)
    made.clear()
    return pickles, made


def test_objects_of_every_protocol_leave_their_name_and_what_is_beside_them_is_read(written):
    pickles, made = written
    for protocol, program in enumerate(pickles):
        found = _read(program)
        assert found["plain"] == [1, ("x", {2})]
        assert found["kind"] == Unknown("parse_config.ConfigParser")
        assert found["again"] == found["config"]
        if protocol >= 2:  # before, one function of Python's makes objects of all classes
            assert found["config"] == Unknown("parse_config.ConfigParser")
            assert found["lines"] == Unknown("parse_config.Lines")
            assert found["table"] == Unknown("parse_config.Table")
        assert found["counts"] == Unknown("collections.Counter")
        assert found["path"].name.endswith("PurePosixPath")
    assert made == [], "nothing of the classes was called"
    assert "parse_config" not in sys.modules


def test_files_of_both_kinds_of_pytorch_may_hold_unknown_objects(tmp_path):
    whole = np.arange(6, dtype=np.float32)
    call = test_torch_file._Call
    unknown = call(test_torch_file._Name("parse_config", "ConfigParser"), state={"a": 1})
    tensor, storage = test_torch_file.tensor, test_torch_file.storage
    new = {"w": tensor(storage(6), 0, (6,), (1,)), "config": unknown}
    old = {"w": tensor(storage(6, "4", "FloatStorage", None), 0, (6,), (1,)), "config": unknown}
    for path in (
        test_torch_file.write_zip(tmp_path / "new.pth", new),
        test_torch_file.write_legacy(tmp_path / "old.pth", old, {"4": whole}),
    ):
        found = torch_file.load(path, placeholders=True)
        np.testing.assert_array_equal(found["w"], whole)
        assert found["config"] == Unknown("parse_config.ConfigParser")
        with pytest.raises(UserError, match=r"asks for parse_config\.ConfigParser"):
            torch_file.load(path)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damage_gives_a_message_or_data_and_never_anything_else(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged-placeholders.pth"
    value = {"a": np.arange(3.0), "config": pathlib.PurePosixPath("a")}
    content = bytearray(pickle.dumps(value, data.draw(st.sampled_from([2, 4]))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", bytes(content))
    try:
        found = torch_file.load(path, placeholders=True)
    except UserError as error:
        assert path.name in str(error)
    else:
        assert _inert_to_the_bottom(found)
