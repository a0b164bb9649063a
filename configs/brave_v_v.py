"""BraVe V<->V: a short clip at 224 px against 10 s of the same video at 112 px, Kinetics-600.

    python -m common.train --config=configs/brave_v_v.py --workdir=runs/brave_v_v \
        --config.data.train=/data/kinetics600/train

Hardware: as configs/brave_v_a.py; needs no sound.
Reproduces: the visual-only rows of Recasens et al. (2021); the published code gives no checkpoint
for one broad video view. The broad view passes through random convolutions, and the narrow view
starts anywhere inside it: started together, the broad view could be extrapolated from the narrow.
"""

from ml_collections import ConfigDict

from configs import brave_base


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; ``variant="smoke"`` runs two steps on a CPU."""
    config = brave_base.get_config()
    config.model.broad = ("video",)
    config.model.sync = "independent"
    return brave_base.variant_of(config, variant)
