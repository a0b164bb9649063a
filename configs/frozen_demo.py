"""Frozen in Time, small enough for a laptop: what `make demo-frozen` trains.

    python -m common.train --config=configs/frozen_demo.py --workdir=runs/demo_frozen/train \
        --config.data.train=runs/demo_frozen/records/train \
        --config.model.text.pieces=runs/demo_frozen/pieces.txt

Hardware: two CPU cores, minutes. One change between two frames of 32 px first, then four.
Reproduces: nothing published; it shows every part at work. The playground is rendered without
clutter.

What differs from the published runs, since minutes have to do for weeks: both networks are small
and begin untrained, the learning rate is that of training from nothing, and the text network drops
nothing. The video network is given what changes between frames: on whole frames a transformer of
this size that begins untrained learns backgrounds by heart and nothing about other clips.
"""

from ml_collections import ConfigDict

from configs import frozen_base


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; ``variant="smoke"`` runs two steps on made-up data."""
    config = frozen_base.get_config()
    config.steps = 900
    config.batch_size = 64
    config.compute_dtype = "float32"
    config.curriculum = ("0: model.video.num_frames=2", "200:")
    config.log_every = 20
    config.checkpoint_every = 200
    config.keep_checkpoints = 1

    model = config.model
    model.embedding_dim = 128
    model.colours = "half"
    model.flip = 0.0  # the world tells left from right
    model.evaluation_frames = 5

    video = model.video
    video.size = video.grid_size = video.resize = 32
    video.patch = 8
    video.input = "difference"
    video.num_frames = video.max_frames = 5
    video.width, video.depth, video.heads = 128, 4, 4
    video.time_start = "attending"

    text = model.text
    text.width, text.depth, text.heads, text.hidden = 128, 2, 4, 512
    text.positions = text.max_pieces = text.evaluation_pieces = 16  # the captions have fewer
    text.dropout = 0.0
    text.initializer_range = 0.1  # with the published 0.02 some seeds learn nothing for 600 steps

    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.final_fraction = 0.02
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 0.05
    config.optimizer.eps = 1e-8
    config.optimizer.adamw_compat = "intended"
    return frozen_base.variant_of(config, variant)
