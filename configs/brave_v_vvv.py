"""BraVe V<->VVV: a short clip against three broad RGB views of the same video, Kinetics-600.

    python -m common.train --config=configs/brave_v_vvv.py --workdir=runs/brave_v_vvv \
        --config.data.train=/data/kinetics600/train

Hardware: as configs/brave_v_v.py with three times its broad compute.
Reproduces: row "V/VVV, TSM 1x": HMDB51 65.4 (66.8, 63.9, 65.4), UCF101 92.6, K600 70.8. The
published code wires one broad video view only; here each broad view is cropped and augmented on its
own, and the three share one backbone.
"""

from ml_collections import ConfigDict

from configs import brave_base


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; ``variant="smoke"`` runs two steps on a CPU."""
    config = brave_base.get_config()
    config.model.broad = ("video", "video", "video")
    config.model.sync = "independent"
    config.model.share_backbone = "broad"
    return brave_base.variant_of(config, variant)
