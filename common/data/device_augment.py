"""Augmentation of whole batches of clips on the device, inside jit.

Two layers. Plain functions apply given draws and equal the published TensorFlow versions (BraVe,
Recasens et al. 2021, arXiv:2103.16559, ``augmentations.py``) to float32 rounding. Samplers make the
draws from PRNG keys, one key per clip, with the published distributions. A clip's result depends on
its pixels and its key alone: not on the batch it is in, nor on how the batch is split over devices.
The parameters of an augmentation are the same for all frames of a clip.

Every operation has the batch as a plain leading axis and nothing mixes clips, so a batch split over
devices stays split. All arithmetic is float32; a result has the dtype of the pixels it came from.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from common import target
from common.errors import UserError

# Each kind of draw has its own stream of a clip's key, so that switching one augmentation off
# leaves the draws of the others as they were.
_BLUR, _FLIP, _COLOUR_EVENT, _COLOUR, _GREY, _CONVOLUTION = range(6)

BLUR_SIGMA = (0.1, 2.0)  # pixels
CONVOLUTION_SIZES = (1, 3, 5, 7, 9, 11)  # pixels
_GREY_WEIGHTS = (0.2989, 0.5870, 0.1140)  # as tf.image.rgb_to_grayscale
# Standard deviation of a standard normal cut at +-2, by which He-normal initialisation divides.
_TRUNCATED_STD = 0.87962566103423978
# Side of the blocks of outputs in `convolve`, pixels. With kernels of 11 it means 1.7 products with
# zero for every other one, and each pixel held five times; larger blocks mean more and fewer.
_BLOCK = 8


class ColourDraws(NamedTuple):
    """What `adjust_colour` applies to each clip; all float32 of shape (B,)."""

    brightness_B: jax.Array  # added, in units of the full range
    saturation_B: jax.Array  # factor
    contrast_B: jax.Array  # factor
    hue_B: jax.Array  # added, in turns of the colour circle


# ------------------------------------------------------------------------------- given the draws


def normalise(video_BTHWC: jax.Array) -> jax.Array:
    """Scales uint8 pixels to float32 in [0, 1] (``normalize_video`` of the published code)."""
    return video_BTHWC.astype(jnp.float32) * (1.0 / 255.0)


def normalise_flow(flow_BTHWC: jax.Array) -> jax.Array:
    """Scales uint8 flow images to float32 displacements in [-1, 1] (DMVR's ``is_flow``)."""
    return flow_BTHWC.astype(jnp.float32) * (2.0 / 255.0) - 1.0


def frame_differences(video_BTHWC: jax.Array) -> jax.Array:
    """Returns what changes from each frame to the next: (B, T - 1, H, W, C), float.

    Still backgrounds become zero and motion is all that is left (the RGB difference of Wang et al.,
    2016, arXiv:1608.00859, section 3.2). Of a single picture nothing changes: one frame of zeros.
    """
    if video_BTHWC.shape[1] == 1:
        return jnp.zeros_like(video_BTHWC)
    return video_BTHWC[:, 1:] - video_BTHWC[:, :-1]


def blur_kernel_size(width: int) -> int:
    """Taps of the published blur for frames of a width in pixels: about a tenth of it, odd."""
    return 2 * (width // 10 // 2) + 1


def gaussian_blur(video_BTHWC: jax.Array, sigma_B: jax.Array, kernel_size: int) -> jax.Array:
    """Blurs every frame with its clip's Gaussian, separably, zeros beyond the border.

    Args:
      video_BTHWC: float clips.
      sigma_B: standard deviation of each clip's Gaussian in pixels, > 0.
      kernel_size: taps; an even number becomes the next odd one, as published.

    Returns:
      The blurred clips; borders are darker, since the zeros beyond them count.
    """
    radius = kernel_size // 2
    offset_K = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    weights_BK = jnp.exp(-(offset_K**2) / (2.0 * sigma_B.astype(jnp.float32)[:, None] ** 2))
    weights_BK = weights_BK / weights_BK.sum(axis=1, keepdims=True)
    blurred = _blur_axis(video_BTHWC.astype(jnp.float32), weights_BK, axis=3)
    return _blur_axis(blurred, weights_BK, axis=2).astype(video_BTHWC.dtype)


def _blur_axis(video_BTHWC: jax.Array, weights_BK: jax.Array, axis: int) -> jax.Array:
    """Correlates along one axis.

    Shifted multiply-adds, which XLA fuses into one pass: measured on a CPU this takes two thirds of
    the time of banded matrix products and a twentieth of that of a depthwise convolution. On TPUs
    the products, in float32, take a tenth of the time of the shifts.
    """
    size, taps = video_BTHWC.shape[axis], weights_BK.shape[1]
    if target.platform() == "tpu":
        tap_IO = jnp.arange(size)[:, None] - jnp.arange(size) + taps // 2
        inside_IO = (tap_IO >= 0) & (tap_IO < taps)
        band_BIO = jnp.where(inside_IO, weights_BK[:, jnp.clip(tap_IO, 0, taps - 1)], 0)
        names = {2: "bthwc,bho->btowc", 3: "bthwc,bwo->bthoc"}[axis]
        return jnp.einsum(names, video_BTHWC, band_BIO, precision=lax.Precision.HIGHEST)
    padding = [(0, 0)] * 5
    padding[axis] = (taps // 2, taps // 2)
    padded = jnp.pad(video_BTHWC, padding)
    weights = weights_BK[:, :, None, None, None, None]
    return sum(
        lax.slice_in_dim(padded, tap, tap + size, axis=axis) * weights[:, tap]
        for tap in range(taps)
    )


def flip_horizontally(video_BTHWC: jax.Array, flip_B: jax.Array) -> jax.Array:
    """Mirrors left and right in the clips where ``flip_B`` (bool) is true; any dtype."""
    return jnp.where(flip_B[:, None, None, None, None], video_BTHWC[:, :, :, ::-1], video_BTHWC)


def flip_flow(flow_BTHWC: jax.Array, flip_B: jax.Array) -> jax.Array:
    """Mirrors flow fields where ``flip_B`` is true: horizontal displacements change their sign.

    ``flow_BTHWC`` is float with the horizontal displacement as channel 0 (DMVR).
    """
    channels = flow_BTHWC.shape[-1]
    sign_C = jnp.ones((channels,), flow_BTHWC.dtype).at[0].set(-1)
    flip = flip_B[:, None, None, None, None]
    return jnp.where(flip, flow_BTHWC[:, :, :, ::-1] * sign_C, flow_BTHWC)


def adjust_colour(video_BTHWC: jax.Array, draws: ColourDraws) -> jax.Array:
    """Brightness, saturation, contrast, hue, then a clip to [0, 1]: in this, the published, order.

    Contrast is about each frame's own mean of each channel. As in the ``tf.image`` functions,
    nothing is clipped in between: saturation takes the largest channel as the value, and a pixel
    with no positive channel becomes grey.

    Args:
      video_BTHWC: float clips in [0, 1], 3 channels (red, green, blue).
      draws: one set of amounts per clip.
    """
    brightness, saturation, contrast, hue = (
        x.astype(jnp.float32)[:, None, None, None, None] for x in draws
    )
    video = video_BTHWC.astype(jnp.float32) + brightness
    video = _saturate(video, saturation)
    mean = video.mean(axis=(2, 3), keepdims=True)
    video = (video - mean) * contrast + mean
    video = _rotate_hue(video, hue[..., 0])
    return jnp.clip(video, 0.0, 1.0).astype(video_BTHWC.dtype)


def _saturate(video_BTHWC: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies HSV saturation and clips it to 1.

    With value v (the largest channel) and saturation s, scaling s by k while hue and v stay is
    x -> v + (x - v) k, so the hue need not be computed.
    """
    value, low = _extremes(video_BTHWC)
    largest = value / jnp.maximum(value - low, jnp.finfo(jnp.float32).tiny)  # 1 / s
    scale = jnp.where(value > 0, jnp.minimum(factor[..., 0], largest), 0.0)
    return value[..., None] + (video_BTHWC - value[..., None]) * scale[..., None]


def _extremes(video_BTHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Largest and smallest of three channels; a reduction over them is many times slower."""
    red, green, blue = (video_BTHWC[..., channel] for channel in range(3))
    high = jnp.maximum(jnp.maximum(red, green), blue)
    return high, jnp.minimum(jnp.minimum(red, green), blue)


def _rotate_hue(video_BTHWC: jax.Array, turns: jax.Array) -> jax.Array:
    """Adds to the HSV hue; the largest and the smallest channel value stay, negative ones too."""
    red, green, blue = (video_BTHWC[..., channel] for channel in range(3))
    high, low = _extremes(video_BTHWC)
    spread = high - low
    divisor = jnp.where(spread > 0, spread, 1.0)  # a grey pixel has hue 0
    sector = jnp.where(
        high == red,
        (green - blue) / divisor,
        jnp.where(high == green, (blue - red) / divisor + 2.0, (red - green) / divisor + 4.0),
    )
    sector = sector + 6.0 * turns
    sector = sector - 6.0 * jnp.floor(sector / 6.0)
    shares = (
        jnp.abs(sector - 3.0) - 1.0,
        2.0 - jnp.abs(sector - 2.0),
        2.0 - jnp.abs(sector - 4.0),
    )
    return jnp.stack([low + spread * jnp.clip(share, 0.0, 1.0) for share in shares], axis=-1)


def to_grey(video_BTHWC: jax.Array) -> jax.Array:
    """Replaces the 3 channels by their luma, as ``tf.image.rgb_to_grayscale``; float clips."""
    video = video_BTHWC.astype(jnp.float32)
    luma = sum(video[..., channel] * weight for channel, weight in enumerate(_GREY_WEIGHTS))
    return jnp.repeat(luma[..., None], 3, axis=-1).astype(video_BTHWC.dtype)


def convolve(video_BTHWC: jax.Array, kernels_BKKCD: jax.Array) -> jax.Array:
    """Convolves each clip's frames with its own kernel, stride 1, zeros beyond the border.

    Square blocks of outputs are computed from the larger blocks of inputs that they look at, by one
    matrix product per clip. A convolution with a kernel per clip and three channels takes three
    times as long on a CPU, leaves a matrix unit nearly idle, and its grouped form moves the batch
    into the channels, where it may not stay split over devices.

    Args:
      video_BTHWC: float clips.
      kernels_BKKCD: one kernel per clip, odd size K, from C to D channels.

    Returns:
      Clips with D channels, not clipped.
    """
    batch, time, height, width, channels = video_BTHWC.shape
    size, outputs = kernels_BKKCD.shape[1], kernels_BKKCD.shape[-1]
    down, across = -(-height // _BLOCK), -(-width // _BLOCK)
    radius, seen = size // 2, _BLOCK + size - 1  # pixels that a row of a block looks at
    rows = (radius, radius + down * _BLOCK - height)
    columns = (radius, radius + across * _BLOCK - width)
    padded = jnp.pad(video_BTHWC.astype(jnp.float32), ((0, 0), (0, 0), rows, columns, (0, 0)))
    blocks = _overlapping(_overlapping(padded, 3, across, seen), 2, down, seen)
    blocks = jnp.moveaxis(blocks, 4, 3)  # b, t, down, across, row seen, column seen, channel
    result = jnp.einsum(
        "btyxi,bij->btyxj",
        blocks.reshape(batch, time, down, across, seen * seen * channels),
        _block_matrices(kernels_BKKCD.astype(jnp.float32)),
        precision=lax.Precision.HIGHEST,  # bfloat16 products would miss float32 tolerance
    )
    result = result.reshape(batch, time, down, across, _BLOCK, _BLOCK, outputs)
    result = jnp.moveaxis(result, 4, 3)
    result = result.reshape(batch, time, down * _BLOCK, across * _BLOCK, outputs)
    return result[:, :, :height, :width].astype(video_BTHWC.dtype)


def _overlapping(array: jax.Array, axis: int, count: int, seen: int) -> jax.Array:
    """Replaces an axis by two: ``count`` blocks, and the ``seen`` entries from each one's start."""
    starts = range(0, count * _BLOCK, _BLOCK)
    blocks = [lax.slice_in_dim(array, start, start + seen, axis=axis) for start in starts]
    return jnp.stack(blocks, axis=axis)


def _block_matrices(kernels_BKKCD: jax.Array) -> jax.Array:
    """Each clip's matrix from a flat (row, column, channel) block of inputs to one of outputs."""
    batch, size, _, channels, outputs = kernels_BKKCD.shape
    seen = _BLOCK + size - 1
    tap = jnp.arange(seen)[:, None] - jnp.arange(_BLOCK)[None]  # input pixel minus output pixel
    inside = (tap >= 0) & (tap < size)
    tap = jnp.clip(tap, 0, size - 1)
    # axes: clip, row seen, row, column seen, column, input channel, output channel
    matrices = kernels_BKKCD[:, tap][:, :, :, tap]
    inside = inside[:, :, None, None] & inside
    matrices = jnp.where(inside[None, ..., None, None], matrices, 0.0)
    matrices = matrices.transpose(0, 1, 3, 5, 2, 4, 6)
    return matrices.reshape(batch, seen * seen * channels, _BLOCK * _BLOCK * outputs)


# ------------------------------------------------------------------------------- draws from keys


def _stream(keys_B: jax.Array, stream: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, stream))(keys_B)


def sample_sigma(keys_B: jax.Array, sigma_range: tuple[float, float] = BLUR_SIGMA) -> jax.Array:
    """Draws a blur's standard deviation per clip, uniform in the range (pixels); float32 (B,)."""
    low, high = sigma_range
    return jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32, low, high))(keys_B)


def sample_events(keys_B: jax.Array, probability: float) -> jax.Array:
    """Draws whether something happens to each clip; bool (B,).

    Raises:
      UserError: ``probability`` is not in [0, 1].
    """
    if not 0.0 <= probability <= 1.0:
        raise UserError(f"probability of an augmentation is {probability}; it must be in [0, 1]")
    return jax.vmap(lambda key: jax.random.uniform(key, ()) < probability)(keys_B)


def sample_colour(keys_B: jax.Array) -> ColourDraws:
    """Draws brightness +-32/255, saturation and contrast 0.6 to 1.4, hue +-0.2, all uniform."""

    def one(key: jax.Array) -> ColourDraws:
        unit = jax.random.uniform(key, (4,), jnp.float32, -1.0, 1.0)
        return ColourDraws(
            unit[0] * (32.0 / 255.0), 1.0 + 0.4 * unit[1], 1.0 + 0.4 * unit[2], 0.2 * unit[3]
        )

    return jax.vmap(one)(keys_B)


def sample_kernels(
    keys_B: jax.Array, sizes: tuple[int, ...] = CONVOLUTION_SIZES, channels: int = 3
) -> jax.Array:
    """Draws a convolution kernel per clip: a size, uniform over ``sizes``, and He-normal weights.

    The weights are a normal cut at two standard deviations, with true deviation
    sqrt(2 / (channels k k)), as the published code's initialiser makes them.

    Returns:
      float32 (B, K, K, channels, channels) with K = max(sizes): smaller kernels lie in the middle
      of zeros, which convolves the same.
    """
    largest = max(sizes)
    distance = jnp.abs(jnp.arange(largest) - largest // 2)
    distance_KK = jnp.maximum(distance[:, None], distance[None])

    def one(key: jax.Array) -> jax.Array:
        size_key, weight_key = jax.random.split(key)
        size = jnp.asarray(sizes)[jax.random.randint(size_key, (), 0, len(sizes))]
        shape = (largest, largest, channels, channels)
        weights = jax.random.truncated_normal(weight_key, -2.0, 2.0, shape, jnp.float32)
        scale = jnp.sqrt(2.0 / (channels * size * size)) / _TRUNCATED_STD
        return jnp.where((distance_KK <= size // 2)[..., None, None], weights * scale, 0.0)

    return jax.vmap(one)(keys_B)


# ------------------------------------------------------------------------------- whole pipelines


def augment_clips(
    video_BTHWC: jax.Array,
    keys_B: jax.Array,
    *,
    blur: bool = True,
    flip: float = 0.5,
    colour: float = 0.8,
    grey: float = 0.2,
    random_convolution: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """Augments RGB clips as published for BraVe: scale, blur, flip, colour, grey, convolution.

    Args:
      video_BTHWC: uint8 clips with 3 channels.
      keys_B: one PRNG key per clip. Two views of one example need keys of their own.
      blur: whether to blur, every clip with its own strength; taps by `blur_kernel_size`.
      flip: probability of mirroring left and right.
      colour: probability of `adjust_colour`.
      grey: probability of `to_grey`, drawn independently of ``colour``.
      random_convolution: whether to end with a random convolution of every clip, whose result is
        not clipped.
      dtype: of the result; everything before is float32.

    Returns:
      Clips of the same shape, in [0, 1] unless ``random_convolution``.

    Raises:
      UserError: a probability is not in [0, 1].
    """
    # Published after the blur, which is symmetric, so that only rounding tells. Before it, pixels
    # are a quarter as large and the compiler does not blur twice, for either side of the choice:
    # half the CPU time of the whole.
    video = flip_horizontally(video_BTHWC, sample_events(_stream(keys_B, _FLIP), flip))
    video = normalise(video)
    if blur:
        sigma_B = sample_sigma(_stream(keys_B, _BLUR))
        video = gaussian_blur(video, sigma_B, blur_kernel_size(video.shape[3]))
    recolour_B = sample_events(_stream(keys_B, _COLOUR_EVENT), colour)
    recoloured = adjust_colour(video, sample_colour(_stream(keys_B, _COLOUR)))
    video = jnp.where(recolour_B[:, None, None, None, None], recoloured, video)
    grey_B = sample_events(_stream(keys_B, _GREY), grey)
    video = jnp.where(grey_B[:, None, None, None, None], to_grey(video), video)
    if random_convolution:
        video = convolve(video, sample_kernels(_stream(keys_B, _CONVOLUTION)))
    return video.astype(dtype)


def augment_flow(
    flow_BTHWC: jax.Array,
    keys_B: jax.Array,
    *,
    flip: float = 0.5,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """Scales uint8 flow clips to [-1, 1] and mirrors them with probability ``flip``.

    Channel 0 is the horizontal displacement. Flow gets no other augmentation: blur and colour have
    no meaning for displacements. Raises UserError for a probability outside [0, 1].
    """
    flow = normalise_flow(flow_BTHWC)
    return flip_flow(flow, sample_events(_stream(keys_B, _FLIP), flip)).astype(dtype)
