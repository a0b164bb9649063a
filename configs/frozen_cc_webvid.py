"""Frozen in Time on Conceptual Captions and WebVid: the paper's pretraining, in one run.

    python -m common.ingest --annotations=cc3m --source=CC3M --audio_rate=0 --output=cc3m
    python -m common.ingest --annotations=webvid --cut=2M --source=WEBVID --audio_rate=0 \
        --output=webvid
    python -m common.train --config=configs/frozen_cc_webvid.py --workdir=runs/frozen \
        --config.init="('vit_base_patch16_224.safetensors', 'distilbert.safetensors')" \
        --config.model.text.pieces=vocab.txt

Nine tenths of the steps see one frame, of images and videos alike; then batches of images and of
videos of four frames take turns. The temporal positions beyond the first begin at zero, where they
have stayed until then.

Hardware: the authors took four GPUs of 48 GB for two weeks; batches as here fit them.
Reproduces: zero-shot text-to-video R@1 18.7 on MSR-VTT 1k-A (the paper; 21.7 as users measure the
released weights), 31.0 after fine-tuning. Not run here.
"""

from ml_collections import ConfigDict

from configs import frozen_base


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; ``variant="smoke"`` runs two steps on made-up data."""
    config = frozen_base.get_config()
    config.steps = 500_000
    config.batch_size = 96
    config.data.train = "cc3m/train,webvid/train"
    config.curriculum = (
        "0: model.video.num_frames=1",
        "450000: data.train=cc3m/train model.video.num_frames=1 "
        "| data.train=webvid/train batch_size=24",
    )
    config.log_every = 50
    config.checkpoint_every = 2000
    return frozen_base.variant_of(config, variant)
