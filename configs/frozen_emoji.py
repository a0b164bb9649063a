"""Frozen in Time in small, for the animated emoji of benchmarks/captioned_learning.py.

    python -m benchmarks.captioned_learning --data=emoji

fetches moving and still emoji, trains with this config on both, and finds held-out clips by their
names. Text is read by a small network from scratch. The variant
``--config=configs/frozen_emoji.py:minilm`` begins with the real MiniLM instead.

Hardware: 2 CPU cores, no accelerator; minutes on a GPU.
Reproduces: "Frozen in Time on animated emoji" in benchmarks/RESULTS.md.
"""

from ml_collections import ConfigDict

from configs import frozen_base


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; "minilm" has MiniLM's text network, "smoke" runs on made-up data."""
    config = frozen_base.get_config()
    config.steps = 600
    config.batch_size = 64
    config.compute_dtype = "float32"

    model = config.model
    model.embedding_dim = 128
    model.colours = "half"
    model.video.size = model.video.grid_size = model.video.resize = 32
    model.video.patch = 8
    model.video.width, model.video.depth, model.video.heads = 128, 4, 4
    model.video.time_start = "attending"
    model.text.width, model.text.depth, model.text.heads, model.text.hidden = 128, 2, 4, 512
    model.text.positions = 64
    model.text.max_pieces, model.text.evaluation_pieces = 16, 32
    if variant == "minilm":
        model.text.width, model.text.depth, model.text.heads, model.text.hidden = 384, 6, 12, 1536
        model.text.positions, model.text.token_types = 512, 2

    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 60
    config.optimizer.final_fraction = 0.05
    config.optimizer.weight_decay = 0.05
    config.optimizer.adamw_compat = "intended"
    config.optimizer.clip_norm = 1.0
    if variant == "minilm":  # what is trained already moves less
        config.optimizer.lr_multipliers = ("text/.*=0.1",)
    config.log_every = 20
    config.checkpoint_every = 300
    config.keep_checkpoints = 1
    return frozen_base.variant_of(config, variant, own=("minilm",))
