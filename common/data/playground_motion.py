"""What happens in the playground: actions, and everything visible as a function of time.

Every clip has all attributes (place, size, opening, angle) at random values; its action moves one
of them and freezes the others at a random moment of a path drawn in the same way. A single frame
is therefore drawn from nearly the same distribution whatever the action. The two actions of a pair
are each other's time reversal: the same `Scene` with the clock turned round.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

PAIRS = (
    ("rise", "fall"),
    ("grow", "shrink"),
    ("open", "close"),
    ("clockwise", "counter-clockwise"),
    ("right", "left"),
    ("approach", "leave"),
    ("hit", "miss"),
)
"""Actions in (forward, backward) pairs. All but the last pair are time reversals; "hit" and "miss"
share the distance between the two objects at every moment and differ in whether it turns back."""

ACTIONS = tuple(action for pair in PAIRS for action in pair)
KINDS = ("ball", "box", "star", "ring", "triangle", "cross", "heart", "gear")
MATERIALS = ("wood", "metal", "glass", "stone", "rubber")

_BACKWARD = frozenset(backward for _, backward in PAIRS[:-1])
_LIVE = {"grow": "size", "shrink": "size", "open": "gap", "close": "gap"}
_LIVE |= {"clockwise": "angle", "counter-clockwise": "angle"}  # all others move the place
_PATHS = ("rise", "right", "approach", "hit", "miss")  # locomotion, in its forward form
_ATTRIBUTES = ("place", "size", "gap", "angle")
_KNOTS = 129  # of a motion profile over the clip; linear in between
_REACH = 0.68  # centres of the acting object stay within this, in half frames


@dataclasses.dataclass(frozen=True)
class Pool:
    """Numbers of the textures, backgrounds, timbres and ambiences that one split may use."""

    first: int
    count: int

    def draw(self, rng: np.random.Generator) -> int:
        """Returns one number of the pool, an int."""
        return self.first + int(rng.integers(self.count))


POOLS = {"train": Pool(0, 160), "test": Pool(160, 80)}
"""Disjoint, so that held-out clips show and sound like nothing seen in training."""


@dataclasses.dataclass(frozen=True)
class Look:
    """How one object is drawn: shape, texture number, two colours (RGB, 0-255) and outline."""

    kind: str
    texture: int
    colours: tuple[tuple[float, ...], tuple[float, ...]]
    outline: float  # grey level, 0-255


@dataclasses.dataclass(frozen=True)
class Distractor:
    """A silent object that drifts through the clip for no reason; places in half frames."""

    look: Look
    start: tuple[float, float]
    drift: tuple[float, float]  # over the whole clip
    radius: tuple[float, float]  # at the start and at the end of the clip
    angle: tuple[float, float]  # radians


@dataclasses.dataclass(frozen=True)
class Camera:
    """Drift of the camera: every pair is (value in mid-clip, change over the clip)."""

    x: tuple[float, float]
    y: tuple[float, float]
    zoom: tuple[float, float]
    roll: tuple[float, float]  # radians
    wobble: tuple[float, float, float]  # amplitude in half frames, cycles per clip, phase

    def at(self, tau_T: np.ndarray) -> dict[str, np.ndarray]:
        """Returns x, y, zoom and roll, each of shape (T,), at clip fractions ``tau_T``."""
        amplitude, cycles, phase = self.wobble
        wobble_T = amplitude * np.sin(2 * np.pi * cycles * tau_T + phase)
        linear = {
            name: getattr(self, name)[0] + getattr(self, name)[1] * (tau_T - 0.5)
            for name in ("x", "y", "zoom", "roll")
        }
        return {**linear, "x": linear["x"] + wobble_T, "y": linear["y"] - wobble_T}


@dataclasses.dataclass(frozen=True)
class Path:
    """Where the acting object goes, in half frames; y points down as in images."""

    name: str  # one of _PATHS
    start: tuple[float, float]
    vector: tuple[float, float]  # lines: from the start to the end
    partner: tuple[float, float]  # where the other object rests
    closest: float  # hit and miss: least distance of the two centres
    reach: float  # hit and miss: how far along the line it comes from
    direction: float  # hit and miss: radians

    def at(self, progress_T: np.ndarray) -> np.ndarray:
        """Returns places of shape (T, 2) at progress 0..1."""
        if self.name not in ("hit", "miss"):
            return np.array(self.start) + progress_T[:, None] * np.array(self.vector)
        along_T = self.reach * (2 * progress_T - 1)
        axis = np.array([math.cos(self.direction), math.sin(self.direction)])
        if self.name == "hit":
            offset_T2 = np.hypot(along_T, self.closest)[:, None] * axis
        else:
            across = np.array([-axis[1], axis[0]])
            offset_T2 = along_T[:, None] * axis + self.closest * across
        return np.array(self.partner) + offset_T2


@dataclasses.dataclass(frozen=True)
class Scene:
    """One event, complete: all that is seen and heard follows from it."""

    action: str
    material: str
    duration: float  # seconds
    look: Look
    partner_look: Look
    partner_radius: float
    partner_angle: float
    background: int
    background_colours: tuple[tuple[float, ...], tuple[float, ...]]
    timbre: int
    path: Path
    size: tuple[float, float]  # radius in half frames at progress 0 and 1
    gap: tuple[float, float]  # how far the halves stand apart, in radii
    angle: tuple[float, float]  # radians; positive turns are clockwise on the screen
    profile: tuple[float, ...]  # progress of the live attribute over the clip, forward
    frozen: dict[str, float]  # progress at which the other attributes stand still
    camera: Camera
    distractors: tuple[Distractor, ...]

    @property
    def live(self) -> str:
        """Name of the attribute that the action moves."""
        return _LIVE.get(self.action, "place")

    def clock(self, seconds_T: np.ndarray) -> np.ndarray:
        """Returns the fraction of the forward scene shown at a time; runs backward if it must."""
        tau_T = np.clip(np.asarray(seconds_T) / self.duration, 0.0, 1.0)
        return 1.0 - tau_T if self.action in _BACKWARD else tau_T

    def progress(self, seconds_T: np.ndarray) -> np.ndarray:
        """Returns the progress 0..1 of the live attribute, shape (T,)."""
        grid = np.linspace(0.0, 1.0, len(self.profile))
        return np.interp(self.clock(seconds_T), grid, self.profile)

    def state(self, seconds_T: np.ndarray) -> dict[str, np.ndarray]:
        """Returns place (T, 2) and radius, gap, angle (T,) of the acting object."""
        progress_T = self.progress(seconds_T)

        def of(name: str) -> np.ndarray:
            still_T = np.full_like(progress_T, self.frozen[name])
            return progress_T if name == self.live else still_T

        return {
            "place": self.path.at(of("place")),
            "radius": self.size[0] * (self.size[1] / self.size[0]) ** of("size"),
            "gap": self.gap[0] + (self.gap[1] - self.gap[0]) * of("gap"),
            "angle": self.angle[0] + (self.angle[1] - self.angle[0]) * of("angle"),
        }

    def span(self) -> tuple[float, float]:
        """Returns when the motion starts and ends, in seconds."""
        moving = np.flatnonzero(np.diff(self.profile) > 0)
        first, last = moving[0] / (_KNOTS - 1), (moving[-1] + 1) / (_KNOTS - 1)
        if self.action in _BACKWARD:
            first, last = 1.0 - last, 1.0 - first
        return first * self.duration, last * self.duration

    def impact(self) -> float | None:
        """Returns when two things meet, in seconds, or None where nothing does."""
        if self.action in ("fall", "close", "approach"):
            return self.span()[1]
        if self.action == "hit":  # at least distance, half way through
            grid = np.linspace(0.0, self.duration, len(self.profile))
            return float(np.interp(0.5, self.profile, grid))
        return None

    def release(self) -> float | None:
        """Returns when two things part, in seconds: the reversal of an impact."""
        return self.span()[0] if self.action in ("rise", "open", "leave") else None


def draw_scene(
    rng: np.random.Generator, action: str, pool: Pool, duration: float, clutter: float = 1.0
) -> Scene:
    """Draws everything about one event but its action; ``duration`` is in seconds.

    ``clutter``, 0 to 1, scales what distracts: how far the camera and the other objects move, how
    many of those there are, and down to a quarter the contrast of all textures.

    All random numbers are drawn in the same order whatever the action, so that the same generator
    with the other action of a pair gives the time-reversed clip.
    """
    # Material, kind and looks are independent of the action and of each other, except that half of
    # the time an object looks like what it is made of.
    material = MATERIALS[rng.integers(len(MATERIALS))]
    visible = MATERIALS.index(material) if rng.random() < 0.5 else None
    contrast = _contrast(clutter)
    look = _draw_look(rng, pool, visible, contrast)
    size, gap, angle = _draw_ranges(rng)
    partner_radius = rng.uniform(0.18, 0.28)
    drawn = _PATHS[rng.integers(len(_PATHS))]
    pair = next(pair for pair in PAIRS if action in pair)
    name = action if pair == PAIRS[-1] else pair[0]
    frozen = {attribute: _random_moment(rng) for attribute in _ATTRIBUTES}
    contact = math.sqrt(size[0] * size[1]) + partner_radius
    path = _draw_path(rng, name if name in _PATHS else drawn, 0.85 * contact)
    return Scene(
        action=action,
        material=material,
        duration=duration,
        look=look,
        partner_look=_draw_look(rng, pool, None, contrast),
        partner_radius=partner_radius,
        partner_angle=rng.uniform(0, 2 * np.pi),
        background=pool.draw(rng),
        background_colours=_draw_colours(rng, None, contrast),
        timbre=pool.draw(rng),
        path=path,
        size=size,
        gap=gap,
        angle=angle,
        # What rises slows down, and what falls, its reversal, speeds up.
        profile=tuple(_draw_profile(rng, gravity=pair[0] == "rise")),
        frozen=frozen,
        camera=_draw_camera(rng, clutter),
        distractors=tuple(_draw_distractor(rng, pool, clutter) for _ in range(rng.integers(1, 3)))[
            : math.ceil(2 * clutter)
        ],
    )


def _contrast(clutter: float) -> float:
    return 0.25 + 0.75 * clutter


def _draw_profile(rng: np.random.Generator, gravity: bool = False) -> np.ndarray:
    """Progress over the clip: hold, move at a varying and often pulsing speed, hold."""
    holds = rng.uniform(0.12, 0.35)
    first = holds * rng.uniform(0.2, 0.8)  # an impact at the end still has time to ring
    grid = np.linspace(0.0, 1.0, _KNOTS)
    inside = np.clip((grid - first) / (1.0 - holds), 0.0, 1.0)
    slope = rng.uniform(-1.2, 1.2)
    depth = rng.uniform(0.5, 0.9) * (rng.random() < 0.6)
    pulses, phase = rng.uniform(2.0, 6.0), rng.uniform(0, 2 * np.pi)
    if gravity:
        slope = -0.4 - abs(slope)
    fine = np.linspace(0.0, 1.0, 1025)
    speed = np.exp(slope * (fine - 0.5)) * (1 + depth * np.cos(2 * np.pi * pulses * fine + phase))
    travelled = np.concatenate([[0.0], np.cumsum((speed[1:] + speed[:-1]) / 2)])
    return np.interp(inside, fine, travelled / travelled[-1])


def _random_moment(rng: np.random.Generator) -> float:
    """Progress of an independent profile at a random time: what a random frame would show."""
    return float(np.interp(rng.random(), np.linspace(0, 1, _KNOTS), _draw_profile(rng)))


def _draw_ranges(rng: np.random.Generator) -> tuple[tuple[float, float], ...]:
    """Start and end of size (half frames), gap (radii) and angle (radians)."""
    ratio = rng.uniform(1.7, 2.4)
    small = 0.2 * (0.5 / ratio / 0.2) ** rng.random()
    shut = rng.uniform(0.0, 0.12)
    turn = rng.uniform(0, 2 * np.pi)
    return (
        (small, small * ratio),
        (shut, shut + rng.uniform(0.6, 0.9)),
        (turn, turn + rng.uniform(0.7, 1.6) * np.pi),
    )


def _draw_path(rng: np.random.Generator, name: str, closest: float) -> Path:
    """Draws a path, with all random numbers in the same order whatever its name."""
    length, reach = rng.uniform(0.7, 1.15), rng.uniform(0.55, 0.68)
    direction, diagonal = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.17)
    quadrant = rng.integers(4) * np.pi / 2
    slack_2, beside = rng.random(2), rng.uniform(closest, closest + 0.6)
    vector = {"right": (length, 0.0), "rise": (0.0, -length)}.get(name, (0.0, 0.0))
    partner_2 = beside * np.array([np.cos(direction), np.sin(direction)]) + np.array(vector) / 2
    start_2 = np.zeros(2)
    if name == "approach":  # ends where the two touch; never along an axis, unlike left or rise
        toward = np.array([np.cos(diagonal + quadrant), np.sin(diagonal + quadrant)])
        partner_2, vector = toward * (0.6 * length + closest), tuple(0.6 * length * toward)
    if name in ("hit", "miss"):
        partner_2 = np.zeros(2)
    path = Path(name, tuple(start_2), vector, tuple(partner_2), closest, reach, direction)
    # Anywhere in the frame where the whole path and the other object fit.
    places_T2 = np.vstack([path.at(np.linspace(0.0, 1.0, 33)), partner_2])
    low_2, high_2 = places_T2.min(axis=0), places_T2.max(axis=0)
    room_2 = np.maximum(2 * _REACH - (high_2 - low_2), 0.0)
    shift_2 = -(low_2 + high_2) / 2 + room_2 * (slack_2 - 0.5)
    return dataclasses.replace(
        path, start=tuple(start_2 + shift_2), partner=tuple(partner_2 + shift_2)
    )


# Two colours of hue (0-1), saturation and value for each material, as (low, high) ranges.
_MATERIAL_COLOURS = {
    0: (((0.05, 0.1), (0.5, 0.8), (0.25, 0.5)), ((0.07, 0.12), (0.4, 0.6), (0.6, 0.85))),
    1: (((0.55, 0.65), (0.0, 0.1), (0.3, 0.5)), ((0.55, 0.65), (0.0, 0.08), (0.75, 1.0))),
    2: (((0.45, 0.55), (0.2, 0.5), (0.6, 0.8)), ((0.45, 0.55), (0.05, 0.2), (0.85, 1.0))),
    3: (((0.0, 0.12), (0.0, 0.15), (0.2, 0.4)), ((0.0, 0.12), (0.05, 0.2), (0.45, 0.65))),
    4: (((0.9, 1.0), (0.7, 0.9), (0.3, 0.5)), ((0.9, 1.05), (0.8, 1.0), (0.7, 0.9))),
}


def _draw_colours(rng: np.random.Generator, material: int | None, contrast: float):
    """Two RGB colours, 0-255: any two, or those of a material, moved towards their mean."""
    anything = ((0.0, 1.0), (0.2, 1.0), (0.15, 1.0))
    ranges = (anything, anything) if material is None else _MATERIAL_COLOURS[material]
    colours = [_rgb(*(rng.uniform(*bounds) for bounds in colour)) for colour in ranges]
    mean_3 = np.mean(colours, axis=0)
    return tuple(
        tuple((contrast * np.array(c) + (1 - contrast) * mean_3).tolist()) for c in colours
    )


def _rgb(hue: float, saturation: float, value: float) -> tuple[float, ...]:
    wheel = np.abs(np.mod(hue * 6 + np.array([0.0, 4.0, 2.0]), 6) - 3) - 1
    return tuple(255 * value * (1 + saturation * (np.clip(wheel, 0, 1) - 1)))


def _draw_look(rng: np.random.Generator, pool: Pool, material: int | None, contrast: float) -> Look:
    kind = KINDS[rng.integers(len(KINDS))]
    texture, colours = pool.draw(rng), _draw_colours(rng, material, contrast)
    return Look(kind, texture, colours, outline=255.0 * float(rng.integers(2)))


def _draw_camera(rng: np.random.Generator, clutter: float) -> Camera:
    def drifting(middle: tuple[float, float], change: float) -> tuple[float, float]:
        return rng.uniform(*middle), clutter * rng.uniform(-change, change)

    return Camera(
        x=drifting((-0.1, 0.1), 0.2),
        y=drifting((-0.1, 0.1), 0.2),
        zoom=drifting((0.95, 1.05), 0.1),
        roll=drifting((-0.1, 0.1), 0.12),
        wobble=(
            clutter * rng.uniform(0.0, 0.03),
            rng.uniform(0.5, 4.0),
            rng.uniform(0, 2 * np.pi),
        ),
    )


def _draw_distractor(rng: np.random.Generator, pool: Pool, clutter: float) -> Distractor:
    radius, turn = rng.uniform(0.09, 0.15), rng.uniform(0, 2 * np.pi)
    swell, spin = clutter * rng.uniform(-0.1, 0.1), clutter * rng.uniform(-0.8, 0.8)
    drift_2 = clutter * rng.uniform(-0.25, 0.25, 2)
    start_2 = rng.uniform(-0.8, 0.8, 2) - drift_2 / 2
    return Distractor(
        look=_draw_look(rng, pool, None, _contrast(clutter)),
        start=tuple(start_2),
        drift=tuple(drift_2),
        radius=(radius * (1 - swell), radius * (1 + swell)),
        angle=(turn - spin / 2, turn + spin / 2),
    )
