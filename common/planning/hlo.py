"""Reads what XLA compiled, from its text: instructions, where they come from, how often they run.

The format is that of ``jax.stages.Compiled.as_text()``.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b[a-z]+(\d*)\w*\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(
    r"\b(calls|body|condition|branch_computations|true_computation|false_computation|to_apply)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)
# What hands arrays on, holds others or goes on beside them.
_FREE = (
    "async-done",
    "async-start",
    "async-update",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "copy-done",
    "copy-start",
    "get-tuple-element",
    "parameter",
    "slice-done",
    "slice-start",
    "tuple",
    "while",
)
_OF_SIZE = 2**20  # bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a compiled program."""

    name: str
    shape: str  # of what it returns, as XLA writes it
    opcode: str
    inside: str  # of its parentheses: operands, or the value of a constant
    attributes: str  # everything behind the operands

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of what it reads."""
        return tuple(re.findall(r"%([\w.\-]+)", self.inside))

    @property
    def cycles(self) -> int:
        """What the compiler estimates for one run; 0 where it says nothing."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else 0

    @property
    def op_name(self) -> str:
        """The functions and the operation of JAX that it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def channel(self) -> str:
        """Names an exchange between chips, all of whose parts have the same; "" where none is."""
        found = re.search(r"\bchannel_id=(\d+)", self.attributes)
        return found[1] if found else ""

    @functools.cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """Names of the computations that it runs, by the part they play."""
        return {
            part: tuple(name.strip(" %") for name in names.strip("{}").split(","))
            for part, names in _CALLED.findall(self.attributes)
        }


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction in its place."""

    instruction: Instruction
    times: int  # it runs in a step; 1 too where a loop does not say how often
    computation: str
    fused: bool  # inside another instruction, whose cycles are those of both


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program."""

    entry: str
    computations: dict[str, dict[str, Instruction]]
    places: dict[str, str]  # "file:line" by the number of a stack frame

    def place(self, instruction: Instruction) -> str:
        """Returns the line of Python that an instruction comes from; "" where none is known."""
        frame = re.search(r"\bstack_frame_id=(\d+)", instruction.attributes)
        return self.places.get(frame[1], "") if frame else ""

    def runs(self) -> Iterator[Run]:
        """Yields what a step runs; of branches the dearest, of a loop its body once."""
        yield from self._runs(self.entry, 1, False)

    def cycles(self) -> int:
        """Returns the compiler's estimate of a step; what it says nothing of counts as nothing."""
        return self._cycles(self.entry)

    def loops_of_unknown_length(self) -> int:
        """Returns how many loops count once because they do not say how often they run."""
        return sum(
            run.instruction.opcode == "while" and self._trips(run) is None for run in self.runs()
        )

    def silent(self) -> Iterator[Run]:
        """Yields what makes an array of size in a step, and has no estimate of cycles."""
        for run in self.runs():
            instruction = run.instruction
            if run.fused or instruction.cycles or instruction.opcode in _FREE:
                continue
            made = shape_bytes(instruction.shape)
            if made >= _OF_SIZE and "ConcatBitcast" not in instruction.attributes:
                yield run

    def operand_bytes(self, run: Run) -> int:
        """Returns the size of what an instruction reads."""
        known = self.computations[run.computation]
        names = [name for name in run.instruction.operands if name in known]
        return sum(shape_bytes(known[name].shape) for name in names)

    def _runs(self, computation: str, times: int, fused: bool) -> Iterator[Run]:
        for instruction in self.computations[computation].values():
            run = Run(instruction, times, computation, fused)
            yield run
            passes = self._trips(run) or 1 if instruction.opcode == "while" else 1
            inside = fused or instruction.opcode == "fusion"
            for name in self._inner(instruction):
                yield from self._runs(name, times * passes, inside)

    def _inner(self, instruction: Instruction) -> tuple[str, ...]:
        """Returns the computations that belong to the step as their caller does."""
        called = instruction.called
        if instruction.opcode == "while":
            return called["body"] + called["condition"]
        if instruction.opcode == "conditional":
            names = called.get("branch_computations", ())
            names += called.get("true_computation", ()) + called.get("false_computation", ())
            return (max(names, key=self._cycles),)
        if instruction.opcode == "call":
            return called.get("to_apply", ()) + called.get("calls", ())
        # What an "async-start" began, its "async-update" and "async-done" name again.
        return called["calls"] if instruction.opcode in ("fusion", "async-start") else ()

    def _trips(self, loop: Run) -> int | None:
        """Returns how often a loop runs that counts up to a constant; None for other loops."""
        condition = self.computations[loop.instruction.called["condition"][0]]
        *_, test = condition.values()  # the root stands last
        if test.opcode != "compare" or "direction=LT" not in test.attributes:
            return None
        counter, limit = (condition.get(name) for name in test.operands)
        if counter is None or limit is None or limit.opcode != "constant":
            return None
        place = re.search(r"\bindex=(\d+)", counter.attributes)
        around = self.computations[loop.computation]
        start = around.get(loop.instruction.operands[0])
        if place and start and start.opcode == "tuple":
            start = around.get(start.operands[int(place[1])])
        while start and start.opcode == "copy":
            start = around.get(start.operands[0])
        first = int(start.inside) if start and start.opcode == "constant" else 0
        return max(int(limit.inside) - first, 0)

    def _cycles(self, computation: str) -> int:
        runs = self._runs(computation, 1, False)
        return sum(run.times * run.instruction.cycles for run in runs if not run.fused)


def parse(text: str) -> Module:
    """Reads a compiled program.

    Raises:
        ValueError: the text has no entry computation.
    """
    entry, current = "", None
    computations: dict[str, dict[str, Instruction]] = {}
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = computations[found[2]] = {}
            entry = found[2] if found[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current[found[1]] = _instruction(found[1], found[2])
    if not entry:
        raise ValueError("this is not the text of an HLO module: it has no entry")
    return Module(entry, computations, _places(text))


def shape_bytes(shape: str) -> int:
    """Returns the bytes of an array or of all arrays of a tuple, without padding."""
    total = 0.0
    for digits, sides, layout in _ARRAY.findall(shape):
        if "S(2)" in layout:  # a flag by which parts of a chip wait for each other
            continue
        number = 1
        for side in filter(None, sides.split(",")):
            number *= int(side)
        # "pred" and "token" have no digits, and a flag that is one byte is close enough for both.
        total += number * (int(digits) / 8 if digits else 1)
    return int(total)


def _instruction(name: str, text: str) -> Instruction:
    """Reads what stands behind "name = "."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    start = text.index("(", end)
    stop = _closing(text, start)
    inside, attributes = text[start + 1 : stop], text[stop + 1 :]
    return Instruction(name, text[:end], text[end:start].strip(), inside, attributes)


def _closing(text: str, start: int) -> int:
    """Returns where the parenthesis closes that opens at `start`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"a parenthesis does not close: {text[start : start + 80]!r}")


def _places(text: str) -> dict[str, str]:
    """Returns "file:line" for every stack frame of the tables at the head of the text.

    That of a frame is its innermost line outside of installed packages, or just its own.
    """
    files = dict(re.findall(r'^(\d+) "(.*)"$', _table(text, "FileNames"), re.M))
    lines = {
        number: f"{files.get(file, '?')}:{line}"
        for number, file, line in re.findall(
            r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)", _table(text, "FileLocations"), re.M
        )
    }
    frames = {
        number: (lines.get(location, ""), parent)
        for number, location, parent in re.findall(
            r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?",
            _table(text, "StackFrames"),
            re.M,
        )
    }

    def own(number: str) -> str:
        seen: set[str] = set()
        first = frames[number][0]
        while number in frames and number not in seen:
            seen.add(number)
            place, parent = frames[number]
            number = str(int(parent or 1) - 1)  # parents are counted from 1, where 1 is none
            if "site-packages" not in place:
                return place
        return first

    return {number: own(number) for number in frames}


def _table(text: str, title: str) -> str:
    found = re.search(rf"^{title}\n(.*?)^(?:\s*$|[A-Z%])", text, re.M | re.S)
    return found[1] if found else ""
