"""BraVe V<->A, TSM-ResNet-50: 16 frames of 224 px against 10.24 s of sound, AudioSet.

    python -m common.train --config=configs/brave_v_a.py --workdir=runs/brave_v_a \
        --config.data.train=/data/audioset/train

Hardware: the batch of 512 clips needs a pod slice, or `--config.remat=block` and several GPUs; the
published run's accelerators are not stated. Compute: about 8e19 FLOP for the 300,000 steps.
Reproduces: row "V/A, TSM 1x" of the table of the published code: HMDB51 69.4 (average of the three
splits), UCF101 93.0, Kinetics-600 70.6, by a linear probe on frozen features.
Evaluate: `python -m common.evaluate --workdir=runs/brave_v_a --train=... --test=...`.
"""

from ml_collections import ConfigDict

from configs import brave_base


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; ``variant="smoke"`` runs two steps on a CPU."""
    return brave_base.variant_of(brave_base.get_config(), variant)
