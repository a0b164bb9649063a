"""Promises of sources: mixtures say what is wrong with them, and TFDS is read as stored."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from common.data import sources
from common.data.pipeline import SAMPLE_ID, TrainData
from common.errors import UserError
from configs import base


def test_mixtures_are_split_into_sources_and_weights():
    assert sources.split_mixture("/a/train") == [("/a/train", 1.0)]
    assert sources.split_mixture("/a@0.7, /b@0.3") == [("/a", 0.7), ("/b", 0.3)]
    assert sources.split_mixture("tfds:ucf101:train[:10%]@2") == [("tfds:ucf101:train[:10%]", 2.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no source"),
        ("/a@0,/b@1", "weight above 0"),
        ("/a@lots", "'lots' after '@'"),
        ("/a@-1", "weight above 0"),
        ("/a@nan", "weight above 0"),
        ("fake,/a", "cannot be mixed"),
    ],
)
def test_a_mixture_that_cannot_be_says_why(text, message):
    with pytest.raises(UserError, match=message):
        sources.split_mixture(text)


class FramesAndCaption:
    """Three frames of every clip as they are stored, its label and its caption's length."""

    modalities = frozenset({"frames", "labels", "captions"})

    def spec(self):
        import jax

        return {
            "video": jax.ShapeDtypeStruct((3, 24, 32, 3), np.uint8),
            "label": jax.ShapeDtypeStruct((), np.int64),
            "caption": jax.ShapeDtypeStruct((), np.int32),
        }

    def example(self, record, seed):
        from common.data import decode
        from common.tf import tf

        frames = decode.take(record["frames"], tf.range(3) % tf.size(record["frames"]))
        return {
            "video": decode._decode_others(frames, tf.constant((0, 0, 24, 32)), (24, 32)),
            "label": record["labels"][0],
            "caption": tf.strings.length(record["captions"][0]),
        }


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Two small data sets of TFDS: six videos with labels and captions, and four images."""
    import tensorflow_datasets as tfds

    from common.tf import tf  # noqa: F401  (before TFDS loads TensorFlow by itself)

    class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(self.clip_features)
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

    class ToyVideos(Toy, skip_registration=True):
        clip_features = {
            "video": tfds.features.Video(shape=(None, 24, 32, 3)),
            "action": tfds.features.ClassLabel(names=["rise", "fall"]),
            "caption": tfds.features.Text(),
        }

        def _generate_examples(self):
            for n in range(6):
                video = np.full((3 + n, 24, 32, 3), 40 * n, np.uint8)
                yield str(n), {"video": video, "action": n % 2, "caption": "x" * n}

    class ToyImages(Toy, skip_registration=True):
        clip_features = {"image": tfds.features.Image(shape=(24, 32, 3), encoding_format="jpeg")}

        def _generate_examples(self):
            for n in range(4):
                yield str(n), {"image": np.full((24, 32, 3), 60 * n, np.uint8)}

    class ToyTexts(Toy, skip_registration=True):
        clip_features = {"text": tfds.features.Text()}

        def _generate_examples(self):
            yield "0", {"text": "nothing to see"}

    folder = tmp_path_factory.mktemp("tfds")
    for builder in (ToyVideos, ToyImages, ToyTexts):
        builder(data_dir=folder).download_and_prepare()
    return folder


def make_config(source) -> ConfigDict:
    config = base.get_config()
    config.batch_size = 6
    config.data.train = source
    config.data.threads = 1
    return config


def test_a_tfds_data_set_of_videos_is_read_with_labels_and_captions(data_dir):
    reader = TrainData(make_config(f"tfds:{data_dir}/toy_videos/1.0.0"), FramesAndCaption())
    assert reader.num_records == 6
    batch = next(reader.batches(0))
    number_B = batch["caption"]
    assert sorted(number_B) == list(range(6))
    np.testing.assert_array_equal(batch["label"], number_B % 2)
    expected = np.broadcast_to(40 * number_B[:, None, None, None, None], batch["video"].shape)
    np.testing.assert_array_equal(batch["video"], expected)


def test_a_part_of_a_split_holds_just_that_part(data_dir):
    source = f"tfds:{data_dir}/toy_videos/1.0.0:train"
    whole = sources.open_source(source).records
    part = sources.open_source(source + "[2:4]").records
    assert len(part) == 2
    assert [part.read(0), part.read(1)] == [whole.read(2), whole.read(3)]
    assert part.name(1) == whole.name(3)


def test_images_are_clips_of_one_frame(data_dir):
    class OneFrame(FramesAndCaption):
        modalities = frozenset({"frames"})

        def spec(self):
            return {"video": super().spec()["video"]}

        def example(self, record, seed):
            labelled = record | {"labels": [0], "captions": [""]}
            return {"video": super().example(labelled, seed)["video"]}

    batch = next(TrainData(make_config(f"tfds:{data_dir}/toy_images/1.0.0"), OneFrame()).batches(0))
    level_B = batch["video"].astype(int).mean((1, 2, 3, 4))
    record_B = batch[SAMPLE_ID][:, 1]
    assert set(np.round(level_B / 60)) == {0, 1, 2, 3}
    for record in range(4):
        assert len(set(level_B[record_B == record])) == 1


def test_data_sets_that_cannot_be_used_say_why(data_dir):
    videos = f"tfds:{data_dir}/toy_videos/1.0.0"
    with pytest.raises(UserError, match="no split 'holdout'; it has train"):
        sources.open_source(videos + ":holdout")
    with pytest.raises(UserError, match="no Video or Image feature"):
        sources.open_source(f"tfds:{data_dir}/toy_texts/1.0.0")
    with pytest.raises(UserError, match="cannot open 'no_such_data_set'"):
        sources.open_source("tfds:no_such_data_set")

    class WithSound(FramesAndCaption):
        modalities = frozenset({"frames", "audio"})

    with pytest.raises(UserError, match=r"holds no audio.*it has captions, frames, labels"):
        TrainData(make_config(videos), WithSound())


def test_a_registered_data_set_that_is_not_prepared_says_how_to(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    with pytest.raises(UserError, match="tfds build ucf101|cannot open 'ucf101'"):
        sources.open_source("tfds:ucf101")
