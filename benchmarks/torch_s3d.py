"""S3D-G in PyTorch, to compare ours with: it computes what the published PyTorch code computes.

Nothing but this file needs PyTorch. Modules are named as in the published checkpoints, so that
`common.weights.s3d_layout` writes weights that load here.
"""

from __future__ import annotations

import torch
from torch import nn

from common.backbones.inception import BLOCKS, POOLS

LAYOUTS = {"default layout": torch.contiguous_format, "channels last": torch.channels_last_3d}


class _Unit(nn.Module):
    """Convolution, norm and ReLU; if separable, first all of it over space, then over time."""

    def __init__(self, in_channels, out_channels, size=(1, 1, 1), stride=1, separable=True):
        super().__init__()
        sizes = [size]
        if separable and size[0] > 1:
            sizes = [(1, *size[1:]), (size[0], 1, 1)]
        for number, size in enumerate(sizes, start=1):
            padding = tuple(k // 2 for k in size)
            conv = nn.Conv3d(in_channels, out_channels, size, stride, padding, bias=False)
            setattr(self, f"conv{number}", conv)
            setattr(self, f"bn{number}", nn.BatchNorm3d(out_channels))
            in_channels = out_channels

    def forward(self, x):
        x = torch.relu_(self.bn1(self.conv1(x)))
        return torch.relu_(self.bn2(self.conv2(x))) if hasattr(self, "conv2") else x


class _Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x):
        gate = torch.sigmoid(self.fc(x.mean((2, 3, 4))))
        return x * gate[:, :, None, None, None]


class _Block(nn.Module):
    def __init__(self, in_channels, widths):
        super().__init__()
        b0, b1_a, b1_b, b2_a, b2_b, b3_b = widths
        self.conv_b0 = _Unit(in_channels, b0)
        self.conv_b1_a = _Unit(in_channels, b1_a)
        self.conv_b1_b = _Unit(b1_a, b1_b, (3, 3, 3))
        self.conv_b2_a = _Unit(in_channels, b2_a)
        self.conv_b2_b = _Unit(b2_a, b2_b, (3, 3, 3))
        self.maxpool_b3 = _pool((3, 3, 3), (1, 1, 1))
        self.conv_b3_b = _Unit(in_channels, b3_b)
        self.gating_b0, self.gating_b1 = _Gate(b0), _Gate(b1_b)
        self.gating_b2, self.gating_b3 = _Gate(b2_b), _Gate(b3_b)
        self.out_channels = b0 + b1_b + b2_b + b3_b

    def forward(self, x):
        b0 = self.gating_b0(self.conv_b0(x))
        b1 = self.gating_b1(self.conv_b1_b(self.conv_b1_a(x)))
        b2 = self.gating_b2(self.conv_b2_b(self.conv_b2_a(x)))
        b3 = self.gating_b3(self.conv_b3_b(self.maxpool_b3(x)))
        return torch.cat((b0, b1, b2, b3), 1)


def _pool(size, stride):
    """A pool over zeros around the clip, as the published code pads."""
    around = []
    for k, s in reversed(list(zip(size, stride, strict=True))):  # PyTorch names the last axis first
        around += [(k - s) // 2, k - s - (k - s) // 2]
    pool = nn.MaxPool3d(size, stride, ceil_mode=True)
    return nn.Sequential(nn.ConstantPad3d(around, 0), pool) if any(around) else pool


class S3D(nn.Module):
    """Maps clips (B, 3, T, H, W) to features (B, 1024); the "plain" stem, "torch" pooling."""

    def __init__(self):
        super().__init__()
        self.conv1 = _Unit(3, 64, (3, 7, 7), 2, separable=False)
        self.conv_2b = _Unit(64, 64)
        self.conv_2c = _Unit(64, 192, (3, 3, 3))
        self.gating = _Gate(192)
        channels = 192
        for name, widths in BLOCKS.items():
            block = _Block(channels, widths)
            setattr(self, name, block)
            channels = block.out_channels
        for name, size, stride in POOLS.values():
            setattr(self, name, _pool(size, stride))

    def forward(self, x):
        """Runs every stage, and its pool before it."""
        x = self.conv1(x)
        for name in ("conv_2b", "conv_2c", "gating", *BLOCKS):
            if name in POOLS:
                x = getattr(self, POOLS[name][0])(x)
            x = getattr(self, name)(x)
        return x.mean((2, 3, 4))


class Runner:
    """The network and Adam in one memory layout, on one video.

    Args:
        weights: NumPy arrays in the published layout.
        video_BTHWC: float32 in [0, 1].
        direction_BD: the loss is the mean of features times it.
        layout: one of `LAYOUTS`.
        learning_rate: of Adam.
    """

    def __init__(self, weights, video_BTHWC, direction_BD, layout, learning_rate):
        memory_format = LAYOUTS[layout]
        self.model = S3D().to(memory_format=memory_format)
        self.model.load_state_dict({key: torch.tensor(x) for key, x in weights.items()})
        video_BCTHW = torch.tensor(video_BTHWC).permute(0, 4, 1, 2, 3)
        self.video_BCTHW = video_BCTHW.contiguous(memory_format=memory_format)
        self.direction_BD = torch.tensor(direction_BD)
        self.adam = torch.optim.Adam(self.model.parameters(), learning_rate)

    def forward(self):
        """Features (B, 1024) in evaluation mode."""
        self.model.eval()
        with torch.inference_mode():
            return {"features": self.model(self.video_BCTHW).numpy()}

    def train(self):
        """Loss of one training step: forward, backward and update."""
        self.model.train()
        self.adam.zero_grad()
        loss = (self.model(self.video_BCTHW) * self.direction_BD).mean()
        loss.backward()
        self.adam.step()
        return loss.item()

    def gradients(self):
        """Gradients of one training step by published key."""
        self.train()
        return {name: p.grad.numpy() for name, p in self.model.named_parameters()}
