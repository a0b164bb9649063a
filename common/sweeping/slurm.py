"""A sweep as an array of SLURM jobs, one for each run that is not done."""

from __future__ import annotations

import pathlib
import shlex
import subprocess
import sys
from collections.abc import Sequence

from common.errors import UserError

SCRIPT = "sweep.sbatch"


def script(
    sweep_file: str, workdir: pathlib.Path, names: Sequence[str], parallel: int, options: str
) -> str:
    """The batch script.

    Args:
        sweep_file: of the sweep.
        workdir: of the sweep.
        names: runs to make, each a task of the array.
        parallel: how many at a time; 0: as many as the cluster grants.
        options: further options of sbatch, as on its command line.

    Raises:
        UserError: a quote in the options is not closed.
    """
    at_a_time = f"%{parallel}" if parallel else ""
    try:
        shlex.split(options)
    except ValueError as error:
        raise UserError(f"--sbatch={options}: {error}.") from None
    directives = [
        f"--job-name={shlex.quote(workdir.name)}",
        f"--array=0-{len(names) - 1}{at_a_time}",
        f"--output={shlex.quote(str(workdir))}/slurm-%A_%a.txt",
        "--open-mode=append",
        "--requeue",
        "--signal=B:TERM@120",  # training saves its state and ends; the next start continues it
        *([options] if options else []),  # a line may hold several
    ]
    here = pathlib.Path.cwd()
    program = [
        sys.executable,
        "-m",
        "common.sweep",
        f"--sweep={sweep_file}",
        f"--workdir={workdir}",
    ]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {directive}" for directive in directives),
            f"cd {shlex.quote(str(here))}",
            "runs=(",
            *(f"  {shlex.quote(name)}" for name in names),
            ")",
            f'exec {shlex.join(program)} --only="${{runs[$SLURM_ARRAY_TASK_ID]}}"',
            "",
        ]
    )


def submit(path: pathlib.Path) -> str:
    """Hands a script to sbatch; returns what it says.

    Raises:
        UserError: there is no sbatch here, or it refused.
    """
    try:
        done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(
            f"There is no sbatch on this machine. The script is {path}: submit it where there is."
        ) from None
    if done.returncode:
        raise UserError(f"sbatch refused {path}: {done.stderr.strip()}")
    return done.stdout.strip()
