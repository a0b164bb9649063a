"""What is known of a run before it begins: numbers of every part, and what follows from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from common.planning import chips


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip; None is what only a compiler knows."""

    parameters: int
    optimizer: int
    other_state: int  # batch norm's statistics, moving average, counters
    batch: int
    padding: int | None = None  # of all these, to the tiles of the chip
    temporaries: int | None = None
    output: int | None = None  # that does not take the place of an argument: metrics
    code: int | None = None
    needed: int | None = None  # by the compiler's own count, where the program does not fit

    @property
    def total(self) -> int:
        """All of it; at least so much where something is not known."""
        kinds = dataclasses.asdict(self)
        needed = kinds.pop("needed")
        return needed or sum(value or 0 for value in kinds.values())


@dataclasses.dataclass(frozen=True)
class Collective:
    """Exchanges of one kind between chips, in a step."""

    kind: str
    count: int
    size: int  # bytes of all of them on one chip: of what goes in or comes out, the larger


@dataclasses.dataclass(frozen=True)
class Operation:
    """One instruction of the compiled program."""

    name: str
    opcode: str
    op_name: str  # functions and operation of JAX
    place: str  # "file:line"
    times: int  # it runs in a step
    cycles: int  # of all of these


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of code, of which the compiler may have made many instructions."""

    place: str  # "file:line"
    instructions: int
    cycles: int  # of all of them in a step


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one step on one chip."""

    cycles: int
    collectives: tuple[Collective, ...]
    dearest: tuple[Operation, ...]  # the dearest first
    lines: tuple[Line, ...]  # the dearest first
    unknown_loops: int  # counted as if their body ran once
    silent: dict[str, int]  # operations that it estimates no cycles of: bytes that they make


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a run's curriculum; numbers are of one step on one chip."""

    what: str  # it changes
    steps: int
    batch_size: int  # over all chips
    compute_dtype: str
    flops: float
    memory: Memory
    fits: bool | None  # None where no compiler says and what is known does
    moved: float | None  # bytes to and from memory
    compiled: Compiled | None = None  # None where it does not fit, and for GPUs
    largest_batch: tuple[int, int | None] | None = None  # that fits, and a larger one that does not
    fastest_batch: tuple[int, float] | None = None  # of those tried, and its clips/s on all chips


@dataclasses.dataclass(frozen=True)
class Forecast:
    """A run on chips."""

    config: str
    topology: str
    platform: str
    chip: chips.Chip
    count: int
    parts: Sequence[Part]
    price: float | None  # of a chip for an hour, in whatever currency

    def seconds(self, part: Part) -> float | None:
        """Time of one step: of the compiler's cycles, or the least that a GPU may take."""
        if self.platform == "tpu":
            return part.compiled.cycles / self.chip.clock if part.compiled else None
        return max(part.flops / self.chip.peak, (part.moved or 0.0) / self.chip.bandwidth)

    def link_seconds(self, part: Part) -> float | None:
        """Least time of the exchanges of one step; a sum over chips passes every link twice."""
        if not part.compiled:
            return None
        passes = {"all-reduce": 2}
        sent = sum(one.size * passes.get(one.kind, 1) for one in part.compiled.collectives)
        return sent * (self.count - 1) / self.count / self.chip.links

    def utilisation(self, part: Part) -> float | None:
        """Share of the chip's peak FLOP/s that products use."""
        seconds = self.seconds(part)
        return part.flops / seconds / self.chip.peak if seconds else None

    def clips_per_second(self, part: Part) -> float | None:
        """Of all chips together."""
        seconds = self.seconds(part)
        return part.batch_size / seconds if seconds else None

    @property
    def hours(self) -> float | None:
        """Of all steps of all parts; None where one of them is not known."""
        seconds = [self.seconds(part) for part in self.parts]
        if None in seconds:
            return None
        return sum(part.steps * s for part, s in zip(self.parts, seconds, strict=True)) / 3600

    @property
    def cost(self) -> float | None:
        """Of all chips for that time; None without a price."""
        if self.price is None or self.hours is None:
            return None
        return self.hours * self.count * self.price
