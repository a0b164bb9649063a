"""Captions of public data sets are read as they are published, in each of their usual forms."""

import collections
import math
import zlib

import numpy as np
import pytest
from annotation_files import names, put, put_csv, told, touch
from PIL import Image

from common.data import annotations, convert, records
from common.data.annotations import published
from common.errors import UserError

# WebVid


@pytest.fixture
def webvid(tmp_path):
    columns = ("videoid", "contentUrl", "duration", "page_dir", "name")
    rows = [
        ("11", "u", "PT1S", "a_b", "x" * 400),
        ("12", "", "PT1S", "a_b", "no link"),
        ("13", "u", "NaN", "c_d", "no length"),
        ("14", "u", "PT1S", "c_d", "a, b"),
        ("14", "v", "PT1S", "c_d", "again"),
    ]
    table = [dict(zip(columns, row, strict=True)) for row in rows]
    put_csv(tmp_path / "metadata" / "results_2M_train.csv", table)
    touch(tmp_path, "videos/a_b/11.mp4", "videos/c_d/14.mp4")
    return tmp_path


def test_webvid_captions_are_cut_and_rows_with_missing_values_are_counted(webvid):
    source = annotations.read("webvid", webvid, "train", "2M")
    assert told(source) == {"11": ["x" * 350], "14": ["a, b", "again"]}
    assert names(source)["14"] == "videos/c_d/14.mp4"
    assert source.unused == ("2 rows of results_2M_train.csv with missing values",)


def test_the_thousand_rows_of_a_published_validation_are_those_that_pandas_draws():
    rows = published.validation_rows(5000)  # of pandas 3.1's sample(1000, random_state=0)
    assert (rows[:5], rows[-3:]) == ([398, 3833, 4836, 4572, 636], [788, 1452, 3265])
    assert len(set(rows)) == 1000
    assert published.validation_rows(7) == list(range(7))


def test_a_sampled_cut_takes_its_rows_before_it_drops_any(tmp_path):
    rows = [
        {"videoid": n, "page_dir": "p", "name": "" if n == 836 else f"n{n}"} for n in range(1200)
    ]
    put_csv(tmp_path / "results_10M_val.csv", rows)
    touch(tmp_path, "videos/p/5.mp4")
    drawn = published.validation_rows(1200)
    assert 836 in drawn
    source = annotations.read("webvid", tmp_path, "val", "10M-1000")
    assert [item.id for item in source.items] == [str(n) for n in drawn if n != 836]
    with pytest.raises(UserError, match="drawn from the list of --split=val alone"):
        annotations.read("webvid", tmp_path, "train", "10M-1000")


# Conceptual Captions

URLS = ["http://a/1.jpg", "http://b/ü.png"]


def crc(url):
    return str(zlib.crc32(url.encode()) & 0xFFFFFFFF)


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_conceptual_captions_images_are_found_by_the_crc_of_their_address(tmp_path, form):
    if form == "csv":
        name = "Validation_GCC-1.1.0-Validation-success-020321-VALIDIMG.csv"
        put_csv(
            tmp_path / name, [{"caption": f"c{n}", "thumbnailUrl": u} for n, u in enumerate(URLS)]
        )
    else:
        lines = [f"c{n}\t{url}" for n, url in enumerate(URLS)]
        put(tmp_path / "Validation_GCC-1.1.0-Validation.tsv", "\n".join(lines))
    touch(tmp_path, f"validation/{crc(URLS[0])}", f"validation/{crc(URLS[1])}.jpg")
    source = annotations.read("cc3m", tmp_path, "val")
    assert told(source) == {crc(URLS[0]): ["c0"], crc(URLS[1]): ["c1"]}
    assert names(source)[crc(URLS[0])] == f"validation/{crc(URLS[0])}"
    assert names(source)[crc(URLS[1])] == f"validation/{crc(URLS[1])}.jpg"


def test_an_image_without_an_ending_is_known_by_what_is_in_it(tmp_path):
    put(tmp_path / "Train_GCC-training.tsv", "\n".join(f"c\t{url}" for url in URLS))
    image = tmp_path / "training" / crc(URLS[0])
    image.parent.mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(image, "JPEG")
    touch(tmp_path, f"training/{crc(URLS[1])}")
    good, empty = annotations.read("cc3m", tmp_path, "train").items
    clip = records.deserialize(convert.convert(good, (), convert.Settings()).record)
    assert len(clip.frames_jpeg) == 1 and clip.frame_rate is None
    assert clip.captions[0][0] == "c"
    assert "empty" in convert.convert(empty, (), convert.Settings()).reason


# MSR-VTT


def msrvtt_json(numbers=range(4)):
    pairs = [(f"video{n}", f"caption {k} of {n}") for k in range(3) for n in numbers]
    return {"annotations": [{"image_id": v, "caption": c, "id": 0} for v, c in pairs], "images": []}


def challenge_json(splits):
    sentences = [
        {"video_id": f"video{n}", "caption": f"caption {k} of {n}", "sen_id": 0}
        for n in splits
        for k in range(3)
    ]
    videos = [{"video_id": f"video{n}", "split": split} for n, split in splits.items()]
    return {"info": {}, "videos": videos, "sentences": sentences}


def test_msrvtt_1k_a_has_the_caption_that_was_drawn(tmp_path):
    lists = tmp_path / "high-quality" / "structured-symlinks"
    put(tmp_path / "annotation" / "MSR_VTT.json", msrvtt_json())
    put(lists / "train_list_jsfusion.txt", "video0\nvideo1\n")
    put(lists / "val_list_jsfusion.txt", "video3\nvideo2\n")
    put(lists / "jsfusion_val_caption_idx.pkl", {"video2": 2, "video3": np.int64(0)})
    touch(tmp_path, "videos/all/video0.mp4", "videos/all/video3.mp4")
    for split in ("val", "test"):
        source = annotations.read("msrvtt", tmp_path, split, "1k-A")
        assert told(source) == {"video3": ["caption 0 of 3"], "video2": ["caption 2 of 2"]}
    source = annotations.read("msrvtt", tmp_path, "train", "jsfusion")
    assert told(source)["video1"] == [f"caption {k} of 1" for k in range(3)]
    put(lists / "jsfusion_val_caption_idx.pkl", {"video2": 2, "video3": 9})
    with pytest.raises(UserError, match="caption 9 of 'video3', which has 3"):
        annotations.read("msrvtt", tmp_path, "test", "1k-A")


def test_msrvtt_1k_a_comes_from_its_table_too(tmp_path):
    put(tmp_path / "MSRVTT_data.json", challenge_json(dict.fromkeys(range(3), "train")))
    put(tmp_path / "MSRVTT_train.9k.csv", "video_id\nvideo0\nvideo1\n")
    put(tmp_path / "MSRVTT_train.7k.csv", "video_id\nvideo1\n")
    table = "key,vid_key,video_id,sentence\nret0,msr9,video9,a b\nret1,msr2,video2,c\n"
    put(tmp_path / "MSRVTT_JSFUSION_test.csv", table)
    touch(tmp_path, "somewhere/video1.mp4", "videos/video9.mp4")
    for cut in ("1k-A", "7k"):
        source = annotations.read("msrvtt", tmp_path, "test", cut)
        assert told(source) == {"video9": ["a b"], "video2": ["c"]}
    assert list(told(annotations.read("msrvtt", tmp_path, "train", "7k"))) == ["video1"]
    assert list(told(annotations.read("msrvtt", tmp_path, "train", "1k-A"))) == ["video0", "video1"]


def test_the_drawn_caption_is_not_counted_in_a_file_of_another_order(tmp_path):
    put(tmp_path / "MSRVTT_data.json", challenge_json({2: "test"}))
    put(tmp_path / "val_list_jsfusion.txt", "video2")
    put(tmp_path / "jsfusion_val_caption_idx.pkl", {"video2": 2})
    with pytest.raises(UserError, match="order of MSR_VTT.json"):
        annotations.read("msrvtt", tmp_path, "test", "jsfusion")


def test_msrvtt_full_splits_come_from_lists_or_from_the_challenge_files(tmp_path):
    splits = {0: "train", 1: "validate"}
    put(tmp_path / "train_val_videodatainfo.json", challenge_json(splits))
    put(tmp_path / "test_videodatainfo.json", challenge_json({2: "test"}))
    put(tmp_path / "videodatainfo_2017.json", challenge_json({2: "test"}))  # the same video again
    touch(tmp_path, *(f"videos/all/video{n}.mp4" for n in range(3)))
    texts = [[f"caption {k} of {n}" for k in range(3)] for n in range(3)]
    wanted = {("train", "full-val"): 0, ("val", "full-val"): 1, ("test", "full-test"): 2}
    for (split, cut), number in wanted.items():
        source = annotations.read("msrvtt", tmp_path, split, cut)
        assert told(source) == {f"video{number}": texts[number]}
    put(tmp_path / "test_list_full.txt", "video1\n")
    assert told(annotations.read("msrvtt", tmp_path, "test", "full-test")) == {"video1": texts[1]}


def test_msrvtt_1k_b_is_tested_with_the_first_captions(tmp_path):
    put(tmp_path / "MSR_VTT.json", msrvtt_json())
    put(tmp_path / "test_list_miech.txt", "video1\nvideo2")
    touch(tmp_path, "videos/all/video1.mp4")
    source = annotations.read("msrvtt", tmp_path, "test", "1k-B")
    assert told(source) == {"video1": ["caption 0 of 1"], "video2": ["caption 0 of 2"]}


# MSVD

MSVD = {"ab_-c_5_15": ["a man runs", "he runs"], "d_0_7": ["a dog"]}


def msvd_captions(root, form):
    if form == "raw-captions.pkl":
        words = collections.defaultdict(list)  # as some copies have it
        words |= {video: [text.split() for text in texts] for video, texts in MSVD.items()}
        put(root / form, words)
    elif form == "video_corpus.csv":
        rows = []
        for video, texts in MSVD.items():
            name, start, end = video.rsplit("_", 2)
            shared = {"VideoID": name, "Start": start, "End": end, "WorkerID": "1"}
            rows += [{**shared, "Language": "English", "Description": text} for text in texts]
            rows.append({**shared, "Language": "German", "Description": "ein Mann"})
        put_csv(root / form, rows)
    else:
        lines = [f"{video} {text}" for video, texts in MSVD.items() for text in texts]
        put(root / form, "\n".join(["# remarks first", *lines]))


@pytest.mark.parametrize(
    "form", ["raw-captions.pkl", "video_corpus.csv", "AllVideoDescriptions.txt"]
)
@pytest.mark.parametrize("splits", ["lists", "mapping"])
def test_msvd_is_the_same_from_each_of_its_files(tmp_path, form, splits):
    msvd_captions(tmp_path, form)
    if splits == "lists":
        put(tmp_path / "test_list.txt", "\n".join(MSVD))
        touch(tmp_path, "YouTubeClips/d_0_7.avi", "YouTubeClips/ab_-c_5_15.avi")
        files = [f"YouTubeClips/{video}.avi" for video in MSVD]
    else:
        put(tmp_path / "youtube_mapping.txt", "ab_-c_5_15 vid1301\nx_1_2 vid1300\nd_0_7 vid1970")
        touch(tmp_path, "renamed/vid1301.mp4", "renamed/vid1970.mp4")
        files = ["renamed/vid1301.mp4", "renamed/vid1970.mp4"]
    source = annotations.read("msvd", tmp_path, "test")
    assert told(source) == MSVD
    assert list(names(source).values()) == files


def test_a_listed_video_without_captions_is_named(tmp_path):
    msvd_captions(tmp_path, "video_corpus.csv")
    put(tmp_path / "val_list.txt", "d_0_7\nnone_1_2")
    with pytest.raises(UserError, match=r"1 of 2 listed videos have no captions.*'none_1_2'"):
        annotations.read("msvd", tmp_path, "val")


# DiDeMo and ActivityNet


def test_didemo_sentences_have_mean_times_and_make_a_paragraph(tmp_path):
    entries = [
        {"video": "u_1.mov", "description": "first a cat", "times": [[0, 0], [1, 1]]},
        {"video": "u_2.avi", "description": "a car", "times": [[5, 5]]},
        {"video": "u_1.mov", "description": "then a dog ", "times": [[2, 3]]},
    ]
    put(tmp_path / "val_data.json", entries)
    touch(tmp_path, "videos/u_1.mp4", "videos/u_2.avi")
    source = annotations.read("didemo", tmp_path, "val")
    one, two = source.items
    assert one.captions == (("first a cat", 2.5, 7.5), ("then a dog", 10.0, 20.0))
    assert two.captions == (("a car", 25.0, 30.0),)
    assert (one.name, one.start_s, one.end_s) == ("videos/u_1.mp4", None, 30.0)
    whole = annotations.read("didemo", tmp_path, "val", paragraph=True)
    assert told(whole) == {"u_1.mov": ["first a cat then a dog"], "u_2.avi": ["a car"]}
    assert math.isnan(whole.items[0].captions[0][1])
    put(tmp_path / "val_list.txt", "u_2.avi")
    listed = annotations.read("didemo", tmp_path, "val")
    assert list(told(listed)) == ["u_2.avi"]
    assert listed.unused == ("1 videos of val_data.json that val_list.txt does not list",)


def test_activitynet_has_times_and_two_validation_sets(tmp_path):
    entry = {"duration": 9, "timestamps": [[0, 4.5], [3, 9]], "sentences": [" a", "b."]}
    put(tmp_path / "captions" / "val_1.json", {"v_x": entry})
    put(tmp_path / "val_2.json", {"v_x": {**entry, "sentences": ["c", "d"]}})
    touch(tmp_path, "v1-2/val/x.mkv")
    first = annotations.read("activitynet", tmp_path, "val")
    assert first.items[0].captions == (("a", 0.0, 4.5), ("b.", 3.0, 9.0))
    assert first.items[0].name == "v1-2/val/x.mkv"
    second = annotations.read("activitynet", tmp_path, "val_2", paragraph=True)
    assert told(second) == {"v_x": ["c d"]}
    put(tmp_path / "train.json", {"v_x": {**entry, "sentences": ["c"]}})
    with pytest.raises(UserError, match="'v_x': 2 times, 1 sentences"):
        annotations.read("activitynet", tmp_path, "train")


# LSMDC

CLIP = "3009_BATTLE_00.03.07.170-00.03.09.675"


@pytest.mark.parametrize("form", ["lists", "table"])
def test_lsmdc_comes_from_lists_or_from_tables(tmp_path, form):
    if form == "lists":
        put(tmp_path / "structured-symlinks" / "test_list.txt", CLIP)
        captions = {CLIP: [["SOMEONE", "runs", "."]], "other": [["x"]]}
        put(tmp_path / "structured-symlinks" / "raw-captions.pkl", captions)
        put(tmp_path / "frame_tar_list.txt", f"/x/y/3009_BATTLE_L/{CLIP}.tar\n")
        touch(tmp_path, f"videos/3009_BATTLE_L/{CLIP}.avi")
        wanted = ["SOMEONE runs ."]
    else:
        times = "00.03.07\t00.03.09\t00.03.07\t00.03.09"
        lines = [f"{CLIP}\t{times}\tSOMEONE runs.", f"{CLIP}\t{times}\tHe falls."]
        put(tmp_path / "LSMDC16_challenge_1000_publictect.csv", "\n".join(lines) + "\n")
        touch(tmp_path, f"3009_BATTLE/{CLIP}.avi")
        wanted = ["SOMEONE runs.", "He falls."]
    source = annotations.read("lsmdc", tmp_path, "test")
    assert told(source) == {CLIP: wanted}
    assert (tmp_path / source.items[0].name).is_file()


def test_a_film_clip_in_another_folder_is_found_though_its_name_holds_dots(tmp_path):
    put(tmp_path / "LSMDC16_annos_val.csv", f"{CLIP}\ta sentence")
    touch(tmp_path, f"all/{CLIP}.mp4")
    source = annotations.read("lsmdc", tmp_path, "val")
    assert source.items[0].name == f"all/{CLIP}.mp4"


# COCO and Flickr30k


def karpathy_json(folder=None):
    def entry(number, split):
        name = {"filename": f"i_{number}.jpg", "split": split}
        where = {"filepath": folder} if folder else {}
        return name | where | {"sentences": [{"raw": f"{k} of {number}"} for k in range(2)]}

    return {"images": [entry(n, s) for n, s in enumerate(["train", "val", "restval", "test"])]}


def test_coco_has_its_own_splits_and_karpathys(tmp_path):
    images = [{"id": 7, "file_name": "000007.jpg"}, {"id": 8, "file_name": "000008.jpg"}]
    captions = [{"image_id": 7, "caption": "a"}, {"image_id": 8, "caption": "b"}]
    captions.append({"image_id": 7, "caption": "c\n"})
    put(
        tmp_path / "annotations" / "captions_val2017.json",
        {"images": images, "annotations": captions},
    )
    put(tmp_path / "dataset_coco.json", karpathy_json("val2014"))
    touch(tmp_path, "val2017/000007.jpg", "val2014/i_0.jpg", "val2014/i_3.jpg")
    own = annotations.read("coco", tmp_path, "val", "2017")
    assert told(own) == {"000007": ["a", "c"], "000008": ["b"]}
    assert names(own)["000007"] == "val2017/000007.jpg"
    train = annotations.read("coco", tmp_path, "train", "karpathy")
    assert list(told(train)) == ["i_0", "i_2"]
    assert told(annotations.read("coco", tmp_path, "test", "karpathy")) == {
        "i_3": ["0 of 3", "1 of 3"]
    }
    with pytest.raises(UserError, match="test images are not published"):
        annotations.read("coco", tmp_path, "test", "2014")


@pytest.mark.parametrize("form", ["results_20130124.token", "results.csv"])
def test_flickr30k_has_karpathys_splits_or_everything(tmp_path, form):
    put(tmp_path / "dataset_flickr30k.json", karpathy_json())
    lines = ["1.jpg#0\tA dog .", "1.jpg#1\tTwo | three .", "2.jpg#0\tA cat ."]
    if form == "results.csv":
        lines = ["image_name| comment_number| comment", "1.jpg| 0| A dog ."]
        lines += ["1.jpg| 1| Two | three .", "2.jpg| 0   A cat ."]
    put(tmp_path / form, "\n".join(lines))
    touch(tmp_path, "flickr30k-images/1.jpg", "flickr30k-images/i_1.jpg")
    whole = annotations.read("flickr30k", tmp_path, "train", "all")
    assert told(whole) == {"1": ["A dog .", "Two | three ."], "2": ["A cat ."]}
    assert told(annotations.read("flickr30k", tmp_path, "val")) == {"i_1": ["0 of 1", "1 of 1"]}
    put(tmp_path / form, "\n".join([*lines, "no image here"]))
    with pytest.raises(UserError, match=f"line {len(lines) + 1}: 'no image here'"):
        annotations.read("flickr30k", tmp_path, "train", "all")
