"""I3D: Inception-v1 for video with full 3-D convolutions."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from common.backbones.inception import InceptionV1


class I3D(InceptionV1):
    """I3D without classifier (Carreira and Zisserman, 2017, arXiv:1705.07750).

    The other video network of the MIL-NCE paper, which published no code for it: a 7x7x7
    convolution at stride 2, 3x3x3 convolutions in place of the separable ones of `S3D`, no gates,
    "SAME" padding throughout. It takes clips of any length and size.

    Args:
        convolution: "joint" or "folded", the same numbers at another speed, see
            `convolution_3d.convolve`; None takes what is quicker on the machine.
        initializer: of convolutions, "uniform" (PyTorch's default) or "kaiming_normal".
        dtype: compute dtype; None follows inputs and parameters. Norms are float32.
        remat: recompute each block in the backward pass instead of storing its activations.
        rngs: source of the initial weights.
    """

    def __init__(
        self,
        convolution: str | None = None,
        *,
        initializer: str = "uniform",
        dtype: jnp.dtype | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            lambda unit: unit(3, 64, (7, 7, 7), (2, 2, 2)),
            separable=False,
            gated=False,
            pooling="same",
            convolution=convolution,
            initializer=initializer,
            dtype=dtype,
            remat=remat,
            rngs=rngs,
        )
