"""What BraVe's encoders see of a record: a short narrow clip and one or several broad views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from brave.naming import NARROW, broad_views
from common.data import clip_input
from common.errors import UserError

if TYPE_CHECKING:
    import jax
    import tensorflow as tf

SYNCS = ("aligned", "independent")

# Streams of the host's randomness: every view draws its place and its window from its own.
_START, _WINDOW = 0, 1


class BraveViews:
    """The host side of BraVe (Recasens et al., 2021, arXiv:2103.16559, section 3.1).

    With ``sync="aligned"``, as in the published code, all views begin with the same frame, drawn so
    that the narrow view fits. With "independent" each view begins anywhere where it fits: better
    for broad views of pixels, which otherwise begin with the very frames of the narrow view.
    A clip that is too short for a view is repeated, sound and pictures alike.

    An example holds, by the names of the views, uint8 clips ``narrow`` and ``video`` (T, S, S, 3)
    and ``flow`` (T, S, S, 2), int16 sound ``audio`` (N,), and with each flow view ``flow_scale``
    (2,): how much the resize stretched horizontal and vertical motion.
    """

    def __init__(self, config: Any):
        """Checks the settings of the views.

        Args:
            config: a whole config; ``config.model`` and ``config.data.reduced_decode`` are used.

        Raises:
            UserError: a setting is impossible.
        """
        self._model = config.model
        self._reduced = config.data.reduced_decode
        self._kinds = {NARROW: "video", **broad_views(config.model.broad)}
        if config.model.sync not in SYNCS:
            raise UserError(
                f"config.model.sync is {config.model.sync!r}; it must be one of {', '.join(SYNCS)}."
            )
        for view in self._kinds:
            self._check_input(view)
        parts = {"video": "frames", "flow": "flow", "audio": "audio"}
        self.modalities = frozenset(parts[kind] for kind in self._kinds.values())

    def _check_input(self, view: str) -> None:
        """Checks what the network of a view is to be given of its pictures."""
        if self._kinds[view] != "video":
            return
        settings, key = self.settings(view), NARROW if view == NARROW else "video"
        frames = {f"{key}.num_frames": settings.num_frames}
        if view == NARROW:
            frames["evaluation_frames"] = self._model.evaluation_frames
        clip_input.check(key, settings.input, frames)

    def settings(self, view: str) -> Any:
        """Returns the part of the config that describes a view."""
        return self._model.narrow if view == NARROW else self._model[self._kinds[view]]

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shape and dtype of every entry of an example."""
        import jax

        entries = {}
        for view, kind in self._kinds.items():
            settings = self.settings(view)
            if kind == "audio":
                entries[view] = jax.ShapeDtypeStruct((settings.num_samples,), np.int16)
                continue
            side, channels = settings.size, 2 if kind == "flow" else 3
            shape = (settings.num_frames, side, side, channels)
            entries[view] = jax.ShapeDtypeStruct(shape, np.uint8)
            if kind == "flow":
                entries[f"{view}_scale"] = jax.ShapeDtypeStruct((2,), np.float32)
        return entries

    def example(self, record: Mapping[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Cuts all views from one parsed record; runs in tf.data."""
        from common.data import decode, sampling
        from common.tf import tf

        rate = self._model.frame_rate
        stored = record["frames"]
        available = sampling.frames_at_rate(decode.count(stored), record["frame_rate"], rate)
        common_start = self._start(NARROW, available, seed)
        example = {}
        for number, (view, kind) in enumerate(self._kinds.items()):
            seed_of_view = tf.random.experimental.stateless_fold_in(seed, number)
            start = common_start
            if self._model.sync == "independent":
                start = self._start(view, available, seed_of_view)
            if kind == "audio":
                example[view] = self._sound(view, record, start, available)
            elif kind == "flow":
                clip, scale = self._clip(view, record["flow"], record, start, seed_of_view)
                # DMVR stores motion in the first two channels of a three-channel picture.
                example[view], example[f"{view}_scale"] = clip[..., :2], scale
            else:
                example[view], _ = self._clip(view, stored, record, start, seed_of_view)
        return example

    def _start(self, view: str, available: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Draws the frame at which a view begins, among those where all of it fits."""
        from common.data import sampling
        from common.tf import tf

        settings = self.settings(view)
        if self._kinds[view] == "audio":
            seconds = settings.num_samples / settings.sample_rate
            frames, stride = max(1, round(seconds * self._model.frame_rate)), 1
        else:
            frames, stride = settings.num_frames, settings.stride
        starts = sampling.count_starts(available, frames, stride)
        return sampling.random_start(tf.random.experimental.stateless_fold_in(seed, _START), starts)

    def _clip(
        self,
        view: str,
        stored: tf.Tensor,
        record: Mapping[str, tf.Tensor],
        start: tf.Tensor,
        seed: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Decodes a random window of a view's frames; returns uint8 pixels and the stretch."""
        from common.data import decode, sampling
        from common.tf import tf

        settings = self.settings(view)
        indices_T = sampling.clip_indices(
            start,
            settings.num_frames,
            settings.stride,
            decode.count(stored),
            record["frame_rate"],
            self._model.frame_rate,
        )
        frames_T = decode.take(stored, indices_T)
        window = decode.random_window(
            decode.frame_shape(frames_T[0]),
            tf.random.experimental.stateless_fold_in(seed, _WINDOW),
        )
        clip_TSSC = decode.decode_clip(frames_T, window, settings.size, self._reduced)
        height, width = tf.cast(window[2], tf.float32), tf.cast(window[3], tf.float32)
        return clip_TSSC, settings.size / tf.stack([width, height])

    def _sound(
        self, view: str, record: Mapping[str, tf.Tensor], start: tf.Tensor, available: tf.Tensor
    ) -> tf.Tensor:
        from common.data import sampling

        settings = self.settings(view)
        return sampling.synced_waveform(
            record["waveform"],
            record["audio_rate"],
            start,
            available,
            self._model.frame_rate,
            settings.num_samples,
            settings.sample_rate,
        )
