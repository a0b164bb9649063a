"""The space-time transformer of Frozen in Time: a ViT whose blocks also look along time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from common import target
from common.backbones import framed_attention
from common.backbones.divided_attention import DividedAttention, Grid, class_token
from common.backbones.inception import chosen
from common.backbones.initializers import torch_linear
from common.backbones.products import affine, dense
from common.errors import UserError

# The widths, depths and patches by which ViTs are known (Dosovitskiy et al., 2020,
# arXiv:2010.11929; tiny and small: Touvron et al., 2020, arXiv:2012.12877; giant: Zhai et al.,
# 2021, arXiv:2106.04560).
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 192, "depth": 12, "heads": 3, "patch": 16},
    "small": {"width": 384, "depth": 12, "heads": 6, "patch": 16},
    "base": {"width": 768, "depth": 12, "heads": 12, "patch": 16},
    "large": {"width": 1024, "depth": 24, "heads": 16, "patch": 16},
    "huge": {"width": 1280, "depth": 32, "heads": 16, "patch": 14},
    "giant": {"width": 1408, "depth": 40, "heads": 16, "patch": 14, "mlp_ratio": 6144 / 1408},
}


@jax.custom_vjp
def _gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, of which the backward pass keeps nothing but its input."""
    wide = _wide(x)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _gelu_backward(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    wide = _wide(x)
    density = jnp.exp(-0.5 * wide * wide) * (2 * math.pi) ** -0.5
    return ((dy * (_normal_cdf(wide) + wide * density)).astype(x.dtype),)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


_gelu.defvjp(lambda x: (_gelu(x), x), _gelu_backward)

ACTIVATIONS = {
    "gelu": _gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # what OpenAI's CLIP was trained with
}
# What the dense layers of attention in time begin as; either way nothing comes out of it.
# "published": values learn through the ones, but all alike, and the gradients of queries and keys
# stay zero: from nothing it only ever learns a mean over time. "attending" can learn what to see.
TIME_STARTS: dict[str, dict[str, Callable[[jax.Array], jax.Array]]] = {
    "published": {"qkv": jnp.zeros_like, "output": jnp.ones_like},
    "attending": {"output": jnp.zeros_like},
}
_CUBIC = -0.75  # the cubic's slope at 1; PyTorch's. Others take -0.5.


def resize_positions(positions_PD: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Interpolates positions of a square grid of patches at those of another.

    Bicubic without antialiasing, as PyTorch computes it (pixel centres aligned, edges repeated)
    and as ViTs are usually run at other resolutions than they were trained at.

    Args:
        positions_PD: that of the class token, which stays, then those of patches, row by row.
        grid: rows and columns to have.

    Returns:
        (1 + rows * columns, D), in the same dtype.
    """
    old = round((len(positions_PD) - 1) ** 0.5)
    if grid == (old, old):
        return positions_PD
    rows, columns = (jnp.asarray(_cubic_weights(old, new), positions_PD.dtype) for new in grid)
    square_RCD = positions_PD[1:].reshape(old, old, -1)
    exact = jax.lax.Precision.HIGHEST
    resized_RCD = jnp.einsum("rp,cq,pqd->rcd", rows, columns, square_RCD, precision=exact)
    return jnp.concatenate([positions_PD[:1], resized_RCD.reshape(-1, positions_PD.shape[1])])


def _cubic_weights(old: int, new: int) -> np.ndarray:
    """The (new, old) matrix of cubic convolution (Keys, 1981)."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centre).astype(int) - 1
    weights = np.zeros((new, old))
    for tap in range(4):
        x = np.abs(centre - first - tap)
        near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
        far = ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC
        at = np.clip(first + tap, 0, old - 1)
        np.add.at(weights, (np.arange(new), at), np.where(x <= 1, near, far))
    return weights


class PatchEmbedding(nnx.Module):
    """A convolution over each frame whose stride is its size, begun as PyTorch's."""

    def __init__(self, patch: int, width: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        self.patch, self.dtype = patch, dtype
        layer = torch_linear(patch * patch * 3, width, rngs=rngs)
        self.kernel = nnx.Param(layer.kernel[...].reshape(patch, patch, 3, width))
        self.bias = nnx.Param(layer.bias[...])

    def __call__(self, video_BTHWC: jax.Array) -> jax.Array:
        """Maps (B, F, H, W, 3) to (B, F * N, D), rows of patches one after the other."""
        batch, frames, height, width, _ = video_BTHWC.shape
        size, kernel = self.patch, self.kernel[...]
        cut = video_BTHWC.reshape(batch, frames, height // size, size, width // size, size, 3)
        patches_BPI = cut.transpose(0, 1, 2, 4, 3, 5, 6).reshape(batch, -1, size * size * 3)
        operands = patches_BPI, kernel.reshape(-1, kernel.shape[-1]), self.bias[...]
        return affine(*nnx.nn.dtypes.promote_dtype(operands, dtype=self.dtype))


class Block(nnx.Module):
    """Attention in time, in space, and a perceptron (Bain et al., 2021, arXiv:2104.00650).

    Unlike in TimeSformer, the sum after both attentions begins from the block's input: what was
    seen in time goes on only through what is then seen in space. Attention in time begins as
    nothing, in one of the ways of `TIME_STARTS`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        *,
        activation: str,
        eps: float,
        time_start: str,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        norm = functools.partial(_norm, width, eps, dtype)
        self.time_norm, self.space_norm, self.mlp_norm = norm(), norm(), norm()
        self.time = DividedAttention("time", width, heads, dtype=dtype, rngs=rngs)
        for layer, start in TIME_STARTS[time_start].items():
            dense_layer = getattr(self.time, layer)
            dense_layer.kernel.set_value(start(dense_layer.kernel[...]))
            dense_layer.bias.set_value(jnp.zeros_like(dense_layer.bias[...]))
        self.space = DividedAttention("space", width, heads, dtype=dtype, rngs=rngs)
        hidden = round(width * mlp_ratio)
        self.mlp_in = torch_linear(width, hidden, dtype=dtype, rngs=rngs)
        self.mlp_out = torch_linear(hidden, width, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x_BMD: jax.Array, grid: Grid, real_BF: jax.Array | None = None) -> jax.Array:
        """Maps tokens, laid out as `DividedAttention` takes them, to as many.

        Args:
            x_BMD: tokens, patches frame by frame.
            grid: F frames of N patches.
            real_BF: which frames are there; no token sees the others. None: all are.
        """
        y_BMD = x_BMD + self.space(self._in_time(x_BMD, grid, real_BF), grid, real_BF)
        return y_BMD + self._perceptron(y_BMD)

    def class_token(
        self, x_BMD: jax.Array, grid: Grid, real_BF: jax.Array | None = None
    ) -> jax.Array:
        """The class token of the result alone, (B, 1, D), for the work of about 0.4 blocks."""
        seen_BMD = self._in_time(x_BMD, grid, real_BF)
        y_B1D = class_token(x_BMD, grid) + self.space.class_token(seen_BMD, grid, real_BF)
        return y_B1D + self._perceptron(y_B1D)

    def _in_time(self, x_BMD, grid, real_BF):
        time_BMD = self.time(self.time_norm(x_BMD), grid, real_BF)
        return self.space_norm(x_BMD + time_BMD)

    def _perceptron(self, x_BMD: jax.Array) -> jax.Array:
        hidden = ACTIVATIONS[self.activation](dense(self.mlp_in, self.mlp_norm(x_BMD)))
        return dense(self.mlp_out, hidden)


class _Norm(nnx.LayerNorm):
    """A layer norm, of which the backward pass keeps nothing as large as its input but that."""

    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D, bias_D = self.scale[...], self.bias[...]
        dtype = nnx.nn.dtypes.canonicalize_dtype(x, scale_D, bias_D, dtype=self.dtype)
        return _normalised(x, scale_D, bias_D, self.epsilon).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalised(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, eps: float) -> jax.Array:
    return _norm_forward(x, scale_D, bias_D, eps)[0]


def _norm_forward(x, scale_D, bias_D, eps):
    wide = _wide(x)
    # Statistics in two passes: in one, float32 loses them where the mean is large.
    mean = wide.mean(-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + eps)
    return (wide - mean) * factor * scale_D + bias_D, (x, scale_D, mean, factor)


def _norm_backward(eps, kept, dy):
    x, scale_D, mean, factor = kept
    y = (x - mean) * factor  # before scale and bias
    dy_scaled = dy * scale_D
    along_y = (dy_scaled * y).mean(-1, keepdims=True)
    dx = factor * (dy_scaled - dy_scaled.mean(-1, keepdims=True) - y * along_y)
    rows = tuple(range(x.ndim - 1))
    of_scale_and_bias = ((dy * y).sum(rows), dy.sum(rows))
    return dx.astype(x.dtype), *(x_D.astype(scale_D.dtype) for x_D in of_scale_and_bias)


_normalised.defvjp(_norm_forward, _norm_backward)


def _norm(width: int, eps: float, dtype: jnp.dtype | None) -> nnx.LayerNorm:
    return _Norm(width, epsilon=eps, dtype=dtype, rngs=nnx.Rngs(0))


def _check_multiple(name: str, value: int, unit: str, part: int) -> None:
    if value % part:
        raise UserError(
            f"{name}={value} cannot be divided by {unit}={part}. Choose a multiple of it, such as "
            f"{name}={max(value // part, 1) * part}."
        )


class SpaceTimeTransformer(nnx.Module):
    """The video network of Frozen in Time (Bain et al., 2021, arXiv:2104.00650).

    A ViT over the patches of all frames and one class token, whose blocks attend in time and in
    space. With the weights of an image ViT and a fresh attention in time, an image gives what it
    gives there; equal frames do not, as the class token sees each patch once in every frame.

    Other image networks differ in few respects: Hugging Face's ViT has `eps` 1e-12, OpenAI's CLIP
    `pre_norm`, "quick_gelu" and 1e-5.

    Args:
        size: height and width in pixels at which `positions` has one row for every patch; frames
            may have other ones, at which positions are interpolated, see `resize_positions`.
        patch: side of patches, in pixels.
        width, depth, heads: numbers per token, blocks, and heads of attention.
        mlp_ratio: hidden units of the perceptrons over `width`.
        num_frames: how many frames clips may have.
        activation: of the perceptrons, "gelu" (the exact one) or "quick_gelu".
        pre_norm: whether tokens are normalised before the first block.
        eps: of norms.
        time_start: how attention in time begins, see `TIME_STARTS`.
        dtype: compute dtype; None follows inputs and parameters. Norms and softmax are float32.
        remat: recompute each block in the backward pass instead of storing its activations.
        rngs: source of the initial weights.

    Raises:
        UserError: `size` is no multiple of `patch`, or `width` none of `heads`.
    """

    def __init__(
        self,
        *,
        size: int = 224,
        patch: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        num_frames: int = 4,
        activation: str = "gelu",
        pre_norm: bool = False,
        eps: float = 1e-6,
        time_start: str = "published",
        dtype: jnp.dtype | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        _check_multiple("size", size, "patch", patch)
        _check_multiple("width", width, "heads", heads)
        chosen("activation", activation, tuple(ACTIVATIONS))
        chosen("time_start", time_start, tuple(TIME_STARTS))
        self.num_features, self.num_frames, self.remat = width, num_frames, remat
        self.patches = PatchEmbedding(patch, width, dtype=dtype, rngs=rngs)
        normal = functools.partial(jax.random.normal, dtype=jnp.float32)
        self.class_D = nnx.Param(0.02 * normal(rngs.params(), (width,)))
        rows = 1 + (size // patch) ** 2
        self.positions = nnx.Param(0.02 * normal(rngs.params(), (rows, width)))
        self.times = nnx.Param(jnp.zeros((num_frames, width), jnp.float32))
        self.pre_norm = _norm(width, eps, dtype) if pre_norm else None
        block = functools.partial(
            Block, width, heads, mlp_ratio,
            activation=activation, eps=eps, time_start=time_start, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.blocks = nnx.List([block() for _ in range(depth)])
        self.norm = _norm(width, eps, dtype)

    def tokens(self, video_BTHWC: jax.Array) -> jax.Array:
        """The tokens (B, 1 + F * N, D) that enter the first block: the class token, then patches.

        Args:
            video_BTHWC: (B, F, H, W, 3), normalised.

        Raises:
            UserError: there are more frames than `num_frames`, or patches do not divide H and W.
        """
        batch, frames, height, width, _ = video_BTHWC.shape
        size = self.patches.patch
        if frames > self.num_frames:
            raise UserError(
                f"A clip of {frames} frames meets a network that knows num_frames="
                f"{self.num_frames}. Take fewer frames, or build it with num_frames={frames}; "
                "weights of another number can be read."
            )
        if height % size or width % size:
            raise UserError(
                f"Frames of {height}x{width} pixels cannot be cut into patches of {size}x{size}. "
                f"Both sides must be multiples of {size}."
            )
        x_BPD = self.patches(video_BTHWC)
        positions_PD = resize_positions(self.positions[...], (height // size, width // size))
        where_FND = self.times[:frames, None] + positions_PD[1:]
        x_BPD += where_FND.reshape(1, -1, self.num_features).astype(x_BPD.dtype)
        class_D = (self.class_D[...] + positions_PD[0]).astype(x_BPD.dtype)
        class_B1D = jnp.broadcast_to(class_D, (batch, 1, self.num_features))
        x_BMD = jnp.concatenate([class_B1D, x_BPD], 1)
        return x_BMD if self.pre_norm is None else self.pre_norm(x_BMD)

    def __call__(self, video_BTHWC: jax.Array, frames_B: jax.Array | None = None) -> jax.Array:
        """Embeds clips as their class tokens after the last norm, (B, D), at least float32.

        Args:
            video_BTHWC: (B, F, H, W, 3), normalised; an image is a clip of one frame.
            frames_B: int32, how many frames of each clip are real, at least 1; those after them
                are padding, whatever they hold. None: all are real.

        Raises:
            UserError: as `tokens`.
        """
        batch, frames = video_BTHWC.shape[:2]
        real_BF = None
        if frames_B is not None:
            real_BF = jnp.arange(frames) < frames_B[:, None]
            # Weights of padding are zero, but zero times what is not a number is not zero.
            video_BTHWC = jnp.where(real_BF[..., None, None, None], video_BTHWC, 0)
        x_BMD = self.tokens(video_BTHWC)
        grid = Grid(frames, (x_BMD.shape[1] - 1) // frames)
        if target.platform() == "tpu":
            x_BMD = framed_attention.from_tokens(x_BMD, frames)
        for block in self.blocks[:-1]:
            x_BMD = self._run(Block.__call__, block, x_BMD, grid, real_BF)
        class_B1D = self._run(Block.class_token, self.blocks[-1], x_BMD, grid, real_BF)
        y_BD = self.norm(class_B1D)[:, 0]
        return _wide(y_BD)

    def _run(self, part, block: Block, x_BMD: jax.Array, grid: Grid, real_BF) -> jax.Array:
        run = lambda block, x_BMD: part(block, x_BMD, grid, real_BF)  # noqa: E731
        return (nnx.remat(run) if self.remat else run)(block, x_BMD)
