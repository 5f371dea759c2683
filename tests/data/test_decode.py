"""Which frames a window holds, for the containers and damages that occur in real data sets."""

import gc
import os
import socket
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from data_files import CAN_TURN, numbered_frame, numbers, write_audio, write_video

from tats_fast.data.clip import ClipDraw, multi_scale_crop, window_start
from tats_fast.data.pixels import FrameScaler
from tats_fast.data.video import DecodeError, count_frames, decode_window, load_clip, open_video
from tats_fast.prepare.examine import examine

WINDOWS = (0.0, 0.21, 0.5, 0.83, 0.9999)

FORMATS = {
    "h264-long-gop": ("a.mp4", "libx264", {"g": "250", "bf": "0"}),
    "h264-b-frames": ("a.mp4", "libx264", {"g": "12", "bf": "3"}),
    "h264-open-gop": ("a.mp4", "libx264", {"x264-params": "keyint=10:open-gop=1:bframes=3"}),
    "h264-mkv": ("a.mkv", "libx264", {"g": "12", "bf": "2"}),
    "h264-ts": ("a.ts", "libx264", {"x264-params": "keyint=10:open-gop=1:bframes=3"}),
    "h264-ts-long-gop": ("a.ts", "libx264", {"g": "250", "bf": "2"}),
    "h264-intra": ("a.mp4", "libx264", {"g": "1"}),
    "vp9-webm": ("a.webm", "libvpx-vp9", {"g": "20", "cpu-used": "8", "deadline": "realtime"}),
    "mjpeg-avi": ("a.avi", "mjpeg", {}),
}


def write(tmp_path, key, count=60, **kwargs):
    name, codec, options = FORMATS[key]
    if codec == "mjpeg":
        kwargs["pix_fmt"] = "yuvj420p"
    return str(write_video(tmp_path / name, count, codec, options=options, **kwargs))


@pytest.mark.parametrize("key", FORMATS)
def test_window_holds_exactly_the_frames_asked_for(tmp_path, key):
    path = write(tmp_path, key)
    for window in WINDOWS:
        start = window_start(60, 13, window)
        clip = decode_window(path, 5, 3, 64, window)
        assert clip.shape == (5, 64, 64, 3)
        assert clip.dtype == np.uint8
        assert numbers(clip) == [start + 3 * i for i in range(5)]


def test_load_clip_takes_the_centre(tmp_path):
    path = write(tmp_path, "h264-b-frames", count=41)
    assert numbers(load_clip(path, 11, 1, 32)) == list(range(15, 26))


def test_pixels_survive_scaling_and_colour(tmp_path):
    path = write(tmp_path, "h264-intra", count=256, width=48, height=48)
    clip = decode_window(path, 256, 1, 24, 0.0)
    assert numbers(clip) == list(range(256))
    flat = clip[255].astype(int)  # all bits set: a plain image of value 235
    assert abs(flat - 235).max() <= 3


@pytest.mark.parametrize("count, expected", [(1, [0] * 6), (8, [0, 3, 6, 7, 7, 7])])
def test_short_video_repeats_its_last_frame(tmp_path, count, expected):
    path = write(tmp_path, "h264-b-frames", count=count)
    for window in (0.0, 0.9):
        assert numbers(decode_window(path, 6, 3, 64, window)) == expected


@pytest.mark.parametrize("size", [(65, 49), (49, 65), (1, 1), (2, 50)])
def test_odd_sizes(tmp_path, size):
    width, height = size
    path = write_video(tmp_path / "a.avi", 9, "ffv1", width=width, height=height, pix_fmt="bgr0")
    clip = decode_window(str(path), 3, 2, 40, 0.99)
    assert clip.shape == (3, 40, 40, 3)
    if min(size) > 8:
        assert numbers(clip) == [4, 6, 8]


def test_extreme_aspect_does_not_scale_the_whole_frame(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.avi", 2, "ffv1", width=4000, height=8, pix_fmt="bgr0")
    widths = []
    original = FrameScaler._rgb

    def spy(self, frame, width, height):
        widths.append(width)
        return original(self, frame, width, height)

    monkeypatch.setattr(FrameScaler, "_rgb", spy)
    assert numbers(decode_window(str(path), 2, 1, 64)) == [0, 1]
    assert max(widths) == 4000  # not 4000 * 64 / 8


@pytest.mark.parametrize(
    "codec, pix_fmt",
    [("ffv1", "gray"), ("ffv1", "yuv420p10le"), ("ffv1", "yuva420p"), ("png", "rgba")],
)
def test_pixel_formats(tmp_path, codec, pix_fmt):
    path = write_video(tmp_path / "a.avi", 5, codec, pix_fmt=pix_fmt)
    clip = decode_window(str(path), 5, 1, 64)
    assert numbers(clip) == [0, 1, 2, 3, 4]
    assert clip[0, 2, 2, 0] < 40


# Turns the upright image into the stored one; the display matrix must undo it.
ROTATIONS = {90: 3, 180: 2, 270: 1}


turns_files = pytest.mark.skipif(not CAN_TURN, reason="PyAV writes rotations from release 17 on")


@turns_files
@pytest.mark.parametrize("angle", ROTATIONS)
def test_rotation_metadata(tmp_path, angle):
    turns = ROTATIONS[angle]
    path = write_video(
        tmp_path / "a.mp4",
        20,
        width=64,
        height=48,
        turn=lambda image: np.rot90(image, turns),
        prepare=lambda stream: stream.set_display_rotation(angle),
    )
    assert numbers(decode_window(str(path), 4, 3, 48, 0.999)) == [10, 13, 16, 19]


@turns_files
def test_mirror_metadata(tmp_path):
    path = write_video(
        tmp_path / "a.mp4",
        6,
        turn=lambda image: image[:, ::-1],
        prepare=lambda stream: stream.set_display_rotation(0, hflip=True),
    )
    assert numbers(decode_window(str(path), 6, 1, 64)) == [0, 1, 2, 3, 4, 5]


def test_variable_frame_rate_gives_neighbouring_frames(tmp_path):
    gaps = [10 if number % 3 else 90 for number in range(60)]
    path = write_video(tmp_path / "a.mkv", 60, options={"g": "10"}, pts=np.cumsum(gaps).tolist())
    for window in WINDOWS:
        got = numbers(decode_window(str(path), 6, 2, 64, window))
        assert np.diff(got).tolist() == [2] * 5
        assert abs(got[0] - window_start(60, 11, window)) <= 4


def test_start_time_is_not_zero(tmp_path):
    pts = [10_000 + 40 * number for number in range(50)]
    path = write_video(tmp_path / "a.mkv", 50, options={"g": "10"}, pts=pts)
    assert numbers(decode_window(str(path), 4, 1, 64, 0.5)) == [23, 24, 25, 26]


def test_backward_timestamps(tmp_path):
    # AVI stores no presentation times: those of B-frames come out of order.
    path = write_video(
        tmp_path / "a.avi", 60, "mpeg4", options={"g": "15", "bf": "2", "qscale": "2"}
    )
    for window in WINDOWS:
        got = numbers(decode_window(str(path), 6, 2, 64, window))
        assert np.diff(got).tolist() == [2] * 5
        assert abs(got[0] - window_start(60, 11, window)) <= 3


def test_header_claims_more_frames_than_there_are(tmp_path):
    path = write_video(tmp_path / "a.avi", 40, "mjpeg", pix_fmt="yuvj420p")
    raw = bytearray(path.read_bytes())
    for place in (raw.index(b"avih") + 8 + 16, raw.index(b"strh") + 8 + 32):
        assert int.from_bytes(raw[place : place + 4], "little") == 40
        raw[place : place + 4] = (4000).to_bytes(4, "little")
    path.write_bytes(raw)
    for window in WINDOWS:
        got = numbers(decode_window(str(path), 6, 2, 64, window))
        assert np.diff(got).tolist() == [2] * 5
    assert got[-1] >= 37  # the last window reaches the real end


def test_truncated_file(tmp_path):
    path = write_video(
        tmp_path / "a.mp4",
        120,
        options={"g": "10", "bf": "0", "crf": "10"},
        container_options={"movflags": "+faststart"},
    )
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    last = 0
    for window in WINDOWS:  # each is drawn over the frames that are left
        got = numbers(decode_window(str(path), 6, 2, 64, window))
        assert np.diff(got).tolist() == [2] * 5
        assert last <= got[0]
        last = got[0]
    assert 10 <= last < 100


def test_damage_inside_the_window_is_an_error(tmp_path):
    path = write_video(tmp_path / "a.avi", 30, "ffv1", pix_fmt="bgr0", options={"slicecrc": "1"})
    raw = bytearray(path.read_bytes())
    at = raw.index(b"movi")
    for _ in range(16):  # the data of frame 15
        at = raw.index(b"00dc", at + 1)
    raw[at + 8 : at + 40] = b"\xff" * 32
    path.write_bytes(raw)
    assert numbers(decode_window(str(path), 5, 1, 64, 0.0)) == [0, 1, 2, 3, 4]
    with pytest.raises(DecodeError, match="decoding error"):
        decode_window(str(path), 16, 1, 64, 0.5)


def test_size_changes_midway(tmp_path):
    small = write_video(tmp_path / "s.ts", 10, "mpeg2video", options={"bf": "0", "qscale": "2"})
    large = write_video(
        tmp_path / "l.ts", 10, "mpeg2video", width=96, height=80, options={"bf": "0", "qscale": "2"}
    )
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    got = numbers(decode_window(str(both), 20, 1, 32, 0.0))
    assert got[:9] == list(range(9))
    assert got.count(9) >= 2  # both parts were read to their end


@pytest.mark.parametrize(
    "name", ["two words (1)!.mp4", "ünï→cødé.mp4", "-dash.mp4", "a:b.mp4", "50%d.mp4"]
)
def test_names(tmp_path, name, monkeypatch):
    write_video(tmp_path / name, 5)
    assert numbers(load_clip(str(tmp_path / name), 5, 1, 64)) == [0, 1, 2, 3, 4]
    monkeypatch.chdir(tmp_path)
    assert numbers(load_clip(name, 5, 1, 64)) == [0, 1, 2, 3, 4]


def test_metadata_that_is_not_utf8(tmp_path):
    path = write_video(tmp_path / "a.avi", 5, "mjpeg", pix_fmt="yuvj420p", title="zzzz")
    raw = path.read_bytes()
    assert raw.count(b"zzzz") == 1
    path.write_bytes(raw.replace(b"zzzz", b"\xe9\xff\xfe\xe9"))
    assert numbers(load_clip(str(path), 5, 1, 64)) == [0, 1, 2, 3, 4]


def test_playlist_does_not_reach_for_the_network(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        path = tmp_path / "clip.mp4"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n")
        with pytest.raises(DecodeError):
            load_clip(str(path), 4, 1, 32)
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


def bad_missing(path):
    pass


def bad_empty(path):
    path.write_bytes(b"")


def bad_text(path):
    path.write_text("this is no video\n" * 100)


def bad_audio(path):
    write_audio(path)


def bad_folder(path):
    path.mkdir()


def bad_pipe(path):
    os.mkfifo(path)


def bad_codec(path):
    write_video(path.with_suffix(".avi"), 5, "mjpeg", pix_fmt="yuvj420p")
    path.write_bytes(path.with_suffix(".avi").read_bytes().replace(b"MJPG", b"zz0z"))


def bad_no_frames(path):
    write_video(path.with_suffix(".avi"), 5, "mjpeg", pix_fmt="yuvj420p")
    raw = path.with_suffix(".avi").read_bytes()
    path.write_bytes(raw[: raw.index(b"movi") + 4])


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "make, reason",
    [
        (bad_missing, "missing"),
        (bad_empty, "empty file"),
        (bad_text, "not a video container"),
        (bad_audio, "no video stream"),
        (bad_folder, "not a regular file"),
        (bad_pipe, "not a regular file"),
        (bad_codec, "unsupported codec"),
        (bad_no_frames, "no frame could be decoded"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_files_say_why(tmp_path, make, reason):
    path = tmp_path / "clip.mp4"
    make(path)
    for window in (0.0, 0.9):
        with pytest.raises(DecodeError) as error:
            decode_window(str(path), 4, 2, 32, window)
        assert error.value.path == str(path)
        assert reason in error.value.reason
        assert 0 < len(error.value.reason) < 80
        assert "\n" not in error.value.reason


def test_crop_is_what_the_box_says(tmp_path):
    path = write_video(tmp_path / "a.avi", 1, "ffv1", width=80, height=64, pix_fmt="bgr0")
    clip = decode_window(str(path), 1, 1, 32, crop=lambda width, height: (4, 8, 32, 32))
    assert (clip[0] == numbered_frame(0, 80, 64)[8:40, 4:36]).all()
    # A quarter of the width onto the whole square: not keeping the aspect.
    clip = decode_window(str(path), 1, 1, 32, crop=lambda width, height: (0, 0, 16, 64))
    assert (clip[0][:, :14] == 128).all()
    assert (clip[0][:, 18:] == 16).all()


def test_multi_scale_crop_stays_inside_and_uses_every_choice():
    scales = (1.0, 0.875, 0.75, 0.66)
    boxes = [multi_scale_crop(100, 64, scales, ClipDraw.of(1, 0, i)) for i in range(2000)]
    sides = [64, 56, 48, 42]
    pairs = set()
    for x, y, w, h in boxes:
        assert 0 <= x <= 100 - w
        assert 0 <= y <= 64 - h
        pairs.add((sides.index(w), sides.index(h)))
    assert pairs == {(i, j) for i in range(4) for j in range(4) if abs(i - j) <= 1}
    places = {(x, y) for x, y, w, h in boxes if (w, h) == (56, 56)}
    assert len(places) == 13
    assert {(0, 0), (44, 8), (22, 4), (11, 2)} <= places


def test_import_needs_no_pyav():
    code = "import sys; sys.modules['av'] = None; import tats_fast.data"
    subprocess.run([sys.executable, "-c", code], check=True)


def late_sound(path: Path) -> None:
    """350 frames; nothing in the header or the first seconds tells of the sound at the end."""
    write_video(path, 25 * 14, "flv", height=48)
    sound = bytes([0x3E]) + bytes(2048)
    time = (14_000).to_bytes(4, "big")  # ms; an FLV tag has its highest byte last
    tag = b"\x08" + len(sound).to_bytes(3, "big") + time[1:] + time[:1] + bytes(3) + sound
    path.write_bytes(path.read_bytes() + tag + len(tag).to_bytes(4, "big"))


def test_a_stream_that_begins_late_ends_no_reading(tmp_path):
    path = tmp_path / "late.flv"
    late_sound(path)
    with open_video(str(path)) as (container, _):
        assert len(container.streams) == 1
    assert count_frames(str(path)) == 350
    for window in (0.0, 0.999):
        assert decode_window(str(path), 400, 1, 32, window).shape[0] == 400  # past the end
    found = examine(str(path), "full", 0.5, 16)
    assert found["frames"] == 350 and not found.get("error"), found


def test_frames_do_not_wait_for_the_cycle_collector(tmp_path):
    """A decoded frame at 1080p has 3 MB, and a worker decodes hundreds between two collections."""
    path = tmp_path / "clip.mp4"
    write_video(path, 60)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        decode_window(str(path), 16, 2, 32)
        gc.collect()
        waited = [item for item in gc.garbage if isinstance(item, av.VideoFrame)]
        assert len(waited) < 4  # of 31; what describes their formats may wait
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), OverflowError("x"), MemoryError()])
def test_whatever_a_file_makes_a_library_raise_is_the_files(tmp_path, monkeypatch, error):
    def write(*_):
        raise error

    monkeypatch.setattr(FrameScaler, "write", write)
    path = write_video(tmp_path / "a.mp4", 12)
    with pytest.raises(DecodeError, match=f"decoding error: {type(error).__name__}"):
        load_clip(str(path), 4, 1, 16)
