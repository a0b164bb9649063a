"""Frozen in Time's own keys, shared by all its configs (Bain et al., 2021, arXiv:2104.00650)."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the published model: ViT-B/16 with time attention, and DistilBERT."""
    config = base.get_config()
    config.method = "frozen"
    config.accumulation = "cached"  # negatives are those of the whole batch, whatever fits
    config.files = ("model.text.pieces",)

    config.model = model = ConfigDict()
    model.embedding_dim = 256  # of the space in which clips and captions meet
    model.loss = "softmax"  # or "max_margin", or "sigmoid" (not published)
    model.temperature = 0.05
    model.learn_temperature = False  # begins with the temperature; not published
    model.directions = "sum"  # of the softmax loss, as published; "mean" is half of it
    model.margin = 1.0  # of "max_margin"
    model.margin_off_diagonal = True  # its mean leaves out pairs of a clip with its own caption
    model.colours = "imagenet"  # as published, though ViTs of Google's were trained with "half"
    model.flip = 0.5  # probability of mirroring a clip; 0 where left and right matter
    model.evaluation_frames = 4

    model.video = video = ConfigDict()
    video.num_frames = 4  # of clips in training; images have one
    video.max_frames = 4  # that the network can tell apart in time
    video.size = 224
    video.grid_size = 224  # for which there is a row of positions for every patch
    video.patch = 16
    video.width, video.depth, video.heads = 768, 12, 12  # ViT-B; see space_time_transformer.SIZES
    video.mlp_ratio = 4.0  # hidden units of the perceptrons over the width; ViT-g: 6144 / 1408
    video.activation = "gelu"  # or "quick_gelu", as CLIP
    video.pre_norm = False  # as CLIP
    video.eps = 1e-6  # of norms; Hugging Face's ViT has 1e-12, CLIP 1e-5
    video.time_start = "published"  # of attention in time; "attending" where all begins untrained
    video.temporal_resize = "zeros"  # or "interp", "bilinear": of weights of fewer frames
    video.resize = 256  # of the short side when evaluated, before the central part of `size` is cut
    video.input = "rgb"  # or "difference": what changes from frame to frame; images have nothing
    video.crop_area = (0.5, 1.0)  # share of the picture that is seen in training
    video.crop_aspect = (3 / 4, 4 / 3)
    video.sampling = "whole"  # or "published": no frame that ends its part of the video
    video.short = "repeat"  # videos of fewer frames repeat the last one; or "mask": see docs

    model.text = text = ConfigDict()
    text.pieces = ""  # vocab.txt or tokenizer.json
    text.width, text.depth, text.heads, text.hidden = 768, 6, 12, 3072  # DistilBERT
    text.positions = 512
    text.token_types = 0  # 2 for BERT
    text.dropout = 0.1
    text.initializer_range = 0.02  # of what begins untrained
    text.max_pieces = 64  # of a caption in training, [CLS] and [SEP] among them
    text.evaluation_pieces = 128  # of any text afterwards

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-5
    config.optimizer.schedule = "constant"
    config.optimizer.weight_decay = 0.0
    config.optimizer.eps = 1e-6
    config.optimizer.adamw_compat = "transformers"  # as published
    config.optimizer.exclude = (r".*bias$", r".*scale$")
    config.optimizer.lr_multipliers = ()
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    """Shrinks any config of Frozen in Time to two steps on a CPU, keeping its structure."""
    config.steps = 2
    config.batch_size = 4
    config.microbatches = min(config.microbatches, 2)
    config.curriculum = ()
    config.init = ()
    config.data.train = "fake"
    config.compute_dtype = "float32"
    config.log_every = 1
    config.checkpoint_every = 2
    config.validation.patience = 0
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, 1)
    model = config.model
    model.embedding_dim = 16
    model.video.size = model.video.grid_size = model.video.resize = 32
    model.video.width, model.video.depth, model.video.heads = 32, 2, 2
    model.text.pieces = ""
    model.text.width, model.text.depth, model.text.heads, model.text.hidden = 32, 1, 2, 64
    model.text.positions = model.text.max_pieces = model.text.evaluation_pieces = 8
    return config


def variant_of(config: ConfigDict, variant: str, own: tuple[str, ...] = ()) -> ConfigDict:
    """Applies a variant of a config of Frozen in Time and locks it; see `base.variant_of`."""
    return base.variant_of(config, variant, smoke, own)
