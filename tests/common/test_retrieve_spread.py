"""Retrieval as Frozen in Time is evaluated: whole videos, sliding windows, cosine, its ties."""

import json

import numpy as np
import pytest
import tiny_media
import tiny_mil_nce
import tiny_spread
from PIL import Image
from tool_flags import tool_flags

from common import embed, export, ingest, retrieve, search
from common.data import records, shards
from common.errors import UserError
from common.evaluation import clips, retrieval, segments, zero_shot
from common.evaluation.zero_shot import Embedded, rows
from common.method import COSINE
from common.weights import load_bundle

FRAMES = {"one.mp4": 20, "two.mp4": 3, "three.mp4": 31, "four.jpg": 1}
TEXTS = ["a red ball rolls", "the cat sleeps", "a dog runs", "it rains"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three videos and a picture, their records, a run of random weights and its bundle."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny_spread.install(monkeypatch)
        folder = tmp_path_factory.mktemp("spread")
        for seed, (name, frames) in enumerate(FRAMES.items()):
            if frames > 1:
                tiny_media.write_video(folder / name, seed=seed, frames=frames, sound=False)
        pixels = np.random.default_rng(9).integers(0, 256, (48, 70, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "four.jpg", quality=95)
        lines = [
            json.dumps({"path": path, "captions": [text]})
            for path, text in zip(FRAMES, TEXTS, strict=True)
        ]
        (folder / "table.jsonl").write_text("\n".join(lines))
        options = ("--split=test", "--audio_rate=0", "--workers=1", "--short_side=48")
        given = (f"--source={folder / 'table.jsonl'}", f"--output={folder / 'records'}")
        with tool_flags(ingest, *given, *options):
            assert not ingest.main(["ingest"])
        words = tiny_mil_nce.write_vocabulary(folder / "words.txt")
        train = str(folder / "records" / "test")
        tiny_mil_nce.make_run(folder / "run", words, data__train=train, data__max_bad_share=1.0)
        bundle = (f"--workdir={folder / 'run'}", f"--output={folder / 'bundle'}")
        with tool_flags(export, *bundle, "--protocol=frozen"):
            export.main(["export"])
        yield folder


@pytest.fixture(scope="module")
def bundle(world):
    return load_bundle(world / "bundle")


def _retrieve(world, *arguments):
    output = world / "results.json"
    output.unlink(missing_ok=True)
    where = (f"--workdir={world / 'run'}", f"--test={world / 'records' / 'test'}")
    with tool_flags(retrieve, *where, f"--output={output}", *arguments):
        retrieve.main(["retrieve"])
    return json.loads(output.read_text())


def _by_hand(world, bundle, windows_of):
    """Means of the embeddings of the windows that a function of the length gives, and texts."""
    inputs = bundle.encoders["video_joint"].inputs
    stored = shards.RecordSet.open(world / "records" / "test")
    means = []
    for number in range(len(stored)):
        encoded = records.deserialize(stored.read(number)).frames_jpeg
        assert len(encoded) == list(FRAMES.values())[number]
        pictures = [
            clips.resized_squares(clips.decode_image(frame), inputs, 1)[0] for frame in encoded
        ]
        windows = np.stack([[pictures[i] for i in w] for w in windows_of(len(encoded))])
        means.append(bundle.embed("video_joint", windows).astype(np.float64).mean(axis=0))
    return np.stack(means), bundle.embed_texts(TEXTS).astype(np.float64)


def _middles(length):
    if length == 1:
        return [[0]]
    edge = np.linspace(0, length, min(4, length) + 1).astype(int)
    middles = [(first + end - 1) // 2 for first, end in zip(edge[:-1], edge[1:], strict=True)]
    return [middles + middles[-1:] * (4 - len(middles))]


def _cosine(texts_QD, clips_MD):
    lengths = np.linalg.norm(texts_QD, axis=1)[:, None] * np.linalg.norm(clips_MD, axis=1)
    return texts_QD @ clips_MD.T / lengths


def _mean_ranks(results):
    return [row["metrics"]["mean rank"]["value"] for row in results["rows"]]


@pytest.mark.slow
def test_whole_videos_are_ranked_by_the_cosine_of_what_anyone_gets_by_hand(world, bundle, capsys):
    clips_MD, texts_QD = _by_hand(world, bundle, _middles)
    scores_QM = _cosine(texts_QD, clips_MD)
    results = _retrieve(world, "--protocol=frozen", "--dual_softmax=5")
    assert [row["scores"] for row in results["rows"]] == ["cosine"] * 2 + ["dual softmax at 5"] * 2
    weight_QM = np.exp(5 * scores_QM) / np.exp(5 * scores_QM).sum(axis=0)
    backward_MQ = np.exp(5 * scores_QM.T) / np.exp(5 * scores_QM.T).sum(axis=0)
    expected = (scores_QM, scores_QM.T, scores_QM * weight_QM, scores_QM.T * backward_MQ)
    for found, scores in zip(_mean_ranks(results), expected, strict=True):
        assert found == pytest.approx(retrieval.ranks(scores, range(4)).position("middle").mean())
    assert results["protocol"]["name"] == "frozen"
    assert "the middle frame of each of its equal parts" in capsys.readouterr().out
    found = bundle.embed_videos([world / name for name in FRAMES], encoder="video_joint")
    np.testing.assert_allclose(found, clips_MD, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("bound", ["", "--published_bound"])
def test_a_sliding_window_is_averaged_before_the_norm_is_taken(world, bundle, bound, monkeypatch):
    scored = []

    def rows_of(embedded, *arguments):
        scored.append(embedded)
        return rows(embedded, *arguments)

    monkeypatch.setattr(zero_shot, "rows", rows_of)

    def windows(length):
        if length == 1:
            return [[0]]
        frames = segments.sliding_frames(length, 4, 2, bool(bound)).tolist()
        return [window + window[-1:] * (4 - len(window)) for window in frames]

    assert len(windows(31)) == (3 if bound else 4)
    clips_MD, texts_QD = _by_hand(world, bundle, windows)
    results = _retrieve(
        world, "--protocol=frozen", "--sliding_window_stride=2", *([bound] if bound else [])
    )
    np.testing.assert_allclose(scored[0].clips_MD, clips_MD, rtol=1e-4, atol=1e-5)
    scores_QM = _cosine(texts_QD, clips_MD)
    for found, scores in zip(_mean_ranks(results), (scores_QM, scores_QM.T), strict=True):
        assert found == pytest.approx(retrieval.ranks(scores, range(4)).position("middle").mean())
    assert results["protocol"]["window_stride"] == 2
    assert results["protocol"]["published_bound"] == bool(bound)


@pytest.mark.slow
def test_frozen_ties_are_a_rule_of_each_direction(world, capsys):
    results = _retrieve(world, "--protocol=frozen", "--ties=frozen")
    assert [row["ties"] for row in results["rows"]] == ["optimistic", "averaged"]
    assert results["ties"] == "frozen"
    assert "Ties: frozen (as Frozen in Time's published code" in capsys.readouterr().out
    same = Embedded(np.ones((5, 3)), np.ones((5, 3)), np.arange(5), tuple("abcde"), {}, COSINE)
    there, back = rows(same, "frozen")
    assert (there["metrics"]["R@1"]["value"], there["metrics"]["mean rank"]["value"]) == (1, 1)
    assert (back["metrics"]["R@1"]["value"], back["metrics"]["mean rank"]["value"]) == (0, 3)


def test_all_metrics_are_shown_where_they_are_asked_for(world, capsys):
    results = _retrieve(world, "--protocol=frozen", "--all_metrics")
    heading = next(line for line in capsys.readouterr().out.splitlines() if "R@10" in line)
    assert "R@50" in heading and "geometric mean" in heading
    results.pop("all_metrics")  # as in results written before there was a choice
    (world / "earlier.json").write_text(json.dumps(results))
    card = (f"--workdir={world / 'run'}", f"--results={world / 'earlier.json'}")
    with tool_flags(export, *card, f"--output={world / 'with_card'}"):
        export.main(["export"])
    text = (world / "with_card" / "README.md").read_text()
    assert "| cosine | text to video |" in text and "R@50" not in text


def test_a_search_orders_the_videos_by_cosine(world, bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("common.weights.load_bundle", lambda _: bundle)  # compiled already
    index, where = tmp_path / "index.npz", f"--bundle={world / 'bundle'}"
    with tool_flags(embed, where, f"--output={index}", "--encoder=video_joint"):
        embed.main(["embed", *(str(world / name) for name in FRAMES)])
    clips_MD, _ = _by_hand(world, bundle, _middles)
    (score_M,) = _cosine(bundle.embed_texts(["a dog"]), clips_MD)
    capsys.readouterr()
    with tool_flags(search, where, f"--index={index}"):
        search.main(["search", "a dog"])
    _, *lines = capsys.readouterr().out.strip().splitlines()
    best = np.argsort(-score_M)
    assert [line.split()[1] for line in lines] == [str(world / list(FRAMES)[i]) for i in best]
    assert [float(line.split()[0]) for line in lines] == pytest.approx(score_M[best], abs=1e-3)


def test_a_bundle_says_what_its_encoders_take_and_how_they_compare(world, bundle):
    said = json.loads((world / "bundle" / "preprocessing.json").read_text())
    facts = said["encoders"]["video_joint"]
    assert (facts["segments"], facts["resize"], facts["similarity"]) == (True, 40, "cosine")
    assert said["protocol"]["name"] == "frozen"
    pictures_N1SSC = np.zeros((2, 1, 32, 32, 3), np.uint8)
    assert bundle.embed("video_joint", pictures_N1SSC).shape == (2, 16)
    with pytest.raises(UserError, match="takes uint8 arrays of shape"):
        bundle.embed("video_joint", np.zeros((2, 3, 32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol=hmdb51"], "neighbouring frames"),
        (["--protocol=windows"], "spread over a whole clip"),
        (["--sliding_window_stride=3"], "--sliding_window_stride goes with --protocol=frozen"),
        (["--protocol=frozen", "--published_bound"], "goes with --sliding_window_stride"),
        (["--protocol=frozen", "--windows=3"], "--windows goes with --protocol=windows"),
    ],
)
def test_what_does_not_fit_is_answered_with_what_does(world, arguments, message):
    with pytest.raises(UserError, match=message):
        _retrieve(world, *arguments)


def test_a_bundle_is_not_made_with_clips_that_its_encoders_do_not_take(world):
    given = (f"--workdir={world / 'run'}", f"--output={world / 'other'}", "--protocol=ucf101")
    with tool_flags(export, *given), pytest.raises(UserError, match="neighbouring frames"):
        export.main(["export"])
    assert not (world / "other").exists()
