"""MIL-NCE, small enough for a laptop: what `make demo-mil-nce` trains.

    python -m common.train --config=configs/mil_nce_demo.py --workdir=runs/demo_mil_nce/train \
        --config.data.train=runs/demo_mil_nce/records/long_train \
        --config.model.text.vocabulary=runs/demo_mil_nce/words.txt

Hardware: two CPU cores, minutes. 8 frames of 32 px over 2.3 s against 5 narrations.
Reproduces: nothing published; it shows every part at work. The playground is rendered without
clutter: with drifting cameras and bystanders a few minutes are too short to learn from narrations
half of which are misplaced. On real clips more is learned: see configs/mil_nce_emoji.py.

What differs from the published runs, since minutes have to do for weeks: the video network is a
small TSM-ResNet that is given the changes between frames, and the word table is learned from the
narrations alone.
"""

from ml_collections import ConfigDict

from configs import mil_nce_base


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; ``variant="smoke"`` runs two steps on made-up data."""
    config = mil_nce_base.get_config()
    config.steps = 2000
    config.batch_size = 64
    config.compute_dtype = "float32"
    config.log_every = 20
    config.checkpoint_every = 200
    config.keep_checkpoints = 1

    model = config.model
    model.embedding_dim = 128
    model.frame_rate = 3.5
    model.evaluation_frames = 8
    model.flip = 0.0  # the world tells left from right
    model.video.backbone = "tsm_resnet"
    model.video.blocks = (1, 1, 1, 1)
    model.video.width = 0.25
    model.video.input = "difference"
    model.video.num_frames = 8
    model.video.size = 32
    model.text.words = 400
    model.text.word_dim = 64
    model.text.hidden = 512
    model.text.frozen = False
    model.text.min_time = 3.0

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.final_fraction = 0.1
    # Without these two one of three seeds blew up in its first hundreds of steps, and stayed there.
    config.optimizer.warmup_steps = 200
    config.optimizer.clip_norm = 2.0
    config.optimizer.weight_decay = 1e-4
    return mil_nce_base.variant_of(config, variant)
