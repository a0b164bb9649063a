"""Trains many runs of one config: ``python -m common.sweep --sweep=FILE --workdir=DIR``.

The file says which, see `common.sweeping.definition` and ``configs/sweeps``. Each run has the
folder of its overrides in the workdir, as if trained by hand. The same command continues a sweep
that was stopped, tries again what failed, and leaves alone what is done; runs may be added to the
file at any time. At the end, and with --report at any time, the workdir has table.md, results.csv,
plot.png and best_config.py, the configuration to go on with.

Exit status: 0 when every run is done, 1 when some failed, 2 for a mistake that the message
explains, 128 + N when signal N stopped it.
"""

from __future__ import annotations

import pathlib

from absl import flags

from common import launch
from common.errors import UserError

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string("sweep", None, "file with get_sweep()", required=True)
    flags.DEFINE_string("workdir", None, "folder of the sweep: made, or continued", required=True)
    flags.DEFINE_integer("parallel", 1, "runs at a time, among which the cores are shared out", 1)
    flags.DEFINE_integer("gpus", 0, ">0: so many GPUs, with one run at a time on each", 0)
    flags.DEFINE_string("only", "", "the one run to make, by its name; what SLURM's jobs do")
    flags.DEFINE_bool("report", False, "make no run, write table and plot of what is there")
    flags.DEFINE_enum(
        "slurm", "", ["", "print", "submit"],
        "make no run here: print the script of an array of jobs, or submit it",
    )  # fmt: skip
    flags.DEFINE_string("sbatch", "", "with --slurm: options, e.g. '--gres=gpu:1 --time=4:00:00'")


def main(_: list[str]) -> int:
    """Makes the runs that are not done, then says how they compare."""
    from common.sweeping import definition, local, results

    _check_flags()
    sweep, workdir = definition.read(FLAGS.sweep), pathlib.Path(FLAGS.workdir)
    results.refuse_changed(sweep, workdir)
    waiting = [
        (result.workdir.name, result.overrides)
        for result in results.collect(sweep, workdir)
        if result.status != results.DONE
    ]
    if FLAGS.slurm:
        return _to_slurm([name for name, _ in waiting], workdir)
    if FLAGS.only:
        waiting = _chosen(waiting, sweep.names())
    if not FLAGS.report:
        try:
            _train(sweep, waiting, workdir)
        except local.Interrupted as stopped:
            print(f"{stopped}; the same command continues every run.", flush=True)
            return 128 + stopped.signum
    found = results.collect(sweep, workdir)
    if not FLAGS.only:  # jobs of an array would write over each other
        print(f"\n{results.write(sweep, found, workdir)}")
    mine = [result for result in found if FLAGS.only in ("", result.workdir.name)]
    return int(any(result.status == results.FAILED for result in mine))


def _check_flags() -> None:
    if FLAGS.sbatch and not FLAGS.slurm:
        raise UserError("--sbatch goes with --slurm=print or --slurm=submit.")
    for flag in ("only", "report", "gpus"):
        if FLAGS.slurm and FLAGS[flag].value:
            raise UserError(f"--slurm, which makes no run here, does not go with --{flag}.")


def _chosen(waiting, names):
    if FLAGS.only not in names:
        raise UserError(
            f"--only={FLAGS.only}: {FLAGS.sweep} has no such run. It has:\n  " + "\n  ".join(names)
        )
    return [(name, overrides) for name, overrides in waiting if name == FLAGS.only]


def _train(sweep, waiting, workdir: pathlib.Path) -> None:
    """Makes the runs, a line for each that ended."""
    from common.sweeping import local, results

    if FLAGS.only:
        state = "" if waiting else " is done"
        print(f"{FLAGS.only}{state}; log: {workdir / FLAGS.only / local.LOG}", flush=True)
    else:
        total = len(sweep.runs)
        done = total - len(waiting)
        print(f"{total} runs, {done} done before; logs: {workdir}/RUN/{local.LOG}", flush=True)
    count = iter(range(1, len(waiting) + 1))

    def ended(name: str, status: int, seconds: float) -> None:
        took = f"[{next(count)}/{len(waiting)}] {name}: {seconds:.0f} s"
        words = f", failed with status {status}: {local.last_words(workdir / name)}"
        print(took + (words if status else ""), flush=True)
        if not status:
            results.check_metric(sweep, workdir / name)

    local.run(sweep, waiting, workdir, local.slots(FLAGS.parallel, FLAGS.gpus), ended)


def _to_slurm(names: list[str], workdir: pathlib.Path) -> int:
    from common.sweeping import slurm

    if not names:
        print("Every run is done; there is nothing to submit.")
        return 0
    parallel = FLAGS.parallel if FLAGS["parallel"].present else 0
    text = slurm.script(FLAGS.sweep, workdir, names, parallel, FLAGS.sbatch)
    if FLAGS.slurm == "print":
        print(text, end="")
        return 0
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / slurm.SCRIPT
    path.write_text(text)
    print(slurm.submit(path))
    again = f"python -m common.sweep --sweep={FLAGS.sweep} --workdir={workdir}"
    print(f"When it is done: {again} --report")
    return 0


if __name__ == "__main__":
    launch.run(main, define_flags)
