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
    flags.DEFINE_integer("step", 0, "with --workdir: which checkpoint; 0 is the newest", 0)
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
    if values.step and not values.workdir:
        raise UserError("--step goes with --workdir: other places hold one set of weights.")
    if values.config is not None and not values.checkpoint:
        raise UserError(f"--config goes with --checkpoint: --{given[0]} knows its configuration.")
    from common.weights import bundle, loading

    if values.workdir:
        return loading.from_workdir(values.workdir, values.step or None)
    if values.bundle:
        return bundle.load_bundle(values.bundle).model
    return loading.from_published(values.checkpoint, config_lib.load(values), encoders)
