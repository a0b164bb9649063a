"""Inception-v1 inflated to video: what S3D and I3D have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from common.backbones.batch_norm import BatchNorm
from common.backbones.convolution_3d import (
    CONVOLUTIONS,
    Conv3D,
    Padding,
    Phases,
    Triple,
    frame_by_frame,
    whole,
)
from common.backbones.pooling import max_pool, max_pool_of_phases
from common.backbones.resnet_blocks import spatial_mean
from common.backbones.self_gate import SelfGate
from common.errors import UserError

# Output channels of the 1x1x1 branch, of reduction and convolution of the two 3x3x3 branches, and
# of the branch behind the pool.
BLOCKS = {
    "mixed_3b": (64, 96, 128, 16, 32, 32),
    "mixed_3c": (128, 128, 192, 32, 96, 64),
    "mixed_4b": (192, 96, 208, 16, 48, 64),
    "mixed_4c": (160, 112, 224, 24, 64, 64),
    "mixed_4d": (128, 128, 256, 24, 64, 64),
    "mixed_4e": (112, 144, 288, 32, 64, 64),
    "mixed_4f": (256, 160, 320, 32, 128, 128),
    "mixed_5b": (256, 160, 320, 32, 128, 128),
    "mixed_5c": (384, 192, 384, 48, 128, 128),
}
# Size and stride of the pools, by the stage they come before.
POOLS = {
    "conv_2b": ("maxpool_2a", (1, 3, 3), (1, 2, 2)),
    "mixed_3b": ("maxpool_3a", (1, 3, 3), (1, 2, 2)),
    "mixed_4b": ("maxpool_4a", (3, 3, 3), (2, 2, 2)),
    "mixed_5b": ("maxpool_5a", (2, 2, 2), (2, 2, 2)),
}
INITIALIZERS = {
    # PyTorch's defaults: uniform within 1 / sqrt(fan-in).
    "uniform": jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    "kaiming_normal": jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal"),
}
POOLINGS = ("same", "torch")


def chosen(option: str, name: str, names: Sequence[str]) -> str:
    """Returns `name`; raises `UserError` unless it is one of `names`."""
    if name not in names:
        raise UserError(f"{option} is {name!r}; it must be one of {', '.join(map(repr, names))}.")
    return name


class ConvUnit(nnx.Module):
    """Convolution, norm and ReLU; if separable, first all of it over space, then over time."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: Triple,
        stride: Triple = (1, 1, 1),
        padding: Padding | None = None,
        *,
        separable: bool = False,
        kind: type[Conv3D] = Conv3D,
        dtype: jnp.dtype | None,
        **options,
    ):
        conv = functools.partial(kind, dtype=dtype, **options)
        if separable and size[0] > 1:
            convs = [
                conv(in_channels, out_channels, (1, *size[1:]), (1, *stride[1:])),
                conv(out_channels, out_channels, (size[0], 1, 1), (stride[0], 1, 1)),
            ]
        else:
            convs = [conv(in_channels, out_channels, size, stride, padding)]
        self.convs = nnx.List(convs)
        self.norms = nnx.List(
            [BatchNorm(out_channels, statistics="torch", dtype=dtype) for _ in convs]
        )

    def __call__(self, x_BTHWC: jax.Array, apart: bool = False) -> jax.Array | Phases:
        """Maps (B, T, H, W, C) to (B, T', H', W', C'), to phases if `apart` as `Conv3D` does."""
        x_BTHWC, norm = self._convolved(x_BTHWC, apart)
        return jax.tree.map(nnx.relu, norm(x_BTHWC))

    def gated(
        self, gate: SelfGate, x_BTHWC: jax.Array, apart: bool = False
    ) -> tuple[jax.Array | Phases, jax.Array | Phases]:
        """Does the same, and also returns what ``gate`` makes of it."""
        x_BTHWC, norm = self._convolved(x_BTHWC, apart)
        return gate.after(norm, x_BTHWC)

    def _convolved(self, x_BTHWC, apart):
        """Returns what the last norm is to normalise, and that norm."""
        *before, (last, last_norm) = zip(self.convs, self.norms, strict=True)
        for conv, norm in before:
            x_BTHWC = jax.tree.map(functools.partial(conv, apart=apart), x_BTHWC)
            x_BTHWC = jax.tree.map(nnx.relu, norm(x_BTHWC))
            apart = False  # what is so stays so
        return jax.tree.map(functools.partial(last, apart=apart), x_BTHWC), last_norm


class InceptionBlock(nnx.Module):
    """Four branches side by side, each gated if `gated`; attributes have the published names."""

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        unit: Callable[..., ConvUnit],
        *,
        separable: bool,
        gated: bool,
        rngs: nnx.Rngs,
    ):
        b0, b1_a, b1_b, b2_a, b2_b, b3_b = channels
        self.conv_b0 = unit(in_channels, b0, (1, 1, 1))
        self.conv_b1_a = unit(in_channels, b1_a, (1, 1, 1))
        self.conv_b1_b = unit(b1_a, b1_b, (3, 3, 3), separable=separable)
        self.conv_b2_a = unit(in_channels, b2_a, (1, 1, 1))
        self.conv_b2_b = unit(b2_a, b2_b, (3, 3, 3), separable=separable)
        self.conv_b3_b = unit(in_channels, b3_b, (1, 1, 1))
        widths = (b0, b1_b, b2_b, b3_b)
        self.gates = nnx.List([SelfGate(width, rngs=rngs) for width in widths] if gated else [])
        self.out_channels = sum(widths)

    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        """Maps (B, T, H, W, C) to (B, T, H, W, out_channels)."""
        pooled = max_pool(x_BTHWC, (3, 3, 3), (1, 1, 1))
        branches = [
            (self.conv_b0, x_BTHWC),
            (self.conv_b1_b, self.conv_b1_a(x_BTHWC)),
            (self.conv_b2_b, self.conv_b2_a(x_BTHWC)),
            (self.conv_b3_b, pooled),
        ]
        if self.gates:
            seen = [
                unit.gated(gate, x)[1] for gate, (unit, x) in zip(self.gates, branches, strict=True)
            ]
        else:
            seen = [unit(x) for unit, x in branches]
        return jnp.concatenate(seen, -1)


class InceptionV1(nnx.Module):
    """The network behind the stem, and how it is run; see its subclasses.

    Args:
        stem: makes `conv1`, which has 64 output channels, of a factory of `ConvUnit`.
        separable: whether 3x3x3 convolutions are made of 1x3x3 and 3x1x1.
        gated: whether feature maps are self-gated.
        pooling: where pools begin, see `max_pool`.
        convolution: see `convolve`; None takes what is quicker on the machine.
        initializer: of convolutions, "uniform" (PyTorch's default) or "kaiming_normal".
        dtype: compute dtype; None follows inputs and parameters.
        remat: recompute each block in the backward pass instead of storing its activations.
        rngs: source of the initial weights.
    """

    def __init__(
        self,
        stem: Callable[[Callable[..., ConvUnit]], ConvUnit],
        *,
        separable: bool,
        gated: bool,
        pooling: str,
        convolution: str | None,
        initializer: str,
        dtype: jnp.dtype | None,
        remat: bool,
        rngs: nnx.Rngs,
    ):
        self.pooling = chosen("pooling", pooling, POOLINGS)
        self.remat = remat
        if convolution is not None:
            chosen("convolution", convolution, CONVOLUTIONS)
        unit = functools.partial(
            ConvUnit,
            convolution=convolution,
            kernel_init=INITIALIZERS[chosen("initializer", initializer, tuple(INITIALIZERS))],
            dtype=dtype,
            rngs=rngs,
        )
        self.conv1 = stem(unit)
        self.conv_2b = unit(64, 64, (1, 1, 1))
        self.conv_2c = unit(64, 192, (3, 3, 3), separable=separable)
        self.gating = SelfGate(192, rngs=rngs) if gated else None
        channels = 192
        blocks = {}
        for name, widths in BLOCKS.items():
            blocks[name] = InceptionBlock(
                channels, widths, unit, separable=separable, gated=gated, rngs=rngs
            )
            channels = blocks[name].out_channels
        self.blocks = nnx.Dict(blocks)
        self.num_features = channels

    def _stem(self, video_BTHWC: jax.Array) -> jax.Array | Phases:
        return self._run(functools.partial(ConvUnit.__call__, apart=True), self.conv1, video_BTHWC)

    def _run(self, see: Callable, *modules_and_x: nnx.Module | jax.Array | Phases):
        """Calls `see`, whose inside the backward pass computes again if `remat`."""
        remat = nnx.remat(lambda *given: see(*given))  # which would trace options of `see`
        return (remat if self.remat else see)(*modules_and_x)

    def endpoints(self, video_BTHWC: jax.Array) -> dict[str, jax.Array]:
        """Feature maps (B, t, h, w, C) in order: "conv1", "maxpool_2a", ..., "mixed_5c"."""
        x = self._stem(video_BTHWC)
        found = {"conv1": whole(x)}
        x = self._pooled("conv_2b", x, found)
        see = functools.partial(self._run, ConvUnit.__call__, self.conv_2b)
        x = found["conv_2b"] = frame_by_frame(see, x)
        # As after the stem, a pool in space comes next, if behind a gate.
        if self.gating is None:
            x = self._run(functools.partial(ConvUnit.__call__, apart=True), self.conv_2c, x)
            found["conv_2c"] = whole(x)
        else:
            gated = functools.partial(ConvUnit.gated, apart=True)
            before, x = self._run(gated, self.conv_2c, self.gating, x)
            found |= {"conv_2c": whole(before), "gating": whole(x)}
        for name, block in self.blocks.items():
            x = self._pooled(name, x, found)
            x = found[name] = self._run(InceptionBlock.__call__, block, x)
        return found

    def _pooled(
        self, stage: str, x_BTHWC: jax.Array | Phases, found: dict[str, jax.Array]
    ) -> jax.Array:
        """What `stage` is given: behind its pool, which is added to `found`, if it has one."""
        if stage not in POOLS:
            return x_BTHWC
        name, size, stride = POOLS[stage]

        def pool(x):
            if isinstance(x, tuple):
                return max_pool_of_phases(*x)
            return max_pool(x, size, stride, self.pooling)

        found[name] = frame_by_frame(pool, x_BTHWC) if size[0] == 1 else pool(x_BTHWC)
        return found[name]

    def __call__(self, video_BTHWC: jax.Array) -> jax.Array:
        """Embeds videos (B, T, H, W, 3) with values in [0, 1] as (B, 1024), at least float32."""
        return spatial_mean(self.endpoints(video_BTHWC)["mixed_5c"])
