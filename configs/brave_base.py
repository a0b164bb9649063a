"""BraVe's own keys, shared by every BraVe config (Recasens et al., 2021, arXiv:2103.16559)."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the released V<->A settings: 16 frames at 224 px against 10.24 s of sound."""
    config = base.get_config()
    config.method = "brave"
    config.steps = 300_000
    config.batch_size = 512

    config.model = model = ConfigDict()
    # The broad views, in order: any list of "audio", "video" and "flow"; a kind may occur several
    # times, each with its own sample of the clip and (unless shared) its own networks.
    model.broad = ("audio",)
    model.sync = "aligned"  # or "independent": where the narrow view starts relative to the broad
    # Three switches: what the views have in common.
    model.share_backbone = "none"  # views of one modality: "none", the "broad" ones, or "all"
    model.share_projector = True  # among views of equal feature width
    model.share_predictor = True
    model.projector_hidden = 4096
    model.projection_dim = 128
    # >0 adds to the loss so much of the correlation between dimensions of the projections (VICReg):
    # against embeddings that collapse where batches are small or training is short.
    model.decorrelation = 0.0
    model.frame_rate = 25.0  # frames/s at which strides count
    model.evaluation_frames = 32  # of the clips that are evaluated, twice those trained on
    model.blur = True  # up to 2 pixels: mild at 224 px, and much at 64
    model.flip = 0.5  # probability of mirroring a view; 0 where left and right matter

    model.narrow = narrow = ConfigDict()
    narrow.backbone = "tsm_resnet"
    narrow.blocks = (3, 4, 6, 3)  # residual blocks per unit: ResNet-50
    narrow.width = 1.0
    narrow.input = "rgb"  # or "difference": what changes from frame to frame, motion alone
    narrow.num_frames = 16
    narrow.stride = 2
    narrow.size = 224

    model.video = video = ConfigDict()
    video.backbone = "tsm_resnet"
    video.blocks = (3, 4, 6, 3)
    video.width = 1.0
    video.input = "rgb"
    video.num_frames = 64
    video.stride = 4
    video.size = 112
    video.random_convolution = True

    model.flow = flow = ConfigDict()
    flow.backbone = "tsm_resnet"
    flow.blocks = (3, 4, 6, 3)
    flow.width = 1.0
    flow.num_frames = 64
    flow.stride = 4
    flow.size = 112

    model.audio = audio = ConfigDict()
    audio.backbone = "audio_resnet"
    audio.blocks = (3, 4, 6, 3)
    audio.width = 1.0
    audio.num_samples = 491_520  # 10.24 s at 48 kHz
    audio.sample_rate = 48_000
    audio.mel_bins = 80
    audio.fft_window = 320
    audio.fft_step = 160

    config.optimizer.name = "lars"
    config.optimizer.learning_rate = 1.0
    config.optimizer.warmup_steps = 5000
    config.optimizer.weight_decay = 1e-2
    config.optimizer.lr_multipliers = (".*predictor.*=10",)
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    """Shrinks any BraVe config to two steps on a CPU with made-up data, keeping its structure."""
    config.steps = 2
    config.batch_size = 4
    config.data.train = "fake"
    config.compute_dtype = "float32"
    config.log_every = 1
    config.checkpoint_every = 2
    config.optimizer.warmup_steps = 1
    config.model.projector_hidden = 32
    config.model.projection_dim = 8
    config.model.evaluation_frames = 4
    for view in (config.model.narrow, config.model.video, config.model.flow):
        view.blocks = (1, 1)
        view.width = view.width / 8
        view.num_frames = 2
        view.size = 32
    config.model.audio.blocks = (1, 1)
    config.model.audio.width = 0.125
    config.model.audio.num_samples = 6400
    return config


def variant_of(config: ConfigDict, variant: str, own: tuple[str, ...] = ()) -> ConfigDict:
    """Applies a variant of a BraVe config and locks it; see `base.variant_of`."""
    return base.variant_of(config, variant, smoke, own)
