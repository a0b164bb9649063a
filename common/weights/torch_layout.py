"""Weights in the layout of PyTorch's checkpoints, in and out.

PyTorch keeps a flat mapping ``{key: array}``. A list of `Layer` says which of our modules is which
of theirs; `read` and `write` do the rest. Convolutions are (O, I, kt, kh, kw) there and
(kt, kh, kw, I, O) here, those over images (O, I, kh, kw) and (kh, kw, I, O), dense layers (O, I)
and (I, O).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from common.backbones.batch_norm import BatchNorm
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
        weight = self.ours.scale if isinstance(self.ours, nnx.LayerNorm) else self.ours.kernel
        yield weight, f"{self.module}.weight"
        if getattr(self.ours, "bias", None) is not None:
            yield self.ours.bias, f"{self.module}.bias"

    def to_published(self, ours: np.ndarray) -> np.ndarray:
        """Moves the output channels of a kernel to the front, the input channels behind them."""
        if ours.ndim < 2:
            return ours
        return ours.transpose(ours.ndim - 1, ours.ndim - 2, *range(ours.ndim - 2))

    def from_published(self, value: np.ndarray) -> np.ndarray:
        """The way back."""
        return value if value.ndim < 2 else value.transpose(*range(2, value.ndim), 1, 0)


@dataclasses.dataclass(frozen=True)
class Kernel(Layer):
    """One kernel or bias; `module` is its whole key."""

    ours: nnx.Variable

    def variables(self) -> Iterator[tuple[nnx.Variable, str]]:
        """The one variable with its published key."""
        yield self.ours, self.module


@dataclasses.dataclass(frozen=True)
class Table(Kernel):
    """One variable that is no kernel, such as positions: its axes are in the published order.

    Attributes:
        leading: axes of length one that the published tensor has in front of ours.
    """

    leading: int = 0

    def to_published(self, ours: np.ndarray) -> np.ndarray:
        """Adds the leading axes."""
        return ours.reshape((1,) * self.leading + ours.shape)

    def from_published(self, value: np.ndarray) -> np.ndarray:
        """Takes the leading axes away, where they are there and of length one."""
        return value.reshape(value.shape[self.leading :]) if self._led(value) else value

    def _led(self, value: np.ndarray) -> bool:
        return value.ndim > self.leading and value.shape[: self.leading] == (1,) * self.leading


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
            value = layer.from_published(np.asarray(published[key]))
            if value.shape != tuple(ours.shape):
                raise UserError(
                    f"{source}: {key} has shape {np.shape(published[key])}, which is "
                    f"{value.shape} here; the model needs {tuple(ours.shape)}. Kind and sizes of "
                    "the network in the config must be those of the file."
                )
            if jnp.issubdtype(ours.dtype, jnp.floating) > jnp.issubdtype(value.dtype, jnp.floating):
                raise UserError(
                    f"{source}: {key} holds {value.dtype}, the model needs numbers with a "
                    "fraction; quantised weights are not read."
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
            value = layer.to_published(np.asarray(ours[...]))
            published[key] = value.astype(np.int64) if value.dtype == np.int32 else value
    return published
