"""BraVe V<->A with the video backbone twice as wide (93.9 M parameters), AudioSet.

    python -m common.train --config=configs/brave_v_a_2x.py --workdir=runs/brave_v_a_2x \
        --config.data.train=/data/audioset/train

Hardware: as configs/brave_v_a.py with about four times its video compute. Video features are 4096
wide and audio features 2048, so each width gets a projector of its own; the published code shares
one and therefore cannot train this model.
Reproduces: no row of its own; the nearest is "V/AF, TSM 2x": HMDB51 69.9, UCF101 93.2, K600 70.3.
"""

from ml_collections import ConfigDict

from configs import brave_base


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; ``variant="smoke"`` runs two steps on a CPU."""
    config = brave_base.get_config()
    config.model.narrow.width = 2.0
    return brave_base.variant_of(config, variant)
