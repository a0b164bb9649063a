"""Optical flow between stored frames, and how it is kept as pictures.

DMVR's convention: a three-channel JPEG whose first two channels (red, green) are the horizontal and
vertical motion and whose third is ignored; readers map uint8 to [-1, 1] by ``2 x / 255 - 1``. The
scale is that of Carreira and Zisserman (https://arxiv.org/abs/1705.07750): motion in pixels per
frame at the stored size, cut off at `PIXELS_AT_ONE` and divided by it.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from common.errors import UserError

PIXELS_AT_ONE = 20.0  # motion, pixels per frame, that is stored as 1.0
KINDS = ("none", "dis", "tvl1")

_MIN_SIDE = 16  # DIS works on patches of 8 pixels on a pyramid


def estimator(kind: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Returns a function from two uint8 (H, W) pictures to float32 (H, W, 2) motion in pixels.

    "dis" is Dense Inverse Search (https://arxiv.org/abs/1603.03590), fast; "tvl1" is TV-L1 (Zach et
    al., 2007), which published flow models were trained on, many times slower.

    Raises:
        UserError: the installed OpenCV lacks the estimator.
    """
    if kind == "dis":
        search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    elif hasattr(cv2, "optflow"):
        search = cv2.optflow.DualTVL1OpticalFlow_create()
    else:
        raise UserError(
            "--flow=tvl1 needs OpenCV's extra modules, which another package of OpenCV has "
            "replaced; pip uninstall opencv-python opencv-python-headless && pip install "
            "--force-reinstall opencv-contrib-python-headless, or use --flow=dis."
        )

    def estimate(before_HW: np.ndarray, after_HW: np.ndarray) -> np.ndarray:
        height, width = before_HW.shape
        pad = [(0, max(0, _MIN_SIDE - side)) for side in (height, width)]
        padded = [np.pad(image, pad, "edge") for image in (before_HW, after_HW)]
        return search.calc(*padded, None)[:height, :width]

    return estimate


def to_image(motion_HWC: np.ndarray) -> np.ndarray:
    """Returns the uint8 BGR (H, W, 3) picture of float32 (H, W, 2) motion in pixels."""
    scaled = np.clip(motion_HWC / PIXELS_AT_ONE, -1, 1)
    coded = np.round((scaled + 1) * 127.5).astype(np.uint8)
    neutral = np.full(coded.shape[:2], 128, np.uint8)
    return np.dstack([neutral, coded[..., 1], coded[..., 0]])
