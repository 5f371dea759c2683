"""Sliding windows: which frames they hold, whatever the header says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_files import numbers, write_video

from tats_fast.data import windows as module
from tats_fast.data.video import open_video
from tats_fast.data.windows import Length, video_windows, window_batches


@pytest.mark.parametrize(
    ("total", "num_frames", "stride", "hop", "expected"),
    [
        (1, 8, 2, 16, [0]),
        (15, 8, 2, 16, [0]),  # the window's own length
        (16, 8, 2, 16, [0]),  # the 16th frame lies between two kept ones
        (17, 8, 2, 16, [0, 2]),  # frames 2, 4, ..., 16
        (18, 8, 2, 16, [0, 2]),
        (32, 8, 2, 16, [0, 16]),
        (40, 8, 2, 16, [0, 16, 24]),  # 24 + 14 = 38, the last kept frame
        (10, 4, 1, 4, [0, 4, 6]),
        (10, 4, 1, 2, [0, 2, 4, 6]),
        (11, 4, 1, 3, [0, 3, 6, 7]),
        # A hop that the stride does not divide: every frame is kept (gcd(2, 3) = 1), span 7.
        (12, 4, 2, 3, [0, 3, 5]),
        (13, 4, 2, 3, [0, 3, 6]),
        # Gaps of 6 between windows: up to 6 frames may stay behind the last one as well.
        (14, 4, 1, 10, [0, 10]),
        (10, 4, 1, 10, [0]),
        (11, 4, 1, 10, [0, 7]),
        (5, 1, 4, 2, [0, 2, 4]),
        (7, 8, 1, 1, [0]),
        (8, 8, 1, 1, [0]),
        (23, 8, 1, 1, [*range(16)]),
        (60, 8, 1, 3, [*range(0, 52, 3), 52]),
        (23, 8, 3, 4, [0, 1]),
        (60, 8, 3, 4, [*range(0, 37, 4), 38]),
        (60, 8, 2, 40, [0, 40]),
    ],
)
def test_windows_show_these_frames(tmp_path, total, num_frames, stride, hop, expected):
    path = str(write_video(tmp_path / "video.mp4", total))
    windows = list(video_windows(path, num_frames, stride, hop, 32))
    assert [window.start for window in windows] == expected
    for window in windows:
        end = min(window.start + (num_frames - 1) * stride + 1, total)
        frames = list(range(window.start, end, stride))
        assert numbers(window.clip) == frames + frames[-1:] * (num_frames - len(frames))


def read_through(path: Path) -> tuple[list[int], Length]:
    """Starts of the windows (T = 8, stride 2, hop 16), and what the reading returned."""
    windows = video_windows(str(path), 8, 2, 16, 32)
    starts = []
    while True:
        try:
            starts.append(next(windows).start)
        except StopIteration as end:
            return starts, end.value


def test_headers_are_not_believed(tmp_path):
    no_length = write_video(tmp_path / "live.webm", 40, "libvpx", container_options={"live": "1"})
    assert read_through(no_length)[0] == [0, 16, 24]
    clock = write_video(tmp_path / "clock.mp4", 40, rate=1000)
    assert read_through(clock) == ([0, 16, 24], Length(40, None))
    cut = write_video(tmp_path / "cut.mkv", 200, options={"g": "1"})
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    starts, length = read_through(cut)
    last = (length.frames - 1) // 2 * 2 - 14  # of the window that ends with the last used frame
    assert 50 < length.frames < 150 and starts == [*range(0, last, 16), last]


def test_a_long_video_is_decoded_once(tmp_path, monkeypatch):
    path = str(write_video(tmp_path / "long.mp4", 250))
    opened = []

    def counted(name):
        opened.append(name)
        return open_video(name)

    monkeypatch.setattr(module, "open_video", counted)
    windows = video_windows(path, 8, 2, 16, 32)
    first = next(windows)
    assert numbers(first.clip) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert [window.start for window in windows] == [*range(16, 225, 16), 234]
    assert opened == [path]


def test_batches_keep_the_order():
    def window(start):
        return module.Window(start, np.empty(0))

    events = [("a", window(0)), ("b", window(0)), ("a", "end"), ("b", window(8)), ("b", "end")]
    assert list(window_batches(iter(events), 2)) == [events[:2], events[2:]]
    assert list(window_batches(iter(events), 3)) == [events[:4], events[4:]]
