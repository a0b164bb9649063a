"""Every shared configuration key, its default, and one line of what it means.

Method configs start from `get_config()`, fill ``config.model`` and override what they need; nothing
reads a key that is not listed here or in the method's own config. The result is locked, so a
misspelt key on the command line is an error that names the nearest valid one.
"""

from collections.abc import Callable

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the shared defaults, to be completed by a method's config."""
    config = ConfigDict()
    config.method = ""  # which package trains; see common/methods.py
    config.seed = 0  # order of the data, initialisation and augmentation all derive from it
    config.steps = 0  # optimizer steps of the whole run
    config.batch_size = 0  # examples per step over all devices and processes
    config.microbatches = 1  # gradient accumulation: parts the batch is cut into, one at a time
    # What the objective sees where there are several: each part by itself ("mean" of their
    # gradients), or the embeddings of the whole batch, for one more forward pass ("cached").
    config.accumulation = "mean"
    config.compute_dtype = "auto"  # "float32", "bfloat16", or "auto": bfloat16 on accelerators
    config.remat = "none"  # "none" or "block": recompute residual blocks in the backward pass
    config.ema_decay = 0.0  # >0 keeps an exponential moving average of the parameters
    # What changes on the way, "STEP: KEY=VALUE ... | KEY=VALUE ..."; see common/curriculum.py.
    config.curriculum = ()
    config.files = ()  # keys that name files a trained model needs: copied into runs and bundles
    config.init = ()  # weights to begin with, in this order: runs, bundles or published files
    config.model = ConfigDict()  # the method's own keys

    config.data = data = ConfigDict()
    # A source is a folder of record shards, a glob of shards, "tfds:NAME[:SPLIT]" or "fake";
    # several are mixed by weight: "/data/a/train@0.7,/data/b/train@0.3".
    data.train = ""  # what is trained on
    data.default_frame_rate = 25.0  # frames/s of records that do not say (DMVR, BraVe)
    data.default_audio_rate = 48000  # Hz, of records that do not say
    data.block_size = 1  # neighbouring records read together; >1 where random reads are dear
    data.max_bad_share = 0.01  # share of unreadable clips above which the run stops
    data.threads = 0  # host threads that read and decode; 0 means one per core
    # Examples that are read and decoded at a time, which is what hides the latency of a store far
    # away; 0 means one per thread where all files are local, and 64 where some are not.
    data.reads = 0
    data.prefetch = 2  # batches ready on the device ahead of the step
    data.reduced_decode = True  # decode JPEG at 1/2, 1/4, 1/8 scale where the target is that small

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "lars"  # "lars", "adamw", "adam" or "sgd"
    optimizer.learning_rate = 1.0  # peak, absolute (not scaled with the batch)
    optimizer.schedule = "cosine"  # after the warm-up: "cosine", "constant" or "steps"
    optimizer.warmup_steps = 0  # linear from 0
    optimizer.final_fraction = 0.0  # of the peak, where the cosine ends
    optimizer.step_boundaries = ()  # steps at which the "steps" schedule drops
    optimizer.step_factor = 0.1  # what each drop multiplies by
    optimizer.weight_decay = 0.0
    optimizer.momentum = 0.9  # lars and sgd
    optimizer.nesterov = True  # lars and sgd
    optimizer.b1 = 0.9  # adam and adamw
    optimizer.b2 = 0.999  # adam and adamw
    optimizer.eps = 1e-8  # adam and adamw
    optimizer.trust_coefficient = 0.001  # lars
    # Parameters without weight decay and trust ratio: regular expressions on "path/to/param".
    optimizer.exclude = (r".*bias$", r".*scale$", r".*offset$")
    # "PATTERN=FACTOR": learning rates of parameters whose path matches, applied last.
    optimizer.lr_multipliers = ()
    optimizer.clip_norm = 0.0  # >0 clips the global gradient norm
    optimizer.lars_compat = (
        "intended"  # "released": BraVe's inverted masks, multiplier before trust
    )

    # Where AdamW adds eps: "intended", or before the bias correction as "transformers" 4 did.
    optimizer.adamw_compat = "intended"

    config.mesh = mesh = ConfigDict()
    mesh.data = -1  # devices along "data"; -1: all that "fsdp" leaves
    mesh.fsdp = 1  # devices over which parameters are sharded as well
    # "PATTERN=AXIS": parameters whose path matches are split over "fsdp" along that axis; "auto":
    # the largest that can be divided, "none": they stay whole. The first rule that matches counts.
    mesh.rules = (".*=auto",)

    # Where several processes train together; see docs/clusters.md. All in seconds.
    config.hosts = hosts = ConfigDict()
    hosts.join_timeout = 300.0  # that all processes have to come together
    hosts.heartbeat_timeout = 30.0  # without a word, after which a process counts as lost
    hosts.stall_timeout = 1800.0  # without any progress, after which all end
    hosts.stacks_after = 60.0  # a step longer than this and 20 times the usual shows its stacks

    # Validation while training; see common/validation.py.
    config.validation = validation = ConfigDict()
    validation.data = ""  # clips held out, a source as data.train is; empty: nothing is validated
    validation.every = 1000  # steps between validations, each of which saves a checkpoint
    validation.examples = (
        0  # clips, in whole batches, the same ones every time; 0: all of one source
    )
    validation.patience = 0  # >0: so many in a row that do not lower the loss end the run

    config.log_every = 10  # steps between written metrics and progress lines
    config.checkpoint_every = 1000  # steps between saves
    config.keep_checkpoints = 3  # newest checkpoints kept, beside the best that was validated
    config.keep_every = 0  # >0: checkpoints at multiples of this are never deleted
    config.collapse_warning = (
        0.1  # warn when embeddings use less than this share of their dimensions
    )
    return config


def variant_of(
    config: ConfigDict,
    variant: str,
    smoke: Callable[[ConfigDict], ConfigDict],
    own: tuple[str, ...] = (),
) -> ConfigDict:
    """Applies what follows the colon in ``--config=FILE:VARIANT`` and locks the config.

    Args:
        config: unlocked, and changed here.
        variant: empty, "smoke", or one of ``own``, which the config has applied itself.
        smoke: shrinks a config of the method to two steps on a CPU.
        own: names of the variants that this config alone has.

    Raises:
        ValueError: there is no such variant.
    """
    if variant == "smoke":
        config = smoke(config)
    elif variant and variant not in own:
        known = ", ".join(f'":{name}"' for name in ("smoke", *own))
        raise ValueError(f"unknown variant {variant!r}: write nothing, or one of {known}")
    return config.lock()
