"""How the card of a data set looks, pixel by pixel where that can be said."""

import io

import numpy as np
import PIL.Image

from common.data import card, records


def clip(name, shape, frames=4):
    file = io.BytesIO()
    PIL.Image.new("RGB", shape, "red").save(file, "JPEG")
    return records.Clip(id=name, frames_jpeg=[file.getvalue()] * frames, frame_rate=25.0)


def sheet(*clips):
    return np.asarray(card.contact_sheet([(clip.id, clip) for clip in clips]).convert("RGB"))


def is_red(picture_HWC):
    return (picture_HWC[..., 0] > 200) & (picture_HWC[..., 1:] < 60).all(axis=-1)


def test_all_frames_of_a_wide_clip_are_seen():
    (row,) = {tuple(row) for row in is_red(sheet(clip("a", (320, 90)))) if row.any()}
    edges = np.flatnonzero(np.diff(np.array([0, *row, 0])))
    assert len(edges) == 2 * 4
    widths = edges[1::2] - edges[::2]
    assert widths.max() - widths.min() <= 2


def test_other_letters_than_english_ones_are_drawn():
    drawn = [sheet(clip(name, (64, 64))) for name in ("m\u00e4use", "m\u00f6use", "m\u0436use")]
    boxes = sheet(clip("m\uffffuse", (64, 64)))
    for number, picture in enumerate(drawn):
        assert not np.array_equal(picture, boxes)
        assert all(not np.array_equal(picture, other) for other in drawn[:number])


def test_of_a_long_name_the_end_is_shown():
    long = "/data/" + "folder/" * 40
    one, two = (sheet(clip(f"{long}{end}", (64, 64))) for end in ("file.mp4", "clip.mp4"))
    assert not np.array_equal(one, two)
    other = sheet(clip(f"/else/{'folder/' * 40}file.mp4", (64, 64)))
    np.testing.assert_array_equal(one, other)
