"""Tables of MP4 files: wrong marks of keyframes, and edit lists that show a part of the frames."""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from data_files import numbers, write_video

from tats_fast.data.clip import window_start
from tats_fast.data.dali import GPU_FORMATS
from tats_fast.data.plan import choose_frames, plan_clip
from tats_fast.data.pyav import copies_packets
from tats_fast.data.timed import timed_clip
from tats_fast.data.video import count_frames, decode_window


def every_picture(raw: bytearray, at: int) -> None:
    """Without a table all are keyframes."""
    raw[at : at + 4] = b"free"


def the_wrong_ones(raw: bytearray, at: int) -> None:
    """Each entry but the first is three pictures late."""
    (count,) = struct.unpack(">I", raw[at + 8 : at + 12])
    entries = np.frombuffer(raw, ">u4", count, at + 12)
    entries[1:] += 3


@pytest.mark.parametrize("spoil", [every_picture, the_wrong_ones])
@pytest.mark.parametrize("count", [60, 400])
def test_windows_are_exact_whatever_the_sync_table_says(tmp_path, spoil, count):
    """15 of 24 windows were off by up to 144 of 255."""
    path = write_video(tmp_path / "a.mp4", count, "mpeg4", options={"g": "20"})
    raw = bytearray(path.read_bytes())
    spoil(raw, raw.index(b"stss"))
    path.write_bytes(raw)
    for window in np.linspace(0, 0.999, 12):
        start = window_start(count, 15, window)
        clip = decode_window(str(path), 8, 2, 64, window)
        assert numbers(clip) == [(start + 2 * step) % 256 for step in range(8)]


@pytest.mark.skipif(not copies_packets(), reason="PyAV 14")
def test_no_plan_begins_at_a_false_keyframe(tmp_path):
    path = write_video(tmp_path / "a.mp4", 60, "mpeg4", options={"g": "20"})
    choose = partial(choose_frames, num_frames=8, stride=2, window=0.9)
    assert plan_clip(str(path), choose, GPU_FORMATS) is not None
    raw = bytearray(path.read_bytes())
    every_picture(raw, raw.index(b"stss"))
    path.write_bytes(raw)
    assert plan_clip(str(path), choose, GPU_FORMATS) is None


def show(path: Path, first: int, count: int, total: int) -> None:
    """Let the edit list of a file of ``total`` frames, 25 per second, show ``count`` of them."""
    raw = bytearray(path.read_bytes())
    at, scale = raw.index(b"elst") + 12, raw.index(b"mdhd") + 16
    length, begin = struct.unpack(">Ii", raw[at : at + 8])
    (ticks,) = struct.unpack(">I", raw[scale : scale + 4])
    raw[at : at + 8] = struct.pack(">Ii", length * count // total, begin + first * ticks // 25)
    path.write_bytes(raw)


def first_frames(path, stride, timed):
    """Of twelve windows, the first to the last, of every ``stride``-th frame of 25 per second."""
    cut = partial(timed_clip, fps=25 / stride) if timed else partial(decode_window, stride=stride)
    clips = [
        numbers(cut(str(path), num_frames=8, size=64, window=window))
        for window in np.linspace(0, 0.999, 12)
    ]
    assert all(clip == list(range(clip[0], clip[0] + 8 * stride, stride)) for clip in clips)
    return [clip[0] for clip in clips]


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("options", [{"g": "12", "bf": "0"}, {"g": "250", "bf": "2"}])
def test_windows_hold_what_an_edit_list_shows(tmp_path, options, timed):
    """Frames 10 to 54 of 60, of which the tenth is no keyframe."""
    path = write_video(tmp_path / "a.mp4", 60, options=options)
    show(path, 10, 45, 60)
    firsts = first_frames(path, 2, timed)
    assert min(firsts) == 10 and max(firsts) == 54 - 14


@pytest.mark.parametrize("timed", [False, True])
def test_late_windows_of_a_file_cut_by_copying(tmp_path, timed):
    """The last 110 of 200 frames are shown, and 200 were counted: by time late windows were the
    last frame eight times, every fourth frame they were the first window."""
    path = write_video(tmp_path / "a.mp4", 200, options={"g": "100", "sc_threshold": "0"})
    show(path, 90, 110, 200)
    firsts = first_frames(path, 4, timed)
    assert firsts[0] == 90 < min(firsts[1:]) and firsts[-1] >= 200 - 32
    assert not timed or firsts == sorted(firsts)  # otherwise the header's 200 frames propose
    assert count_frames(str(path)) == 110


def test_an_edit_list_leaves_a_variable_rate_as_it_is(tmp_path):
    """Without the packets' times the 10 frames were evenly timed."""
    times = [0, 40, 80, 120, 160, 1160, 1200, 2200, 2240, 3240]  # ms
    path = write_video(tmp_path / "a.mp4", len(times), pts=times, options={"g": "250", "bf": "2"})
    show(path, 2, 8, len(times))
    assert numbers(timed_clip(str(path), 4, 1.0, 64, 0.0)) == [2, 4, 6, 8]
