"""Frames by time: data.fps, whatever rate a file has, constant or not."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest
import torch
from data_files import numbers, write_video

from tats_fast.cli import main
from tats_fast.config import ConfigError, DataConfig, load_config, read_saved, save_config
from tats_fast.config.schema import RunConfig
from tats_fast.data.clip import centre_crop, window_start
from tats_fast.data.dali import CPU_FORMATS, dali_problem
from tats_fast.data.lists import Video
from tats_fast.data.loader import make_loader
from tats_fast.data.opening import DecodeError
from tats_fast.data.order import StreamBatches
from tats_fast.data.timed import decode_timed, frames_at_rate, timed_clip

VARIABLE = [0, 40, 80, 1000, 1040, 1080, 1120, 2000, 2500, 3000]  # ms


def test_moments_and_what_is_shown_then():
    assert frames_at_rate([0, 1, 2, 3, 10], 3, 0.5, 0) == [0, 2, 3]
    assert frames_at_rate([5.0], 3, 8, 0.7) == [0, 0, 0]
    assert frames_at_rate([0, 1 / 25], 4, 25, 0) == [0, 1, 1, 1]  # a short video's last goes on
    assert frames_at_rate([0, 1, 2], 6, 2, 0) == [0, 0, 1, 1, 2, 2]  # more than there are


@pytest.mark.parametrize("stride", [1, 2, 5])
@pytest.mark.parametrize("window", [0.0, 0.31, 0.5, 0.999])
def test_at_a_constant_rate_it_is_the_stride(stride, window):
    times = [2.0 + n / 30 for n in range(60)]
    start = window_start(60, 3 * stride + 1, window)
    expected = [start + n * stride for n in range(4)]
    assert frames_at_rate(times, 4, 30 / stride, window) == expected


@pytest.mark.parametrize("gop", [1, 250])
def test_a_variable_rate_is_read_from_the_timestamps(tmp_path, gop):
    video = write_video(
        tmp_path / "a.mkv", len(VARIABLE), pts=VARIABLE, options={"g": str(gop), "bf": "2"}
    )
    for window in (0.0, 0.4, 0.9):
        clips = np.empty((1, 4, 32, 32, 3), np.uint8)
        decode_timed(str(video), clips, 2.0, window, [centre_crop])
        times = [t / 1000 for t in VARIABLE]
        expected = frames_at_rate(times, 4, 2.0, window)
        assert numbers(clips[0]) == expected
    assert numbers(timed_clip(str(video), 4, 25.0, 32, window=0.0)) == [0, 1, 2, 2]


@pytest.mark.parametrize(
    "name, codec", [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.flv", "flv")]
)
def test_two_rates_show_the_same_moments(tmp_path, name, codec):
    """25 and 50 frames per second of the same length, 5 fps: every 5th and every 10th frame."""
    for rate in (25, 50):
        video = write_video(tmp_path / f"{rate}-{name}", 2 * rate, codec, rate=rate)
        for window in (0.01, 0.99):
            seen = np.array(numbers(timed_clip(str(video), 6, 5.0, 32, window)))
            assert (np.diff(seen) == rate // 5).all()
            assert seen[0] == (0 if window < 0.5 else 2 * rate - 1 - 5 * (rate // 5))


def test_without_timestamps_the_headers_rate_counts(tmp_path):
    video = write_video(tmp_path / "a.mpg", 50, "mpeg1video")
    raw = tmp_path / "raw.mpg"  # raw MPEG video has no container that could have them
    with av.open(str(video)) as file:
        raw.write_bytes(b"".join(bytes(p) for p in file.demux(video=0) if p.size))
    seen = np.array(numbers(timed_clip(str(raw), 4, 5.0, 32, 0.0)))
    assert (np.diff(seen) == 5).all()


def loaded(videos, backend="pyav", **config):
    order = StreamBatches(len(videos), 1, 2, stop_sample=8)
    data = DataConfig(stride=None, fps=5.0, backend=backend, workers=1, scales=(1.0,), **config)
    return list(make_loader(videos, data, 4, 32, 5, order))


def test_the_loader_draws_by_time(tmp_path):
    videos = [
        Video(str(write_video(tmp_path / f"{rate}.mp4", 3 * rate, rate=rate))) for rate in (10, 50)
    ]
    steps = {
        tuple(np.diff(numbers(clip.numpy()))) for batch in loaded(videos) for clip in batch.clips
    }
    assert steps == {(2, 2, 2), (10, 10, 10)}


@pytest.mark.skipif(dali_problem() is not None, reason=str(dali_problem()))
def test_dali_takes_the_same_frames(tmp_path):
    assert ("vp9", "yuv420p") in CPU_FORMATS.pairs
    videos = [
        Video(str(write_video(tmp_path / "a.webm", len(VARIABLE), "libvpx-vp9", pts=VARIABLE))),
        Video(str(write_video(tmp_path / "b.webm", 60, "libvpx-vp9", rate=30))),
    ]
    for ours, theirs in zip(loaded(videos), loaded(videos, "dali"), strict=True):
        assert theirs.on_host == 0
        for a, b in zip(ours.clips, theirs.clips, strict=True):
            assert numbers(a.numpy()) == numbers(b.numpy())


def test_what_cannot_be_read_is_a_bad_file(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    for name, why in (("a.mp4", "not a video container"), ("gone.mp4", "missing")):
        with pytest.raises(DecodeError, match=why):
            timed_clip(str(tmp_path / name), 4, 5.0, 32)


def test_stride_or_fps_but_not_both(tmp_path):
    assert load_config(None).data.stride == 4
    config = load_config("quickstart", ["data.stride=null", "data.fps=8"])
    assert (config.data.stride, config.data.fps) == (None, 8.0)
    save_config(config, tmp_path / "c.yaml")
    assert read_saved(tmp_path / "c.yaml", RunConfig) == config
    words = (
        r"data\.fps=8\.0: frames are taken by time or every data\.stride=2; set data\.stride=null"
    )
    with pytest.raises(ConfigError, match=words):
        load_config("quickstart", ["data.fps=8"])


def test_a_run_by_time(run_config, tmp_path, demo_clips):
    from tats_fast.engine.distributed import World
    from tats_fast.pretrain.trainer import Trainer

    data = {"stride": None, "fps": 5.0, "eval": str(demo_clips)}
    Trainer(run_config(data=data, train={"steps": 2}), World(0, 1, torch.device("cpu"))).run()
    rows = (tmp_path / "run/eval.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 2
    run, out = str(tmp_path / "run"), str(tmp_path / "features")
    clip = sorted(demo_clips.glob("*.mp4"))[0]
    (tmp_path / "one.txt").write_text(f"{clip}\n")
    extract = ["extract-features", "--checkpoint", run, "--videos", str(tmp_path / "one.txt")]
    assert main([*extract, "--out", out]) == 0
    settings = json.loads((tmp_path / "features/settings.json").read_text())
    assert (settings["stride"], settings["fps"]) == (None, 5.0)
    assert main(["visualize", "--checkpoint", run, "--video", str(clip), "--out", out + "2"]) == 0
