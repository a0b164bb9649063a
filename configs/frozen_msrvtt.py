"""Frozen in Time, fine-tuned on MSR-VTT 1k-A.

    python -m common.ingest --annotations=msrvtt --cut=jsfusion --source=MSRVTT --audio_rate=0 \
        --output=msrvtt
    python -m common.train --config=configs/frozen_msrvtt.py --workdir=runs/msrvtt \
        --config.init="('cc-webvid2m-4f_stformer_b_16_224.pth.tar',)" \
        --config.data.train=msrvtt/train --config.model.text.pieces=vocab.txt
    python -m common.retrieve --workdir=runs/msrvtt --test=msrvtt/test --protocol=frozen

A video's caption is one of its twenty, drawn anew each time.

Hardware: one GPU of 24 GB.
Reproduces: text-to-video R@1 31.0, R@5 59.5, R@10 70.5, median rank 3 (the paper, from weights
pretrained on CC3M and WebVid2M). Not run here.
"""

from ml_collections import ConfigDict

from configs import frozen_base


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; ``variant="smoke"`` runs two steps on made-up data."""
    config = frozen_base.get_config()
    config.steps = 11_000  # 20 epochs of 9,000 videos
    config.batch_size = 16
    config.checkpoint_every = 1000
    return frozen_base.variant_of(config, variant)
