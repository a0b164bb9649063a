"""Tells a forecast to people, and to programs."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Any

from common.planning.chips import GIB
from common.planning.forecast import Forecast, Part

_KINDS = {  # of memory, in the order of the table
    "parameters": "parameters",
    "optimizer": "optimizer state",
    "other_state": "other state",
    "batch": "batch",
    "padding": "padding of these",
    "temporaries": "temporaries",
    "output": "output",
    "code": "code",
}


def lines(forecast: Forecast) -> Iterator[str]:
    """Yields what a person reads."""
    chips = "chip" if forecast.count == 1 else "chips"
    title = f"{forecast.config} on {forecast.topology}" if forecast.config else forecast.topology
    yield f"{title}: {forecast.count} {chips}, {forecast.chip.kind}"
    if forecast.platform == "gpu":
        yield (
            "No compiler for these chips is asked, so this is a roofline: products at the chip's "
            "peak, or\nwhat they and the state must move at its bandwidth, whichever takes longer. "
            "A real step takes longer,\nand whether its temporaries fit is not known."
        )
    for number, part in enumerate(forecast.parts):
        yield ""
        if len(forecast.parts) > 1:
            yield f"part {number + 1} of {len(forecast.parts)}: {part.what}"
        yield from _part(forecast, part)
    yield ""
    yield from _run(forecast)


def as_json(forecast: Forecast) -> str:
    """Returns all of it, with what follows from it; bytes, seconds and FLOPs as they are."""
    return json.dumps(_tree(forecast), indent=2) + "\n"


def _tree(forecast: Forecast) -> dict[str, Any]:
    tree = dataclasses.asdict(forecast)
    for part, entry in zip(forecast.parts, tree["parts"], strict=True):
        entry["memory"]["total"] = part.memory.total
        entry["seconds_per_step"] = forecast.seconds(part)
        entry["link_seconds"] = forecast.link_seconds(part)
        entry["utilisation"] = forecast.utilisation(part)
        entry["clips_per_second"] = forecast.clips_per_second(part)
    tree["chip"]["peak"] = forecast.chip.peak
    return tree | {"hours": forecast.hours, "cost": forecast.cost}


def _part(forecast: Forecast, part: Part) -> Iterator[str]:
    per_chip = part.batch_size / forecast.count
    yield (
        f"batch {part.batch_size}, {per_chip:g} a chip; computes in {part.compute_dtype}; "
        f"{part.steps:,} steps"
    )
    yield ""
    yield from _memory(forecast, part)
    yield ""
    yield from _speed(forecast, part)
    if part.compiled:
        yield from _exchanges(forecast, part)
        yield from _dearest(forecast, part)
        yield from _lines(forecast, part)


def _memory(forecast: Forecast, part: Part) -> Iterator[str]:
    capacity = forecast.chip.memory / GIB
    yield f"{'memory of a chip':26}{'GiB':>8}"
    for kind, name in _KINDS.items():
        value = getattr(part.memory, kind)
        if value is not None:
            yield f"  {name:24}{value / GIB:8.3f}"
    verdict = {True: "fits", False: "DOES NOT FIT", None: "temporaries not counted"}[part.fits]
    yield f"  {'total':24}{part.memory.total / GIB:8.3f} of {capacity:g}: {verdict}"
    if part.largest_batch:
        yield _largest(part.largest_batch)
    if part.fastest_batch:
        batch, clips = part.fastest_batch
        yield f"fastest of the batches tried: {batch}, {clips:.1f} clips/s"


def _largest(found: tuple[int, int]) -> str:
    fits, too_large = found
    if not fits:
        return f"no batch fits: not even one of {too_large}"
    return f"largest batch found to fit: {fits}; {too_large} does not"


def _speed(forecast: Forecast, part: Part) -> Iterator[str]:
    yield f"one step, on one chip{'' if part.compiled else ' (not compiled)'}"
    peak, bandwidth = forecast.chip.peak, forecast.chip.bandwidth
    yield (
        f"  {'FLOPs of products':24}{part.flops:.4g}, {part.flops / peak * 1e3:.1f} ms at the peak "
        f"of {peak / 1e12:g} TFLOP/s"
    )
    if part.moved is not None:
        yield (
            f"  {'bytes moved':24}{part.moved:.4g}, {part.moved / bandwidth * 1e3:.1f} ms at "
            f"{bandwidth / 1e9:g} GB/s"
        )
    seconds = forecast.seconds(part)
    if seconds is None:
        return
    least = "at least " if forecast.platform == "gpu" else ""
    most = "at most " if forecast.platform == "gpu" else ""
    if part.compiled:
        clock = forecast.chip.clock / 1e9
        yield f"  {'cycles, estimated':24}{part.compiled.cycles:,} at {clock:g} GHz"
        if part.compiled.unknown_loops:
            yield f"  {'':24}{part.compiled.unknown_loops} loops of unknown length count once"
        for opcode, made in part.compiled.silent.items():
            yield f"  {'':24}none are estimated of {opcode}, which makes {made / 2**20:,.0f} MiB"
    yield f"  {'time':24}{least}{seconds * 1e3:.1f} ms"
    yield f"  {'utilisation':24}{most}{forecast.utilisation(part):.1%}"
    clips = forecast.clips_per_second(part)
    yield f"  {'clips/s':24}{most}{clips:.1f}, {clips / forecast.count:.1f} a chip"


def _exchanges(forecast: Forecast, part: Part) -> Iterator[str]:
    if not part.compiled.collectives:
        return
    yield ""
    yield f"{'exchanges between chips':26}{'number':>8}{'MiB':>12}"
    for one in part.compiled.collectives:
        yield f"  {one.kind:24}{one.count:8,}{one.size / 2**20:12.2f}"
    yield (
        f"  at least {forecast.link_seconds(part) * 1e3:.2f} ms at {forecast.chip.links / 1e9:g} "
        "GB/s of links, beside the time above"
    )


def _dearest(forecast: Forecast, part: Part) -> Iterator[str]:
    yield ""
    yield "dearest operations      ms   share  what, and where"
    for one in part.compiled.dearest:
        share = one.cycles / part.compiled.cycles
        times = f" x {one.times}" if one.times > 1 else ""
        yield (
            f"  {one.name[:18]:18}{one.cycles / forecast.chip.clock * 1e3:8.2f}{share:8.1%}  "
            f"{_short(one.op_name)}{times}, {_near(one.place)}"
        )


def _lines(forecast: Forecast, part: Part) -> Iterator[str]:
    """All that was made of a line of code together: what is copied and changed belongs to it."""
    yield ""
    yield "dearest lines of code   ms   share  instructions, and where"
    for line in part.compiled.lines:
        share = line.cycles / part.compiled.cycles
        milliseconds = line.cycles / forecast.chip.clock * 1e3
        yield f"{milliseconds:26.2f}{share:8.1%}  {line.instructions:,}, {_near(line.place)}"


def _short(op_name: str) -> str:
    """Returns the end of a long path of functions."""
    return op_name if len(op_name) <= 60 else f"...{op_name[-57:]}"


def _near(place: str) -> str:
    """Returns a place as seen from the working folder, where it lies in it."""
    return place.removeprefix(os.getcwd() + os.sep) or "no line known"


def _run(forecast: Forecast) -> Iterator[str]:
    hours, gpu = forecast.hours, forecast.platform == "gpu"
    if hours is None or any(part.fits is False for part in forecast.parts):
        yield "The run does not fit as it is; see docs/training.md, When it does not fit."
        return
    steps = sum(part.steps for part in forecast.parts)
    yield (
        f"the whole run, {steps:,} steps: {'at least ' if gpu else ''}{hours / 24:.2f} days, "
        f"{hours * forecast.count:,.0f} chip-hours"
    )
    if forecast.cost is not None:
        yield f"at {forecast.price:g} a chip-hour: {forecast.cost:,.0f}"
