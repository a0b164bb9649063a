"""Draws the playground: procedural textures, objects as sprites, and the frames of a scene."""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np

from common.data.playground_motion import Look, Scene

_POOL_SEED = 20_001  # textures are the same in every world; only who may use them differs
_TEXTURE = 128  # pixels of a texture
_SPRITE = 96  # pixels of a sprite, which shows an object of radius _FILL * _SPRITE / 2
_FILL = 0.86
_BACKGROUND_VIEW = 1.7  # half width of the drawn background in half frames


def render(scene: Scene, num_frames: int, frame_rate: float, size: int) -> np.ndarray:
    """Returns the frames of a scene, uint8 (num_frames, size, size, 3), RGB.

    Frame ``t`` shows the moment ``(t + 0.5) / frame_rate``, the middle of its time on the screen,
    so that a scene and its reversal have the same frames in opposite order.
    """
    seconds_T = (np.arange(num_frames) + 0.5) / frame_rate
    tau_T = scene.clock(seconds_T)
    state, camera = scene.state(seconds_T), scene.camera.at(tau_T)
    background = _background(scene, size)
    halves = [_half(_sprite(scene.look), upper) for upper in (True, False)]
    partner = _sprite(scene.partner_look)
    others = [(_sprite(d.look), d) for d in scene.distractors]
    video_THWC = np.empty((num_frames, size, size, 3), np.uint8)
    for t, tau in enumerate(tau_T):
        view = _View(*(float(camera[name][t]) for name in ("x", "y", "zoom", "roll")), size)
        frame = view.background(background)
        for sprite, other in others:
            at = [s + d * (tau - 0.5) for s, d in zip(other.start, other.drift, strict=True)]
            radius = other.radius[0] + (other.radius[1] - other.radius[0]) * tau
            angle = other.angle[0] + (other.angle[1] - other.angle[0]) * tau
            view.draw(frame, sprite, at, radius, angle)
        view.draw(frame, partner, scene.path.partner, scene.partner_radius, scene.partner_angle)
        radius, angle = float(state["radius"][t]), float(state["angle"][t])
        apart = 0.5 * radius * float(state["gap"][t])
        step_2 = apart * np.array([math.sin(angle), -math.cos(angle)])
        for half, sign in zip(halves, (1.0, -1.0), strict=True):
            view.draw(frame, half, state["place"][t] + sign * step_2, radius, angle)
        video_THWC[t] = frame
    return video_THWC


class _View:
    """Where the camera of one frame stands, and drawing as it sees things."""

    def __init__(self, x: float, y: float, zoom: float, roll: float, size: int):
        self._size, self._roll = size, roll
        self._scale = zoom * size / 2  # pixels per half frame
        cos, sin = self._scale * math.cos(roll), self._scale * math.sin(roll)
        self._matrix = np.array(
            [
                [cos, -sin, size / 2 - 0.5 - cos * x + sin * y],
                [sin, cos, size / 2 - 0.5 - sin * x - cos * y],
            ]
        )

    def background(self, picture: np.ndarray) -> np.ndarray:
        """Returns the background as float32 (size, size, 3)."""
        step = 2 * _BACKGROUND_VIEW / picture.shape[0]
        from_picture = np.array([[step, 0, -_BACKGROUND_VIEW], [0, step, -_BACKGROUND_VIEW]])
        matrix = self._matrix @ np.vstack([from_picture, [0, 0, 1]])
        shape = (self._size, self._size)
        frame = cv2.warpAffine(picture, matrix, shape, borderMode=cv2.BORDER_REFLECT_101)
        return frame.astype(np.float32)

    def draw(self, frame: np.ndarray, sprite: np.ndarray, place, radius: float, angle: float):
        """Lays a premultiplied RGBA sprite over the frame, in place."""
        x, y = self._matrix @ (place[0], place[1], 1.0)
        pixels = radius * self._scale
        reach = math.ceil(pixels) + 1  # every shape fits a circle of its radius
        left, top = max(int(x) - reach, 0), max(int(y) - reach, 0)
        right, bottom = (min(int(v) + reach + 1, self._size) for v in (x, y))
        if left >= right or top >= bottom:
            return
        scale, turn = 2 * pixels / (_FILL * _SPRITE), angle + self._roll
        cos, sin = scale * math.cos(turn), scale * math.sin(turn)
        middle = _SPRITE / 2 - 0.5
        matrix = np.array(
            [
                [cos, -sin, x - left - middle * (cos - sin)],
                [sin, cos, y - top - middle * (sin + cos)],
            ]
        )
        layer = cv2.warpAffine(sprite, matrix, (right - left, bottom - top))
        region = frame[top:bottom, left:right]
        red, green, blue, alpha = cv2.split(layer)
        through = 1.0 - alpha
        region *= cv2.merge((through, through, through))
        region += cv2.merge((red, green, blue))


def _background(scene: Scene, size: int) -> np.ndarray:
    """What is behind everything: uint8 RGB, wider than the frame."""
    pixels = int(size * _BACKGROUND_VIEW)
    picture = _paint(texture(scene.background + 10_000, 2 * _TEXTURE), scene.background_colours)
    return cv2.resize(picture.astype(np.uint8), (pixels, pixels), interpolation=cv2.INTER_LINEAR)


def _paint(grey_HW: np.ndarray, colours) -> np.ndarray:
    dark, light = (np.array(colour, np.float32) for colour in colours)
    return dark + grey_HW[..., None] * (light - dark)


def _sprite(look: Look) -> np.ndarray:
    """Premultiplied RGBA float32 (_SPRITE, _SPRITE, 4), alpha 0-1, colours 0-255."""
    alpha = _mask(look.kind)
    inside = cv2.erode(alpha, np.ones((3, 3), np.uint8), iterations=2)
    grey = texture(look.texture, _TEXTURE)[:_SPRITE, :_SPRITE]
    rgb = _paint(grey, look.colours)
    rgb = look.outline + (rgb - look.outline) * inside[..., None]
    return np.dstack([rgb * alpha[..., None], alpha]).astype(np.float32)


def _half(sprite: np.ndarray, upper: bool) -> np.ndarray:
    half, middle = np.zeros_like(sprite), _SPRITE // 2
    rows = slice(0, middle) if upper else slice(middle, None)
    half[rows] = sprite[rows]
    return half


@functools.cache
def _mask(kind: str) -> np.ndarray:
    """Shape of a kind of object, float32 (_SPRITE, _SPRITE), smooth at the edge."""
    fine = 4 * _SPRITE
    canvas = np.zeros((fine, fine), np.uint8)
    middle, radius = fine // 2, _FILL * fine / 2
    if kind in ("ball", "ring"):
        cv2.circle(canvas, (middle, middle), int(radius), 255, -1)
        if kind == "ring":
            cv2.circle(canvas, (middle, middle), int(0.45 * radius), 0, -1)
    else:
        points_N2 = middle + radius * _outline(kind)
        cv2.fillPoly(canvas, [points_N2.round().astype(np.int32)], 255)
    small = cv2.resize(canvas, (_SPRITE, _SPRITE), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255.0


def _outline(kind: str) -> np.ndarray:
    """Corners of a shape inside the unit circle, float (N, 2), y down."""
    if kind == "cross":
        arm = [-0.35 - 0.94j, 0.35 - 0.94j, 0.35 - 0.35j]
        corners = np.array([corner * 1j**turn for turn in range(4) for corner in arm])
        return np.stack([corners.real, corners.imag], axis=1)
    if kind == "heart":
        t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        x = 16 * np.sin(t) ** 3
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([x, -y - 2.5], axis=1) / 17.5
    # Radius and angle (in parts of a corner) of the points that make up one corner.
    corners, radii, parts = {
        "box": (4, (1.0,), (0.5,)),
        "triangle": (3, (1.0,), (0.0,)),
        "star": (5, (1.0, 0.42), (0.0, 0.5)),
        "gear": (8, (1.0, 1.0, 0.72, 0.72), (0.0, 0.35, 0.5, 0.85)),
    }[kind]
    angle = 2 * np.pi / corners * (np.arange(corners)[:, None] + np.array(parts)) - np.pi / 2
    points = np.array(radii)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return points.reshape(-1, 2)


@functools.cache
def texture(number: int, size: int) -> np.ndarray:
    """Returns texture ``number``: float32 (size, size), 0-1, always the same for a number."""
    rng = np.random.default_rng([_POOL_SEED, number])
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / 96.0
    angle = rng.uniform(0, np.pi)
    u = np.cos(angle) * x + np.sin(angle) * y
    v = np.cos(angle) * y - np.sin(angle) * x
    family = _FAMILIES[number % len(_FAMILIES)]
    grey = family(rng, u, v)
    grey = grey + 0.25 * (_clouds(rng, u, v) - 0.5)  # nothing is perfectly regular
    return np.clip(grey, 0.0, 1.0).astype(np.float32)


def _smooth(wave: np.ndarray, sharpness: float) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(sharpness * wave)


def _stripes(rng, u, v):
    return _smooth(np.sin(2 * np.pi * (rng.uniform(2.5, 8) * u + rng.random())), rng.uniform(1, 5))


def _checks(rng, u, v):
    waves = [np.sin(2 * np.pi * rng.uniform(1.5, 4.5) * w) for w in (u, v)]
    return _smooth(waves[0] * waves[1], rng.uniform(2, 8))


def _dots(rng, u, v):
    pitch, radius = rng.uniform(0.15, 0.4), rng.uniform(0.2, 0.42)
    distance = np.hypot(np.mod(u / pitch, 1) - 0.5, np.mod(v / pitch, 1) - 0.5)
    return _smooth(radius - distance, rng.uniform(6, 20))


def _clouds(rng, u, v):
    size = u.shape[0]
    total = np.zeros_like(u)
    for cells in (4, 8, 16, 32):
        noise = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
        total += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC) * 4.0 / cells
    return _smooth(total, 0.7)


def _bricks(rng, u, v):
    height, width = rng.uniform(0.12, 0.22), rng.uniform(0.25, 0.45)
    row = np.floor(v / height)
    joint = np.minimum(
        np.abs(np.mod(v / height, 1) - 0.5) * -height + height / 2,
        np.abs(np.mod(u / width + row / 2, 1) - 0.5) * -width + width / 2,
    )
    return _smooth(joint - 0.025, rng.uniform(40, 80))


def _rings(rng, u, v):
    distance = np.hypot(u - rng.uniform(0.1, 0.9), v - rng.uniform(-0.4, 0.8))
    return _smooth(np.sin(2 * np.pi * rng.uniform(3, 8) * distance), rng.uniform(1, 5))


def _zigzag(rng, u, v):
    pitch = rng.uniform(0.15, 0.4)
    bend = np.abs(np.mod(u / pitch, 1) - 0.5) * rng.uniform(0.6, 1.4) * pitch
    return _smooth(np.sin(2 * np.pi * rng.uniform(3, 7) * (v + bend)), rng.uniform(1, 5))


def _waves(rng, u, v):
    total = np.zeros_like(u)
    for _ in range(3):
        a, b = rng.uniform(-6, 6, 2)
        total += np.sin(2 * np.pi * (a * u + b * v + rng.random()))
    return _smooth(total, rng.uniform(0.5, 2))


_FAMILIES = (_stripes, _checks, _dots, _clouds, _bricks, _rings, _zigzag, _waves)
