"""Clips of an evaluation: fixed windows, no stand-ins, and no file that ends the run."""

import os
import signal
import time

import pytest
import torch
from data_files import numbers, write_video

from tats_fast.data import eval_clips
from tats_fast.data.eval_clips import eval_plan, load_eval_clips
from tats_fast.data.lists import Video

FRAMES, SIZE = 4, 32


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [Video(str(write_video(folder / f"{i}.mp4", 30 + i))) for i in range(5)]


def test_eval_plan_spreads_over_list_and_time():
    assert eval_plan(10, 5) == [(0, 0.5), (2, 0.5), (4, 0.5), (6, 0.5), (8, 0.5)]
    assert eval_plan(2, 3) == [(0, 0.25), (0, 0.75), (1, 0.5)]
    assert len(eval_plan(7, 32)) == 32


def test_eval_clips_are_fixed_and_strict(videos, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    broken = [*videos[:2], Video(str(tmp_path / "bad.mp4")), *videos[2:4]]
    clips = load_eval_clips(broken, 5, FRAMES, 2, SIZE)
    assert clips.indices == [0, 1, 3, 4]
    assert clips.bad == [(broken[2].path, "not a video container")]
    assert clips.clips.shape == (4, FRAMES, SIZE, SIZE, 3)
    assert numbers(clips.clips[0].numpy()) == [12, 14, 16, 18]
    again = load_eval_clips(broken, 5, FRAMES, 2, SIZE)
    assert torch.equal(clips.clips, again.clips)
    none = load_eval_clips(broken[2:3], 2, FRAMES, 2, SIZE)
    assert none.clips.shape == (0, FRAMES, SIZE, SIZE, 3)
    assert len(none.bad) == 1


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda: time.sleep(60), "took longer than 1 s"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "the process reading it died (SIGKILL)"),
    ],
    ids=["hangs", "kills"],
)
def test_eval_clips_outlive_a_file_that(act, reason, videos, monkeypatch):
    decode, bad = eval_clips.decode_window, videos[2].path

    def trapped(name, *arguments):
        if name == bad:
            act()
        return decode(name, *arguments)

    expected = load_eval_clips(videos, 5, FRAMES, 2, SIZE).clips
    monkeypatch.setattr(eval_clips, "decode_window", trapped)
    start = time.monotonic()
    clips = load_eval_clips(videos, 5, FRAMES, 2, SIZE, timeout=1.0)
    assert time.monotonic() - start < 15
    assert clips.bad == [(bad, reason)] and clips.indices == [0, 1, 3, 4]
    assert torch.equal(clips.clips, expected[[0, 1, 3, 4]])


def test_eval_windows_differ_when_there_are_few_videos(videos):
    clips = load_eval_clips(videos[:1], 3, FRAMES, 1, SIZE).clips.numpy()
    assert [numbers(clip)[0] for clip in clips] == [4, 13, 22]
