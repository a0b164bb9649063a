"""BraVe V<->V in small, for the animated emoji of benchmarks/real_data.py: trains on two CPU cores.

    python -m benchmarks.real_data --output=runs/real_data

fetches the clips, writes their records, trains with this config and evaluates. The clips loop in 2
to 4 s: the broad view sees 2.7 s at 3 frames/s, the narrow one 0.7 s at 12, anywhere inside it.

Hardware: 2 CPU cores, no accelerator.
Reproduces: nothing yet. The views come to agree, but probes of the features do not clearly beat
those of an untrained network.
"""

from ml_collections import ConfigDict

from configs import brave_base


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; ``variant="smoke"`` runs two steps on made-up data."""
    config = brave_base.get_config()
    config.steps = 1000
    config.batch_size = 64
    config.compute_dtype = "float32"

    model = config.model
    model.broad = ("video",)
    model.sync = "independent"
    model.frame_rate = 12.0
    model.evaluation_frames = 16
    model.blur = False  # at 48 px it would leave little to see
    model.decorrelation = 0.02  # as in configs/brave_demo.py
    # Views that agree in nothing for the first few hundred steps learn nothing from 1,400 clips.
    model.video.random_convolution = False
    model.projector_hidden = 512
    model.projection_dim = 128
    for view in (model.narrow, model.video):
        view.blocks = (1, 1, 1, 1)
        view.width = 0.25
    model.narrow.num_frames, model.narrow.stride, model.narrow.size = 8, 1, 48
    model.video.num_frames, model.video.stride, model.video.size = 8, 4, 32

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.final_fraction = 0.1
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 1e-4
    config.optimizer.lr_multipliers = ()
    config.log_every = 50
    config.checkpoint_every = 250
    config.keep_checkpoints = 1
    return brave_base.variant_of(config, variant)
