"""BraVe: a short clip and a broad view of the same video regress each other (arXiv:2103.16559)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from brave.loss import brave_loss
from brave.model import BraveModel
from brave.naming import NARROW, broad_views
from brave.views import BraveViews
from common.data import clip_input
from common.data.device_augment import augment_clips, augment_flow, normalise
from common.data.log_mel import LogMel
from common.errors import UserError
from common.method import AudioInput, Batch, Embeddings, Encoder, VideoInput
from common.precision import compute_dtype


class Brave:
    """The members of `common.method.Method` for BraVe."""

    title = "BraVe"

    def __init__(self, config: Any):
        """Checks the config.

        Raises:
            UserError: a setting is impossible.
        """
        if not 0.0 <= config.model.decorrelation < float("inf"):
            raise UserError(
                f"config.model.decorrelation is {config.model.decorrelation}; it must be a number "
                "of at least 0."
            )
        self._config = config
        self._dtype = compute_dtype(config.compute_dtype)
        self._broad = broad_views(config.model.broad)
        self.views = BraveViews(config)
        self._log_mel = None
        if "audio" in self._broad:
            audio = config.model.audio
            self._log_mel = LogMel(
                sample_rate=audio.sample_rate,
                mel_bins=audio.mel_bins,
                window=audio.fft_window,
                step=audio.fft_step,
            )
        # Shapes alone: finds what cannot be built before anything is allocated.
        model = nnx.eval_shape(lambda: self.build(nnx.Rngs(0)))
        self.encoders = self._encoders(model)

    def build(self, rngs: nnx.Rngs) -> BraveModel:
        """Makes all networks."""
        return BraveModel(
            self._config.model,
            rngs,
            compute_dtype=self._dtype,
            remat=self._config.remat == "block",
        )

    def augment(self, batch: Batch, keys_B: jax.Array) -> dict[str, jax.Array]:
        """Augments every view on its own; sound becomes log-mel spectrograms."""
        inputs, model = {}, self._config.model
        for number, (view, kind) in enumerate({NARROW: "video", **self._broad}.items()):
            keys_of_view_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
            if kind == "audio":
                inputs[view] = self._log_mel(batch[view])
            elif kind == "flow":
                flow_BTHWC = augment_flow(batch[view], keys_of_view_B, flip=model.flip)
                # Motion is in pixels, so it grows with the picture (DMVR does the same, but with
                # the stretch of the height for both directions).
                scale_B111C = batch[f"{view}_scale"][:, None, None, None]
                inputs[view] = jnp.clip(flow_BTHWC * scale_B111C, -1.0, 1.0)
            else:
                convolve = view != NARROW and model.video.random_convolution
                video_BTHWC = augment_clips(
                    batch[view],
                    keys_of_view_B,
                    blur=model.blur,
                    flip=model.flip,
                    random_convolution=convolve,
                )
                inputs[view] = clip_input.of(video_BTHWC, self.views.settings(view).input)
        return inputs

    def embed(self, model: BraveModel, inputs: Batch) -> Embeddings:
        """Projections and predictions of all views; see `BraveModel.__call__`."""
        return model(inputs)

    def objective(self, embeddings: Embeddings) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean of all regression terms, and the decorrelation if any; see `brave_loss`."""
        return brave_loss(embeddings, tuple(self._broad), self._config.model.decorrelation)

    def _encoders(self, model: BraveModel) -> dict[str, Encoder]:
        """The narrow video network, and the audio network where there is one."""
        settings = self._config.model
        narrow = settings.narrow
        encoders = {
            "video": Encoder(
                VideoInput(
                    num_frames=settings.evaluation_frames,
                    frame_rate=settings.frame_rate,
                    stride=narrow.stride,
                    size=narrow.size,
                ),
                model.narrow.num_features,
                lambda model, video_BTHWC: model.narrow(
                    clip_input.of(normalise(video_BTHWC), narrow.input)
                ),
            )
        }
        if self._log_mel is not None:
            encoders["audio"] = Encoder(
                AudioInput(settings.audio.num_samples, settings.audio.sample_rate),
                model.backbone("audio").num_features,
                lambda model, waveform_BN: model.backbone("audio")(self._log_mel(waveform_BN)),
            )
        return encoders
