"""Captions find clips and clips captions: the command's numbers are those anyone gets by hand."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_brave
import tiny_media
import tiny_mil_nce
from tool_flags import tool_flags

from common import embed, export, ingest, report, retrieve, search
from common.data import records, shards
from common.errors import UserError
from common.evaluation import retrieval
from common.evaluation.intervals import Interval
from common.evaluation.zero_shot import Embedded, rows, video_of
from common.weights import load_bundle

CAPTIONS = {
    "one.mp4": ["A red ball rolls", "it rolls"],
    "two.mp4": ["the cat sleeps"],
    "three.mp4": ["a dog runs"],
    "four.mp4": [],
    "five.mp4": ["xyzzy plugh"],
}
TEXTS = [text for texts in CAPTIONS.values() for text in texts]
CLIP_OF_TEXT = [number for number, texts in enumerate(CAPTIONS.values()) for _ in texts]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Five files, their records, a run, and its bundle elsewhere."""
    folder = tmp_path_factory.mktemp("retrieve")
    for seed, name in enumerate(CAPTIONS):
        tiny_media.write_video(folder / name, seed=seed, frames=20 + 9 * seed, sound=False)
    lines = [json.dumps({"path": path, "captions": texts}) for path, texts in CAPTIONS.items()]
    (folder / "table.jsonl").write_text("\n".join(lines))
    options = ("--split=test", "--audio_rate=0", "--workers=1", "--short_side=48")
    source = (f"--source={folder / 'table.jsonl'}", f"--output={folder / 'records'}")
    with tool_flags(ingest, *source, *options):
        assert not ingest.main(["ingest"])
    words = tiny_mil_nce.write_vocabulary(folder / "words.txt")
    tiny_mil_nce.make_run(
        folder / "run",
        words,
        data__train=str(folder / "records" / "test"),  # which the bundle reduces files like
        data__max_bad_share=1.0,  # one has no captions, one no known word
    )
    with tool_flags(export, f"--workdir={folder / 'run'}", f"--output={folder / 'exported'}"):
        export.main(["export"])
    (folder / "exported").rename(folder / "bundle")
    words.unlink()
    return folder


def _retrieve(world, *arguments, place="--workdir={}/run", test="records/test"):
    """Runs the command in this process; returns what it writes."""
    output = world / "results.json"
    output.unlink(missing_ok=True)
    given = (place.format(world), f"--test={world / test}", f"--output={output}", *arguments)
    with tool_flags(retrieve, *given):
        retrieve.main(["retrieve"])
    return json.loads(output.read_text())


def _row(results, **wanted):
    (row,) = (r for r in results["rows"] if wanted.items() <= r.items())
    return row


def _by_hand(world):
    bundle = load_bundle(world / "bundle")
    clips = bundle.embed_videos([world / name for name in CAPTIONS], encoder="video_joint")
    return clips.astype(np.float64), bundle.embed_texts(TEXTS).astype(np.float64)


def _values(row):
    return {name: interval["value"] for name, interval in row["metrics"].items()}


@pytest.mark.slow
def test_the_numbers_are_those_computed_by_hand_from_the_bundle(world, capsys):
    clips_MD, texts_QD = _by_hand(world)
    scores_QM = texts_QD @ clips_MD.T
    rank_Q = [1 + (s > s[right]).sum() for s, right in zip(scores_QM, CLIP_OF_TEXT, strict=True)]
    best = {clip: max(s[q] for q, c in enumerate(CLIP_OF_TEXT) if c == clip)
            for clip, s in enumerate(scores_QM.T) if clip in CLIP_OF_TEXT}  # fmt: skip
    rank_A = [1 + (scores_QM[:, clip] > score).sum() for clip, score in best.items()]
    results = _retrieve(world)
    assert [row["direction"] for row in results["rows"]] == ["text to video", "video to text"]
    for row, ranks in zip(results["rows"], (rank_Q, rank_A), strict=True):
        expected = {f"R@{k}": np.mean(np.array(ranks) <= k) for k in (1, 5, 10, 50)}
        expected["geometric mean"] = np.prod([expected[f"R@{k}"] for k in (1, 5, 10)]) ** (1 / 3)
        expected |= {"median rank": np.median(ranks), "mean rank": np.mean(ranks)}
        assert _values(row) == pytest.approx(expected)
        assert row["num_queries"] == len(ranks)
        assert row["num_groups"] == 4  # two captions are of one video
        for interval in row["metrics"].values():
            assert interval["low"] <= interval["value"] <= interval["high"]
    assert [row["candidates"] for row in results["rows"]] == [5, 5]
    assert results["rows"][0]["captions_without_known_words"] == 1
    assert (results["method"], results["model"]["step"]) == ("mil_nce", 7)
    assert results["protocol"]["name"] == "even"
    printed = capsys.readouterr().out
    assert "1 captions have no word that the text encoder knows" in printed
    assert "Ties: middle (expected under random order of equal scores)" in printed
    assert re.search(r"trained +inner product +text to video", printed)


@pytest.mark.slow
def test_a_second_evaluation_and_one_by_the_bundle_give_the_same(world, monkeypatch):
    first = _retrieve(world)
    by_bundle = _retrieve(world, place="--bundle={}/bundle")
    assert by_bundle["rows"] == first["rows"]

    def refuse(*_):
        raise AssertionError("the features of the clips should be there")

    monkeypatch.setattr("common.evaluation.features._run", refuse)
    assert _retrieve(world)["rows"] == first["rows"]


@pytest.mark.slow
def test_untrained_weights_and_dual_softmax_are_rows_of_their_own(world, capsys):
    results = _retrieve(world, "--baselines=random", "--dual_softmax=2")
    assert [(row["features"], row["scores"]) for row in results["rows"]] == [
        (kind, scores)
        for kind in ("trained", "random")
        for scores in ("inner product", "dual softmax at 2")
        for _ in range(2)
    ]
    clips_MD, texts_QD = _by_hand(world)
    scores_QM = texts_QD @ clips_MD.T
    weight_QM = np.exp(2 * scores_QM) / np.exp(2 * scores_QM).sum(axis=0)
    found = retrieval.ranks(scores_QM * weight_QM, CLIP_OF_TEXT)
    wanted = {"features": "trained", "scores": "dual softmax at 2", "direction": "text to video"}
    ours = _row(results, **wanted)
    assert ours["metrics"]["mean rank"]["value"] == pytest.approx(found.position("middle").mean())
    assert "Dual softmax looks at all queries at once" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("ties", ["optimistic", "pessimistic", "published"])
def test_the_rule_for_ties_is_the_one_that_is_named(world, capsys, ties):
    results = _retrieve(world, f"--ties={ties}")
    assert {results["ties"], *(row["ties"] for row in results["rows"])} == {ties}
    printed = capsys.readouterr().out
    assert f"Ties: {ties} ({retrieval.TIES[ties]})" in printed
    # The published rule knows no query with two right captions.
    assert ("undefined" in printed) == (ties == "published")
    assert bool(_row(results, direction="video to text")["metrics"]) == (ties != "published")


def test_equal_embeddings_are_ties_by_inner_product_and_by_dual_softmax():
    rng = np.random.default_rng(0)
    clips_MD = rng.normal(size=(1, 7)).astype(np.float32).repeat(5, axis=0)
    texts_QD = rng.normal(size=(5, 7)).astype(np.float32)
    same = Embedded(clips_MD, texts_QD, np.arange(5), tuple("abcde"), {})
    for row in rows(same, "middle", inverse_temperature=3.0):
        if row["direction"] == "text to video":
            assert _values(row)["R@1"] == pytest.approx(1 / 5)
            assert _values(row)["mean rank"] == 3


def test_clips_of_one_video_are_drawn_together():
    rng = np.random.default_rng(0)
    ids = [
        f"{video}.mp4#{start}" for video in "ab" for start in ("1.000-2.000", "2.000-", "-3.000")
    ]
    videos = tuple(video_of(record) for record in ids)
    assert videos == ("a.mp4",) * 3 + ("b.mp4",) * 3
    assert video_of("clip#1") == "clip#1"  # another's id, no times
    for of_youtube in ("clips/-4wsuPCjDBc_5_15.avi", "clips/-4wsuPCjDBc_000017_000027.avi"):
        assert video_of(of_youtube) == "clips/-4wsuPCjDBc.avi"
    assert video_of("-4wsuPCjDBc_5_15") == "-4wsuPCjDBc"
    for whole in ("video_12_34", "a-4wsuPCjDBc_5_15", "video7010", "-4wsuPCjDBc_15.mp4"):
        assert video_of(whole) == whole
    six = Embedded(rng.normal(size=(6, 3)), rng.normal(size=(6, 3)), np.arange(6), videos, {})
    assert [row["num_groups"] for row in rows(six, "middle")] == [2, 2]


@pytest.mark.slow
def test_a_table_names_the_clips_and_the_captions(world):
    table = world / "msrvtt.csv"
    lines = ["key,video_id,sentence", "1,three,a dog runs", "2,one,it rolls", "3,five,wind"]
    table.write_text("\n".join(lines))
    clips_MD, _ = _by_hand(world)
    texts_QD = load_bundle(world / "bundle").embed_texts(["a dog runs", "it rolls", "wind"])
    found = retrieval.ranks_from_embeddings(texts_QD, clips_MD[[2, 0, 4]], np.arange(3))
    results = _retrieve(world, f"--table={table}")
    row = _row(results, direction="text to video")
    assert (row["num_queries"], row["candidates"]) == (3, 3)
    assert _values(row)["mean rank"] == pytest.approx(found.position("middle").mean())
    table.write_text("\n".join([*lines, "4,nine,wind"]))
    with pytest.raises(UserError, match="line 5.*no record is 'nine'"):
        _retrieve(world, f"--table={table}")


def test_stretches_of_a_video_need_windows(world):
    table = world / "youcook2.csv"
    table.write_text("video_id,start,end,text\nfive,0,1,wind\nfive,1,2,it rains\ntwo,0,1,cat\n")
    with pytest.raises(UserError, match="3 of the 3 clips.*--protocol=windows, or ingest"):
        _retrieve(world, f"--table={table}")
    results = _retrieve(world, "--protocol=windows", "--windows=3", f"--table={table}")
    row = _row(results, direction="text to video")
    assert (row["num_queries"], row["candidates"], row["num_groups"]) == (3, 3, 2)
    assert results["protocol"]["test_clips"] == 3
    whole = _retrieve(world, "--protocol=windows", "--windows=2")
    assert _row(whole, direction="text to video")["candidates"] == 5


def test_clips_that_cannot_be_read_are_named_and_counted(world, capsys):
    found = shards.RecordSet.open(world / "records" / "test")
    (world / "damaged").mkdir(exist_ok=True)
    data = b""
    for number in range(len(found)):
        clip = records.deserialize(found.read(number))
        if number == 1:
            clip.frames_jpeg = [b"no picture"] * len(clip.frames_jpeg)
        data += shards.frame(records.serialize(clip))
    (world / "damaged" / "test-00000-of-00001.tfrecord").write_bytes(data)
    results = _retrieve(world, test="damaged")
    row = _row(results, direction="text to video")
    assert (row["num_queries"], row["candidates"]) == (4, 4)
    assert [bad["clip"] for bad in row["left_out"]] == ["two.mp4"]
    assert "cannot be decoded" in row["left_out"][0]["reason"]
    assert "1 clips that cannot be read" in capsys.readouterr().out
    clips_MD, texts_QD = _by_hand(world)
    expected = retrieval.ranks_from_embeddings(
        texts_QD[[0, 1, 3, 4]], clips_MD[[0, 2, 3, 4]], [0, 0, 1, 3]
    )
    assert _values(row)["mean rank"] == pytest.approx(expected.position("middle").mean())


def test_a_bundle_embeds_texts_where_the_vocabulary_it_was_trained_with_is_gone(world):
    assert not (world / "words.txt").exists()
    kept = {path.name for path in (world / "bundle" / "files").iterdir()}
    assert kept == {"model.text.vocabulary.txt"}
    bundle = load_bundle(world / "bundle")
    rows_ND = bundle.embed_texts(["a dog runs", "a cat sleeps", "A DOG runs!"])
    assert rows_ND.shape == (3, 16) and rows_ND.dtype == np.float32
    np.testing.assert_array_equal(rows_ND[0], rows_ND[2])
    assert np.abs(rows_ND[0] - rows_ND[1]).max() > 1e-6
    ids = bundle.encoders["text"].inputs.tokenise(["a dog runs"])
    model = bundle.model.model
    np.testing.assert_allclose(rows_ND[:1], jax.jit(model.embed_text)(ids), atol=1e-5)


@pytest.mark.slow
def test_the_results_stand_on_the_model_card_and_on_the_page_about_the_run(world, tmp_path):
    results = _retrieve(world, "--ties=pessimistic")
    (tmp_path / "results.json").write_text(json.dumps(results))
    given = [f"--workdir={world / 'run'}", f"--results={tmp_path / 'results.json'}"]
    with tool_flags(export, *given, f"--output={tmp_path / 'bundle'}"):
        export.main(["export"])
    page = tmp_path / "report.html"
    shown = f"--records={world / 'records' / 'test'}"
    with tool_flags(report, *given, shown, "--examples=3", f"--output={page}"):
        report.main(["report"])
    card, html = (tmp_path / "bundle" / "README.md").read_text(), page.read_text()
    assert "### Zero-shot retrieval" in card and "<h2>Zero-shot retrieval</h2>" in html
    (metrics,) = (row["metrics"] for row in results["rows"] if row["direction"] == "text to video")
    recall = Interval(**metrics["R@1"]).percent()
    median = "{value:.1f} [{low:.1f}, {high:.1f}]".format(**metrics["median rank"])
    cells = ["trained", "inner product", "text to video", recall]
    assert "| " + " | ".join(cells) + " |" in card
    assert "<td>" + "</td><td>".join(cells) + "</td>" in html
    for text in (card, html):
        assert median in text
        assert f"Tested on {world / 'records' / 'test'}; protocol even: 4 evenly spread" in text
        assert "Ties: pessimistic (equal scores ranked against the query)" in text
        assert "1 captions have no word that the text encoder knows" in text


def test_the_page_about_a_run_shows_each_clip_with_its_narrations_in_words(world, tmp_path):
    page = tmp_path / "report.html"
    given = (f"--workdir={world / 'run'}", f"--records={world / 'records' / 'test'}")
    with tool_flags(report, *given, "--examples=3", f"--output={page}"):
        report.main(["report"])
    html = page.read_text()
    assert html.count("data:image/png") == 1 + 3  # curves, and three clips
    *_, of_clips = html.partition("Example clips")
    lists = [re.findall("<li>(.*?)</li>", found) for found in re.findall("<ol>.*?</ol>", of_clips)]
    assert len(lists) == 3
    said = {
        name: {" ".join(w for w in text.lower().split() if w in tiny_mil_nce.WORDS) for text in of}
        for name, of in CAPTIONS.items()
    }
    for narrations in lists:
        shown = [re.fullmatch(r"(.*?)(?: \(x (\d)\))?", narration) for narration in narrations]
        assert sum(int(found[2] or 1) for found in shown) == 5  # candidates
        assert {found[1] for found in shown} in said.values() and "" not in narrations


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol=evn"], "no protocol 'evn'"),
        (["--protocol=even", "--windows=4"], "--windows goes with --protocol=windows"),
        (["--baselines=noise"], "--baselines=noise: choose among random"),
        (["--table={world}/nothing.csv"], "nothing.csv cannot be read"),
        (["--test={world}/nowhere"], "--test: .*nowhere"),
        (["--test={world}/uncaptioned"], "No record of .* has a caption"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(world, arguments, message):
    (uncaptioned := world / "uncaptioned").mkdir(exist_ok=True)
    clip = records.Clip(id="a", frames_jpeg=[b"\xff\xd8"])
    path = uncaptioned / "test-00000-of-00001.tfrecord"
    path.write_bytes(shards.frame(records.serialize(clip)))
    arguments = [argument.format(world=world) for argument in arguments]
    with pytest.raises(UserError, match=message):
        _retrieve(world, *arguments)


def test_a_method_without_text_is_told_so(world, tmp_path):
    tiny_brave.make_run(tmp_path / "brave")
    with pytest.raises(UserError, match="brave has no text encoder.*its encoders: video, audio"):
        _retrieve(world, place=f"--workdir={tmp_path / 'brave'}")


@pytest.mark.slow
def test_the_command_works_and_its_help_is_quick(world):
    root = pathlib.Path(retrieve.__file__).parents[1]
    command = [sys.executable, "-m", "common.retrieve"]
    done = subprocess.run([*command, "--help"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and "--dual_softmax" in done.stdout
    given = (f"--bundle={world / 'bundle'}", f"--test={world / 'records' / 'test'}")
    done = subprocess.run([*command, *given], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "text to video" in done.stdout
    loaded = "import common.retrieve as r, sys; r.define_flags(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for slow in ("jax", "flax", "tensorflow"):
        assert f"'{slow}'" not in done.stdout


def _index(world, path, encoder="video_joint"):
    """Embeds all files below the folder of the clips."""
    where = (f"--bundle={world / 'bundle'}", f"--output={path}", f"--encoder={encoder}")
    with tool_flags(embed, *where):
        embed.main(["embed", *(str(world / name) for name in CAPTIONS)])


@pytest.mark.slow
def test_a_search_lists_the_videos_of_an_index_by_their_scores(world, tmp_path, capsys):
    _index(world, tmp_path / "index.npz")
    clips_MD, _ = _by_hand(world)
    (score_M,) = load_bundle(world / "bundle").embed_texts(["the dog"]).astype(float) @ clips_MD.T
    capsys.readouterr()
    where = (f"--bundle={world / 'bundle'}", f"--index={tmp_path / 'index.npz'}", "--top=3")
    with tool_flags(search, *where):
        search.main(["search", "the dog", "xyzzy"])
    dog, unknown = capsys.readouterr().out.strip().split("\n\n")
    title, *lines = dog.splitlines()
    assert title == "the dog"
    best = np.argsort(-score_M)[:3]
    assert [line.split()[1] for line in lines] == [str(world / list(CAPTIONS)[i]) for i in best]
    assert [float(line.split()[0]) for line in lines] == pytest.approx(score_M[best], abs=1e-3)
    assert "has no word that the text encoder knows" in unknown


def test_an_index_of_another_encoder_or_none_is_refused(world, tmp_path):
    _index(world, tmp_path / "features.npz", encoder="video")
    (tmp_path / "text.npz").write_text("no index")
    for name, message in (("features", "with the encoder video"), ("text", "no index of videos")):
        where = (f"--bundle={world / 'bundle'}", f"--index={tmp_path / name}.npz")
        with tool_flags(search, *where), pytest.raises(UserError, match=message) as error:
            search.main(["search", "the dog"])
        assert "common.embed --encoder=video_joint" in str(error.value)


@pytest.mark.slow
def test_a_folder_to_embed_stands_for_the_files_below_it(world, tmp_path):
    folder = tmp_path / "videos" / "deep"
    folder.mkdir(parents=True)
    (folder / "one.mp4").write_bytes((world / "one.mp4").read_bytes())
    where = (f"--bundle={world / 'bundle'}", f"--output={tmp_path / 'of_folder.npz'}")
    with tool_flags(embed, *where, "--encoder=video_joint"):
        embed.main(["embed", str(tmp_path / "videos")])
    found = np.load(tmp_path / "of_folder.npz")
    assert found["paths"].tolist() == [str(folder / "one.mp4")]
    np.testing.assert_allclose(found["features"][0], _by_hand(world)[0][0], rtol=1e-5)
