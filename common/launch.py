"""Starts every command line tool the same way.

A tool is a module with `main(argv)` and a function that defines its flags:

    def define_flags() -> None:
        flags.DEFINE_string("output", None, "folder to write", required=True)

    def main(argv: list[str]) -> int | None:
        ...

    if __name__ == "__main__":
        launch.run(main, define_flags)

Flags are defined in a function, not at import, so that importing a tool changes nothing. What is
slow to import (JAX, TensorFlow) is imported inside `main`, so that ``--help`` answers at once.
"""

from __future__ import annotations

import glob
import logging
import os
import platform
import sys
import zlib
from collections.abc import Callable

from absl import app, flags

from common import config
from common.errors import UserError, told

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # what shells expect after Ctrl-C


class _Formatter(logging.Formatter):
    """Time and message; anything above INFO says what it is."""

    def __init__(self):
        super().__init__("%(asctime)s %(message)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno <= logging.INFO:
            return text
        time, _, message = text.partition(" ")
        return f"{time} {record.levelname.lower()}: {message}"


def set_up_logging() -> None:
    """Lets our modules speak from INFO up and libraries from WARNING up, on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    # Orbax logs stack traces of what it also raises; common/checkpoint.py says it in words.
    handler.addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for ours in ("common", "__main__"):
        logging.getLogger(ours).setLevel(logging.INFO)


def speak_as(process: int) -> None:
    """Lets a process other than the first say only what is wrong, and who it is."""
    for ours in ("common", "__main__"):
        logging.getLogger(ours).setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_Numbered(process))


class _Numbered(logging.Filter):
    def __init__(self, process: int):
        super().__init__()
        self._process = process

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = f"process {self._process}: {record.msg}"
        return True


_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",  # do not ask a server of Google's cloud what machine this is
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # one process may use chips, any number compile
}


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags; a mistake is one message and exit status 2, not a stack trace."""
    if {"--help", "-help", "-h", "--h", "-?"} & set(argv[1:]):
        app.usage(shorthelp=True, writeto_stdout=True)
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
        for name in flags.FLAGS:
            flag = flags.FLAGS[name]
            if flag.default is None and flag.value == "" and not name.startswith("config."):
                raise UserError(f"--{name}= is empty; is a variable of the shell not set?")
        return rest
    except UserError as error:  # raised by a config file
        message = str(error)
    except (flags.Error, AttributeError, KeyError, TypeError, OSError) as error:
        message = config.explain(argv, error)
    print(f"{message}\nPass --help to see the flags.", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def _in_home(argument: str) -> str:
    """Puts the user's home in place of "~" in ``--flag=~/x``."""
    flag, equals, value = argument.partition("=")
    if flag.startswith("-") and value.startswith("~/"):
        return flag + equals + os.path.expanduser(value)
    return argument


def refuse_folder(flag: str) -> None:
    """Refuses, before any work, a folder where a flag is to name a file that will be written."""
    path = flags.FLAGS[flag].value
    if path and os.path.isdir(path):
        raise UserError(f"--{flag}={path} is a folder; name a file in it.")


def quieten_tpu_compiler() -> None:
    """Keeps libtpu, where it is installed but no TPU is, from looking for one and complaining.

    JAX asks it at every start. What is set is what it would find out on a machine with one chip;
    programs are compiled for the chips that they are made for all the same.
    """
    if not any(glob.glob(device) for device in ("/dev/accel*", "/dev/vfio/[0-9]*")):
        for variable, value in _NO_TPU.items():
            os.environ.setdefault(variable, value)


def keep_compiled_programs() -> None:
    """Makes JAX keep what it compiles in ``$XDG_CACHE_HOME/zoetrope``, so that restarts are quick.

    A folder that the user chose (JAX_COMPILATION_CACHE_DIR) stays chosen. Programs for the CPU hold
    its instructions, so every kind of CPU has its own folder.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is not None:
        return
    cpu = f"{platform.machine()}-{zlib.crc32(_cpu_features()):08x}"
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "zoetrope", "compiled", cpu))


def _cpu_features() -> bytes:
    """Returns what tells kinds of CPU apart, as far as the system says."""
    try:
        with open("/proc/cpuinfo", "rb") as file:
            return next((line for line in file if line.startswith((b"flags", b"Features"))), b"")
    except OSError:
        return platform.processor().encode()


def run(
    main: Callable[[list[str]], int | None],
    define_flags: Callable[[], None],
    takes_arguments: bool = False,
) -> None:
    """Parses the command line, runs ``main(argv)`` and exits with its status.

    ``argv`` holds the program and the positional arguments, which are a mistake unless the tool
    takes them. `UserError`, a full disk and files that may not be used so end the process with a
    message on stderr and status 2, Ctrl-C with status 130. Other exceptions are bugs and keep their
    stack trace. A value that begins with "~/" is in the user's home: of ``--flag=~/x`` few shells
    say so.
    """

    def guarded(argv: list[str]) -> int | None:
        set_up_logging()
        quieten_tpu_compiler()
        try:
            if len(argv) > 1 and not takes_arguments:
                raise UserError(
                    f"Unexpected argument {argv[1]!r}: every setting is a --flag=value."
                )
            return main(argv)
        except (UserError, OSError) as error:
            if (message := told(error)) is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            return EXIT_USER_ERROR
        except KeyboardInterrupt:
            print("stopped.", file=sys.stderr)
            return EXIT_INTERRUPTED

    sys.argv[1:] = map(_in_home, sys.argv[1:])
    define_flags()
    app.run(guarded, flags_parser=_parse_flags)
