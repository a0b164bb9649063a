"""Weights in the layout of Haiku checkpoints, in and out.

Haiku keeps parameters and state as two-level mappings ``{module path: {name: array}}``. A list of
`Layer` says which of our modules is which of theirs; `read` and `write` do the rest. The layers of
the networks that DeepMind's video models have in common are listed here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from common.backbones.batch_norm import BatchNorm
from common.backbones.inception import ConvUnit
from common.backbones.resnet_blocks import BottleneckResNet
from common.backbones.s3d import S3D
from common.errors import UserError

S3D_STEM = "Conv2d_1a_7x7"
S3D_NORM = "__cross_replica_batch_norm"

Published = Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]
"""``{"params": {module: {name: array}}, "state": {module: {name: array}}}``."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One of our modules and the published module it corresponds to.

    `leading` counts the axes of length one that a norm's tensors have in front: four after a
    convolution of videos, three of images, one after a dense layer, none elsewhere.
    """

    ours: nnx.Module
    module: str
    leading: int = 0

    def parameters(self) -> Iterator[tuple[nnx.Variable, str]]:
        """Our parameters with their published names."""
        if isinstance(self.ours, BatchNorm):
            yield self.ours.scale, "scale"
            yield self.ours.offset, "offset"
            return
        yield self.ours.kernel, "w"
        if getattr(self.ours, "bias", None) is not None:
            yield self.ours.bias, "b"

    def averages(self) -> Iterator[tuple[nnx.Variable, str]]:
        """Our running statistics with the published modules that hold them."""
        if isinstance(self.ours, BatchNorm):
            yield self.ours.mean, f"{self.module}/~/mean_ema"
            yield self.ours.var, f"{self.module}/~/var_ema"

    def published_shape(self, ours: nnx.Variable) -> tuple[int, ...]:
        """The shape that one of our tensors has in the file."""
        return (1,) * self.leading + tuple(ours.shape)


def read(layers: Iterable[Layer], published: Published, source: str) -> list[str]:
    """Fills our modules with published tensors.

    Everything is checked before anything is changed.

    Args:
        layers: what goes where.
        published: the two mappings; may hold more than the layers need.
        source: what to call the file in messages.

    Returns:
        Sorted names ``kind|module`` of the published modules that were not used.

    Raises:
        UserError: a tensor is missing or has another shape.
    """
    found: list[tuple[nnx.Variable, np.ndarray]] = []
    used: set[tuple[str, str]] = set()

    def take(kind: str, module: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
        used.add((kind, module))
        try:
            value = np.asarray(published[kind][module][name])
        except (KeyError, TypeError, IndexError, ValueError):
            raise UserError(
                f"{source}: {kind}|{module}|{name} is missing. Does the file hold this model?"
            ) from None
        if not any(jnp.issubdtype(value.dtype, kind_) for kind_ in (jnp.floating, jnp.integer)):
            raise UserError(f"{source}: {kind}|{module}|{name} is of {value.dtype}, no numbers.")
        if value.shape != shape:
            raise UserError(
                f"{source}: {kind}|{module}|{name} has shape {value.shape}, the model needs "
                f"{shape}. Width, depth and sizes in the config must be those of the file."
            )
        return value

    for layer in layers:
        for ours, name in layer.parameters():
            value = take("params", layer.module, name, layer.published_shape(ours))
            found.append((ours, value.reshape(ours.shape)))
        for ours, module in layer.averages():
            # "hidden" is the average before the correction for its start: nothing new is in it.
            value = take("state", module, "average", layer.published_shape(ours))
            found.append((ours, value.reshape(ours.shape)))
            found.append((layer.ours.count, take("state", module, "counter", ())))
    for ours, value in found:
        ours.set_value(jnp.asarray(value, ours.dtype))
    return sorted(
        f"{kind}|{module}"
        for kind in ("params", "state")
        for module in published.get(kind, {})
        if (kind, module) not in used
    )


def write(layers: Iterable[Layer]) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Our modules' tensors as the two published mappings, in NumPy."""
    published: dict[str, dict[str, dict[str, np.ndarray]]] = {"params": {}, "state": {}}
    for layer in layers:
        published["params"][layer.module] = {
            name: np.asarray(ours[...]).reshape(layer.published_shape(ours))
            for ours, name in layer.parameters()
        }
        for ours, module in layer.averages():
            average = np.asarray(ours[...]).reshape(layer.published_shape(ours))
            counter = np.asarray(layer.ours.count[...], np.int32)
            weight = 1 - np.float64(layer.ours.decay) ** counter
            published["state"][module] = {
                "average": average,
                "counter": counter,
                "hidden": (average * weight).astype(average.dtype),
            }
    return published


def tsm_resnet(trunk: BottleneckResNet, module: str) -> list[Layer]:
    """Layers of the video network of BraVe and MMV below the module path `module`."""
    root = f"{module}/TSMResNetV2"
    layers = [Layer(trunk.stem, f"{root}/tsm_resnet_stem")]
    for index, unit in enumerate(trunk.units):
        for number, block in enumerate(unit):
            path = f"{root}/tsm_resnet_unit_{index}/block_{number}"
            layers += _bottleneck(block, norms=path, convs=path)
    return [*layers, Layer(trunk.norm, f"{root}/batch_norm", 3)]


def audio_resnet(trunk: BottleneckResNet, module: str) -> list[Layer]:
    """Layers of the audio network of BraVe and MMV below the module path `module`.

    Haiku marks what a constructor makes with "~": here the convolutions, not the norms.
    """
    root = f"{module}/res_net_v2"
    layers = [Layer(trunk.stem, f"{root}/~/initial_conv")]
    for index, unit in enumerate(trunk.units):
        for number, block in enumerate(unit):
            path = f"{root}/~/block_group_{index}/block_{number}"
            layers += _bottleneck(block, norms=path, convs=f"{path}/~")
    return [*layers, Layer(trunk.norm, f"{root}/batch_norm", 3)]


def s3d(backbone: S3D, module: str, norm: str = S3D_NORM) -> list[Layer]:
    """Layers of the S3D of MMV below the module path `module`, which ends in "S3D".

    `norm` is what norms are called, which follows the class in MMV's code that made them.
    """

    def unit(ours: ConvUnit, name: str, gate: nnx.Module | None = None) -> list[Layer]:
        root, layers = f"{module}/{name}", []
        for number, (conv, batch_norm) in enumerate(zip(ours.convs, ours.norms, strict=True)):
            mark = f"_{number}" if number else ""
            layers.append(Layer(conv, f"{root}/~/conv3_d{mark}"))
            layers.append(Layer(batch_norm, f"{root}/{norm}{mark}", 4))
        return layers + ([Layer(gate.dense, f"{root}/self_gating")] if gate else [])

    layers = [
        *unit(backbone.conv1, S3D_STEM),
        *unit(backbone.conv_2b, "Conv2d_2b_1x1"),
        *unit(backbone.conv_2c, "Conv2d_2c_3x3", backbone.gating),
    ]
    for name, block in backbone.blocks.items():
        path = f"{name.capitalize()}/Branch"
        layers += unit(block.conv_b0, f"{path}_0_Conv2d_0a_1x1", block.gates[0])
        for branch in (1, 2):
            reduction, conv = (getattr(block, f"conv_b{branch}_{part}") for part in "ab")
            layers += unit(reduction, f"{path}_{branch}_Conv2d_0a_1x1")
            layers += unit(conv, f"{path}_{branch}_Conv2d_0b_3x3", block.gates[branch])
        layers += unit(block.conv_b3_b, f"{path}_3_Conv2d_0b_1x1", block.gates[3])
    return layers


def _bottleneck(block: nnx.Module, norms: str, convs: str) -> list[Layer]:
    layers = [
        Layer(block.norm_0, f"{norms}/batch_norm", 3),
        Layer(block.norm_1, f"{norms}/batch_norm_1", 3),
        Layer(block.norm_2, f"{norms}/batch_norm_2", 3),
        Layer(block.conv_0, f"{convs}/conv_0"),
        Layer(block.conv_1, f"{convs}/conv_1"),
        Layer(block.conv_2, f"{convs}/conv_2"),
    ]
    if block.shortcut_conv is not None:
        layers.append(Layer(block.shortcut_conv, f"{convs}/shortcut_conv"))
    return layers


def dense_stack(
    linears: Sequence[nnx.Linear], norms: Sequence[BatchNorm], module: str
) -> list[Layer]:
    """Dense layers and norms of one Haiku module, numbered in the order they are called."""
    layers = []
    for kind, members, leading in (("linear", linears, 0), ("batch_norm", norms, 1)):
        for index, ours in enumerate(members):
            name = kind if index == 0 else f"{kind}_{index}"
            layers.append(Layer(ours, f"{module}/{name}", leading))
    return layers


def unread(names: Sequence[str], depth: int = 1) -> dict[str, int]:
    """Counts unused modules by the first `depth` parts of their path, for a message."""
    counts: dict[str, int] = {}
    for name in names:
        top = "/".join(name.split("|", 1)[1].split("/")[:depth])
        counts[top] = counts.get(top, 0) + 1
    return counts
