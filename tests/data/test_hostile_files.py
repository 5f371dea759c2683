"""Files that want more than a clip: other files, the network, all the memory there is."""

from __future__ import annotations

import os
import resource
import struct

import av
import pytest
from data_files import numbers, write_video

from tats_fast.data.limits import DEMUXERS
from tats_fast.data.video import DecodeError, count_frames, load_clip
from tats_fast.prepare.examine import examine
from tats_fast.prepare.manifest import describe


def reason(path) -> str:
    """The one that all who open the file give."""
    with pytest.raises(DecodeError) as caught:
        load_clip(str(path), 4, 1, 16)
    for look in (count_frames, describe):
        with pytest.raises(DecodeError):
            look(str(path))
    assert examine(str(path), "full", 0.5, 1)["error"] == caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile neighbour.mkv\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nneighbour.mkv\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
    ],
)
def test_a_file_reads_no_other(tmp_path, text):
    write_video(tmp_path / "neighbour.mkv", 30)
    (tmp_path / "x.mp4").write_text(text)
    assert reason(tmp_path / "x.mp4") == "not a video container"


@pytest.mark.parametrize("codec, name", [("png", "a.png"), ("mjpeg", "a.jpg"), ("bmp", "a.bmp")])
def test_a_still_image_is_no_video(tmp_path, codec, name):
    pixels = {"png": "rgb24", "mjpeg": "yuvj420p", "bmp": "bgr24"}[codec]
    write_video(tmp_path / name, 1, codec, pix_fmt=pixels)
    os.rename(tmp_path / name, tmp_path / "a.mp4")
    assert reason(tmp_path / "a.mp4") == "not a video container"


@pytest.mark.parametrize(
    "name, codec, pix_fmt",
    [
        *(("a.avi", "mpeg4", "yuv420p"), ("a.mp4", "mpeg4", "yuv420p")),
        *(("a.mov", "mpeg4", "yuv420p"), ("a.m4v", "mpeg4", "yuv420p")),
        *(("a.webm", "libvpx", "yuv420p"), ("a.mkv", "mpeg4", "yuv420p")),
        *(("a.mpg", "mpeg2video", "yuv420p"), ("a.ts", "mpeg2video", "yuv420p")),
        *(("a.flv", "flv", "yuv420p"), ("a.wmv", "wmv2", "yuv420p")),
        *(("a.ogv", "libvpx", "yuv420p"), ("a.gif", "gif", "rgb8"), ("a.3gp", "mpeg4", "yuv420p")),
    ],
)
def test_every_ending_of_a_video_has_its_demuxer(tmp_path, name, codec, pix_fmt):
    path = write_video(tmp_path / name, 6, codec, width=320, height=240, pix_fmt=pix_fmt)
    assert len(set(numbers(load_clip(str(path), 4, 1, 64)))) == 4
    with av.open(str(path)) as container:
        assert container.format.name in DEMUXERS


def gif(path, width, height, frames=4):
    """A GIF whose screen is declared as large as that."""
    write_video(path, frames, "gif", width=16, height=16, pix_fmt="rgb8")
    raw = bytearray(path.read_bytes())
    raw[6:10] = struct.pack("<HH", width, height)
    path.write_bytes(raw)
    return path


def peak_kilobytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("name", ["a.gif", "a.avi"])
def test_a_picture_that_declares_too_much_is_refused_before_it_is_decoded(tmp_path, name):
    """A GIF of 2 KB reached 9 GB in one window."""
    path = gif(tmp_path / "a.gif", 16000, 16000)
    if name == "a.avi":
        path = write_video(tmp_path / name, 4, "ffv1", pix_fmt="bgr0")
        raw = path.read_bytes()
        at = raw.index(b"strf") + 12
        assert raw[at : at + 8] == struct.pack("<ii", 64, 64)
        path.write_bytes(raw[:at] + struct.pack("<ii", 16000, 16000) + raw[at + 8 :])
    before = peak_kilobytes()
    with pytest.raises(DecodeError, match="decoding error: "):
        load_clip(str(path), 4, 1, 16)
    assert examine(str(path), "full", 0.5, 1)["error"].startswith("decoding error: ")
    assert peak_kilobytes() - before < 100_000


def test_pictures_up_to_8k_are_read(tmp_path):
    path = write_video(tmp_path / "a.avi", 1, "ffv1", width=8192, height=4320, pix_fmt="gray")
    assert load_clip(str(path), 1, 1, 16).shape == (1, 16, 16, 3)
