"""`common.train`, killed in steps: ``python train_killed.py FOLDER STEP,STEP,... FLAG ...``.

In ``FOLDER/killed`` a run is killed in each of the steps and then continued to its end, in
``FOLDER/whole`` it is never stopped. Prints the exit status of each process. They are forked from
this one, which has imported everything and started nothing: importing takes most of their time.
"""

from __future__ import annotations

import os
import signal
import sys

from common import launch, loop, methods, program, train  # noqa: F401
from common.data import word_pieces  # noqa: F401
from common.tf import tf  # noqa: F401

NEVER = -1


def main(folder: str, steps: str, *arguments: str) -> None:
    """Trains in one process after the other."""
    for step in (*map(int, steps.split(",")), NEVER):
        _fork(step, f"--workdir={folder}/killed", *arguments)
    _fork(NEVER, f"--workdir={folder}/whole", *arguments)


def _fork(kill: int, *arguments: str) -> None:
    child = os.fork()
    if not child:
        _train(kill, *arguments)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)


def _train(kill: int, *arguments: str) -> None:
    """Trains, and sends this process SIGKILL when step ``kill`` is about to be dispatched."""
    program_of = program.Course.program

    def dying(course, step):
        if step == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return program_of(course, step)

    program.Course.program = dying
    sys.argv = [__file__, *arguments]
    launch.run(train.main, train.define_flags)


if __name__ == "__main__":
    main(*sys.argv[1:])
