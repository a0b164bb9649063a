import numpy as np
import pytest

from benchmarks import playground_leaks
from common.data import playground
from common.data.playground_video import Settings
from common.errors import UserError


def test_features_are_taken_from_the_files_in_the_order_of_the_table(tmp_path):
    playground.create(tmp_path, {"train": 2}, Settings(size=32), workers=1)
    features, labels = playground_leaks.load(tmp_path, "train", 2)
    assert len(labels) == 2 and len(set(labels)) == 2
    for number in range(2):
        alone = playground_leaks.clip_features(str(tmp_path / "train" / f"{number:06d}.mp4"))
        assert alone.keys() == features.keys()
        for name, value in alone.items():
            np.testing.assert_array_equal(features[name][number], value)
            assert np.isfinite(value).all()
    with pytest.raises(UserError, match=r"test\.jsonl is missing"):
        playground_leaks.load(tmp_path, "test", 1)


@pytest.mark.parametrize(
    "probe",
    [playground_leaks.linear_probe, playground_leaks.forest_probe],
    ids=["linear", "forest"],
)
def test_a_probe_finds_what_is_there_and_nothing_else(probe):
    rng = np.random.default_rng(0)
    labels = np.tile(np.array(["a", "b", "c", "d"]), 50)
    noise_ND = rng.standard_normal((200, 20))
    planted_ND = noise_ND.copy()
    planted_ND[:, :4] += 4 * (labels[:, None] == np.unique(labels))
    train, test = slice(0, 120), slice(120, 200)
    found, nothing = (
        probe(x[train], labels[train], x[test], labels[test]) for x in (planted_ND, noise_ND)
    )
    assert found > 70
    assert nothing < 36  # 20 expected by chance


def test_intervals_hold_the_share_and_narrow_with_more_clips():
    for right, total in ((0, 10), (3, 10), (10, 10), (300, 1000)):
        low, high = playground_leaks.interval(right, total)
        assert 0 <= low <= right / total <= high <= 1
    wide, narrow = (np.ptp(playground_leaks.interval(*pair)) for pair in ((3, 10), (300, 1000)))
    assert narrow < wide / 5
    # Clopper and Pearson (1934): no success in 10 trials gives at most 1 - 0.025 ** 0.1.
    assert playground_leaks.interval(0, 10)[1] == pytest.approx(1 - 0.025**0.1)
