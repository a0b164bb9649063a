"""BraVe V<->FA: a short clip against the optical flow and the sound of 10 s, AudioSet.

    python -m common.ingest --source=/data/audioset/videos --output=/data/audioset --flow=dis
    python -m common.train --config=configs/brave_v_fa.py --workdir=runs/brave_v_fa \
        --config.data.train=/data/audioset/train

Hardware: as configs/brave_v_a.py plus one more video backbone on 64 frames of 112 px.
Reproduces: row "V/AF, TSM 1x": HMDB51 69.2 (average of three splits), UCF101 92.9, K600 69.3. The
flow branch is not part of the published code; its input follows the storage convention of DMVR.
`--config.model.narrow.width=2` gives the 2x row (HMDB51 69.9, UCF101 93.2, K600 70.3).
"""

from ml_collections import ConfigDict

from configs import brave_base


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; ``variant="smoke"`` runs two steps on a CPU."""
    config = brave_base.get_config()
    config.model.broad = ("flow", "audio")
    return brave_base.variant_of(config, variant)
