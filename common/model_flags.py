"""The flags by which tools are told which trained model to use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from common import config as config_lib
from common.errors import UserError

if TYPE_CHECKING:
    from common.weights.loading import Loaded

flags.disclaim_key_flags()  # they show in the --help of the tool that calls `define`

_PLACES = ("workdir", "checkpoint", "bundle")


def define() -> None:
    """Defines the flags."""
    flags.DEFINE_string("workdir", "", "folder of a run of common.train")
    flags.DEFINE_string(
        "step",
        "newest",
        "with --workdir: which checkpoint; a step, 'newest', or 'best', of the least validation "
        "loss",
    )
    flags.DEFINE_string("checkpoint", "", "published weights; --config says of which architecture")
    flags.DEFINE_string("bundle", "", "folder made by common.export")
    config_lib.define_flag()


def open_model(encoders: Sequence[str] = (), values: flags.FlagValues = flags.FLAGS) -> Loaded:
    """Opens the model that the flags name.

    Of a published file only the given encoders are read, where any are: not all files hold a whole
    model.

    Raises:
        UserError: none or several are named, or it cannot be opened.
    """
    given = [place for place in _PLACES if values[place].value]
    if len(given) != 1:
        listed = ", ".join(f"--{place}" for place in _PLACES)
        raise UserError(
            f"Give exactly one of {listed}"
            + (f"; these are given: {', '.join('--' + g for g in given)}." if given else ".")
        )
    if values["step"].present and not values.workdir:
        raise UserError("--step goes with --workdir: other places hold one set of weights.")
    if values.config is not None and not values.checkpoint:
        raise UserError(f"--config goes with --checkpoint: --{given[0]} knows its configuration.")
    from common.weights import bundle, loading

    if values.workdir:
        return loading.from_workdir(values.workdir, _step(values))
    if values.bundle:
        return bundle.load_bundle(values.bundle).model
    return loading.from_published(values.checkpoint, config_lib.load(values), encoders)


def _step(values: flags.FlagValues) -> int | None:
    """Returns the step that --step names; None for the newest."""
    if values.step == "newest":
        return None
    if values.step == "best":
        from common import validation

        return validation.best_step(values.workdir)
    if not values.step.isdecimal():
        raise UserError(f"--step={values.step}: give the number of a step, 'newest' or 'best'.")
    return int(values.step)
