"""Does a run fit, how fast is it, what does it cost? Asked before anything is booked.

    python -m common.plan --config=configs/x.py --topology=v5e:16x16 [--price=1.2] [--find_batch]

Compiles the real training step for TPUs that are not here and prints what their compiler says of
it: memory, time, exchanges between chips and the dearest operations, of every part of the
curriculum. Of GPUs (``--topology=h100:8``) it prints the roofline. No data are read.
"""

from __future__ import annotations

import pathlib

from absl import flags

from common import config as config_lib
from common import launch


def define_flags() -> None:
    """Defines the command line."""
    config_lib.define_flag()
    flags.DEFINE_string("topology", None, "chips: v5e:16x16, v5p:2x2x1, h100:8", required=True)
    flags.DEFINE_float("price", None, "of a chip for an hour, to print what the run costs", 0.0)
    flags.DEFINE_bool("find_batch", False, "search the largest batch: compiles several times")
    flags.DEFINE_string("json", None, "file to write all of it to")


def main(_: list[str]) -> int:
    """Prints the forecast; returns 1 where the run does not fit."""
    config = config_lib.load()
    import jax

    from common.planning import planner, report, topology

    values = flags.FLAGS
    jax.config.update("jax_platforms", "cpu")  # whatever is at hand: it is not what is asked about
    chips = topology.describe(values.topology)
    if values.json:  # compilations take long: what cannot be written is told before them
        path = pathlib.Path(values.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        launch.refuse_folder("json")
    name = values["config"].config_filename
    found = planner.forecast(config, chips, name, values.price, values.find_batch)
    print(*report.lines(found), sep="\n")
    if values.json:
        path.write_text(report.as_json(found))
    return 1 if any(part.fits is False for part in found.parts) else 0


if __name__ == "__main__":
    launch.run(main, define_flags)
