"""The memory of this process, as the GNU C library hands it out; elsewhere nothing happens here.

XLA takes the arrays of each run of a program anew and frees them after it, and so do the products
inside it. Two things make that slow on CPUs, and both are set right here:

- What is large goes back to the system when it is freed, and has to be found, cleared and mapped
  again at the next step: `keep_freed`.
- A compiler leaves holes, tens of thousands of them between what it keeps. The library goes
  through those of about the right size each time it is asked for memory, under a lock for which
  the other threads wait: `set_holes_aside`.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform

# What <malloc.h> calls the settings of mallopt, and what they are set to.
_SETTINGS = {
    -8: 1,  # M_ARENA_MAX: arenas of threads map and unmap whatever is large, whatever is set
    -4: 0,  # M_MMAP_MAX: large arrays come from the heap as well
    -1: -1,  # M_TRIM_THRESHOLD: the heap never shrinks
}

# Holes, in bytes. Smaller ones are found at once, by their exact size; larger ones are few and of
# use. They are asked for from the largest size down, each a little smaller than the one before.
_SMALLEST, _LARGE, _LARGEST = 1040, 1 << 19, 1 << 24
_FINER = 1.1

_COMPILED = "/jax/core/compile/backend_compile_duration"
_LONG = 0.5  # seconds; what compiles faster leaves little behind


def keep_freed() -> None:
    """Lets this process keep memory that it frees, for what it allocates next.

    On CPUs up to a third of a step, most in virtual machines. To be called before threads begin;
    does nothing where the user set the allocator up (GLIBC_TUNABLES, MALLOC_...).
    """
    if _is_ours():
        library = ctypes.CDLL(None)
        for setting, value in _SETTINGS.items():
            library.mallopt(setting, value)


@functools.cache  # a second listener would do it all again
def tidy_after_compiling() -> None:
    """Lets `set_holes_aside` follow whatever JAX compiles; where `keep_freed` does something."""
    import jax

    def tidy(event: str, seconds: float, **_: object) -> None:
        if event == _COMPILED and seconds > _LONG:
            set_holes_aside()

    if _is_ours():
        jax.monitoring.register_event_duration_secs_listener(tidy)


def _is_ours() -> bool:
    """Whether this is an allocator that we know, and that the user has not set up."""
    theirs = "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
    theirs |= any(variable.startswith("MALLOC_") for variable in os.environ)
    return platform.libc_ver()[0] == "glibc" and not theirs


class _Used(ctypes.Structure):
    """``struct mallinfo2``: what is in use, in bytes or pieces."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def set_holes_aside() -> None:
    """Takes what is free between allocations of the heap for good, all but its memory.

    The pages within go back to the system first, so that nothing is lost but addresses. Holes of
    half a mebibyte and more stay. Does nothing before version 2.33 of the library, which cannot say
    where the heap ends.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return
    library.mallinfo2.restype = _Used
    library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    library.free.argtypes, library.sbrk.restype = [ctypes.c_void_p], ctypes.c_void_p
    library.malloc_trim(0)
    end = library.sbrk(0) - library.mallinfo2().keepcost  # above it lies what was never used
    large, size = [], _LARGEST
    while size >= _SMALLEST:
        address = library.malloc(size)
        if not address or address >= end:
            library.free(address)
            size = int(size / _FINER)
        elif size >= _LARGE:
            large.append(address)
    for address in large:
        library.free(address)
