"""Video files of about a second, for tests that read files."""

from __future__ import annotations

import av
import numpy as np


def write_video(path, seed=0, frames=30, sound=True, rate=25):
    """Writes an mp4 of moving noise and a tone whose pitch goes with the seed; returns its path."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (8, max(200, 80 + 2 * frames), 3), np.uint8).repeat(8, axis=0)
    with av.open(str(path), "w") as container:
        video = container.add_stream("h264", rate=rate, options={"crf": "18"})
        video.width, video.height, video.pix_fmt = 80, 64, "yuv420p"
        audio = container.add_stream("aac", rate=16000) if sound else None
        for t in range(frames):
            picture = np.ascontiguousarray(texture[:, 2 * t : 2 * t + 80])
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(video.encode())
        if sound:
            tone = np.sin(np.arange(frames * 640) * (0.1 + 0.05 * seed)).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(0.5 * tone, "fltp", "mono")
            frame.sample_rate = 16000
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return str(path)
