"""Device augmentation: equal to the published TensorFlow versions, and a pure function per clip."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import target
from common.data import device_augment as augment
from common.errors import UserError

PACK = golden_rules.Pack("brave")

# One compilation per set of options instead of one per operation.
augment_clips = jax.jit(
    augment.augment_clips,
    static_argnames=("blur", "flip", "colour", "grey", "random_convolution", "dtype"),
)
convolve = jax.jit(augment.convolve)


def _uint8_clips(batch, size=24, frames=2, channels=3, seed=0):
    shape = (batch, frames, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _keys(batch, seed=0):
    return jax.random.split(jax.random.key(seed), batch)


# ---------------------------------------------------------------- equal to the published functions


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("case", ["blur_k4", "blur_k11", "blur_k22"])
def test_blur_equals_the_published_one(case, platform):
    image = PACK.inputs(case)["image"]
    taps = PACK.case(case)["options"]["kernel_size"]
    stored = PACK.stored(case)
    sigma_B = jnp.array([float(name.removeprefix("sigma")) for name in stored])
    video = jnp.broadcast_to(image, (len(stored), 1, *image.shape))
    with target.described(platform):
        ours = jax.jit(lambda *a: augment.gaussian_blur(*a, taps))(video, sigma_B)
    assert len(stored) == 3
    tolerance = PACK.case(case)["tolerance"]["float32"]["atol"]
    for blurred, expected in zip(ours, stored.values(), strict=True):
        np.testing.assert_allclose(blurred[0], expected, rtol=0, atol=tolerance)


def test_colour_equals_the_published_one():
    stored = PACK.stored("colour")
    draws = stored["draws"].astype(np.float32)
    video = PACK.inputs("colour")["video"]
    clips = jnp.broadcast_to(video, (len(draws), *video.shape))

    @jax.jit
    def run(clips, amounts, grey_B):
        clips = augment.adjust_colour(clips, augment.ColourDraws(*amounts))
        return jnp.where(grey_B[:, None, None, None, None], augment.to_grey(clips), clips)

    ours = run(clips, tuple(draws[:, :4].T), draws[:, 4] > 0.5)
    tolerance = PACK.case("colour")["tolerance"]["float32"]["atol"]
    for row, clip in enumerate(ours):
        np.testing.assert_allclose(clip, stored[f"out{row}"], rtol=0, atol=tolerance)


def test_random_convolution_equals_the_published_one():
    """Also that a small kernel in the middle of zeros convolves as the kernel itself."""
    stored = PACK.stored("random_convolution")
    video = PACK.inputs("random_convolution")["video"]
    kernels = np.zeros((3, 11, 11, 3, 3), np.float32)
    sizes = (1, 5, 11)
    for row, k in enumerate(sizes):
        z = golden_rules.draw(f"random_convolution/kernel{k}", PACK.seed)
        z = z.standard_normal((k, k, 3, 3)).astype(np.float32)
        middle = slice(5 - k // 2, 5 + k // 2 + 1)
        kernels[row, middle, middle] = z * np.float32(np.sqrt(2 / (3 * k * k)))
    clips = jnp.broadcast_to(video, (3, *video.shape))
    ours = convolve(clips, kernels)
    tolerance = PACK.case("random_convolution")["tolerance"]["float32"]["atol"]
    for clip, k in zip(ours, sizes, strict=True):
        np.testing.assert_allclose(clip, stored[f"kernel{k}"], rtol=0, atol=tolerance)


@pytest.mark.slow
def test_colour_equals_tensorflow_far_outside_the_unit_range():
    """The pixels between two steps may leave [0, 1]; every branch of the hue has to agree there."""
    from common.tf import tf

    generator = np.random.default_rng(0)
    video = generator.uniform(-0.3, 1.3, (2, 32, 32, 3)).astype(np.float32)
    video[:, :4] = video[:, :4, :, :1]  # grey pixels
    video[:, 4:8, :, 1] = video[:, 4:8, :, 0]  # two equal channels
    for brightness, saturation, contrast, hue in [(0.1, 1.4, 0.6, 0.2), (-0.12, 0.6, 1.4, -0.2)]:
        expected = tf.image.adjust_brightness(video, brightness)
        expected = tf.image.adjust_saturation(expected, saturation)
        expected = tf.image.adjust_contrast(expected, contrast)
        expected = tf.clip_by_value(tf.image.adjust_hue(expected, hue), 0.0, 1.0)
        amounts = [jnp.array([x], jnp.float32) for x in (brightness, saturation, contrast, hue)]
        ours = augment.adjust_colour(jnp.asarray(video)[None], augment.ColourDraws(*amounts))
        np.testing.assert_allclose(ours[0], expected.numpy(), rtol=0, atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 37),
    size=st.sampled_from([1, 3, 7, 11]),
    seed=st.integers(0, 2**16),
)
def test_convolution_of_any_shape_equals_the_definition(height, width, size, seed):
    generator = np.random.default_rng(seed)
    video = generator.normal(size=(2, 1, height, width, 3)).astype(np.float32)
    kernels = generator.normal(size=(2, size, size, 3, 2)).astype(np.float32)
    ours = convolve(jnp.asarray(video), jnp.asarray(kernels))
    pad = size // 2
    padded = np.pad(video, ((0, 0), (0, 0), (pad, pad), (pad, pad), (0, 0)))
    expected = np.zeros((2, 1, height, width, 2))
    for y in range(size):
        for x in range(size):
            part = padded[:, :, y : y + height, x : x + width]
            expected += np.einsum("bthwc,bcd->bthwd", part, kernels[:, y, x])
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


# ----------------------------------------------------------------------------------- single pieces


def test_blur_takes_the_published_number_of_taps():
    assert [augment.blur_kernel_size(width) for width in (224, 112, 64, 9)] == [23, 11, 7, 1]


def test_one_tap_leaves_the_clip_as_it_is():
    video = jnp.asarray(augment.normalise(jnp.asarray(_uint8_clips(2, size=6))))
    np.testing.assert_array_equal(augment.gaussian_blur(video, jnp.array([0.1, 2.0]), 1), video)


def test_pixels_are_scaled_to_the_unit_range():
    video = augment.normalise(jnp.array([[[[[0, 51, 255]]]]], jnp.uint8))
    np.testing.assert_allclose(video[0, 0, 0, 0], [0.0, 0.2, 1.0], atol=1e-7)
    flow = augment.normalise_flow(jnp.array([[[[[0, 255]]]]], jnp.uint8))
    np.testing.assert_allclose(flow[0, 0, 0, 0], [-1.0, 1.0], atol=1e-7)


def test_only_the_chosen_clips_are_mirrored():
    video = jnp.asarray(_uint8_clips(3, size=5))
    flipped = augment.flip_horizontally(video, jnp.array([True, False, True]))
    np.testing.assert_array_equal(flipped[0], video[0, :, :, ::-1])
    np.testing.assert_array_equal(flipped[1], video[1])
    np.testing.assert_array_equal(flipped[2], video[2, :, :, ::-1])


def test_mirrored_flow_points_the_other_way_horizontally_only():
    flow = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5, 2)), jnp.float32)
    flipped = augment.flip_flow(flow, jnp.array([True, False]))
    np.testing.assert_array_equal(flipped[0, ..., 0], -flow[0, :, :, ::-1, 0])
    np.testing.assert_array_equal(flipped[0, ..., 1], flow[0, :, :, ::-1, 1])
    np.testing.assert_array_equal(flipped[1], flow[1])


@pytest.mark.slow
def test_bfloat16_clips_are_computed_in_float32():
    """The only loss is that of the input and of the result."""
    video = augment.normalise(jnp.asarray(_uint8_clips(2))).astype(jnp.bfloat16)
    draws = augment.sample_colour(_keys(2))
    kernels = augment.sample_kernels(_keys(2))
    for function, argument in [
        (augment.adjust_colour, (draws,)),
        (functools.partial(augment.gaussian_blur, kernel_size=11), (jnp.array([0.5, 2.0]),)),
        (augment.convolve, (kernels,)),
        (augment.to_grey, ()),
    ]:
        ours = jax.jit(function)(video, *argument)
        exact = jax.jit(function)(video.astype(jnp.float32), *argument)
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_array_equal(ours, exact.astype(jnp.bfloat16))


def test_an_impossible_probability_is_refused():
    with pytest.raises(UserError, match=r"1\.5"):
        augment.augment_clips(jnp.asarray(_uint8_clips(1)), _keys(1), flip=1.5)


# -------------------------------------------------------------------------------- laws of the draws


def test_draws_have_the_published_distributions():
    keys = _keys(4000)
    sigma = np.asarray(augment.sample_sigma(keys))
    assert 0.1 <= sigma.min() < 0.11 and 1.99 < sigma.max() <= 2.0
    assert abs(sigma.mean() - 1.05) < 0.03
    draws = augment.sample_colour(keys)
    for values, (low, high) in zip(
        draws, [(-32 / 255, 32 / 255), (0.6, 1.4), (0.6, 1.4), (-0.2, 0.2)], strict=True
    ):
        values, span = np.asarray(values), high - low
        assert low - 1e-6 <= values.min() < low + 0.01 * span
        assert high - 0.01 * span < values.max() <= high + 1e-6
        assert abs(values.mean() - (low + high) / 2) < 0.03 * span
    correlation = np.corrcoef(np.stack([np.asarray(x) for x in draws]))
    assert np.abs(correlation - np.eye(4)).max() < 0.06
    for probability in (0.0, 0.2, 0.5, 0.8, 1.0):
        happened = np.asarray(augment.sample_events(keys, probability))
        assert abs(happened.mean() - probability) < (0.03 if 0 < probability < 1 else 1e-9)


def test_random_kernels_have_the_published_sizes_and_spread():
    kernels = np.asarray(augment.sample_kernels(_keys(600)))
    support = (np.abs(kernels) > 0).any(axis=(3, 4))
    sizes = support.any(axis=2).sum(axis=1)
    for size in augment.CONVOLUTION_SIZES:
        chosen = kernels[sizes == size]
        assert 60 < len(chosen) < 140  # a sixth of 600 each
        middle = slice(5 - size // 2, 5 + size // 2 + 1)
        weights = chosen[:, middle, middle]
        assert np.count_nonzero(chosen) == weights.size  # square, in the middle, full
        deviation = np.sqrt(2 / (3 * size * size))
        assert abs(weights.std() / deviation - 1) < 0.06
        assert np.abs(weights).max() <= 2.0001 * deviation / 0.8796256610342398


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(cut=st.integers(1, 3), seed=st.integers(0, 2**16))
def test_a_clip_is_augmented_the_same_in_any_batch(cut, seed):
    video, keys = jnp.asarray(_uint8_clips(4, size=16, seed=seed)), _keys(4, seed)
    run = functools.partial(augment_clips, random_convolution=True)
    whole = run(video, keys)
    parts = jnp.concatenate([run(video[:cut], keys[:cut]), run(video[cut:], keys[cut:])])
    np.testing.assert_allclose(parts, whole, rtol=0, atol=2e-6)


def test_the_same_key_gives_the_same_result_and_another_key_another():
    video = jnp.asarray(_uint8_clips(4))
    run = jax.jit(lambda v, k: augment.augment_clips(v, k, random_convolution=True))
    np.testing.assert_array_equal(run(video, _keys(4)), run(video, _keys(4)))
    same = jnp.broadcast_to(video[:1], video.shape)
    result = np.asarray(run(same, _keys(4)))
    for i in range(4):
        for j in range(i):
            assert np.abs(result[i] - result[j]).max() > 0.01


def test_all_frames_of_a_clip_are_augmented_alike():
    frame = _uint8_clips(5, frames=1)
    video = jnp.asarray(np.repeat(frame, 3, axis=1))
    result = np.asarray(augment_clips(video, _keys(5), random_convolution=True))
    for t in (1, 2):
        np.testing.assert_allclose(result[:, t], result[:, 0], rtol=0, atol=2e-6)


def test_switching_one_augmentation_off_leaves_the_draws_of_the_others():
    video, keys = jnp.asarray(_uint8_clips(16)), _keys(16)
    quiet = {"blur": False, "colour": 0.0, "grey": 0.0}
    flipped = augment_clips(video, keys, **quiet)
    plain = augment_clips(video, keys, **quiet, flip=0.0)
    blurred = augment_clips(video, keys, **(quiet | {"blur": True}))
    still = augment_clips(video, keys, **(quiet | {"blur": True}), flip=0.0)
    np.testing.assert_array_equal(plain, augment.normalise(video))
    moved = np.abs(np.asarray(flipped - plain)).max(axis=(1, 2, 3, 4)) > 0
    assert 0 < moved.sum() < 16
    np.testing.assert_array_equal(
        moved, np.abs(np.asarray(blurred - still)).max(axis=(1, 2, 3, 4)) > 0
    )


def test_the_pipeline_stays_in_the_unit_range_and_takes_the_asked_dtype():
    video = jnp.asarray(_uint8_clips(8))
    result = augment_clips(video, _keys(8), dtype=jnp.bfloat16)
    assert result.dtype == jnp.bfloat16 and result.shape == video.shape
    assert float(result.min()) >= 0.0 and float(result.max()) <= 1.0
    grey = augment_clips(video, _keys(8), grey=1.0)
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])


@pytest.mark.slow
def test_a_batch_split_over_devices_stays_split():
    """No device ever asks another for anything; run apart, since it needs four devices."""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags}
    environment["JAX_PLATFORMS"] = "cpu"
    result = subprocess.run(
        [sys.executable, "-c", _COMPILE_SPLIT], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    hlo = result.stdout
    assert "num_partitions=4" in hlo
    for collective in ("all-gather", "all-reduce", "all-to-all", "permute", "reduce-scatter"):
        assert collective not in hlo


_COMPILE_SPLIT = """
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from common.data import device_augment
from common.data.log_mel import LogMel

mesh = Mesh(jax.devices(), ("data",))
split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
log_mel = LogMel(16000)

def run(video, flow, waveform, key):
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(len(video)))
    video = device_augment.augment_clips(video, keys, random_convolution=True)
    return video, device_augment.augment_flow(flow, keys), log_mel(waveform)

shape = jax.ShapeDtypeStruct
print(jax.jit(run, out_shardings=split).lower(
    shape((8, 2, 24, 24, 3), jnp.uint8, sharding=split),
    shape((8, 2, 24, 24, 2), jnp.uint8, sharding=split),
    shape((8, 1600), jnp.int16, sharding=split),
    shape((), jax.random.key(0).dtype, sharding=whole),
).compile().as_text())
"""


def test_flow_is_scaled_and_mirrored_with_its_sign():
    flow = jnp.asarray(_uint8_clips(16, channels=2))
    result = np.asarray(augment.augment_flow(flow, _keys(16)))
    plain = np.asarray(augment.normalise_flow(flow))
    mirrored = plain[:, :, :, ::-1] * np.array([-1.0, 1.0], np.float32)
    is_plain = np.array([np.array_equal(r, p) for r, p in zip(result, plain, strict=True)])
    is_mirrored = np.array([np.array_equal(r, m) for r, m in zip(result, mirrored, strict=True)])
    assert (is_plain ^ is_mirrored).all() and is_plain.any() and is_mirrored.any()


def test_what_changes_is_one_frame_less_and_in_a_picture_nothing():
    video = jax.random.uniform(jax.random.key(0), (2, 4, 3, 3, 3))
    np.testing.assert_array_equal(augment.frame_differences(video), np.diff(video, axis=1))
    assert not augment.frame_differences(video[:, :1]).any()
    assert augment.frame_differences(video[:, :1]).shape == (2, 1, 3, 3, 3)
