"""MIL-NCE in small, for the narrated emoji of benchmarks/narrated_learning.py: two CPU cores.

    python -m benchmarks.narrated_learning --data=emoji

joins the clips to narrated videos, trains with this config and finds held-out clips by their names.
The clips last 2 to 4 s; a narrated stretch shows about one of them. Whole frames, not differences:
here it is mostly how a thing looks that names it.

Hardware: 2 CPU cores, no accelerator.
Reproduces: "MIL-NCE on narrated emoji" in benchmarks/RESULTS.md.
"""

from ml_collections import ConfigDict

from configs import mil_nce_base, mil_nce_demo


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; ``variant="smoke"`` runs two steps on made-up data."""
    config = mil_nce_demo.get_config()
    with config.unlocked():
        config.steps = 1500
        config.model.frame_rate = 3.0
        config.model.evaluation_frames = 4
        config.model.flip = 0.5
        config.model.video.num_frames = 4
        config.model.video.input = "rgb"
        config.model.text.min_time = 2.0
    return mil_nce_base.variant_of(config, variant)
