"""Reference numbers of published code, and the rules that make their weights and inputs.

A pack is a folder here (``brave/``) with ``manifest.json`` and one ``<case>.npz`` per case. The
numbers were computed with the published implementation named in the manifest; no trained weight and
no published code is in it. Every tensor is drawn from a seed made of its own name, so a test makes
the same weights and inputs again and compares what our code returns with the stored results.

    pack = golden_rules.Pack("brave")
    inputs = pack.inputs("eval_audio")             # {"spectrogram": float32 array}
    stored = pack.stored("eval_audio")             # {"embedding": ..., "stage/.../probe": ...}
    published = pack.checkpoint("va")              # {"params": {module: {name: array}}, ...}
"""

from __future__ import annotations

import functools
import json
import pathlib
import zlib
from typing import Any

import numpy as np

_HERE = pathlib.Path(__file__).parent


def draw(name: str, seed: int) -> np.random.RandomState:
    """The generator that belongs to a name."""
    return np.random.RandomState((zlib.crc32(name.encode("utf-8")) ^ seed) & 0xFFFFFFFF)


def tensor(key: str, shape, dtype, mode: str, a: float, b: float, seed: int) -> np.ndarray:
    """One weight or state tensor: normal, absolute normal, or constant."""
    if mode == "const":
        return np.full(shape, b, dtype)
    z = draw(key.replace("|hidden", "|average"), seed).standard_normal(tuple(shape))
    return np.asarray(b + a * (abs(z) if mode == "abs" else z)).astype(dtype)


def _video(generator: np.random.RandomState, shape) -> np.ndarray:
    """Smoothly moving waves with noise, in [0, 1]; shape (N, T, H, W, C)."""
    noise = generator.random_sample(shape)
    n, t, h, w, c = shape
    p = generator.random_sample((5, n, 1, 1, 1, c))
    at = [
        (np.arange(size) / size).reshape([-1 if axis == i else 1 for axis in range(5)])
        for i, size in ((1, t), (2, h), (3, w))
    ]
    phase = p[0] + (0.5 + 1.5 * p[1]) * at[0] + (0.5 + 2.5 * p[2]) * at[1]
    phase = phase + (0.5 + 2.5 * p[3]) * at[2]
    return 0.35 + 0.3 * p[4] + 0.2 * np.sin(2 * np.pi * phase) + 0.15 * (2 * noise - 1)


def make_input(spec: dict[str, Any], seed: int) -> np.ndarray:
    """One input as its manifest entry describes it."""
    generator = draw(spec["rng_name"], seed)
    shape, dtype = tuple(spec["shape"]), spec.get("dtype", "float32")
    a, b = spec.get("a", 1.0), spec.get("b", 0.0)
    if spec["kind"] == "normal":
        value = b + a * generator.standard_normal(shape)
    elif spec["kind"] == "uniform":
        value = b + a * generator.random_sample(shape)
    elif spec["kind"] == "int":
        lo, hi = spec["lo"], spec["hi"]
        value = lo + np.floor((hi - lo) * generator.random_sample(shape))
    elif spec["kind"] == "video":
        value = _video(generator, shape)
        value = np.floor(255 * value + 0.5) if dtype == "uint8" else b + a * value
    else:
        raise ValueError(f"unknown input kind {spec['kind']!r}")
    return value.reshape(spec.get("reshape", shape)).astype(dtype)


def probe(values: Any, count: int = 128) -> np.ndarray:
    """`count` values of the flattened array, evenly spaced from the first to the last."""
    flat = np.asarray(values).reshape(-1)
    return flat[[i * (flat.size - 1) // (count - 1) for i in range(count)]]


def stats(values: Any) -> np.ndarray:
    """Mean, root mean square and largest magnitude."""
    values = np.asarray(values, np.float64)
    return np.array([values.mean(), np.sqrt((values**2).mean()), np.abs(values).max()])


def row(values: Any) -> np.ndarray:
    """Euclidean norm, sum, and four evenly spaced values of the flattened tensor."""
    values = np.asarray(values, np.float64)
    return np.concatenate([[np.sqrt((values**2).sum()), values.sum()], probe(values, 4)])


def error_of_max(ours: Any, stored: Any) -> float:
    """Largest difference over the largest stored magnitude (`rtol_of_max` in the manifest)."""
    ours, stored = np.asarray(ours, np.float64), np.asarray(stored, np.float64)
    assert ours.shape == stored.shape, f"shape {ours.shape}, stored {stored.shape}"
    return float(np.abs(ours - stored).max() / np.abs(stored).max())


class Pack:
    """One folder of reference numbers."""

    def __init__(self, name: str):
        self.folder = _HERE / name
        self.manifest = json.loads((self.folder / "manifest.json").read_text())
        self.seed: int = self.manifest["seed"]

    def case(self, name: str) -> dict[str, Any]:
        """The manifest entry: inputs, options, tolerance and what the case is."""
        return self.manifest["cases"][name]

    def stored(self, name: str) -> dict[str, np.ndarray]:
        """The stored results of a case."""
        with np.load(self.folder / self.case(name)["file"], allow_pickle=False) as file:
            return dict(file)

    def inputs(self, name: str) -> dict[str, np.ndarray]:
        """The inputs of a case."""
        specs = self.case(name)["inputs"]
        return {key: make_input(spec, self.seed) for key, spec in specs.items()}

    @functools.cache  # noqa: B019 - packs live as long as the test run
    def checkpoint(self, name: str) -> dict[str, Any]:
        """The rule-made checkpoint in the published two-level layout, with its config."""
        spec = self.manifest["checkpoints"][name]
        result: dict[str, Any] = {"params": {}, "state": {}, "config": dict(spec["config"])}
        for key, shape, dtype, mode, a, b in spec["entries"]:
            kind, module, leaf = key.split("|")
            value = tensor(key, shape, dtype, mode, a, b, self.seed)
            result[kind].setdefault(module, {})[leaf] = value
        return result

    @functools.cache  # noqa: B019 - packs live as long as the test run
    def flat_checkpoint(self, name: str, without: str = "\0") -> dict[str, np.ndarray]:
        """The rule-made checkpoint of a flat layout; keys that contain `without` are left out."""
        return {
            key: tensor(key, shape, dtype, mode, a, b, self.seed)
            for key, shape, dtype, mode, a, b in self.manifest["checkpoints"][name]["entries"]
            if without not in key
        }


def x64():
    """A context in which JAX computes in float64 where its inputs are; for parity tests."""
    import jax

    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()
