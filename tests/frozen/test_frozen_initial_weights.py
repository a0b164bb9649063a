"""Networks that training of Frozen in Time begins from."""

from __future__ import annotations

import re
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import small_models
import text_golden
from small_models import OF_OTHERS, PACK, RELEASED, SMALL, TINY, VIT

from common.errors import UserError
from common.weights import torch_file
from frozen import checkpoint_layout, weight_files


def _initialised(path, config):
    """The names of the parts that were filled, and what was said of them."""
    model = small_models.abstract(config)
    lines = checkpoint_layout.initialise(path, model, config)
    return small_models.values(model), lines


def _parts(values):
    return sorted({at.split("/")[0] for at in values})


def test_a_whole_checkpoint_begins_everything():
    values, lines = _initialised(RELEASED, small_models.config(TINY))
    assert (
        values.keys() == small_models.values(small_models.filled(small_models.config(TINY))).keys()
    )
    assert lines == [
        "the file holds a video network of Frozen in Time and a DistilBERT",
        "filled: the text network, the video network, the projection of texts, the projection of "
        "videos",
        "taken as trained with config.model.video.heads=2 and config.model.text.heads=2, which the "
        "file does not tell",
    ]


def test_what_is_fitted_is_said():
    sizes = {"video__grid_size": 16, "video__max_frames": 8, "video__temporal_resize": "interp"}
    values, lines = _initialised(RELEASED, small_models.config(TINY, **sizes))
    times_FD = values["video/times"]
    np.testing.assert_array_equal(times_FD[::2], times_FD[1::2])
    assert "positions of 4 patches were interpolated to 16" in lines
    assert "positions of 4 frames were fitted to 8" in lines


def test_an_image_network_of_timm_begins_the_video_network_but_for_what_is_about_time(tmp_path):
    published = PACK.flat_checkpoint("vit_small")
    torch_file.save(tmp_path / "vit.pth", {"model": published})
    config = small_models.config(SMALL)
    model = small_models.filled(config)
    fresh = small_models.values(model)
    lines = checkpoint_layout.initialise(tmp_path / "vit.pth", model, config)
    assert lines == [
        "the file holds a ViT as timm names it",
        "filled: the video network",
        "taken as trained with config.model.video.heads=4, which the file does not tell",
        "left as they begin: the text network, the projection of texts, the projection of videos, "
        "all of the video network that is about time",
        "not used of the file: head (2)",
    ]
    after = small_models.values(model)
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
    values, lines = _initialised(
        tmp_path / "model.safetensors", small_models.config(OF_OTHERS, **changes)
    )
    assert _parts(values) == ["video"]
    assert lines[:2] == [f"the file holds {kind}", "filled: the video network"]
    said = [line for line in lines if "config.model.video.activation='quick_gelu'" in line]
    assert len(said) == bool(changes), "of CLIPs no file tells it"
    norms = f"such networks were trained with config.model.video.eps={eps} (here 1e-06)"
    assert norms in lines
    fitting = small_models.config(OF_OTHERS, video__eps=eps, **changes)
    assert norms not in _initialised(tmp_path / "model.safetensors", fitting)[1]
    with pytest.raises(UserError, match=r"config\.model\.video\.pre_norm=(True|False) \(here"):
        swapped = small_models.config(OF_OTHERS, **({} if changes else CLIP))
        _initialised(tmp_path / "model.safetensors", swapped)


@pytest.mark.parametrize(
    ("checkpoint", "types", "kind"), [("small", 0, "a DistilBERT"), ("bert", 2, "a BERT")]
)
def test_a_text_network_begins_the_text_network(checkpoint, types, kind, tmp_path):
    published = text_golden.PACK.flat_checkpoint(checkpoint, without="txt_proj")
    torch_file.save(tmp_path / "pytorch_model.bin", published)
    config = small_models.config(SMALL, text__token_types=types)
    values, lines = _initialised(tmp_path / "pytorch_model.bin", config)
    assert _parts(values) == ["text"]
    assert lines[:2] == [f"the file holds {kind}", "filled: the text network"]
    assert any(line.startswith("left as they begin: the video network, the pro") for line in lines)
    other = r"config\.model\.text\.token_types=\d \(here \d\)"
    with pytest.raises(UserError, match=other):
        swapped = small_models.config(SMALL, text__token_types=2 - types)
        _initialised(tmp_path / "pytorch_model.bin", swapped)


def test_a_file_without_any_of_the_networks_is_refused_with_what_it_begins_with(tmp_path):
    torch_file.save(tmp_path / "a.pth", {"conv1.weight": np.zeros((4, 3, 7, 7), np.float32)})
    with pytest.raises(UserError, match=r"no network to begin from.*begins with conv1\.weight"):
        _initialised(tmp_path / "a.pth", small_models.config(TINY))
    torch_file.save(tmp_path / "b.pth", {"state_dict": {"epoch": 3}})
    with pytest.raises(UserError, match="no tensors by name"):
        _initialised(tmp_path / "b.pth", small_models.config(TINY))


def test_a_program_of_pytorch_is_told_from_weights(tmp_path):
    with zipfile.ZipFile(tmp_path / "clip.pt", "w") as archive:
        program = b"\x80\x02c__torch__.model\nCLIP\n)\x81}X\x01\x00\x00\x00aK\x01sb."
        archive.writestr("clip/data.pkl", program)
    with pytest.raises(UserError, match="TorchScript.*state_dict"):
        _initialised(tmp_path / "clip.pt", small_models.config(TINY))


def test_the_sizes_of_a_clip_of_openai_are_those_of_its_image_network():
    names = ["class_embedding", "ln_pre.weight", *(f"transformer.resblocks.{n}.ln" for n in (0, 1))]
    tensors = {f"visual.{name}": np.zeros(32) for name in names}
    tensors["visual.conv1.weight"] = np.zeros((32, 3, 14, 14))
    tensors |= {f"transformer.resblocks.{n}.ln": np.zeros(8) for n in range(5)}
    assert weight_files.image(tensors).is_clip
    assert weight_files.sizes(tensors) == {
        "video.width": 32, "video.patch": 14, "video.depth": 2, "video.pre_norm": True,
    }  # fmt: skip
