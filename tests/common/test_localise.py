"""Steps are placed in videos: the command's recall is the one anyone gets by hand."""

import itertools
import json
import math

import numpy as np
import pytest
import tiny_brave
import tiny_media
import tiny_mil_nce
import tiny_spread
from tool_flags import tool_flags

from common import export, ingest, localise
from common.data import records, shards
from common.errors import UserError
from common.evaluation import clips, features, zero_shot_steps
from common.weights import load_bundle

SECONDS = {"one": 5, "two": 4, "short": 1}
TEXTS = {"7": ["a ball rolls", "the dog runs", "xyzzy"], "8": ["it rains", "wind"]}
ANNOTATION = {
    "7_one": ["1,0,1.5", "3,2.5,3", "3,4,4.5", "2,9,12"],  # the last after the end
    "7_two": ["2,1,2", "1,0,3.5"],
    "8_two": ["1,0.5,1", "2,2,4"],
    "7_short": ["1,0,1"],
}
TASKS = "7\nRoll\nhttps://x\n3\n{}\n\n8\nRain\nhttps://x\n2\n{}\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three files, their records, an annotation of them, a run and its bundle."""
    folder = tmp_path_factory.mktemp("localise")
    for seed, (name, seconds) in enumerate(SECONDS.items()):
        path = folder / f"{name}.mp4"
        tiny_media.write_video(path, seed=seed, frames=25 * seconds, sound=False)
    lines = [json.dumps({"path": f"{name}.mp4", "captions": ["a ball"]}) for name in SECONDS]
    (folder / "table.jsonl").write_text("\n".join(lines))
    options = ("--split=test", "--audio_rate=0", "--workers=1", "--short_side=48")
    source = (f"--source={folder / 'table.jsonl'}", f"--output={folder / 'records'}")
    with tool_flags(ingest, *source, *options):
        assert not ingest.main(["ingest"])
    (folder / "annotations").mkdir()
    for name, rows in ANNOTATION.items():
        (folder / "annotations" / f"{name}.csv").write_text("\n".join(rows))
    (folder / "tasks.txt").write_text(TASKS.format(*map(",".join, TEXTS.values())))
    words = tiny_mil_nce.write_vocabulary(folder / "words.txt")
    # Windows of 1.6 s: they begin before the video and end after it.
    tiny_mil_nce.make_run(folder / "run", words, model__evaluation_frames=16)
    with tool_flags(export, f"--workdir={folder / 'run'}", f"--output={folder / 'bundle'}"):
        export.main(["export"])
    return folder


def _localise(world, *arguments, place="--workdir={}/run", **changes):
    """The results written to JSON."""
    output = world / f"{len(list(world.iterdir()))}.json"
    given = {"test": "records/test", "steps": "annotations", "step_texts": "tasks.txt", **changes}
    paths = [f"--{name}={world / path}" for name, path in given.items()]
    with tool_flags(localise, place.format(world), *paths, f"--output={output}", *arguments):
        localise.main(["localise"])
    return json.loads(output.read_text())


def _scores_by_hand(world, scaled=lambda rows_ND: rows_ND):
    """Scores of every second against every step, from the stored frames and the bundle."""
    bundle = load_bundle(world / "bundle")
    encoder = bundle.encoders["video_joint"]
    stored, scores = shards.RecordSet.open(world / "records" / "test"), {}
    for number in range(len(stored)):
        clip = records.deserialize(stored.read(number))
        pictures = [clips.decode_image(frame) for frame in clip.frames_jpeg]
        side, size = 48, encoder.inputs.size
        left = (pictures[0].shape[1] - side) // 2
        squares = [clips.resize_short_side(p[:, left : left + side], size) for p in pictures]
        windows = []
        for second in range(len(squares) // 25):
            times = [second + 0.5 + (frame - 8) / 10 for frame in range(16)]
            places = [math.floor(round(25 * time, 6)) for time in times]
            windows.append(
                [
                    squares[place] if 0 <= place < len(squares) else np.zeros_like(squares[0])
                    for place in places
                ]
            )
        video_TD = scaled(bundle.embed("video_joint", np.array(windows)).astype(np.float64))
        for task, texts in TEXTS.items():
            text_SD = scaled(bundle.embed_texts(texts).astype(np.float64))
            scores[task, clip.id.removesuffix(".mp4")] = video_TD @ text_SD.T
    return scores


def _places_by_hand(scores_TS):
    num_seconds, num_steps = scores_TS.shape
    return max(
        itertools.combinations(range(num_seconds), num_steps),
        key=lambda places: scores_TS[list(places), range(num_steps)].sum(),
    )


def _recall_by_hand(places):
    found, shown = dict.fromkeys(TEXTS, 0), dict.fromkeys(TEXTS, 0)
    for (task, video), seconds in places.items():
        rows = [map(float, row.split(",")) for row in ANNOTATION[f"{task}_{video}"]]
        hits = {}
        for number, start, end in rows:
            if start < SECONDS[video]:
                hit = math.floor(start) <= seconds[int(number) - 1] < math.ceil(end)
                hits[number] = hits.get(number, False) or hit
        found[task] += sum(hits.values())
        shown[task] += len(hits)
    return {task: found[task] / shown[task] for task in TEXTS}, shown


@pytest.mark.slow
def test_recall_is_the_one_computed_by_hand_from_the_stored_frames(world, capsys):
    results = _localise(world)
    (row,) = results["rows"]
    scores = _scores_by_hand(world)
    keys = [("7", "one"), ("7", "two"), ("8", "two")]
    places = {key: _places_by_hand(scores[key]) for key in keys}
    assert {(p["task"], p["video"]): tuple(p["seconds"]) for p in row["places"]} == places
    recall, shown = _recall_by_hand(places)
    assert {task: facts["recall"] for task, facts in row["by_task"].items()} == recall
    assert {task: facts["steps_shown"] for task, facts in row["by_task"].items()} == shown
    assert shown == {"7": 4, "8": 2}
    assert row["recall"]["value"] == pytest.approx(np.mean(list(recall.values())))
    assert row["recall"]["low"] <= row["recall"]["value"] <= row["recall"]["high"]
    assert (row["num_videos"], row["steps_after_the_end"]) == (3, 1)
    assert row["texts_without_known_words"] == 1
    assert row["left_out"] == [
        {"task": "7", "video": "short", "reason": "its 1 seconds are fewer than the 3 steps"}
    ]
    assert (results["evaluation"], results["model"]["step"]) == ("step localisation", 7)
    printed = capsys.readouterr().out
    for line in (
        "one window of 16 frames at 10 frames/s around every second (1.6 s)",
        "Left out: 1 annotated videos.",
        "short (7): its 1 seconds are fewer than the 3 steps",
        "1 annotated steps begin after the end of their video and do not count",
        "1 steps have no word that the text encoder knows",
    ):
        assert line in printed
    assert f"7     Roll   {100 * recall['7']:.1f}" in printed


@pytest.mark.slow
def test_steps_are_placed_by_cosine_where_the_encoders_are_made_for_it(world, monkeypatch):
    with monkeypatch.context() as patched:
        tiny_spread.install(patched, segments=False)
        results = _localise(world)
    scores = _scores_by_hand(world, lambda x: x / np.linalg.norm(x, axis=1, keepdims=True))
    (row,) = results["rows"]
    assert len(row["places"]) == 3
    for place in row["places"]:
        expected = _places_by_hand(scores[place["task"], place["video"]])
        assert tuple(place["seconds"]) == expected


@pytest.mark.slow
def test_parts_of_any_length_and_a_stop_between_them_change_nothing(world, monkeypatch, tmp_path):
    expected = _localise(world)["rows"]
    monkeypatch.setattr(zero_shot_steps, "PART_S", 2)
    kept = f"--features={tmp_path}"
    rows = []

    class StoppedError(Exception):
        pass

    def stop_after_two(self, video):
        if len(rows) == 2:
            raise StoppedError
        rows.append(video)
        write_line(self, video)

    write_line = features._Writer.video
    with monkeypatch.context() as patched:
        patched.setattr(features._Writer, "video", stop_after_two)
        with pytest.raises(StoppedError):
            _localise(world, kept)
    lines = next(tmp_path.glob("*/videos.jsonl"))
    assert lines.read_text().count("\n") == 2  # of 3 + 2 parts
    assert _localise(world, kept)["rows"] == expected
    assert lines.read_text().count("\n") == 5
    monkeypatch.setattr(features, "_run", None)  # everything is there now
    assert _localise(world, kept)["rows"] == expected


@pytest.mark.slow
def test_csv_tables_and_a_bundle_give_the_same(world):
    expected = _localise(world)
    steps = [f"{name[0]},{name[2:]},{row}" for name, rows in ANNOTATION.items() for row in rows]
    (world / "steps.csv").write_text("\n".join(["task,video,step,start,end", *steps]))
    texts = [f"{t},{n},{text}" for t, of in TEXTS.items() for n, text in enumerate(of, 1)]
    (world / "texts.csv").write_text("\n".join(["task,step,text", *texts]))
    tables = {"steps": "steps.csv", "step_texts": "texts.csv"}
    ours = _localise(world, place="--bundle={}/bundle", **tables)
    titled = json.loads(json.dumps(ours["rows"]).replace('"title": "7"', '"title": "Roll"'))
    titled = json.loads(json.dumps(titled).replace('"title": "8"', '"title": "Rain"'))
    by_video = lambda row: sorted(row["places"], key=str)  # noqa: E731
    assert by_video(titled[0]) == by_video(expected["rows"][0])
    assert titled[0]["recall"]["value"] == expected["rows"][0]["recall"]["value"]
    assert titled[0]["by_task"] == expected["rows"][0]["by_task"]


def test_only_the_listed_videos_are_taken(world):
    (world / "val.csv").write_text("7,two,https://x\n")
    (row,) = _localise(world, f"--videos={world / 'val.csv'}")["rows"]
    assert [(place["task"], place["video"]) for place in row["places"]] == [("7", "two")]
    assert row["left_out"] == []
    (world / "val.csv").write_text("7,two,https://x\n8,one,https://x\n")
    with pytest.raises(UserError, match="lists 'one' of task '8'.*1 of 2 are not annotated"):
        _localise(world, f"--videos={world / 'val.csv'}")


@pytest.mark.slow
def test_untrained_weights_are_a_row_of_their_own(world, capsys):
    results = _localise(world, "--baselines=random")
    assert [row["features"] for row in results["rows"]] == ["trained", "random"]
    assert "random  " in capsys.readouterr().out
    trained, random = (row["places"] for row in results["rows"])
    assert [(p["task"], p["video"]) for p in trained] == [(p["task"], p["video"]) for p in random]


def _damaged(world, change):
    """Another folder of the records, one of them changed."""
    found = shards.RecordSet.open(world / "records" / "test")
    data = b""
    for number in range(len(found)):
        clip = records.deserialize(found.read(number))
        change(clip)
        data += shards.frame(records.serialize(clip))
    folder = world / f"changed-{len(list(world.iterdir()))}"
    folder.mkdir()
    (folder / "test-00000-of-00001.tfrecord").write_bytes(data)
    return folder.name


@pytest.mark.slow
def test_a_video_with_a_picture_that_cannot_be_read_is_left_out_as_a_whole(world, monkeypatch):
    def change(clip):
        if clip.id == "one.mp4":
            clip.frames_jpeg = [*clip.frames_jpeg[:-9], *9 * [b"no picture"]]

    monkeypatch.setattr(zero_shot_steps, "PART_S", 2)  # its first parts can be read
    expected = _localise(world)["rows"][0]["places"]
    (row,) = _localise(world, test=_damaged(world, change))["rows"]
    assert {bad["video"] for bad in row["left_out"]} == {"one", "short"}
    assert "cannot be decoded" in next(b["reason"] for b in row["left_out"] if b["video"] == "one")
    assert row["places"] == [place for place in expected if place["video"] == "two"]


def test_a_record_that_begins_within_its_video_is_refused(world):
    def change(clip):
        clip.start_s = 3.0 if clip.id == "two.mp4" else 0.0

    with pytest.raises(UserError, match="'two.mp4' begins 3 s after its video does"):
        _localise(world, test=_damaged(world, change))


def test_a_whole_file_may_show_its_first_frame_a_little_late(world):
    def change(clip):
        clip.start_s = 0.08  # as of mp4 without an edit list

    late = _localise(world, test=_damaged(world, change))["rows"][0]
    assert late["places"] == _localise(world)["rows"][0]["places"]


def test_an_annotated_video_without_a_record_is_named(world):
    def change(clip):
        clip.id = {"one.mp4": "else/two.webm"}.get(clip.id, clip.id)

    changed = _damaged(world, change)
    with pytest.raises(UserError, match="no record of 'one'.*1 of 4 annotated videos have none"):
        _localise(world, test=changed)
    (world / "two.csv").write_text("8,two\n")
    with pytest.raises(UserError, match="Several records of .*'two': else/two.webm, two.mp4"):
        _localise(world, f"--videos={world / 'two.csv'}", test=changed)


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (["--baselines=noise"], {}, "--baselines=noise: choose among random"),
        ([], {"steps": "nowhere"}, "nowhere cannot be read"),
        ([], {"test": "nowhere"}, "--test: .*nowhere"),
        ([], {"step_texts": "fewer.txt"}, "step 3 of task '7', of which .*fewer.txt has 2 steps"),
        ([], {"step_texts": "other.txt"}, "of task '8', of which .*other.txt has 0 steps"),
        ([], {"steps": "short"}, "No annotated video of .* can be used. short: its 1 seconds"),
    ],
)
def test_a_mistake_in_localisation_is_answered_with_what_to_do(world, arguments, changes, message):
    tasks = (world / "tasks.txt").read_text()
    (world / "fewer.txt").write_text(tasks.replace("\n3\n", "\n2\n").replace(",xyzzy", ""))
    (world / "other.txt").write_text(tasks.replace("\n8\n", "\n9\n"))
    (world / "short").mkdir(exist_ok=True)
    (world / "short" / "7_short.csv").write_text("1,0,1")
    with pytest.raises(UserError, match=message):
        _localise(world, *arguments, **changes)


@pytest.mark.slow
def test_a_model_without_text_cannot_localise(world, tmp_path):
    tiny_brave.make_run(tmp_path / "brave")
    with pytest.raises(UserError, match="brave has no text encoder"):
        _localise(world, place=f"--workdir={tmp_path / 'brave'}")
