"""Records of noise, for runs to which it does not matter what is seen."""

import io

import numpy as np
import PIL.Image

from common.data import records, shards


def write(path, shape, beside):
    """Writes twelve clips of coarse noise as one shard.

    Args:
        path: file to make.
        shape: of their frames, (T, H, W, 3), before pixels become eight times as large.
        beside: from number and generator of a clip to what else its record has.
    """
    generator = np.random.default_rng(0)
    with path.open("wb") as shard:
        for number in range(12):
            frames = generator.integers(0, 256, shape, np.uint8).repeat(8, 1).repeat(8, 2)
            clip = records.Clip(
                id=f"clip-{number}",
                frames_jpeg=[_jpeg(frame) for frame in frames],
                frame_rate=25.0,
                **beside(number, generator),
            )
            shard.write(shards.frame(records.serialize(clip)))


def _jpeg(frame):
    buffer = io.BytesIO()
    PIL.Image.fromarray(frame).save(buffer, "JPEG")
    return buffer.getvalue()
