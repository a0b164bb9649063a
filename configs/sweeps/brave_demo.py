"""Learning rates and seeds of the small BraVe.

    python -m common.sweep --sweep=configs/sweeps/brave_demo.py --workdir=runs/sweep --parallel=2

compares three learning rates over three seeds by their validation loss on the records of
`make demo`, which it needs. Hardware: two CPU cores; nine trainings of the length of that one.
"""

from common.sweeping.definition import Sweep, cross, grid

_RECORDS = "runs/demo/records"


def get_sweep() -> Sweep:
    """Returns nine runs."""
    data = {"data.train": f"{_RECORDS}/train", "validation.data": f"{_RECORDS}/test"}
    often = {"validation.every": 100}
    runs = cross(
        [data | often],
        grid({"optimizer.learning_rate": (3e-4, 1e-3, 3e-3)}),
        grid({"seed": (0, 1, 2)}),
    )
    return Sweep(config="configs/brave_demo.py", runs=runs)
