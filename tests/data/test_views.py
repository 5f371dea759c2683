"""Views of recognition against index sets computed by hand."""

from itertools import pairwise

import pytest
from data_files import numbers, write_video

from tats_fast.data.video import DecodeError
from tats_fast.data.views import (
    decode_views,
    dense_views,
    random_segments,
    segment_views,
    side_crops,
)


def test_kinetics_five_clips():
    # 300 frames, every 4th: 75 kept, 0, 4, ... 296; room 59, so starts int(14.75 k).
    views = dense_views(300, 16, 4, 5)
    assert [view[0] for view in views] == [0, 4 * 14, 4 * 29, 4 * 44, 4 * 59]
    assert [view[-1] for view in views] == [60, 116, 176, 236, 296]
    assert all(b - a == 4 for view in views for a, b in pairwise(view))


@pytest.mark.parametrize(
    ("total", "clips", "expected"),
    [
        (10, 2, [[0, 2, 4], [4, 6, 8]]),
        (10, 1, [[2, 4, 6]]),
        (4, 2, [[0, 2, 2], [0, 2, 2]]),  # shorter than a clip: the last kept frame again
        (1, 3, [[0, 0, 0]] * 3),
        (6, 2, [[0, 2, 4], [0, 2, 4]]),  # exactly one clip
    ],
)
def test_dense_clips_by_hand(total, clips, expected):
    assert dense_views(total, 3, 2, clips) == expected


def test_something_something_two_clips():
    # 48 frames, 16 segments of 3: starts of the segments, and int(1.5 + 3 x).
    starts, middles = segment_views(48, 16, 2)
    assert starts == list(range(0, 48, 3))
    assert middles == list(range(1, 48, 3))
    # 50 frames: segments of 3.125.
    starts, middles = segment_views(50, 16, 2)
    assert starts == [0, 3, 6, 9, 12, 15, 18, 21, 25, 28, 31, 34, 37, 40, 43, 46]
    assert middles == [1, 4, 7, 10, 14, 17, 20, 23, 26, 29, 32, 35, 39, 42, 45, 48]


def test_segments_of_short_videos_repeat_frames():
    assert segment_views(4, 8, 1) == [[0, 0, 1, 1, 2, 2, 3, 3]]
    assert segment_views(20, 4, 2) == [[0, 5, 10, 15], [2, 7, 12, 17]]


def test_random_segments_stay_in_their_segment():
    assert random_segments(20, 4, [0.5] * 4) == [2, 7, 12, 17]
    assert random_segments(20, 4, [0.0, 0.999, 0.0, 0.999]) == [0, 9, 10, 19]
    with pytest.raises(ValueError):
        random_segments(20, 4, [0.5] * 3)


def test_three_crops_along_the_long_side():
    assert [crop(640, 360) for crop in side_crops(3)] == [
        (0, 0, 360, 360),
        (140, 0, 360, 360),
        (280, 0, 360, 360),
    ]
    assert [crop(100, 130) for crop in side_crops(2)] == [(0, 0, 100, 100), (0, 30, 100, 100)]
    assert side_crops(1)[0](640, 360) == (140, 0, 360, 360)
    assert side_crops(3)[1](224, 224) == (0, 0, 224, 224)


@pytest.mark.parametrize(
    "call",
    [
        lambda: dense_views(0, 16, 4, 5),
        lambda: dense_views(10, 16, 0, 5),
        lambda: segment_views(10, 0, 2),
        lambda: segment_views(10, 4, 0),
        lambda: side_crops(0),
    ],
)
def test_impossible_views(call):
    with pytest.raises(ValueError, match="expected at least 1"):
        call()


def test_all_views_in_one_pass(tmp_path):
    path = write_video(tmp_path / "a.mp4", 40, width=96, height=64)
    views = decode_views(str(path), lambda n: dense_views(n, 4, 3, 3), side_crops(3), 32)
    assert views.shape == (3, 3, 4, 32, 32, 3)
    # Every 3rd of 40 frames: 14 kept, room 10, starts 0, 5 and 10. The middle crop has the numbers.
    assert [numbers(view) for view in views[:, 1]] == [
        [0, 3, 6, 9],
        [15, 18, 21, 24],
        [30, 33, 36, 39],
    ]
    left, middle, right = views[0]
    assert not (left == middle).all() and not (middle == right).all()


def test_views_of_a_video_that_ends_early(tmp_path):
    whole = write_video(tmp_path / "a.avi", 40, "mjpeg", pix_fmt="yuvj420p")
    raw = whole.read_bytes()
    cut = tmp_path / "b.avi"
    cut.write_bytes(raw[: len(raw) // 2])
    (view,) = decode_views(str(cut), lambda n: segment_views(n, 4, 2)[:1], side_crops(1), 32)[:, 0]
    frames = numbers(view)
    assert frames[0] == 0 and 4 <= frames[-1] < 20  # of the frames that are there, not of 40


def test_views_are_strict(tmp_path):
    with pytest.raises(DecodeError, match="missing"):
        decode_views(str(tmp_path / "no.mp4"), lambda n: dense_views(n, 4, 1, 1), side_crops(1), 32)
    path = write_video(tmp_path / "a.mp4", 12)
    with pytest.raises(DecodeError, match="took longer"):
        decode_views(str(path), lambda n: dense_views(n, 4, 1, 1), side_crops(1), 32, timeout=1e-9)
