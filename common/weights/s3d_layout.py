"""Weights in the layout of the published S3D checkpoints, in and out.

PyTorch keeps a flat mapping ``{key: array}``. A list of `Layer` says which of our modules is which
of theirs; `read` and `write` do the rest. Convolutions are (O, I, kt, kh, kw) there and
(kt, kh, kw, I, O) here, dense layers (O, I) and (I, O).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from common.backbones.batch_norm import BatchNorm
from common.backbones.inception import ConvUnit
from common.backbones.s3d import S3D
from common.errors import UserError

Published = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One of our modules, a convolution, dense layer or norm, and the key of the published one."""

    ours: nnx.Module
    module: str

    def variables(self) -> Iterator[tuple[nnx.Variable, str]]:
        """Our parameters and running statistics with their published keys."""
        if isinstance(self.ours, BatchNorm):
            yield self.ours.scale, f"{self.module}.weight"
            yield self.ours.offset, f"{self.module}.bias"
            yield self.ours.mean, f"{self.module}.running_mean"
            yield self.ours.var, f"{self.module}.running_var"
            yield self.ours.count, f"{self.module}.num_batches_tracked"
            return
        yield self.ours.kernel, f"{self.module}.weight"
        if getattr(self.ours, "bias", None) is not None:
            yield self.ours.bias, f"{self.module}.bias"


def _to_published(ours: np.ndarray) -> np.ndarray:
    """Moves the output channels of a kernel to the front, the input channels behind them."""
    if ours.ndim < 2:
        return ours
    return ours.transpose(ours.ndim - 1, ours.ndim - 2, *range(ours.ndim - 2))


def _from_published(value: np.ndarray) -> np.ndarray:
    """The way back."""
    return value if value.ndim < 2 else value.transpose(*range(2, value.ndim), 1, 0)


def read(layers: Iterable[Layer], published: Published, source: str) -> list[str]:
    """Fills our modules with published tensors.

    Everything is checked before anything is changed.

    Args:
        layers: what goes where.
        published: the mapping; may hold more than the layers need.
        source: what to call the file in messages.

    Returns:
        Sorted keys of the published tensors that were not used.

    Raises:
        UserError: a tensor is missing or has another shape.
    """
    found: list[tuple[nnx.Variable, np.ndarray]] = []
    used: set[str] = set()
    for layer in layers:
        for ours, key in layer.variables():
            if key not in published:
                raise UserError(f"{source}: {key} is missing. Does the file hold this model?")
            value = _from_published(np.asarray(published[key]))
            if value.shape != tuple(ours.shape):
                raise UserError(
                    f"{source}: {key} has shape {np.shape(published[key])}, which is "
                    f"{value.shape} here; the model needs {tuple(ours.shape)}. Stem and sizes in "
                    "the config must be those of the file."
                )
            used.add(key)
            found.append((ours, value))
    for ours, value in found:
        ours.set_value(jnp.asarray(value, ours.dtype))
    return sorted(set(published) - used)


def write(layers: Iterable[Layer]) -> dict[str, np.ndarray]:
    """Our modules' tensors as the published mapping, in NumPy."""
    published = {}
    for layer in layers:
        for ours, key in layer.variables():
            value = _to_published(np.asarray(ours[...]))
            published[key] = value.astype(np.int64) if value.dtype == np.int32 else value
    return published


def layers_of(backbone: S3D, prefix: str = "") -> list[Layer]:
    """Layers of the video network in the published order, their keys below `prefix`."""
    layers = [
        *_unit(backbone.conv1, f"{prefix}conv1"),
        *_unit(backbone.conv_2b, f"{prefix}conv_2b"),
        *_unit(backbone.conv_2c, f"{prefix}conv_2c"),
        Layer(backbone.gating.dense, f"{prefix}gating.fc"),
    ]
    for name, block in backbone.blocks.items():
        path = f"{prefix}{name}"
        for unit in ("conv_b0", "conv_b1_a", "conv_b1_b", "conv_b2_a", "conv_b2_b", "conv_b3_b"):
            layers += _unit(getattr(block, unit), f"{path}.{unit}")
        for number, gate in enumerate(block.gates):
            layers.append(Layer(gate.dense, f"{path}.gating_b{number}.fc"))
    return layers


def _unit(unit: ConvUnit, module: str) -> list[Layer]:
    layers = []
    for number, (conv, norm) in enumerate(zip(unit.convs, unit.norms, strict=True), start=1):
        layers.append(Layer(conv, f"{module}.conv{number}"))
        layers.append(Layer(norm, f"{module}.bn{number}"))
    return layers
