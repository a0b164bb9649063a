"""Forecasts a run: every part of its curriculum, compiled for chips that are not here."""

from __future__ import annotations

import collections
import dataclasses
import logging
from typing import Any

from common import config as config_lib
from common import curriculum, flops, methods, precision, target
from common.errors import UserError
from common.planning import batch_search, compiled_program
from common.planning.forecast import Forecast, Part
from common.planning.topology import Topology
from common.program import Program, build

_log = logging.getLogger(__name__)


def forecast(
    config: Any,
    topology: Topology,
    name: str = "",
    price: float | None = None,
    find_batch: bool = False,
    create: Any = methods.create,
) -> Forecast:
    """Returns what is known of a run on chips before it begins; reads no data.

    Args:
        config: of the run.
        topology: the chips.
        name: of the configuration, for people.
        price: of a chip for an hour; None leaves out what a run costs.
        find_batch: also look for the largest batch of each part.
        create: makes the method of a configuration.

    Raises:
        UserError: the configuration cannot be on these chips, or `find_batch` where no compiler
            says what fits.
    """
    if find_batch and topology.devices is None:
        raise UserError(
            f"--find_batch needs a compiler for the chips, and there is none for {topology.name} "
            "here; it works for TPUs."
        )
    table = curriculum.Curriculum(config)
    steps = collections.Counter(map(table.part, range(config.steps)))
    parts: list[Part] = []
    same: dict[str, Part] = {}  # parts that differ in their data alone are one program
    with target.described(topology.platform):
        for number, of_part in enumerate(table.configs):
            what = curriculum.describe(of_part, config)
            key = _what_is_compiled(of_part)
            if key not in same:
                _log.info("%s: %s", topology.name, what)
                same[key] = _part(of_part, topology, find_batch, create)
            parts.append(dataclasses.replace(same[key], what=what, steps=steps[number]))
    return Forecast(
        name, topology.name, topology.platform, topology.chip, topology.count, parts, price
    )


def _what_is_compiled(config: Any) -> str:
    """Returns what two configurations have in common that compile to the same."""
    flat = config_lib.flatten(config)
    return repr([(k, v) for k, v in flat.items() if k != "seed" and not k.startswith("data.")])


def _part(config: Any, topology: Topology, find_batch: bool, create: Any) -> Part:
    program = _program(config, topology, create)
    known = Part(
        what="",
        steps=0,
        batch_size=config.batch_size,
        compute_dtype=precision.compute_dtype(config.compute_dtype).name,
        flops=program.flops,
        memory=compiled_program.known_memory(program),
        fits=None,
        moved=None,
    )
    if topology.devices is None:  # nothing is known of temporaries, but without them it must fit
        fits = None if known.memory.total <= topology.chip.memory else False
        return dataclasses.replace(known, fits=fits, moved=_least_moved(program))
    result = compiled_program.compile_step(program)
    known = dataclasses.replace(
        known,
        memory=result.memory,
        fits=result.compiled is not None,
        moved=result.moved,
        compiled=result.compiled,
    )
    if not find_batch:
        return known
    largest, fastest = _search(program, result, topology, create)
    return dataclasses.replace(known, largest_batch=largest, fastest_batch=fastest)


def _program(config: Any, topology: Topology, create: Any) -> Program:
    return build(create(config), config, topology.mesh(config))


def _least_moved(program: Program) -> float:
    """Returns the bytes that products move, and the state that is read and written back."""
    memory = compiled_program.known_memory(program)
    products = flops.count_bytes(program.traced.jaxpr) / program.mesh.size
    return products + 2 * (memory.total - memory.batch)


def _search(
    program: Program, result: compiled_program.Result, topology: Topology, create: Any
) -> tuple[tuple[int, int], tuple[int, float] | None]:
    """Returns the largest batch, beginning with the one that has been compiled, and the fastest.

    The latter of those that the search compiles, with its clips/s. It need not be the largest: what
    smaller ones need stays in a chip's fast memory.
    """
    config = program.config
    unit = config.microbatches * topology.count
    tried = {config.batch_size: result}

    def used(batch: int) -> tuple[bool, float]:
        if batch not in tried:
            copy = config.copy_and_resolve_references()
            with copy.unlocked():
                copy.batch_size = batch
            tried[batch] = compiled_program.compile_step(_program(copy, topology, create))
        return tried[batch].compiled is not None, float(tried[batch].memory.total)

    memory = compiled_program.known_memory(program)
    fixed = memory.total - memory.batch
    largest = batch_search.largest(used, unit, config.batch_size, fixed, topology.chip.memory)
    speeds = [
        (batch * topology.chip.clock / found.compiled.cycles, batch)
        for batch, found in tried.items()
        if found.compiled
    ]
    return largest, tuple(reversed(max(speeds))) if speeds else None
