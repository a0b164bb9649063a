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
    model.share_backbone = False  # among views of one modality
    model.share_projector = True  # among views of equal feature width
    model.share_predictor = True
    model.projector_hidden = 4096
    model.projection_dim = 128
    model.frame_rate = 25.0  # frames/s at which strides count

    model.narrow = narrow = ConfigDict()
    narrow.backbone = "tsm_resnet"
    narrow.blocks = (3, 4, 6, 3)  # residual blocks per unit: ResNet-50
    narrow.width = 1.0
    narrow.num_frames = 16
    narrow.stride = 2
    narrow.size = 224

    model.video = video = ConfigDict()
    video.backbone = "tsm_resnet"
    video.blocks = (3, 4, 6, 3)
    video.width = 1.0
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
