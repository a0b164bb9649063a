"""Splits, parsing and rendering of the emoji clips, on tiny made packages."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile

import av
import numpy as np
import pytest
from PIL import Image

from benchmarks import real_data_sources as sources
from common.errors import UserError

_MESSAGES = {
    "groups": [
        {"order": 1, "message": "people & body"},
        {"order": 3, "message": "animals & nature"},
    ]
}


def _entry(label: str, hexcode: str, group: int, tones: bool = False) -> dict:
    skins = [
        {"label": f"{label}: tone {tone}", "hexcode": f"{hexcode}-1F3F{tone}", "tone": tone}
        for tone in range(1, 6)
    ]
    return {"label": label, "hexcode": hexcode, "group": group} | (
        {"skins": skins} if tones else {}
    )


def _world() -> list[sources.Emoji]:
    """Twenty jobs in three genders and six tones, twenty animals, and one emoji in two tones."""
    entries = [{"label": "regional indicator A", "hexcode": "1F1E6"}]
    for number in range(20):
        for person in ("", "man ", "woman "):
            name = f"{person}job{number}"
            entries.append(_entry(name, f"A{number}{person[:1]}-FE0F", 1, tones=True))
        entries.append(_entry(f"animal{number} face", f"B{number}", 3))
    clips = list(sources.parse_catalogue(entries, _MESSAGES).values())
    return clips + [
        dataclasses.replace(clips[-1], code=f"c{tone}", label="odd", concept="odd", tone=tone)
        for tone in (0, 5)
    ]


def test_every_skin_tone_is_an_emoji_of_its_concept_found_without_the_variation_selector():
    entry = _entry("waving hand", "1F44B-FE0F", 1, tones=True)
    entry["skins"].append({"label": "two tones", "hexcode": "1F46B-1F3FB", "tone": [1, 2]})
    found = sources.parse_catalogue([entry], _MESSAGES)
    assert list(found) == ["1f44b"] + [f"1f44b-1f3f{tone}" for tone in range(1, 6)]
    assert {emoji.concept for emoji in found.values()} == {"waving hand"}
    assert [emoji.tone for emoji in found.values()] == [0, 1, 2, 3, 4, 5]
    assert found["1f44b-1f3f5"].label == "waving hand: tone 5"
    assert found["1f44b"].group == "people & body"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("man cook", "woman cook"),
        ("cook", "man cook"),
        ("man: red hair", "person: bald"),
        ("older person", "boy"),
        ("merman", "mermaid"),
        ("Santa Claus", "Mrs. Claus"),
        ("family: man, boy", "family: woman, girl, girl"),
        ("kiss: woman, woman", "couple with heart"),
        ("one o’clock", "seven-thirty"),
        ("backhand index pointing left", "backhand index pointing right"),
        ("blue heart", "red heart"),
        ("dog face", "guide dog"),
        ("tiger face", "tiger"),
    ],
)
def test_variants_of_one_idea_are_one_family(one, other):
    made = [sources.Emoji("", "", concept, "g", 0) for concept in (one, other)]
    assert sources.family_of(made[0]) == sources.family_of(made[1])


@pytest.mark.parametrize(
    ("one", "other"),
    [("man cook", "man judge"), ("tiger", "leopard"), ("thumbs up", "crossed fingers")],
)
def test_unlike_ideas_are_unlike_families(one, other):
    made = [sources.Emoji("", "", concept, "g", 0) for concept in (one, other)]
    assert sources.family_of(made[0]) != sources.family_of(made[1])


def test_the_concept_probe_is_tested_on_the_held_out_tone_of_the_very_concepts_it_trains_on():
    split = sources.splits(_world())
    train, test = split["concept_train"], split["concept_test"]
    assert {emoji.tone for emoji in test} == {5}
    assert {emoji.tone for emoji in train} == {0, 1, 2, 3, 4}
    assert {emoji.concept for emoji in train} == {emoji.concept for emoji in test}
    assert len(test) == 60 and len(train) == 5 * 60
    assert "odd" not in {emoji.concept for emoji in test}


def test_the_group_probe_shares_no_family_between_training_and_test():
    split = sources.splits(_world())
    train, test = split["group_train"], split["group_test"]
    families = [{sources.family_of(emoji) for emoji in clips} for clips in (train, test)]
    assert not families[0] & families[1]
    assert len(families[1]) == 4 + 5  # a fifth of 20 jobs; of 20 animals and "odd", rounded up
    assert {emoji.group for emoji in test} == {"people & body", "animals & nature"}
    concepts = [emoji.concept for emoji in train + test]
    assert len(concepts) == len(set(concepts)) == 81  # one clip of every concept


def test_training_without_labels_sees_no_test_clip_and_no_relative_of_a_group_test_clip():
    split = sources.splits(_world())
    seen = {emoji.code for emoji in split["pretrain"]}
    assert not seen & {emoji.code for emoji in split["concept_test"] + split["group_test"]}
    held = {sources.family_of(emoji) for emoji in split["group_test"]}
    assert not held & {sources.family_of(emoji) for emoji in split["pretrain"]}
    assert {emoji.code for emoji in split["group_train"]} <= seen


def test_splits_do_not_depend_on_the_order_of_the_clips():
    assert sources.splits(_world()) == sources.splits(_world()[::-1])


def _webp(frames: int, size: int = 32) -> bytes:
    """A transparent animation of a red square that moves down."""
    images = []
    for number in range(frames):
        pixels = np.zeros((size, size, 4), np.uint8)
        pixels[4 + number : 20 + number, 8:24] = (255, 0, 0, 255)
        images.append(Image.fromarray(pixels))
    file = io.BytesIO()
    images[0].save(
        file, "WEBP", save_all=True, append_images=images[1:], duration=42, loop=0, lossless=True
    )
    return file.getvalue()


def _pack(path: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_only_animations_of_a_pack_are_clips(tmp_path):
    pack = _pack(
        tmp_path / "pack.tgz",
        {"assets/1F44B-fe0f.webp": _webp(6), "assets/still.webp": _webp(1), "README.md": b"x"},
    )
    assert [code for code, _ in sources.moving(pack)] == ["1f44b"]


def test_a_clip_is_drawn_alike_every_time_and_placed_by_its_code():
    one, again, other = (sources.compose(_webp(6), code, 64) for code in ("1f44b", "1f44b", "2"))
    assert one.shape == (6, 64, 64, 3) and one.dtype == np.uint8
    np.testing.assert_array_equal(one, again)
    red = [(clip[..., 0] > 250) & (clip[..., 1:] < 5).all(-1) for clip in (one, other)]
    assert red[0].any() and red[1].any()
    assert (red[0].any(0) != red[1].any(0)).any()
    for clip, drawn in zip((one, other), red, strict=True):
        assert (clip[~drawn] == sources.BACKGROUND).all(-1).mean() > 0.9  # but for soft edges


def test_the_frames_of_a_clip_are_the_loop_started_anywhere():
    clip = sources.compose(_webp(8), "1f44b", 64)
    height = [np.nonzero((frame[..., 0] > 250) & (frame[..., 1] < 5))[0].mean() for frame in clip]
    steps = np.diff(height)
    assert (steps < 0).sum() <= 1  # down all the way, but for the jump back to the loop's start
    assert (steps > 0).sum() >= 6


def test_rendering_goes_on_where_it_stopped(tmp_path):
    pack = _pack(tmp_path / "pack.tgz", {"assets/a.webp": _webp(6), "assets/b.webp": _webp(9)})
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "a.mp4").write_bytes(b"made before")
    assert sources.render(pack, videos, workers=1) == ["a", "b"]
    assert (videos / "a.mp4").read_bytes() == b"made before"
    with av.open(str(videos / "b.mp4")) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.average_rate == sources.FRAME_RATE
    drawn = sources.compose(_webp(9), "b")
    assert np.shape(frames) == drawn.shape
    assert np.abs(np.asarray(frames, np.int16) - drawn).mean() < 6
    assert sorted(path.name for path in videos.iterdir()) == ["a.mp4", "b.mp4"]


def test_tables_are_what_ingest_reads(tmp_path):
    from common.data import tables

    clips = _world()[:3]
    sources.write_table(tmp_path / "tables" / "t.jsonl", clips, tmp_path / "videos")
    for column in ("group", "concept"):
        read = tables.read_source(tmp_path / "tables" / "t.jsonl", label_column=column).items
        assert [item.labels for item in read] == [(getattr(clip, column),) for clip in clips]
        assert [item.captions[0][0] for item in read] == [clip.label for clip in clips]
        assert read[0].path == str(tmp_path / "videos" / f"{clips[0].code}.mp4")
        assert [item.id for item in read] == [clip.code for clip in clips]


_PACKAGE = sources.Package("@scope/thing", "1.2.3", hashlib.sha256(b"x").hexdigest(), 1)


def _put_npm_on_path(folder: pathlib.Path, monkeypatch, script: str) -> None:
    npm = folder / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}{os.pathsep}{os.environ['PATH']}")


def test_a_package_is_fetched_once(tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    _put_npm_on_path(
        tmp_path, monkeypatch, f'echo "$*" >> {calls}; printf x > scope-thing-1.2.3.tgz'
    )
    for _ in range(2):
        archive = sources.fetch(_PACKAGE, tmp_path / "cache")
        assert archive.read_bytes() == b"x"
    assert calls.read_text() == "pack @scope/thing@1.2.3 --silent\n"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["scope-thing-1.2.3.tgz"]


def test_a_registry_out_of_reach_is_no_error_of_ours(tmp_path, monkeypatch):
    _put_npm_on_path(tmp_path, monkeypatch, "echo 'npm error network' >&2; exit 1")
    with pytest.raises(sources.Unavailable, match=r"@scope/thing@1\.2\.3: npm error network"):
        sources.fetch(_PACKAGE, tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(sources.Unavailable, match="npm is not installed"):
        sources.fetch(_PACKAGE, tmp_path / "cache")


def test_another_file_under_the_pinned_name_is_refused(tmp_path, monkeypatch):
    _put_npm_on_path(tmp_path, monkeypatch, "printf other > scope-thing-1.2.3.tgz")
    with pytest.raises(UserError, match="another file"):
        sources.fetch(_PACKAGE, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_the_catalogue_comes_from_the_archive_itself(tmp_path):
    archive = _pack(
        tmp_path / "names.tgz",
        {
            "en/data.json": json.dumps([_entry("fox", "1F98A", 3)]).encode(),
            "en/messages.json": json.dumps(_MESSAGES).encode(),
        },
    )
    (fox,) = sources.catalogue(archive).values()
    assert fox == sources.Emoji("1f98a", "fox", "fox", "animals & nature", 0)


def test_the_benchmark_is_skipped_where_the_registry_is_out_of_reach(tmp_path):
    environment = os.environ | {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.real_data", f"--output={tmp_path / 'out'}"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith("skipped: ")
    assert "npm is not installed" in result.stdout
    assert "MIT licence" in result.stdout  # what would be used is said before
    assert not (tmp_path / "out").exists()
