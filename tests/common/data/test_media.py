"""Decoding keeps time: frames by presentation time, sound by its own stamps."""

import media_files as files
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import media

ALL = {"frame_rate": 0, "short_side": 256, "start_s": None, "end_s": None, "max_seconds": 60}


def read_frames(path, **options):
    with media.open_media(path) as container:
        reader = media.FrameReader(container, **ALL | options)
        images = [image for image, repeats in reader for _ in range(repeats)]
        return images, reader.span


def numbers(path, **options):
    return [files.frame_number(image) for image in read_frames(path, **options)[0]]


def read_sound(path, rate, begin=0.0, end=None, num_samples=None):
    with media.open_media(path) as container:
        return media.read_sound(container, rate, begin, end, num_samples, 60)


def click_times(waveform, rate):
    loud = np.flatnonzero(np.abs(waveform) > 0.3)
    starts = loud[np.diff(loud, prepend=-rate) > 0.01 * rate]
    return starts / rate


@pytest.mark.parametrize("rate", [10, 15, 24, 25])
def test_the_files_own_rate_keeps_every_frame_once(tmp_path, rate):
    path = files.write_video(tmp_path / "a.mp4", num_frames=18, rate=rate)
    images, span = read_frames(path)
    assert [files.frame_number(image) for image in images] == list(range(18))
    assert span.frame_rate == rate and span.seconds == pytest.approx(18 / rate)


def test_milliseconds_in_matroska_drop_and_double_nothing(tmp_path):
    path = files.write_video(tmp_path / "a.mkv", num_frames=18, rate=30000 / 1001)
    assert numbers(path, frame_rate=30000 / 1001) == list(range(18))


def test_faster_video_is_thinned_to_25_by_time(tmp_path):
    path = files.write_video(tmp_path / "a.mp4", num_frames=18, rate=50)
    assert numbers(path) == list(range(0, 18, 2))


def test_variable_frame_rate_shows_what_a_player_shows(tmp_path):
    times = [0.0, 0.1, 0.2, 1.0, 1.1]
    path = files.write_video(tmp_path / "a.mkv", rate=10, times=times)
    shown = numbers(path, frame_rate=10)
    assert shown[:11] == [0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3] and shown[11] == 4


@settings(max_examples=15, deadline=None)
@given(
    gaps=st.lists(st.integers(20, 300), min_size=1, max_size=12),
    rate=st.sampled_from([5, 12.5, 25]),
)
def test_frame_k_is_the_one_on_show_at_its_time(tmp_path_factory, gaps, rate):
    stamps = np.cumsum([0, *gaps]) / 1000
    path = tmp_path_factory.mktemp("vfr") / "a.mkv"
    files.write_video(path, rate=50, times=list(stamps))
    shown = numbers(path, frame_rate=rate)
    for k, number in enumerate(shown):
        # Half a frame of the file's nominal rate (which ffmpeg guesses) may go either way.
        early = np.searchsorted(stamps, k / rate - 1e-6, side="right") - 1
        late = np.searchsorted(stamps, k / rate + 0.5 / rate + 1e-6, side="right") - 1
        assert early <= number <= late


def test_a_stretch_equals_the_same_part_of_the_whole(tmp_path):
    path = files.write_video(
        tmp_path / "a.mp4", num_frames=150, sound=files.tone(6.0, 16000), sound_rate=16000
    )
    whole, _ = read_frames(path)
    part, span = read_frames(path, start_s=4.0, end_s=4.8)
    assert span.num_frames == 20
    np.testing.assert_array_equal(part, whole[100:120])
    sound = read_sound(path, 16000, num_samples=96000)
    np.testing.assert_allclose(
        read_sound(path, 16000, begin=4.0, num_samples=12800), sound[64000:76800], atol=1e-6
    )


def test_a_start_after_the_end_is_refused(tmp_path):
    path = files.write_video(tmp_path / "a.mp4")
    with pytest.raises(media.Unreadable, match="starts at 9 s but the video ends at 1"):
        read_frames(path, start_s=9.0)


def test_a_clip_longer_than_allowed_is_refused(tmp_path):
    path = files.write_video(tmp_path / "a.mp4", num_frames=50)
    with pytest.raises(media.Unreadable, match="--max_seconds=1"):
        read_frames(path, max_seconds=1)


def test_display_matrices_turn_and_mirror(tmp_path):
    def quadrant(number, width, height):  # bright top left corner
        image = np.zeros((height, width, 3), np.uint8)
        image[: height // 2, : width // 2] = 255
        return image

    expected = {  # matrix: where the bright corner goes, (row, column), and whether sides swap
        (1, 0, 0, 1): ((0, 0), False),
        (0, 1, -1, 0): ((0, 1), True),  # a quarter clockwise
        (-1, 0, 0, -1): ((1, 1), False),
        (0, -1, 1, 0): ((1, 0), True),
        (-1, 0, 0, 1): ((0, 1), False),  # mirrored
    }
    for matrix, (corner, swapped) in expected.items():
        path = files.write_video(tmp_path / "a.mp4", 2, width=64, height=32, picture=quadrant)
        files.set_rotation(path, *matrix)
        image = read_frames(path)[0][0]
        assert image.shape == ((64, 32, 3) if swapped else (32, 64, 3)), matrix
        rows, columns = image.shape[0] // 2, image.shape[1] // 2
        means = image.reshape(2, rows, 2, columns, 3).mean((1, 3, 4))
        assert np.unravel_index(means.argmax(), (2, 2)) == corner, matrix


def test_the_short_side_is_reduced_and_never_enlarged():
    assert media.reduced_size(1280, 720, 256) == (455, 256)
    assert media.reduced_size(33, 47, 256) == (33, 47)
    assert media.reduced_size(10000, 3, 2) == (6667, 2)


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_sound_has_exactly_the_asked_number_of_samples_at_the_right_times(tmp_path, rate):
    at = [0.25, 1.0, 1.9]
    sound = files.clicks(2.0, 44100, at)
    path = files.write_video(
        tmp_path / "a.mkv", 50, sound=sound, sound_rate=44100, sound_codec="flac"
    )
    waveform = read_sound(path, rate, num_samples=2 * rate)
    assert len(waveform) == 2 * rate and waveform.dtype == np.float32
    np.testing.assert_allclose(click_times(waveform, rate), at, atol=1.5 / rate + 1e-3)


@pytest.mark.parametrize("start", [0.0, 0.3, 0.72])
def test_a_late_sound_track_stays_late(tmp_path, start):
    sound = files.clicks(1.0, 16000, [0.1])
    path = files.write_video(
        tmp_path / "a.mkv", 50, sound=sound, sound_start=start, sound_codec="flac"
    )
    waveform = read_sound(path, 16000, num_samples=32000)
    np.testing.assert_allclose(click_times(waveform, 16000), [start + 0.1], atol=2e-3)
    assert not waveform[: int(16000 * start)].any()


def test_sound_that_begins_before_the_video_is_cut_not_shifted(tmp_path):
    times = [0.5 + number / 25 for number in range(25)]
    sound = files.clicks(2.0, 16000, [0.2, 0.9])
    path = files.write_video(tmp_path / "a.mkv", times=times, sound=sound, sound_codec="flac")
    _, span = read_frames(path)
    waveform = read_sound(path, 16000, begin=span.begin, num_samples=16000)
    np.testing.assert_allclose(click_times(waveform, 16000), [0.9 - span.begin], atol=2e-3)


@pytest.mark.parametrize("layout, channels", [("mono", 1), ("stereo", 2), ("5.1", 6)])
def test_any_layout_becomes_mono_within_one(tmp_path, layout, channels):
    sound = files.tone(1.0, 48000, channels)
    path = files.write_video(
        tmp_path / "a.mkv", sound=sound, sound_rate=48000, layout=layout, sound_codec="flac"
    )
    waveform = read_sound(path, 48000, num_samples=48000)
    assert 0.2 < np.abs(waveform).max() <= 1.0


def test_a_cut_off_file_is_refused(tmp_path):
    whole = files.write_video(
        tmp_path / "a.mp4",
        100,
        width=320,
        height=240,
        picture=lambda n, w, h: np.random.default_rng(n).integers(0, 256, (h, w, 3), np.uint8),
        options={"movflags": "faststart"},
    )
    with pytest.raises(media.Unreadable, match="truncated or damaged"):
        read_frames(files.cut(whole, tmp_path / "b.mp4", 0.5))


def test_a_playlist_in_disguise_opens_nothing_else(tmp_path):
    files.write_video(tmp_path / "secret.mp4")
    playlist = (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "a.mp4").write_text(playlist)
    with pytest.raises(media.Unreadable):
        read_frames(tmp_path / "a.mp4")
