"""BraVe V<->A, small enough for a laptop: what `make demo` trains.

    python -m common.train --config=configs/brave_demo.py --workdir=runs/demo/train \
        --config.data.train=runs/demo/records/train

Hardware: two CPU cores, a few minutes. 8 frames of 64 px against 2.56 s of 16 kHz sound.
Reproduces: the table of the demo in benchmarks/RESULTS.md.
"""

from ml_collections import ConfigDict

from configs import brave_base


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; ``variant="smoke"`` runs two steps."""
    config = brave_base.get_config()
    config.steps = 400
    config.batch_size = 32
    config.log_every = 10
    config.checkpoint_every = 200

    model = config.model
    model.sync = "independent"  # the sound is then that of the whole clip
    model.blur = False  # at 64 px it would leave little to see
    model.flip = 0.0  # the world tells left from right
    model.projector_hidden = 512
    model.projection_dim = 64
    model.narrow.blocks = (1, 1, 1, 1)
    model.narrow.width = 0.25
    model.narrow.num_frames = 8
    model.narrow.stride = 5  # 1.4 s of clips that last about 3 s
    model.narrow.size = 64
    model.audio.blocks = (1, 1, 1, 1)
    model.audio.width = 0.25
    model.audio.num_samples = 40_960  # 2.56 s
    model.audio.sample_rate = 16_000
    model.audio.mel_bins = 40
    model.audio.fft_window = 640
    model.audio.fft_step = 320

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 40
    config.optimizer.weight_decay = 1e-3
    return brave_base.variant_of(config, variant)
