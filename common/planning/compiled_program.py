"""What the compiler says of a program: memory, cycles, exchanges between chips."""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
import re
import time
from typing import Any

import jax

from common.planning import hlo
from common.planning.forecast import Collective, Compiled, Line, Memory, Operation
from common.program import Program

_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_DEAREST = 10
_TOO_MUCH = {  # how the compiler says that a program does not fit
    "needed": r"Used ([\d.]+)([KMGT]?)\w* of [\d.]+[KMGT]?\w* hbm",
    "temporaries": r"HLO temporaries \(([\d.]+)([KMGT]?)\w*\) exceeds available HBM",
}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of compiling a step."""

    memory: Memory
    moved: float | None = None  # bytes to and from memory; None where it does not fit
    compiled: Compiled | None = None  # None where it does not fit


def known_memory(program: Program) -> Memory:
    """Returns what a step holds on one device before anything is compiled."""
    like = program.like
    known = {"parameters": like.params, "optimizer": like.opt_state, "batch": program.batch_like}
    sizes = {name: _bytes_per_device(tree) for name, tree in known.items()}
    state = _bytes_per_device(like)
    return Memory(other_state=state - sizes["parameters"] - sizes["optimizer"], **sizes)


def compile_step(program: Program) -> Result:
    """Compiles the step of a program and reads off what it costs.

    Raises:
        jax.errors.JaxRuntimeError: it cannot be compiled, for another reason than memory.
    """
    start, known = time.perf_counter(), known_memory(program)
    try:
        compiled = program.traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _out_of_memory(str(error))
        if needed is None:
            raise
        return Result(dataclasses.replace(known, **needed))
    finally:
        seconds = time.perf_counter() - start
        _log.info("batch %d: compiled in %.0f s", program.config.batch_size, seconds)
    analysis, costs = compiled.memory_analysis(), compiled.cost_analysis()
    memory = dataclasses.replace(
        known,
        padding=max(analysis.argument_size_in_bytes - known.total, 0),
        temporaries=analysis.temp_size_in_bytes,
        output=max(analysis.output_size_in_bytes - analysis.alias_size_in_bytes, 0),
        code=analysis.generated_code_size_in_bytes,
    )
    moved = costs.get("bytes accessed") if costs else None
    return Result(memory, moved, summarise(hlo.parse(compiled.as_text())))


def summarise(module: hlo.Module) -> Compiled:
    """Returns cycles, exchanges and the dearest instructions and lines of a compiled program."""
    runs = [run for run in module.runs() if not run.fused and run.instruction.cycles]
    runs.sort(key=lambda run: run.times * run.instruction.cycles, reverse=True)
    dearest = tuple(
        Operation(
            run.instruction.name,
            run.instruction.opcode,
            run.instruction.op_name,
            module.place(run.instruction),
            run.times,
            run.times * run.instruction.cycles,
        )
        for run in runs[:_DEAREST]
    )
    counts, cycles = collections.Counter(), collections.Counter()
    for run in runs:
        place = module.place(run.instruction)
        counts[place] += 1
        cycles[place] += run.times * run.instruction.cycles
    lines = tuple(
        Line(place, counts[place], number) for place, number in cycles.most_common(_DEAREST)
    )
    unknown = module.loops_of_unknown_length()
    silent = collections.Counter()
    for run in module.silent():
        opcode = run.instruction.opcode
        if opcode.removesuffix("-start").removesuffix("-done") not in _COLLECTIVES:
            silent[opcode] += run.times * hlo.shape_bytes(run.instruction.shape)
    return Compiled(module.cycles(), exchanges(module), dearest, lines, unknown, dict(silent))


def exchanges(module: hlo.Module) -> tuple[Collective, ...]:
    """Returns the exchanges between chips of a step, the largest first.

    Each counts once, however many instructions the compiler made of it to overlap it with others.
    """
    counts, sizes = collections.Counter(), collections.Counter()
    seen = set()
    for run in module.runs():
        kind = run.instruction.opcode.removesuffix("-start")
        channel = run.instruction.channel
        if kind not in _COLLECTIVES or channel in seen:
            continue
        seen |= {channel} - {""}
        read, made = module.operand_bytes(run), hlo.shape_bytes(run.instruction.shape)
        if run.instruction.opcode.endswith("-start") and made > read and kind != "all-reduce":
            made -= read  # what starts hands on its operands, too
        counts[kind] += run.times
        sizes[kind] += run.times * max(read, made)
    return tuple(Collective(kind, counts[kind], size) for kind, size in sizes.most_common())


def _bytes_per_device(tree: Any) -> int:
    """Returns the bytes of a tree of shapes and shardings on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _out_of_memory(message: str) -> dict[str, int] | None:
    """Returns what a program needs, by fields of `Memory`; None for a message of something else."""
    for field, pattern in _TOO_MUCH.items():
        if found := re.search(pattern, message):
            return {field: int(float(found[1]) * _UNITS[found[2]])}
    return {} if re.search("RESOURCE_EXHAUSTED.*hbm", message, re.I | re.S) else None
