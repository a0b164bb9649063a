"""Ours against PyTorch: Frozen in Time on clips with captions, the softmax loss and AdamW.

``python -m benchmarks.step --against=torch --network=frozen`` runs it. PyTorch runs with its fused
attention, and with attention written out, as in the published code. In a training step the text
network drops a tenth of its numbers; gradients are compared with nothing dropped.
"""

from __future__ import annotations

from typing import Any

from benchmarks import against_torch

NAME = "Frozen in Time"
SIZES = {"clips": 2, "frames": 4, "size": 224}
PIECES = 32  # word pieces of a caption
LEARNING_RATE, WEIGHT_DECAY = 3e-5, 0.01
TOLERANCE = {"features": 1e-4, "gradients": 1e-2}  # shares of the largest value, in float32


def runners(clips: int, frames: int, size: int) -> dict[str, against_torch.Runner]:
    """Ours, and PyTorch with both forms of attention, with the same weights.

    Args:
        clips: videos, and captions, in a batch.
        frames: of a video.
        size: height and width in pixels.
    """
    from configs import frozen_base

    config = frozen_base.get_config().model
    config.video.max_frames, config.video.grid_size = frames, size
    return of_config(config, clips, pieces=30_522)


def of_config(config: Any, clips: int, pieces: int) -> dict[str, against_torch.Runner]:
    """The same for networks of any sizes.

    Args:
        config: the keys of ``config.model`` in ``configs/frozen_base.py``.
        clips: videos, and captions, in a batch.
        pieces: rows of the table of word pieces.
    """
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from benchmarks import torch_frozen
    from common.step import example_keys
    from frozen import checkpoint_layout
    from frozen.loss import softmax_loss
    from frozen.model import FrozenModel

    def loss(model: Any, inputs: Any) -> Any:
        found = model(inputs)
        return softmax_loss(found["text"], found["video"])[0]

    video_BTHWC, ids_BL = batch(config, clips, pieces)
    still = {"video": jnp.asarray(video_BTHWC), "text": jnp.asarray(ids_BL), "dropout": None}
    ours = against_torch.Ours(
        against_torch.drawn(lambda: FrozenModel(config, pieces, nnx.Rngs(0)), gain=1),
        lambda model, inputs: model(inputs),
        loss,
        optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        checkpoint_layout.published_arrays,
        {**still, "dropout": example_keys(0, 0, clips)},
        still,
    )
    found: dict[str, against_torch.Runner] = {against_torch.OURS: ours}
    for form in torch_frozen.FORMS:
        found[f"torch, {form}"] = torch_frozen.Runner(
            torch_frozen.Frozen(config, pieces, form),
            ours.published(),
            (video_BTHWC, ids_BL),
            LEARNING_RATE,
            WEIGHT_DECAY,
        )
    return found


def batch(config: Any, clips: int, pieces: int) -> tuple[Any, Any]:
    """Noise (B, T, H, W, 3) and captions (B, `PIECES`), of which the last is half padding."""
    import numpy as np

    video, random = config.video, np.random.default_rng(0)
    shape = (clips, video.max_frames, video.grid_size, video.grid_size, 3)
    length = min(PIECES, config.text.positions)
    ids_BL = random.integers(1, pieces, (clips, length), np.int32)
    ids_BL[-1, length // 2 :] = 0
    return random.standard_normal(shape, np.float32), ids_BL
