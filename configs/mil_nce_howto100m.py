"""MIL-NCE on HowTo100M: the S3D of the paper's large run.

    python -m common.ingest --source=videos --narrations=howto100m_captions --frame_rate=10 \
        --audio_rate=0 --output=howto100m
    python -m common.vocabulary --words=s3d_dict.npy --output=words.npz \
        --vectors=GoogleNews-vectors-negative300.bin.gz
    python -m common.train --config=configs/mil_nce_howto100m.py --workdir=runs/mil_nce \
        --config.data.train=howto100m/train --config.model.text.vocabulary=words.npz

Hardware: 64 TPU v3 cores' worth of memory for the batch at once; with fewer, set
``config.microbatches``.
Reproduces: the paper's released model: HMDB-51 53.1 with a linear SVM; zero-shot text-to-video R@10
51.2 on YouCook2 and 32.4 on MSR-VTT (the published code's table). Not run here.

The paper drops the learning rate twice, at steps that no source says; this is the cosine of the
published code.
"""

from ml_collections import ConfigDict

from configs import mil_nce_base


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; ``variant="smoke"`` runs two steps on made-up data."""
    config = mil_nce_base.get_config()
    config.steps = 400_000
    config.batch_size = 8192
    config.log_every = 50
    config.checkpoint_every = 2000
    return mil_nce_base.variant_of(config, variant)
