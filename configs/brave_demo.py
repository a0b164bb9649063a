"""BraVe V<->A, small enough for a laptop: what `make demo` trains.

    python -m common.train --config=configs/brave_demo.py --workdir=runs/demo/train \
        --config.data.train=runs/demo/records/train

Hardware: two CPU cores, minutes. 8 frames of 32 px against 2.56 s of 16 kHz sound.
Reproduces: nothing published; it shows every part at work, and that it learns: see "BraVe on the
playground" in benchmarks/RESULTS.md.

What differs from the published runs, since minutes have to do for weeks: the video network is given
the changes between frames, which are spread over the whole clip; there is no blur, which at this
size hides small moving things; and a decorrelation term keeps the projections rich. Without it,
both networks first agree on one direction for everything and take very long to leave it.
"""

from ml_collections import ConfigDict

from configs import brave_base


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; ``variant="smoke"`` runs two steps."""
    config = brave_base.get_config()
    config.steps = 1000
    config.batch_size = 64
    config.log_every = 10
    config.checkpoint_every = 200

    model = config.model
    model.sync = "independent"  # the sound is then that of the whole clip
    model.blur = False  # at 32 px it would leave little to see
    model.decorrelation = 0.02
    model.flip = 0.0  # the world tells left from right
    model.projector_hidden = 512
    model.projection_dim = 64
    model.narrow.blocks = (1, 1, 1, 1)
    model.narrow.width = 0.25
    model.narrow.input = "difference"
    model.narrow.num_frames = 8
    model.narrow.stride = 8  # 2.3 s of clips that last about 3 s
    model.evaluation_frames = 8
    model.narrow.size = 32
    model.audio.blocks = (1, 1, 1, 1)
    model.audio.width = 0.25
    model.audio.num_samples = 40_960  # 2.56 s
    model.audio.sample_rate = 16_000
    model.audio.mel_bins = 40
    model.audio.fft_window = 640
    model.audio.fft_step = 640

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.final_fraction = 0.1
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 1e-4
    config.optimizer.lr_multipliers = ()
    return brave_base.variant_of(config, variant)
