"""Finds the largest batch that fits, with few compilations."""

from __future__ import annotations

from collections.abc import Callable

_CLOSE = 16  # the answer is exact to so much of itself
_LEAP = 8  # a batch is at most so many times the last one: far away, a line says little


def largest(
    used: Callable[[int], tuple[bool, float]], unit: int, first: int, fixed: float, capacity: float
) -> tuple[int, int]:
    """Returns a batch that fits and a larger one that does not.

    They lie a `unit`, or a sixteenth of the first, apart. Memory grows about linearly with the
    batch, so most trials are where a line says; every third halves what is left, so that the search
    ends soon where it does not. Near the limit compilers spend time to save memory, and a line says
    that nothing more fits: then trials go on in steps that double, and halve what is left.

    Args:
        used: whether a batch fits, and the bytes that it needs.
        unit: batches are multiples of it.
        first: batch to begin with.
        fixed: bytes that no batch can do without.
        capacity: bytes that there are.

    Returns:
        (0, unit) if not even one unit fits.
    """
    low, high, trials, beyond = 0, None, 0, 0
    batch = max(first // unit, 1)  # all counts here are of units
    while True:
        fits, needed = used(batch * unit)
        trials += 1
        low, high = (batch, high) if fits else (low, batch)
        step = max(low // _CLOSE, 1)
        if high is not None and high - low <= step:
            return low * unit, high * unit
        ratio = (capacity - fixed) / max(needed - fixed, 1.0)
        guess = int(batch * min(ratio, _LEAP))
        if high is None:
            beyond += guess < low + step
            batch = max(guess, low + step * 2 ** max(beyond - 1, 0))
        else:
            if beyond or trials % 3 == 0:
                guess = (low + high) // 2
            batch = max(min(max(guess, low + step), high - step), low + 1)
