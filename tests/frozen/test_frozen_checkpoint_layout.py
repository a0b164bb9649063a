"""Published checkpoints of Frozen in Time in and out."""

from __future__ import annotations

import io
import math
import pathlib
import pickle
import zipfile

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from flax import nnx
from small_models import PACK, RELEASED, SMALL, TINY

from common.errors import UserError
from common.weights import loading, safe_pickle, torch_file, vit_layout
from configs import frozen_base
from frozen import checkpoint_layout, weight_files


def test_a_file_of_the_released_form_is_read_and_written_again_bit_for_bit(tmp_path):
    model = small_models.abstract(small_models.config(TINY))
    assert checkpoint_layout.load(RELEASED, model) == []
    checkpoint_layout.save(tmp_path / "again.pth.tar", model, small_models.config(TINY))
    theirs = torch_file.load(RELEASED, placeholders=True)
    ours = torch_file.load(tmp_path / "again.pth.tar")
    assert list(ours) == list(theirs)
    assert list(ours["state_dict"]) == list(theirs["state_dict"]), "names, in their order"
    small_models.assert_equal(ours["state_dict"], theirs["state_dict"])
    small_models.assert_equal(ours["state_dict"], small_models.by_rule(theirs["state_dict"]))


def test_what_is_saved_says_of_which_networks_it_is(tmp_path):
    config = small_models.config({})
    model = small_models.filled(small_models.config(TINY))
    checkpoint_layout.save(tmp_path / "a.pth", model, config)
    saved = torch_file.load(tmp_path / "a.pth")
    assert (saved["arch"], saved["epoch"], saved["monitor_best"]) == ("FrozenInTime", 0, math.inf)
    networks = saved["config"]["arch"]["args"]
    assert networks["video_params"]["arch_config"] == "base_patch16_224"
    assert networks["video_params"]["num_frames"] == 4
    assert networks["text_params"]["model"] == "distilbert-base-uncased"
    assert networks["projection_dim"] == 256
    checkpoint_layout.save(tmp_path / "b.pth", model, small_models.config(TINY))
    networks = torch_file.load(tmp_path / "b.pth")["config"]["arch"]["args"]
    assert networks["video_params"]["arch_config"] == "width8_depth2_heads2_patch4_8"
    assert networks["text_params"]["model"] == "distilbert-width6-depth1-heads2"


@pytest.mark.parametrize("prefix", ["", "module."])
def test_names_stand_below_module_or_not(prefix):
    model, published = small_models.abstract(small_models.config(SMALL)), small_models.small()
    named = {prefix + key: value for key, value in published.items()}
    assert checkpoint_layout.fill(model, named, "small") == []
    assert list(checkpoint_layout.published_arrays(model, prefix)) == list(named)
    small_models.assert_equal(checkpoint_layout.published_arrays(model), published)


@pytest.mark.slow
def test_a_published_file_embeds_as_published(tmp_path):
    torch_file.save(tmp_path / "small.pth.tar", {"state_dict": small_models.small()})
    model = small_models.abstract(small_models.config(SMALL))
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
    part = {key: x for key, x in small_models.small().items() if key.startswith(theirs)}
    torch_file.save(tmp_path / "part.pth", part | {"head.weight": np.zeros(3, np.float32)})
    model, whole = (
        small_models.filled(small_models.config(SMALL)),
        small_models.abstract(small_models.config(SMALL)),
    )
    before = small_models.values(model)
    checkpoint_layout.fill(whole, small_models.small(), "small")
    unread = checkpoint_layout.load(tmp_path / "part.pth", model, [encoder])
    assert unread == ["head.weight"]
    loaded = {at: x for at, x in small_models.values(whole).items() if at.startswith(ours)}
    assert loaded and len(loaded) < len(before)
    small_models.assert_equal(small_models.values(model), before | loaded)


def test_a_published_file_becomes_a_model_with_its_encoders():
    config = frozen_base.get_config()
    config.compute_dtype = "float32"
    lengths = {"text.max_pieces": 7, "text.evaluation_pieces": 7}
    config.model.update_from_flattened_dict(TINY | lengths)
    # Where no file of word pieces is named, the table has as many rows as the published one.
    loaded = loading.from_published(RELEASED, config.lock(), ["video", "video_joint"])
    assert list(loaded.method.encoders) == ["video", "video_joint"]
    times = small_models.by_rule({"video_model.temporal_embed": np.zeros((1, 4, 8))})
    np.testing.assert_array_equal(
        loaded.model.video.times[...], times["video_model.temporal_embed"][0]
    )


@pytest.mark.slow
def test_what_no_published_file_holds_is_as_training_begins(tmp_path, monkeypatch):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef"]
    (tmp_path / "pieces.txt").write_text("\n".join(pieces) + "\n")
    config = frozen_base.get_config()
    config.model.text.pieces = str(tmp_path / "pieces.txt")
    lengths = {"text.max_pieces": 7, "text.evaluation_pieces": 7}
    config.model.update_from_flattened_dict(TINY | lengths)
    config.model.learn_temperature, config.model.loss = True, "sigmoid"
    model = loading.from_published(RELEASED, config).model
    np.testing.assert_allclose(np.exp(model.log_scale[...]), 20, rtol=1e-6)
    assert model.bias[...] == -10
    bias = weight_files.read(RELEASED)["module.txt_proj.1.bias"]
    np.testing.assert_array_equal(model.text_projection.bias[...], bias)
    config.model.learn_temperature, config.model.loss = False, "softmax"
    monkeypatch.setattr(loading, "untrained", None)  # nor is anything drawn for nothing
    loading.from_published(RELEASED, config)


@pytest.mark.parametrize("how", vit_layout.TEMPORAL_RESIZES)
def test_files_of_other_numbers_of_frames_and_image_sizes_are_fitted(how):
    config = small_models.config(
        SMALL, video__max_frames=6, video__grid_size=96, video__temporal_resize=how
    )
    model, published = small_models.abstract(config), small_models.small()
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
    model = small_models.filled(small_models.config(SMALL, **changes))
    before = small_models.values(model)
    with pytest.raises(UserError, match=message):
        checkpoint_layout.fill(model, change(small_models.small()), "a.pth")
    small_models.assert_equal(small_models.values(model), before)


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
    model = small_models.abstract(small_models.config(TINY))
    assert checkpoint_layout.load(path, model) == []
    assert not victim.exists()
    contents = torch_file.load(path, placeholders=True)
    assert isinstance(contents["hostile"], safe_pickle.Unknown)
    pickle.loads(source.getvalue())
    assert victim.exists(), "it would have"


def test_a_network_of_differences_is_not_written_as_one_of_frames(tmp_path):
    config = small_models.config(TINY, video__input="difference")
    with pytest.raises(UserError, match="video.input is 'difference'.*bundle"):
        checkpoint_layout.save(tmp_path / "a.pth", small_models.filled(config), config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colours": "half"}, "colours is 'half'.* take 'imagenet'"),
        ({"video__eps": 1e-5}, "video.eps is 1e-05"),
    ],
)
def test_other_settings_than_the_published_are_not_left_out(changes, message, tmp_path):
    config = small_models.config(TINY, **changes)
    with pytest.raises(UserError, match=message):
        checkpoint_layout.save(tmp_path / "a.pth", small_models.filled(config), config)
    assert not list(tmp_path.iterdir())


def test_quantised_weights_are_refused():
    tensors = dict(weight_files.read(RELEASED))
    name = next(name for name in tensors if name.endswith("txt_proj.1.weight"))
    tensors[name] = tensors[name].astype(np.int8)
    with pytest.raises(UserError, match="holds int8, .*quantised weights are not read"):
        checkpoint_layout.fill(small_models.filled(small_models.config(TINY)), tensors, "a file")


def test_saving_never_overwrites_a_file(tmp_path):
    model = small_models.filled(small_models.config(TINY))
    (tmp_path / "a.pth").write_bytes(b"mine")
    with pytest.raises(UserError, match="exists already"):
        checkpoint_layout.save(tmp_path / "a.pth", model, small_models.config(TINY))
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
    config = small_models.config(TINY, **changes)
    with pytest.raises(UserError, match=message):
        checkpoint_layout.save(tmp_path / "a.pth", small_models.filled(config), config)
    with pytest.raises(UserError, match=message):
        checkpoint_layout.load(RELEASED, small_models.abstract(config))
    assert not list(tmp_path.iterdir())
