"""MIL-NCE's own keys, shared by every MIL-NCE config (Miech et al., 2020, arXiv:1912.06430)."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the settings of the paper's large runs: 32 frames at 10 frames/s and 200 px."""
    config = base.get_config()
    config.method = "mil_nce"
    config.accumulation = "cached"  # negatives are those of the whole batch, whatever fits
    config.files = ("model.text.vocabulary",)

    config.model = model = ConfigDict()
    model.embedding_dim = 512  # of the space in which clips and narrations meet
    # How often the candidates of a clip are in its denominator: "twice" as in the published code,
    # or "once" as in the paper.
    model.positives = "twice"
    model.frame_rate = 10.0  # frames/s of clips
    model.evaluation_frames = 32
    model.flip = 0.5  # probability of mirroring a clip; 0 where left and right matter

    model.video = video = ConfigDict()
    video.backbone = "s3d"  # or "i3d", "tsm_resnet"
    video.stem = "space_to_depth"  # s3d: or "plain", as the published training code builds
    video.pooling = "same"  # s3d: or "torch", the port's padding; they differ at odd sizes
    video.blocks = (3, 4, 6, 3)  # tsm_resnet: residual blocks per unit
    video.width = 1.0  # tsm_resnet
    video.input = "rgb"  # or "difference": what changes from frame to frame, motion alone
    video.num_frames = 32
    video.size = 200
    video.crop = "position"  # a random square of this size; or "resize": of the short side

    model.text = text = ConfigDict()
    # Words of the text tower: a text file of one per line, an .npy array of words, or an .npz that
    # also holds their vectors; `python -m common.vocabulary` makes one.
    text.vocabulary = ""
    text.words = 66_249  # rows of the word table, padding not counted; at least the vocabulary's
    text.word_dim = 300
    text.hidden = 2048
    text.frozen = True  # whether the word table stays as it is
    text.masked = False  # whether padding is left out of the maximum over words; published: no
    text.max_words = 20  # known words of a narration that are kept in training
    text.evaluation_words = 30  # of any text afterwards; both as published
    text.lower = True
    text.candidates = 5  # narrations that are compared with a clip
    text.min_time = 5.0  # seconds around a narration in which its clip may lie, at least

    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 5000
    config.optimizer.weight_decay = 0.0
    config.optimizer.lr_multipliers = ()
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    """Shrinks any MIL-NCE config to two steps on a CPU with made-up data, keeping its structure."""
    config.steps = 2
    config.batch_size = 4
    config.microbatches = min(config.microbatches, 2)
    config.data.train = "fake"
    config.compute_dtype = "float32"
    config.log_every = 1
    config.checkpoint_every = 2
    config.optimizer.warmup_steps = 1
    model = config.model
    model.embedding_dim = 16
    model.evaluation_frames = 4
    model.video.num_frames, model.video.size = 4, 32
    model.video.blocks, model.video.width = (1, 1), 0.125
    model.text.vocabulary, model.text.words = "", 20
    model.text.word_dim, model.text.hidden = 8, 16
    model.text.max_words, model.text.evaluation_words = 4, 6
    return config


def variant_of(config: ConfigDict, variant: str) -> ConfigDict:
    """Applies a variant of a MIL-NCE config and locks it; see `base.variant_of`."""
    return base.variant_of(config, variant, smoke)
