"""Frozen in Time, fine-tuned on MSR-VTT 1k-A.

    python -m common.ingest --annotations=msrvtt --cut=jsfusion --source=MSRVTT --audio_rate=0 \
        --output=msrvtt
    python -m common.train --config=configs/frozen_msrvtt.py --workdir=runs/msrvtt \
        --config.init="('cc-webvid2m-4f_stformer_b_16_224.pth.tar',)" \
        --config.data.train=msrvtt/train --config.model.text.pieces=vocab.txt
    python -m common.retrieve --workdir=runs/msrvtt --test=msrvtt/test --protocol=frozen

A video's caption is one of its twenty, drawn anew each time. With

    --config.validation.data=msrvtt/val

the loss is validated after every epoch and the run ends, as the published training does, after ten
epochs in a row that did not lower it; `--step=best` of common.retrieve then takes the best. The
videos of 1k-A's "val" are those of its "test", as published, so what is chosen by them is measured
on them too. `--cut=full-val` holds out 497 others, and trains on 6,513.

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
    config.checkpoint_every = 563  # an epoch
    config.validation.every = 563
    config.validation.patience = 10
    return frozen_base.variant_of(config, variant)
