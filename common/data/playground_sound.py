"""Makes the playground heard: sound that follows from what happens in a scene.

An excitation (friction, ticks, a blow) follows the motion at every moment and rings through the
modes of the object, whose frequencies fall with its size and whose ratios and decays are those of
its material (modal synthesis: van den Doel and Pai, "The sounds of physical shapes", 1998). Each
pair of actions has a way of sounding, and the two actions of a pair turn its contour round, so that
a part of a clip's picture and the whole of its sound tell of the same motion.
"""

from __future__ import annotations

import functools

import numpy as np

from common.data.playground_motion import Scene

_POOL_SEED = 30_001  # timbres and ambiences are the same in every world, like the textures
_CONTROL_RATE = 250  # Hz at which the motion is followed; linear in between
_RING_SECONDS = 0.8  # length of an object's impulse response
_LEVEL_DBFS = (-27.0, -17.0)  # loudness of a clip
_NOISE_DB = (-30.0, -6.0)  # background noise against the clip's sound

# Per material: pitch against the size, seconds until the first mode has died by 60 dB, ratios of
# the modes, how much faster high modes die, milliseconds that a blow takes.
_MATERIALS = {
    "wood": (1.0, 0.22, (1.0, 2.57, 4.2, 6.1), 0.8, 1.0),
    "metal": (1.3, 1.8, (1.0, 1.51, 2.0, 2.76, 3.9, 5.4), 0.2, 0.6),
    "glass": (2.2, 0.7, (1.0, 2.32, 4.25, 6.63), 0.5, 0.4),
    "stone": (0.8, 0.08, (1.0, 1.4, 1.9, 2.7, 3.3), 0.3, 0.8),
    "rubber": (0.5, 0.3, (1.0, 1.6, 2.2), 1.5, 6.0),
}


def synthesize(scene: Scene, num_samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the scene's own sound, float (num_samples,) of unit power, at ``rate`` Hz.

    ``rng`` gives the grain of noises; everything else follows from the scene.
    """
    heard = _Heard(scene, num_samples, rate, rng)
    dry_N, driving_N = _VOICES[scene.action](heard)
    place_N2 = heard.place_N2
    speed_N = np.hypot(*(np.gradient(place_N2[:, axis]) for axis in (0, 1))) * rate
    driving_N = driving_N + 0.05 * speed_N**1.5 * heard.noise_N  # air and ground
    for seconds, strength in ((scene.impact(), 1.0), (scene.release(), 0.3)):
        if seconds is not None:
            driving_N = driving_N + strength * heard.blow(seconds)
    sound_N = dry_N + _convolve(driving_N, heard.response())
    return sound_N / _rms(sound_N)


def finish(
    dry_N: np.ndarray,
    pool_number: int,
    rate: int,
    rng: np.random.Generator,
    clutter: float = 1.0,
) -> np.ndarray:
    """Adds background noise to sound of unit power and sets the level: returns int16 PCM (N,).

    ``pool_number`` chooses the colour of the noise; its level and the loudness are random, and the
    less ``clutter`` (0 to 1), the lower is the loudest noise: without any, all is -30 dB.
    """
    noise_N = _ambience(pool_number, len(dry_N), rate, rng)
    loudness = 10 ** (rng.uniform(*_LEVEL_DBFS) / 20)
    quiet, loud = _NOISE_DB
    ratio = 10 ** (rng.uniform(quiet, quiet + clutter * (loud - quiet)) / 20)
    mixed_N = dry_N + ratio * noise_N / _rms(noise_N)
    limited_N = np.tanh(loudness * mixed_N / _rms(mixed_N))
    return np.round(32767 * limited_N).astype(np.int16)


class _Heard:
    """The motion of one scene at audio rate, and the sounds its objects can make."""

    def __init__(self, scene: Scene, num_samples: int, rate: int, rng: np.random.Generator):
        self.scene, self.rate = scene, rate
        self.seconds_N = np.arange(num_samples) / rate
        seconds_K = np.arange(0.0, scene.duration + 2 / _CONTROL_RATE, 1 / _CONTROL_RATE)
        state = scene.state(seconds_K)
        progress_K = scene.progress(seconds_K)
        speed_K = np.abs(np.gradient(progress_K, 1 / _CONTROL_RATE))

        def fine(values_K: np.ndarray) -> np.ndarray:
            return np.interp(self.seconds_N, seconds_K, values_K)

        self.progress_N, self.speed_N = fine(progress_K), fine(speed_K)
        self.radius_N = fine(state["radius"])
        self.place_N2 = np.stack([fine(state["place"][:, axis]) for axis in (0, 1)], axis=1)
        away_K2 = state["place"] - np.array(scene.path.partner)
        self.distance_N = fine(np.hypot(away_K2[:, 0], away_K2[:, 1]))
        self.noise_N = rng.standard_normal(num_samples)
        pitch, self._decay, self._ratios, self._damping, self._blow_ms = _MATERIALS[scene.material]
        self.pitch_N = 260.0 * pitch**0.5 * (0.3 / self.radius_N)
        self._fundamental = 330.0 * pitch * 0.3 / float(np.mean(self.radius_N))

    def phase(self, hertz_N: np.ndarray) -> np.ndarray:
        """Returns cycles since the start of a sound of varying frequency."""
        return np.cumsum(hertz_N) / self.rate

    def blow(self, seconds: float) -> np.ndarray:
        """Returns the excitation of one short blow at a time; soft materials take longer."""
        late_N = self.seconds_N - seconds
        length = 1e-3 * self._blow_ms
        shape_N = np.where(late_N >= 0, np.exp(-np.maximum(late_N, 0.0) / length), 0.0)
        return 40.0 * shape_N * (0.6 + 0.4 * self.noise_N)

    def response(self) -> np.ndarray:
        """Returns the object's impulse response: its decaying modes, float (M,)."""
        rng = np.random.default_rng([_POOL_SEED, self.scene.timbre])
        seconds_M = np.arange(int(_RING_SECONDS * self.rate)) / self.rate
        decay = self._decay * rng.uniform(0.7, 1.4)
        total_M = np.zeros_like(seconds_M)
        for ratio in self._ratios:
            hertz = self._fundamental * (1 + (ratio - 1) * rng.uniform(0.93, 1.07))
            gain, damping = rng.uniform(0.4, 1.0), 6.9 / decay * ratio**self._damping
            if hertz < 0.45 * self.rate:
                wave_M = np.sin(2 * np.pi * hertz * seconds_M)
                total_M += gain * np.exp(-damping * seconds_M) * wave_M
        return total_M / np.sqrt(np.sum(total_M**2))


def _slide(heard: _Heard) -> tuple[np.ndarray, np.ndarray]:
    """Left and right: friction; the microphone stands at the right, where it is loud and bright."""
    near_N = heard.progress_N
    dull_N = np.convolve(heard.noise_N, np.ones(12) / 4, mode="same")
    grain_N = near_N * heard.noise_N + (1 - near_N) * dull_N
    friction_N = heard.speed_N * np.exp(2.5 * (near_N - 1)) * grain_N
    return 1.2 * friction_N, 0.4 * friction_N


def _whistle(heard: _Heard) -> tuple[np.ndarray, np.ndarray]:
    """Rise and fall: a whistle as high as the object stands."""
    hertz_N = 2.0 * heard.pitch_N * 2 ** (2.0 * heard.progress_N)
    tone_N = np.sin(2 * np.pi * heard.phase(hertz_N))
    return (0.2 + heard.speed_N) * _moving(heard) * tone_N, np.zeros_like(tone_N)


def _pump(heard: _Heard) -> tuple[np.ndarray, np.ndarray]:
    """Grow and shrink: a buzz that is deep and loud when the object is large."""
    cycles_N = heard.phase(0.5 * heard.pitch_N * (0.3 / heard.radius_N))
    saw_N = np.interp(np.mod(cycles_N, 1.0), *_sawtooth())
    loud_N = (0.15 + heard.speed_N) * _moving(heard) * heard.radius_N / 0.3
    return 0.8 * loud_N * saw_N, 0.1 * loud_N * heard.noise_N


def _creak(heard: _Heard) -> tuple[np.ndarray, np.ndarray]:
    """Open and close: a hinge that jerks in small steps, higher the wider it stands open."""
    strokes_N = np.mod(36.0 * heard.progress_N, 1.0)
    hertz_N = 1.5 * heard.pitch_N * 2 ** (1.6 * heard.progress_N)
    tone_N = np.sign(np.sin(2 * np.pi * heard.phase(hertz_N)))
    jerk_N = np.exp(-4.0 * strokes_N) * heard.speed_N**0.5 * _moving(heard)
    return 0.6 * jerk_N * tone_N, 0.3 * jerk_N * heard.noise_N


def _ratchet(heard: _Heard) -> tuple[np.ndarray, np.ndarray]:
    """Clockwise winds a spring and counter-clockwise lets it go: ticks climb or descend."""
    ticks_N = np.mod(11.0 * heard.progress_N, 1.0)
    hertz_N = 3.0 * heard.pitch_N * 2 ** (1.3 * heard.progress_N)
    cycles_N = 2 * np.pi * heard.phase(hertz_N)
    tick_N = np.exp(-14.0 * ticks_N) * _moving(heard)
    return tick_N * (np.sin(cycles_N) + np.sin(2.76 * cycles_N)), tick_N * heard.noise_N


def _beacon(heard: _Heard) -> tuple[np.ndarray, np.ndarray]:
    """Approach and leave: beeps that come faster the nearer the two are, like a parking aid."""
    near_N = 1 - np.clip((heard.distance_N - heard.distance_N.min()) / 0.7, 0.0, 1.0)
    beat_N = np.mod(heard.phase(2.5 * 2 ** (2.2 * near_N)), 1.0)
    tone_N = np.sin(2 * np.pi * heard.phase(3.5 * heard.pitch_N))
    return 0.7 * (beat_N < 0.4) * (0.3 + near_N) * tone_N, np.zeros_like(tone_N)


def _pass(heard: _Heard) -> tuple[np.ndarray, np.ndarray]:
    """Hit and miss: air that swells as the two come close, with the Doppler fall of a passer-by."""
    closing_N = -np.gradient(heard.distance_N) * heard.rate
    closest = heard.distance_N.min()
    near_N = (closest / heard.distance_N) ** 3
    hertz_N = 1.6 * heard.pitch_N * (1 + 0.3 * np.tanh(2 * closing_N))
    hum_N = np.interp(np.mod(heard.phase(hertz_N), 1.0), *_sawtooth())
    air_N = np.convolve(heard.noise_N, np.ones(6) / 2, mode="same")
    # After a hit the air is still: the ringing object comes back slowly, as if spent.
    spent_N = 1.0
    if heard.scene.action == "hit":
        spent_N = np.where(heard.seconds_N > heard.scene.impact(), 0.2, 1.0)
    return (0.3 + heard.speed_N) * near_N * spent_N * (air_N + 0.5 * hum_N), np.zeros_like(air_N)


_VOICES = {
    "left": _slide,
    "right": _slide,
    "rise": _whistle,
    "fall": _whistle,
    "grow": _pump,
    "shrink": _pump,
    "open": _creak,
    "close": _creak,
    "clockwise": _ratchet,
    "counter-clockwise": _ratchet,
    "approach": _beacon,
    "leave": _beacon,
    "hit": _pass,
    "miss": _pass,
}


def _moving(heard: _Heard) -> np.ndarray:
    """1 while something moves and 0 while it stands still, with soft edges."""
    return np.clip(heard.speed_N / 0.05, 0.0, 1.0)


@functools.cache
def _sawtooth() -> tuple[np.ndarray, np.ndarray]:
    """One cycle of a sawtooth of nine harmonics, for `numpy.interp`."""
    cycle = np.linspace(0.0, 1.0, 513)
    return cycle, sum(np.sin(2 * np.pi * k * cycle) / k for k in range(1, 10))


def _ambience(number: int, num_samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Background noise whose spectrum (slope, bumps and hum) belongs to ``number``."""
    shape = np.random.default_rng([_POOL_SEED, 10_000 + number])
    length = _fast_length(num_samples)
    hertz = np.maximum(np.fft.rfftfreq(length, 1 / rate), 20.0)
    gain = (hertz / 500.0) ** -shape.uniform(0.0, 1.2)
    for _ in range(shape.integers(0, 4)):
        centre, width = np.exp(shape.uniform(np.log(120), np.log(6000))), shape.uniform(0.05, 0.4)
        gain = gain + shape.uniform(0.5, 4.0) * np.exp(-((np.log(hertz / centre) / width) ** 2))
    spectrum = np.fft.rfft(rng.standard_normal(length)) * gain
    return np.fft.irfft(spectrum, length)[:num_samples]


def _convolve(signal_N: np.ndarray, response_M: np.ndarray) -> np.ndarray:
    length = _fast_length(len(signal_N) + len(response_M))
    spectrum = np.fft.rfft(signal_N, length) * np.fft.rfft(response_M, length)
    return np.fft.irfft(spectrum, length)[: len(signal_N)]


def _fast_length(at_least: int) -> int:
    """The next length of the form 2^k or 3 * 2^k, which the Fourier transform likes."""
    power = 1 << (at_least - 1).bit_length()
    return 3 * power // 4 if 3 * power // 4 >= at_least else power


def _rms(signal_N: np.ndarray) -> float:
    return float(np.sqrt(np.mean(signal_N**2)))
