"""Ours against PyTorch: S3D-G on clips, with Adam.

``python -m benchmarks.step --against=torch`` runs it. PyTorch runs in both memory layouts: the
default one, which the published code uses, and the one with channels last.
"""

from __future__ import annotations

from typing import Any

from benchmarks import against_torch

NAME = "S3D-G"
SIZES = {"clips": 2, "frames": 16, "size": 112}
LEARNING_RATE = 1e-3
# Largest differences in float32, as shares of the largest value. In the gradients one value that is
# rounded to the other side of a ReLU shows; PyTorch's two layouts differ as much.
TOLERANCE = {"features": 1e-4, "gradients": 0.1}


def runners(clips: int, frames: int, size: int) -> dict[str, against_torch.Runner]:
    """Ours, and PyTorch in both layouts, with the same weights.

    Args:
        clips: videos in a batch.
        frames: of a video.
        size: height and width in pixels.
    """
    import jax.numpy as jnp
    import numpy as np
    import optax

    from benchmarks import torch_s3d

    video_BTHWC = np.random.default_rng(0).random((clips, frames, size, size, 3), np.float32)
    direction_BD = np.random.default_rng(1).standard_normal((clips, 1024), np.float32)
    inputs = {"video": jnp.asarray(video_BTHWC)}
    ours = against_torch.Ours(
        untrained(),
        lambda model, inputs: {"features": model(inputs["video"])},
        lambda model, inputs: (model(inputs["video"]) * direction_BD).mean(),
        optax.adam(LEARNING_RATE),
        published,
        inputs,
        inputs,
    )
    found: dict[str, against_torch.Runner] = {against_torch.OURS: ours}
    for layout in torch_s3d.LAYOUTS:
        found[f"torch, {layout}"] = torch_s3d.Runner(
            ours.published(), video_BTHWC, direction_BD, layout, LEARNING_RATE
        )
    return found


def untrained() -> Any:
    """An S3D with normal kernels."""
    from flax import nnx

    from common.backbones.s3d import S3D

    return against_torch.drawn(lambda: S3D(pooling="torch", rngs=nnx.Rngs(0)), gain=2)


def published(model: Any) -> against_torch.Arrays:
    """All tensors of an S3D by published name."""
    from common.weights import s3d_layout, torch_layout

    return torch_layout.write(s3d_layout.layers_of(model))
