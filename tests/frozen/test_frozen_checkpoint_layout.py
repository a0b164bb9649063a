"""Published checkpoints of Frozen in Time in and out, and networks that training begins from."""

from __future__ import annotations

import functools
import io
import json
import math
import pathlib
import pickle
import re
import zipfile

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import text_golden
from flax import nnx
from ml_collections import ConfigDict

from common.errors import UserError
from common.weights import loading, safe_pickle, torch_file, vit_layout
from configs import frozen_base
from frozen import checkpoint_layout, weight_files
from frozen.model import FrozenModel

PACK, VIT = golden_rules.Pack("frozen"), golden_rules.Pack("vit")
RELEASED = PACK.folder / "released_form.pth.tar"  # written by PyTorch, with an object as config
SMALL = {
    "embedding_dim": 32,
    "video.grid_size": 64, "video.width": 64, "video.depth": 3, "video.heads": 4,
    "text.width": 48, "text.depth": 2, "text.heads": 4, "text.hidden": 96, "text.positions": 40,
}  # fmt: skip
TINY = {
    "embedding_dim": 5,
    "video.grid_size": 8, "video.patch": 4, "video.width": 8, "video.depth": 2, "video.heads": 2,
    "text.width": 6, "text.depth": 1, "text.heads": 2, "text.hidden": 10, "text.positions": 7,
}  # fmt: skip
OF_OTHERS = SMALL | {"video.width": 32, "video.depth": 2}  # as the ViTs of the other pack
PIECES = {5: 11, 32: 120}  # by the width of the joint space


def _config(sizes, **changes):
    config = frozen_base.get_config().model
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config.update_from_flattened_dict(sizes | changes)
    return config


def _abstract(config):
    graphdef, variables = _parts_of(json.dumps(config.to_dict()))
    return nnx.merge(graphdef, jax.tree.map(lambda x: x, variables))  # a copy


@functools.cache
def _parts_of(config):
    """Structure and shapes of a model: to trace its construction takes a second."""
    config = ConfigDict(json.loads(config))
    pieces = PIECES.get(config.embedding_dim, 120)
    return nnx.split(nnx.eval_shape(lambda: FrozenModel(config, pieces, nnx.Rngs(0))))


def _filled(config, seed=0):
    graphdef, variables = nnx.split(_abstract(config))
    generator = np.random.default_rng(seed)
    draw = lambda x: jnp.asarray(generator.random(x.shape, np.float32), x.dtype)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(draw, variables))


def _small():
    return dict(PACK.flat_checkpoint("small"))


def _values(model):
    """The arrays of a model by path; variables without numbers are left out."""
    found = {"/".join(map(str, at)): v for at, v in nnx.to_flat_state(nnx.state(model))}
    values = {at: variable.get_value() for at, variable in found.items()}
    return {at: np.asarray(x) for at, x in values.items() if not _is_blank(x)}


def _is_blank(value):
    return isinstance(value, jax.ShapeDtypeStruct)


def _assert_equal(values, wanted):
    assert values.keys() == wanted.keys()
    for name, value in values.items():
        assert value.dtype == wanted[name].dtype, name
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)


def _by_rule(tensors):
    return {
        key: golden_rules.tensor(key.removeprefix("module."), x.shape, "float32", "n", 1.0, 0.0, 0)
        for key, x in tensors.items()
    }


# --------------------------------------------------------------------------------- in and out


def test_a_file_of_the_released_form_is_read_and_written_again_bit_for_bit(tmp_path):
    model = _abstract(_config(TINY))
    assert checkpoint_layout.load(RELEASED, model) == []
    checkpoint_layout.save(tmp_path / "again.pth.tar", model, _config(TINY))
    theirs = torch_file.load(RELEASED, placeholders=True)
    ours = torch_file.load(tmp_path / "again.pth.tar")
    assert list(ours) == list(theirs)
    assert list(ours["state_dict"]) == list(theirs["state_dict"]), "names, in their order"
    _assert_equal(ours["state_dict"], theirs["state_dict"])
    _assert_equal(ours["state_dict"], _by_rule(theirs["state_dict"]))


def test_what_is_saved_says_of_which_networks_it_is(tmp_path):
    config = _config({})
    model = _filled(_config(TINY))
    checkpoint_layout.save(tmp_path / "a.pth", model, config)
    saved = torch_file.load(tmp_path / "a.pth")
    assert (saved["arch"], saved["epoch"], saved["monitor_best"]) == ("FrozenInTime", 0, math.inf)
    networks = saved["config"]["arch"]["args"]
    assert networks["video_params"]["arch_config"] == "base_patch16_224"
    assert networks["video_params"]["num_frames"] == 4
    assert networks["text_params"]["model"] == "distilbert-base-uncased"
    assert networks["projection_dim"] == 256
    checkpoint_layout.save(tmp_path / "b.pth", model, _config(TINY))
    networks = torch_file.load(tmp_path / "b.pth")["config"]["arch"]["args"]
    assert networks["video_params"]["arch_config"] == "width8_depth2_heads2_patch4_8"
    assert networks["text_params"]["model"] == "distilbert-width6-depth1-heads2"


@pytest.mark.parametrize("prefix", ["", "module."])
def test_names_stand_below_module_or_not(prefix):
    model, published = _abstract(_config(SMALL)), _small()
    named = {prefix + key: value for key, value in published.items()}
    assert checkpoint_layout.fill(model, named, "small") == []
    assert list(checkpoint_layout.published_arrays(model, prefix)) == list(named)
    _assert_equal(checkpoint_layout.published_arrays(model), published)


@pytest.mark.slow
def test_a_published_file_embeds_as_published(tmp_path):
    torch_file.save(tmp_path / "small.pth.tar", {"state_dict": _small()})
    model = _abstract(_config(SMALL))
    checkpoint_layout.load(tmp_path / "small.pth.tar", model)
    model.eval()
    video, text = PACK.stored("video_small_f4"), PACK.stored("text_small")
    graphdef, variables = nnx.split(model)

    @jax.jit
    def embed(variables, clips, ids):
        model = nnx.merge(graphdef, variables)
        return model.embed_video(clips), model.embed_text(ids)

    with golden_rules.x64():
        wide = jax.tree.map(lambda x: x.astype("float64"), variables)
        clips = jnp.asarray(PACK.inputs("video_small_f4")["video"], "float64")
        ids = jnp.asarray(text["input_ids"] * text["attention_mask"], "int32")
        found = embed(wide, clips, ids)
    assert golden_rules.error_of_max(found[0], video["video_embedding"]) < 1e-9
    assert golden_rules.error_of_max(found[1], text["text_embedding"]) < 1e-9


@pytest.mark.parametrize(
    ("encoder", "theirs", "ours"),
    [
        ("video", ("video_model.",), ("video/",)),
        ("video_joint", ("video_model.", "vid_proj."), ("video/", "video_projection/")),
        ("text", ("text_model.", "txt_proj."), ("text/", "text_projection/")),
    ],
)
def test_an_encoder_loads_alone_and_the_rest_stays(encoder, theirs, ours, tmp_path):
    part = {key: x for key, x in _small().items() if key.startswith(theirs)}
    torch_file.save(tmp_path / "part.pth", part | {"head.weight": np.zeros(3, np.float32)})
    model, whole = _filled(_config(SMALL)), _abstract(_config(SMALL))
    before = _values(model)
    checkpoint_layout.fill(whole, _small(), "small")
    unread = checkpoint_layout.load(tmp_path / "part.pth", model, [encoder])
    assert unread == ["head.weight"]
    loaded = {at: x for at, x in _values(whole).items() if at.startswith(ours)}
    assert loaded and len(loaded) < len(before)
    _assert_equal(_values(model), before | loaded)


def test_a_published_file_becomes_a_model_with_its_encoders():
    config = frozen_base.get_config()
    config.compute_dtype = "float32"
    lengths = {"text.max_pieces": 7, "text.evaluation_pieces": 7}
    config.model.update_from_flattened_dict(TINY | lengths)
    # Where no file of word pieces is named, the table has as many rows as the published one.
    loaded = loading.from_published(RELEASED, config.lock(), ["video", "video_joint"])
    assert list(loaded.method.encoders) == ["video", "video_joint"]
    times = _by_rule({"video_model.temporal_embed": np.zeros((1, 4, 8))})
    np.testing.assert_array_equal(
        loaded.model.video.times[...], times["video_model.temporal_embed"][0]
    )


@pytest.mark.parametrize("how", vit_layout.TEMPORAL_RESIZES)
def test_files_of_other_numbers_of_frames_and_image_sizes_are_fitted(how):
    config = _config(SMALL, video__max_frames=6, video__grid_size=96, video__temporal_resize=how)
    model, published = _abstract(config), _small()
    checkpoint_layout.fill(model, published, "small")
    wanted = vit_layout.resize_times(published["video_model.temporal_embed"], 6, how)
    np.testing.assert_array_equal(model.video.times[...], wanted[0])
    assert model.video.positions[...].shape == (37, 64)


def _without(*keys):
    return lambda file: {key: x for key, x in file.items() if key not in keys}


def _with(key, shape):
    return lambda file: file | {key: np.zeros(shape, np.float32)}


@pytest.mark.parametrize(
    ("changes", "change", "message"),
    [
        ({"embedding_dim": 16}, dict, r"config\.model\.embedding_dim=32 \(here 16\)"),
        (
            {"video__width": 32, "video__depth": 2, "video__patch": 8},
            dict,
            r"is of config\.model\.video\.width=64 \(here 32\), config\.model\.video\.patch=16 "
            r"\(here 8\), config\.model\.video\.depth=3 \(here 2\)\.",
        ),
        (
            {"text__hidden": 8, "text__positions": 9, "text__depth": 3},
            dict,
            r"depth=2 \(here 3\), config\.model\.text\.hidden=96 \(here 8\), "
            r"config\.model\.text\.positions=40 \(here 9\)",
        ),
        (
            {},
            _with(f"text_model.{weight_files.WORDS}", (99, 48)),
            r"config\.model\.text\.pieces naming a file of 99 word pieces \(here of 120\)",
        ),
        ({}, _without("vid_proj.0.weight"), r"vid_proj\.0\.weight is missing.*projection of vid"),
        ({}, _without("vid_proj.0.bias"), r"a\.pth: vid_proj\.0\.bias is missing"),
        ({}, _with("vid_proj.0.bias", ()), r"vid_proj\.0\.bias has shape \(\)"),
        ({}, _with("video_model.patch_embed.proj.weight", ()), r"patch_embed\.proj\.weight has sh"),
        (
            {},
            _without("video_model.temporal_embed"),
            r"video_model\.temporal_embed is missing.*config\.init",
        ),
        ({}, _without("text_model.embeddings.LayerNorm.bias"), r"LayerNorm\.bias is missing"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(changes, change, message):
    model = _filled(_config(SMALL, **changes))
    before = _values(model)
    with pytest.raises(UserError, match=message):
        checkpoint_layout.fill(model, change(_small()), "a.pth")
    _assert_equal(_values(model), before)


class _Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_a_configuration_that_would_run_code_does_not(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "hostile.pth.tar"
    source = io.BytesIO()
    pickle.dump(_Hostile(victim), source, protocol=2)
    with zipfile.ZipFile(RELEASED) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):  # the value of one more key, before the dictionary ends
                key = pickle.dumps("hostile", protocol=2)[2:-1]
                content = content[:-2] + key + source.getvalue()[2:-1] + b"u."
            new.writestr(name, content)
    model = _abstract(_config(TINY))
    assert checkpoint_layout.load(path, model) == []
    assert not victim.exists()
    contents = torch_file.load(path, placeholders=True)
    assert isinstance(contents["hostile"], safe_pickle.Unknown)
    pickle.loads(source.getvalue())
    assert victim.exists(), "it would have"


def test_saving_never_overwrites_a_file(tmp_path):
    model = _filled(_config(TINY))
    (tmp_path / "a.pth").write_bytes(b"mine")
    with pytest.raises(UserError, match="exists already"):
        checkpoint_layout.save(tmp_path / "a.pth", model, _config(TINY))
    assert (tmp_path / "a.pth").read_bytes() == b"mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text__token_types": 2}, "no place for a BERT without its pooler"),
        ({"video__pre_norm": True}, "no place for a video network like CLIP's"),
        ({"video__activation": "quick_gelu"}, "no place for a video network like CLIP's"),
    ],
)
def test_what_the_layout_cannot_say_is_neither_written_nor_read(changes, message, tmp_path):
    config = _config(TINY, **changes)
    with pytest.raises(UserError, match=message):
        checkpoint_layout.save(tmp_path / "a.pth", _filled(config), config)
    with pytest.raises(UserError, match=message):
        checkpoint_layout.load(RELEASED, _abstract(config))
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------- beginning from files


def _initialised(path, config):
    """The names of the parts that were filled, and what was said of them."""
    model = _abstract(config)
    lines = checkpoint_layout.initialise(path, model, config)
    return _values(model), lines


def _parts(values):
    return sorted({at.split("/")[0] for at in values})


def test_a_whole_checkpoint_begins_everything():
    values, lines = _initialised(RELEASED, _config(TINY))
    assert values.keys() == _values(_filled(_config(TINY))).keys()
    assert lines == [
        "the file holds a video network of Frozen in Time and a DistilBERT",
        "filled: the text network, the video network, the projection of texts, the projection of "
        "videos",
        "taken as trained with config.model.video.heads=2 and config.model.text.heads=2, which the "
        "file does not tell",
    ]


def test_what_is_fitted_is_said():
    sizes = {"video__grid_size": 16, "video__max_frames": 8, "video__temporal_resize": "interp"}
    values, lines = _initialised(RELEASED, _config(TINY, **sizes))
    times_FD = values["video/times"]
    np.testing.assert_array_equal(times_FD[::2], times_FD[1::2])
    assert "positions of 4 patches were interpolated to 16" in lines
    assert "positions of 4 frames were fitted to 8" in lines


def test_an_image_network_of_timm_begins_the_video_network_but_for_what_is_about_time(tmp_path):
    published = PACK.flat_checkpoint("vit_small")
    torch_file.save(tmp_path / "vit.pth", {"model": published})
    config = _config(SMALL)
    model = _filled(config)
    fresh = _values(model)
    lines = checkpoint_layout.initialise(tmp_path / "vit.pth", model, config)
    assert lines == [
        "the file holds a ViT as timm names it",
        "filled: the video network",
        "taken as trained with config.model.video.heads=4, which the file does not tell",
        "left as they begin: the text network, the projection of texts, the projection of videos, "
        "all of the video network that is about time",
        "not used of the file: head (2)",
    ]
    after = _values(model)
    changed = {at for at in after if not np.array_equal(after[at], fresh[at])}
    assert changed == {at for at in after if at.startswith("video/") and "/time" not in at}


def _of_plain_width(published):
    """The pack's image networks with perceptrons twice as wide, four times the width."""

    def doubled(key, x):
        if re.search(r"fc1|intermediate", key):
            return np.concatenate([x, x])
        if re.search(r"fc2\.weight|\d\.output\.dense\.weight", key):
            return np.concatenate([x, x], 1)
        return x

    return {key: doubled(key, x) for key, x in published.items()}


CLIP = {"video__pre_norm": True, "video__activation": "quick_gelu"}


@pytest.mark.parametrize(
    ("checkpoint", "changes", "eps", "kind"),
    [
        ("hf_vit", {}, 1e-12, "a ViT of Hugging Face"),
        ("hf_clip", CLIP, 1e-5, "a CLIP of Hugging Face"),
    ],
)
def test_image_networks_of_hugging_face_begin_the_video_network(
    checkpoint, changes, eps, kind, tmp_path
):
    published = _of_plain_width(VIT.flat_checkpoint(checkpoint))
    safetensors.numpy.save_file(published, tmp_path / "model.safetensors")
    values, lines = _initialised(tmp_path / "model.safetensors", _config(OF_OTHERS, **changes))
    assert _parts(values) == ["video"]
    assert lines[:2] == [f"the file holds {kind}", "filled: the video network"]
    said = [line for line in lines if "config.model.video.activation='quick_gelu'" in line]
    assert len(said) == bool(changes), "of CLIPs no file tells it"
    norms = f"such networks were trained with config.model.video.eps={eps} (here 1e-06)"
    assert norms in lines
    fitting = _config(OF_OTHERS, video__eps=eps, **changes)
    assert norms not in _initialised(tmp_path / "model.safetensors", fitting)[1]
    with pytest.raises(UserError, match=r"config\.model\.video\.pre_norm=(True|False) \(here"):
        swapped = _config(OF_OTHERS, **({} if changes else CLIP))
        _initialised(tmp_path / "model.safetensors", swapped)


@pytest.mark.parametrize(
    ("checkpoint", "types", "kind"), [("small", 0, "a DistilBERT"), ("bert", 2, "a BERT")]
)
def test_a_text_network_begins_the_text_network(checkpoint, types, kind, tmp_path):
    published = text_golden.PACK.flat_checkpoint(checkpoint, without="txt_proj")
    torch_file.save(tmp_path / "pytorch_model.bin", published)
    config = _config(SMALL, text__token_types=types)
    values, lines = _initialised(tmp_path / "pytorch_model.bin", config)
    assert _parts(values) == ["text"]
    assert lines[:2] == [f"the file holds {kind}", "filled: the text network"]
    assert any(line.startswith("left as they begin: the video network, the pro") for line in lines)
    other = r"config\.model\.text\.token_types=\d \(here \d\)"
    with pytest.raises(UserError, match=other):
        swapped = _config(SMALL, text__token_types=2 - types)
        _initialised(tmp_path / "pytorch_model.bin", swapped)


def test_a_file_without_any_of_the_networks_is_refused_with_what_it_begins_with(tmp_path):
    torch_file.save(tmp_path / "a.pth", {"conv1.weight": np.zeros((4, 3, 7, 7), np.float32)})
    with pytest.raises(UserError, match=r"no network to begin from.*begins with conv1\.weight"):
        _initialised(tmp_path / "a.pth", _config(TINY))
    torch_file.save(tmp_path / "b.pth", {"state_dict": {"epoch": 3}})
    with pytest.raises(UserError, match="no tensors by name"):
        _initialised(tmp_path / "b.pth", _config(TINY))


def test_a_program_of_pytorch_is_told_from_weights(tmp_path):
    with zipfile.ZipFile(tmp_path / "clip.pt", "w") as archive:
        program = b"\x80\x02c__torch__.model\nCLIP\n)\x81}X\x01\x00\x00\x00aK\x01sb."
        archive.writestr("clip/data.pkl", program)
    with pytest.raises(UserError, match="TorchScript.*state_dict"):
        _initialised(tmp_path / "clip.pt", _config(TINY))


def test_the_sizes_of_a_clip_of_openai_are_those_of_its_image_network():
    names = ["class_embedding", "ln_pre.weight", *(f"transformer.resblocks.{n}.ln" for n in (0, 1))]
    tensors = {f"visual.{name}": np.zeros(32) for name in names}
    tensors["visual.conv1.weight"] = np.zeros((32, 3, 14, 14))
    tensors |= {f"transformer.resblocks.{n}.ln": np.zeros(8) for n in range(5)}
    assert weight_files.image(tensors).is_clip
    assert weight_files.sizes(tensors) == {
        "video.width": 32, "video.patch": 14, "video.depth": 2, "video.pre_norm": True,
    }  # fmt: skip
