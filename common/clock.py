"""Where a run's time goes: parts of the step, speed, utilisation, time left."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

# What a step is made of, and what a process that is in it is doing.
PARTS = {
    "data": "waiting for its batch",
    "device": "on the devices",
    "save": "saving",
    "evaluate": "validating",
}

# Dense bfloat16 peak per JAX device in FLOP/s, by the beginning of its `device_kind`; the longest
# match counts. TPU: cloud.google.com/tpu/docs (a v2, v3 or TPU7x device is one of a chip's two
# cores); v4i of Jouppi et al., 2021 (ISCA). NVIDIA: the data sheets of the products, without
# sparsity; where they give only a float16 peak (V100, T4), that.
PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A100": 312e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA H200 NVL": 835.5e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "Tesla T4": 65e12,
    "Tesla V100": 125e12,
    "Tesla V100-PCIE": 112e12,
}
# What follows the name of a chip where it is a share of it (MIG) or another chip (a GeForce's).
_OTHER_CHIPS = ("MIG", "Laptop", "D")


def peak_flops(device_kind: str) -> float | None:
    """Returns the dense bfloat16 peak of one device in FLOP/s; None where it is not known."""
    if any(f" {word} " in f"{device_kind} " for word in _OTHER_CHIPS):
        return None
    known = [name for name in PEAK_FLOPS if device_kind == name or _starts(device_kind, name)]
    return PEAK_FLOPS[max(known, key=len)] if known else None


def _starts(kind: str, name: str) -> bool:
    """Whether ``kind`` is ``name`` with a suffix: "A100-SXM4-40GB" is an A100, no A10."""
    return kind.startswith(name) and not kind[len(name)].isalnum()


class Clock:
    """Adds up the seconds of each part of the step; the host's view, so waits count as such.

    "data" is waiting for a batch, "device" dispatching the step and waiting for the step before,
    "save" handing the state to the writer of checkpoints, "evaluate" evaluation.
    """

    def __init__(
        self,
        steps: int,
        peak: float | None = None,
        now: Callable[[], float] = time.perf_counter,
    ):
        """Starts.

        Args:
            steps: steps this process is going to do.
            peak: FLOP/s one device can do at most.
            now: a clock in seconds.
        """
        self._steps, self._peak, self._now = steps, peak, now
        self._done = 0
        self._start = self._lap_start = now()
        self._lap_done = self._lap_clips = 0
        self._lap_flops = 0.0
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._total = dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Counts the time inside the ``with`` block as ``part``."""
        start = self._now()
        try:
            yield
        finally:
            seconds = self._now() - start
            self._seconds[part] += seconds
            self._total[part] += seconds

    def tick(self, clips: int, flops: float | None = None) -> None:
        """Counts one step as done.

        Args:
            clips: in the step.
            flops: FLOPs of the step on one device; None if they are not known.
        """
        self._done += 1
        self._lap_clips += clips
        self._lap_flops += flops or 0.0

    def lap(self) -> dict[str, float]:
        """Returns the metrics of the steps since the last lap; seconds are means per step."""
        steps = self._done - self._lap_done
        now = self._now()
        if steps == 0 or now <= self._lap_start:
            return {}
        seconds = now - self._lap_start
        values = {"time/step": seconds / steps, "clips_per_second": self._lap_clips / seconds}
        values |= {f"time/{part}": self._seconds[part] / steps for part in PARTS}
        if resident := host_memory():
            values["host_memory"] = resident
        if self._lap_flops:
            values["flops_per_second_per_device"] = self._lap_flops / seconds
            if self._peak:
                values["utilisation"] = self._lap_flops / seconds / self._peak
        self._lap_start, self._lap_done = now, self._done
        self._lap_clips, self._lap_flops = 0, 0.0
        self._seconds = dict.fromkeys(PARTS, 0.0)
        return values

    def summary(self) -> str:
        """Says how long all steps so far took, and what of it was which part."""
        seconds = self._now() - self._start
        shares = [
            f"{self._total[part] / seconds:.0%} {doing}"
            for part, doing in PARTS.items()
            if self._total[part] >= 0.005 * seconds
        ]
        return f"{self._done:,} steps in {show_seconds(seconds)}: {', '.join(shares)}"

    def seconds_left(self) -> float | None:
        """Returns the time left at the mean speed so far; None before the first step."""
        if self._done == 0:
            return None
        return (self._now() - self._start) / self._done * (self._steps - self._done)


def host_memory() -> int | None:
    """Returns the bytes of memory that this process holds; None where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def show_seconds(seconds: float) -> str:
    """Returns "1d 02:03:04", "2:03:04" or "3:04"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}:{minutes:02}:{rest:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
