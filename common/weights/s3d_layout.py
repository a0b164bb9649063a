"""The published S3D checkpoints: which of our modules is which of theirs."""

from __future__ import annotations

from common.backbones.inception import ConvUnit
from common.backbones.s3d import S3D
from common.weights.torch_layout import Layer


def layers_of(backbone: S3D, prefix: str = "") -> list[Layer]:
    """Layers of the video network in the published order, their keys below `prefix`."""
    layers = [
        *_unit(backbone.conv1, f"{prefix}conv1"),
        *_unit(backbone.conv_2b, f"{prefix}conv_2b"),
        *_unit(backbone.conv_2c, f"{prefix}conv_2c"),
        Layer(backbone.gating.dense, f"{prefix}gating.fc"),
    ]
    for name, block in backbone.blocks.items():
        path = f"{prefix}{name}"
        for unit in ("conv_b0", "conv_b1_a", "conv_b1_b", "conv_b2_a", "conv_b2_b", "conv_b3_b"):
            layers += _unit(getattr(block, unit), f"{path}.{unit}")
        for number, gate in enumerate(block.gates):
            layers.append(Layer(gate.dense, f"{path}.gating_b{number}.fc"))
    return layers


def _unit(unit: ConvUnit, module: str) -> list[Layer]:
    layers = []
    for number, (conv, norm) in enumerate(zip(unit.convs, unit.norms, strict=True), start=1):
        layers.append(Layer(conv, f"{module}.conv{number}"))
        layers.append(Layer(norm, f"{module}.bn{number}"))
    return layers
