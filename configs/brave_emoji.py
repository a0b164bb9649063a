"""BraVe V<->V in small, for the animated emoji of benchmarks/real_data.py: trains on two CPU cores.

    python -m benchmarks.real_data --output=runs/real_data

fetches the clips, writes their records, trains with this config and evaluates. The clips loop in 2
to 4 s: the broad view sees 2.1 s at 2 frames/s, the narrow one 1.1 s at 4. Both see what changes
from frame to frame alone: with whole frames the views agree on the colours and on where the drawing
stands, which name a clip well enough, and the network learns less of what is drawn. The variant
``--config=configs/brave_emoji.py:rgb`` is for comparing the two.

Hardware: 2 CPU cores, no accelerator.
Reproduces: "BraVe on animated emoji" in benchmarks/RESULTS.md.
"""

from ml_collections import ConfigDict

from configs import brave_base


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; "rgb" shows whole frames, "smoke" runs two steps on made-up data."""
    config = brave_base.get_config()
    config.steps = 1000
    config.batch_size = 64
    config.compute_dtype = "float32"

    model = config.model
    model.broad = ("video",)
    model.sync = "independent"
    model.frame_rate = 12.0
    model.evaluation_frames = 16
    model.blur = False  # at 32 px it would leave little to see
    model.decorrelation = 0.02  # as in configs/brave_demo.py
    # Views that agree in nothing for the first few hundred steps learn nothing from 1,400 clips.
    model.video.random_convolution = False
    model.projector_hidden = 512
    model.projection_dim = 128
    for view in (model.narrow, model.video):
        view.blocks = (1, 1, 1, 1)
        view.width = 0.25
        view.input = "difference"
        view.num_frames, view.size = 5, 32
    model.narrow.stride, model.video.stride = 3, 6
    if variant == "rgb":
        for view in (model.narrow, model.video):
            view.input, view.num_frames = "rgb", 4
        model.video.stride = 8

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.final_fraction = 0.1
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 1e-4
    config.log_every = 50
    config.checkpoint_every = 250
    config.keep_checkpoints = 1
    return brave_base.variant_of(config, variant, own=("rgb",))
