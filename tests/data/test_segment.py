"""What DALI gets of a file: the packets of one clip, all of one size, in a file of our making."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from data_files import noise, numbers, write_video

from tats_fast.config import DataConfig
from tats_fast.data.dali import CPU_FORMATS, GPU_FORMATS, dali_problem
from tats_fast.data.lists import Video
from tats_fast.data.loader import make_loader
from tats_fast.data.order import StreamBatches
from tats_fast.data.picture_size import UNKNOWN, mjpeg_sizes, vp9_sizes
from tats_fast.data.plan import choose_frames, plan_clip
from tats_fast.data.pyav import packets_of
from tats_fast.data.video import DecodeError, open_video

pytestmark = pytest.mark.skipif(dali_problem() is not None, reason=str(dali_problem()))
VP9 = {"deadline": "realtime", "cpu-used": "8", "g": "12"}
FRAMES, SIZE = 8, 48


def plan(path, window=0.5, formats=CPU_FORMATS, stride=2):
    choose = partial(choose_frames, num_frames=FRAMES, stride=stride, window=window)
    return plan_clip(str(path), choose, formats)


def batches(path, backend, windows=6):
    order = StreamBatches(1, 0, windows, stop_sample=windows)
    config = DataConfig(stride=2, backend=backend, workers=1, scales=(1.0,))
    return next(iter(make_loader([Video(str(path))], config, FRAMES, SIZE, 0, order)))


def two_sizes(path, codec, sizes=((160, 120), (80, 60)), count=20, **options):
    """``count`` frames of each size in one stream, as calls over a bad line have."""
    parts = []
    for width, height in sizes:
        kwargs = {"width": width, "height": height, **options}
        parts.append(write_video(path.with_suffix(f".{width}.mkv"), count, codec, **kwargs))
    with av.open(str(path), "w") as out:
        stream, time = None, 0
        for part in parts:
            with av.open(str(part)) as source:
                video = source.streams.video[0]
                stream = stream or out.add_stream_from_template(video)
                for packet in source.demux(video):
                    if packet.size:
                        packet.pts = packet.dts = time
                        time += 40
                        packet.stream = stream
                        out.mux(packet)
    return path


def test_a_damaged_avi_costs_its_clips_and_not_the_trainer(tmp_path):
    """DALI's reader of AVI files crashes where a kilobyte stands twice."""
    path = write_video(
        tmp_path / "a.avi", 40, "mjpeg", pix_fmt="yuvj420p", width=320, height=240, turn=noise
    )
    raw, at = path.read_bytes(), 300_000
    path.write_bytes(raw[: at + 1024] + raw[at : at + 1024] + raw[at + 1024 :])
    code = f"import test_segment; print(len(test_segment.batches({str(path)!r}, 'dali').keys))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join([str(Path(__file__).parent), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "6\n"), done.stderr[-2000:]


@pytest.mark.parametrize(
    "name, codec, options",
    [
        ("a.webm", "libvpx", {"options": VP9}),
        ("a.webm", "libvpx-vp9", {"options": VP9}),
        ("a.mkv", "mjpeg", {"pix_fmt": "yuvj420p"}),
    ],
)
def test_a_picture_that_shrinks_is_not_left_black(tmp_path, name, codec, options):
    """DALI takes the first picture's size for all: three quarters of the others were black."""
    path = two_sizes(tmp_path / name, codec, **options)
    dali, pyav = batches(path, "dali", 12), batches(path, "pyav", 12)
    error = (dali.clips.int() - pyav.clips.int()).abs().float().mean((1, 2, 3, 4))
    assert error.max() < 2, error
    assert 0 < dali.on_host < 12  # what lies before the change is DALI's


def test_a_file_of_one_size_is_never_taken_for_one_of_two(tmp_path):
    """Hidden frames, odd sizes, scaled references of the encoder's own choice."""
    alt = {"auto-alt-ref": "1", "lag-in-frames": "25", "deadline": "good", "cpu-used": "5"}
    for number, options in enumerate((VP9, alt, VP9 | {"error-resilient": "1"})):
        path = tmp_path / f"{number}.webm"
        write_video(path, 60, "libvpx-vp9", width=161, height=121, options=options)
        with open_video(str(path)) as (container, stream):
            sizes = [vp9_sizes(bytes(packet)) for packet in container.demux(stream) if packet.size]
        assert set().union(*sizes) == {(161, 121)}
        assert len(sizes) == 60
        assert all(plan(path, window) is not None for window in np.linspace(0, 0.99, 9))


def test_sizes_of_what_is_no_picture():
    assert mjpeg_sizes(b"") == mjpeg_sizes(b"\xff\xd8\xff\xda\0\0") == {UNKNOWN}
    assert mjpeg_sizes(b"\xff\xd8\xff\xc0\0\x0b\x08\0\x30\0\x40" + bytes(9)) == {(64, 48)}
    assert vp9_sizes(b"\0") == {UNKNOWN}


def test_pictures_that_change_size_at_a_keyframe_have_no_plan(tmp_path):
    """H.264, whose sizes no packet tells: the keyframes of the clip are decoded."""
    options = {"options": {"g": "10", "bf": "0", "x264-params": "repeat-headers=1"}}
    path = two_sizes(tmp_path / "a.ts", "libx264", **options)
    plans = [plan(path, window, GPU_FORMATS) for window in np.linspace(0, 0.999, 12)]
    assert plans[0] is not None
    assert plans[5] is None


def test_a_segment_holds_the_frames_of_its_clip_and_little_else(tmp_path):
    """DALI read whole files, of every clip of a batch at once."""
    path = write_video(tmp_path / "a.mkv", 200, options={"g": "25", "bf": "2"}, turn=noise)
    for window in (0.0, 0.3, 0.7, 0.999):
        made = plan(path, window, GPU_FORMATS)
        assert len(made.segment.data) < path.stat().st_size / 3
        with open_video("segment", made.segment.data) as (container, stream):
            pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        with open_video(str(path)) as (container, stream):
            whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        for ours, theirs in zip(made.segment.frames, made.frames, strict=True):
            assert np.array_equal(pictures[ours], whole[theirs])


def test_an_open_group_of_pictures(tmp_path):
    """What is shown before the keyframe but follows it in the file is not in the segment."""
    params = {"x264-params": "keyint=10:open-gop=1:bframes=3:b-adapt=0:scenecut=0"}
    path = write_video(tmp_path / "a.mkv", 60, options=params)
    for window in np.linspace(0, 0.999, 20):
        made = plan(path, window, GPU_FORMATS)
        with open_video("segment", made.segment.data) as (container, stream):
            clip = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert numbers(np.stack([clip[n] for n in made.segment.frames])) == made.frames


@pytest.mark.parametrize("late", ["tats_fast.data.plan", "tats_fast.data.segment"])
def test_planning_has_the_time_of_a_clip(tmp_path, monkeypatch, late):
    path = write_video(tmp_path / "a.webm", 40, "libvpx-vp9", options=VP9)
    choose = partial(choose_frames, num_frames=FRAMES, stride=2, window=0.5)
    assert plan_clip(str(path), choose, CPU_FORMATS, timeout=60) is not None

    def slow(*arguments):
        for packet in packets_of(*arguments):
            time.sleep(0.1)
            yield packet

    monkeypatch.setattr(f"{late}.packets_of", slow)
    with pytest.raises(DecodeError, match=r"took longer than 0\.5 s"):
        plan_clip(str(path), choose, CPU_FORMATS, timeout=0.5)


def test_a_segment_too_large_for_memory_is_no_plan(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.webm", 40, "libvpx-vp9", options=VP9, turn=noise)
    assert plan(path) is not None
    monkeypatch.setattr("tats_fast.data.segment._MOST_BYTES", 5000)
    assert plan(path) is None


def test_an_avi_whose_times_are_not_those_of_its_pictures_has_no_plan(tmp_path):
    """AVI says when packets are decoded; the plan was one or two frames off PyAV's."""
    options = {"g": "10", "bf": "2"}
    path = write_video(tmp_path / "a.avi", 40, "mpeg4", options=options, pix_fmt="yuv420p")
    assert plan(path, formats=GPU_FORMATS) is None
    ordered = write_video(tmp_path / "b.avi", 40, "mjpeg", pix_fmt="yuvj420p")
    assert plan(ordered, formats=GPU_FORMATS) is not None
