"""The lists that ``tats-fast verify`` writes are read back as they were meant."""

from __future__ import annotations

import os

import pytest

from tats_fast.data.bad_files import bad_lines
from tats_fast.data.files import write_lines
from tats_fast.data.lists import Video, read_videos
from tats_fast.prepare.verify import good_lines

NAMES = [
    *("a.mp4", "a b.mp4", "a, b.mp4", "a,1.mp4", "a::b.mp4", "a.mp4 3", "#a.mp4", "# a", "a 7"),
    *("c.avi d", " a.mp4", "a.mp4 ", '"a".mp4', '"a.mp4"', "a\u2028b.mp4", "ä→.mp4"),
    *(os.fsdecode(b"caf\xe9 \xff.mp4"), "a\x0bb.mp4", "path", "x.mp4,y", "\ufeffa.mp4", "'a'.mp4"),
]


@pytest.mark.parametrize(
    "label",
    [None, 0, -3, "golf", "long jump", "a, b", "c::d", "0 -1", "#5", "1 2 3 4", "é"],
)
def test_good_lists_are_read_back_as_they_were(tmp_path, monkeypatch, label):
    monkeypatch.setattr("tats_fast.data.lists._require_some_exist", lambda *args: None)
    uniform = [Video(f"/v w/{name}", label) for name in NAMES]
    mixed = [Video(f"/v w/{n}", label if i % 2 else None) for i, n in enumerate(NAMES)]
    plain_names = [Video(f"/v w/{name}", label) for name in NAMES if name.endswith(".mp4")]
    for videos in (uniform, mixed, plain_names, uniform[:1]):
        write_lines(tmp_path / "good.txt", good_lines(videos))
        assert read_videos(tmp_path / "good.txt") == videos


def test_bad_lists_hold_one_line_per_file():
    lines = bad_lines({"/a\nb\tc.mp4": "two\nlines", "/d.mp4": "missing"})
    assert lines == ["/a b c.mp4\ttwo lines", "/d.mp4\tmissing"]
