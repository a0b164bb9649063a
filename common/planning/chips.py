"""What single chips can do, as their makers say."""

from __future__ import annotations

import dataclasses

from common import clock as clock_lib

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, which JAX sees as one device."""

    kind: str  # its `device_kind`
    memory: float  # bytes
    bandwidth: float  # of the memory, bytes/s
    clock: float = 0.0  # cycles/s of its matrix units; 0 where no compiler counts in them
    links: float = 0.0  # to other chips, bytes/s that it can send; 0 where they are not described

    @property
    def peak(self) -> float:
        """Dense bfloat16 FLOP/s."""
        return clock_lib.peak_flops(self.kind)


# Memory, its bandwidth and that of the links: cloud.google.com/tpu/docs/v4, v5e, v5p and v6e. The
# clocks follow from the peaks there: a matrix unit does 128 x 128 (v6e: 256 x 256) multiplications
# and additions a cycle, and a chip has 8, 4, 8 and 4 of them.
TPUS = {
    "v4": Chip("TPU v4", 32 * GIB, 1228e9, 1.05e9, 300e9),
    "v5e": Chip("TPU v5 lite", 16 * GIB, 819e9, 1.5e9, 200e9),
    "v5p": Chip("TPU v5p", 95 * GIB, 2765e9, 1.75e9, 600e9),
    "v6e": Chip("TPU v6 lite", 32 * GIB, 1640e9, 1.75e9, 448e9),
}

# The data sheets of the products.
GPUS = {
    "a10": Chip("NVIDIA A10", 24 * GIB, 600e9),
    "a100-40": Chip("NVIDIA A100-SXM4-40GB", 40 * GIB, 1555e9),
    "a100-80": Chip("NVIDIA A100-SXM4-80GB", 80 * GIB, 2039e9),
    "h100": Chip("NVIDIA H100 80GB HBM3", 80 * GIB, 3350e9),
    "h200": Chip("NVIDIA H200", 141 * GIB, 4800e9),
    "l4": Chip("NVIDIA L4", 24 * GIB, 300e9),
    "l40s": Chip("NVIDIA L40S", 48 * GIB, 864e9),
}
