"""``tats-fast verify``: each file's verdict, lists that can be used again, runs that continue."""

from __future__ import annotations

import os

import av
import numpy as np
import pytest
from data_files import write_audio, write_video
from records import read_record

from tats_fast.cli import main
from tats_fast.data.bad_files import drop_quarantined
from tats_fast.data.lists import read_videos
from tats_fast.data.video import DecodeError, decode_window
from tats_fast.prepare.examine import Claims, examine
from tats_fast.prepare.findings import Findings

FASTSTART = {"options": {"g": "10", "bf": "0"}, "container_options": {"movflags": "+faststart"}}
NOT_UTF8 = os.fsdecode(b"caf\xe9 \xff.mp4")


def noise():
    """Pictures that do not compress, so that every part of the file holds frames."""
    generator = np.random.default_rng(0)
    return lambda image: generator.integers(0, 255, image.shape, np.uint8)


def plain(path):
    write_video(path, 12)


def cut(path, share, count=60, **kwargs):
    write_video(path, count, **({"turn": noise()} | kwargs))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])


def vary(path):
    gaps = [10 if number % 3 else 90 for number in range(20)]
    write_video(path, 20, pts=np.cumsum(gaps).tolist())


def resize(path):
    options = {"bf": "0", "qscale": "2"}
    small = write_video(path.with_suffix(".s.ts"), 8, "mpeg2video", options=options)
    large = write_video(path.with_suffix(".l.ts"), 8, "mpeg2video", width=96, options=options)
    path.write_bytes(small.read_bytes() + large.read_bytes())


def damage(path):
    """A frame in the middle whose decoder says so."""
    write_video(path, 30, "ffv1", pix_fmt="bgr0", options={"slicecrc": "1"})
    raw = bytearray(path.read_bytes())
    at = raw.index(b"movi")
    for _ in range(16):
        at = raw.index(b"00dc", at + 1)
    raw[at + 8 : at + 40] = b"\xff" * 32
    path.write_bytes(raw)


def patch_up(path):
    """Frames in the middle whose damage the decoder hides."""
    write_video(path, 60, turn=noise(), **FASTSTART)
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 400] = b"\xff" * 400
    path.write_bytes(raw)


def turned(path):
    write_video(path, 12, height=48, prepare=lambda stream: stream.set_display_rotation(90))


def backwards(path):
    write_video(path, 20, options={"g": "10", "bf": "2"})


def shrink(path):
    """Its later pictures decode behind the earlier ones only: a decoder that begins at one takes it
    for half of an interlaced one."""
    parts = []
    for side in (64, 40):
        part, shape = path.with_suffix(f".{side}.avi"), {"width": side, "height": side}
        parts.append(write_video(part, 10, "mjpeg", pix_fmt="yuvj420p", **shape))
    with av.open(str(path), "w") as out:
        stream = None
        for number, part in enumerate(parts):
            with av.open(str(part)) as source:
                stream = stream or out.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.pts = packet.dts = packet.dts + 10 * number
                        packet.stream = stream
                        out.mux(packet)


def miscount(path):
    """Claims 4000 frames and holds 40, which is all that there ever were."""
    write_video(path, 40, "mjpeg", pix_fmt="yuvj420p")
    raw = bytearray(path.read_bytes())
    for place in (raw.index(b"avih") + 8 + 16, raw.index(b"strh") + 8 + 32):
        raw[place : place + 4] = (4000).to_bytes(4, "little")
    path.write_bytes(raw)


def ffv1(**kwargs):
    return lambda path: write_video(path, 12, "ffv1", **({"pix_fmt": "bgr0"} | kwargs))


WEBM = {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}

# name: (how to make it, warnings that must be there in full mode)
GOOD = {
    "plain.mp4": (plain, []),
    "one frame.mp4": (lambda path: write_video(path, 1), ["shorter than the training window"]),
    "short.mp4": (lambda path: write_video(path, 9), ["shorter than the training window"]),
    "turned.mp4": (turned, ["rotated"]),
    "variable.mkv": (vary, ["no frame count in the header", "variable frame rate"]),
    "uncounted.webm": (
        lambda path: write_video(path, 12, **WEBM),
        ["no frame count in the header"],
    ),
    "backwards.avi": (backwards, ["timestamps going backwards"]),
    "resized.ts": (resize, ["picture size changes"]),
    "odd size.avi": (ffv1(width=65, height=49), []),
    "shrinks.avi": (shrink, ["picture size changes"]),
    "tiny.avi": (ffv1(width=1, height=1), []),
    "10 bits.avi": (ffv1(pix_fmt="yuv420p10le"), ["more than 8 bits"]),
    "grey.avi": (ffv1(pix_fmt="gray"), []),
    "cut a little.mp4": (
        lambda path: cut(path, 0.7, **FASTSTART),
        ["header frame count wrong", "ends early"],
    ),
    "#hash.mp4": (plain, []),
    "two words (1), a::b !+ünï→cødé.mp4": (plain, []),
    NOT_UTF8: (plain, []),
}
# name: (how to make it, reason, whether quick mode finds it)
BAD = {
    "empty.mp4": (lambda path: path.touch(), "empty file", True),
    "text.mp4": (lambda path: path.write_text("no video\n" * 99), "not a video container", True),
    "sound.mp4": (write_audio, "no video stream", True),
    "folder.mp4": (lambda path: path.mkdir(), "not a regular file", True),
    "pipe.mp4": (os.mkfifo, "not a regular file", True),
    "loop.mp4": (lambda path: path.symlink_to(path), "missing", True),
    "gone, 2.mp4": (lambda path: None, "missing", True),
    "cut.mp4": (lambda path: cut(path, 0.3, **FASTSTART), "truncated: 17 of 60 frames", True),
    "cut header.mp4": (lambda path: cut(path, 0.7), "not a video container", True),
    "damaged.avi": (damage, "decoding error: ", False),
    "patched.mp4": (patch_up, "damaged pictures: ", False),
    "miscounted.avi": (miscount, "truncated: 40 of 4000 frames", True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All of ``GOOD`` and ``BAD`` in one folder, with a labelled list in the order given here."""
    folder = tmp_path_factory.mktemp("videos")
    for name, (make, *_) in {**GOOD, **BAD}.items():
        make(folder / name)
    lines = [f"{name}\t{number}\n" for number, name in enumerate([*BAD, *GOOD])]
    (folder / "list.txt").write_text("".join(lines), "utf-8", "surrogateescape")
    return folder


def read_bad(path):
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return dict(line.rstrip("\n").split("\t") for line in file)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("mode", ["quick", "full"])
def test_every_verdict(folder, tmp_path, capsys, mode):
    arguments = ["verify", f"--list={folder}/list.txt", f"--out={tmp_path}/out", "--workers=2"]
    assert main([*arguments, f"--mode={mode}", "--frames=10"]) == 1
    bad = read_bad(tmp_path / "out" / "bad.txt")
    expected = {name: why for name, (_, why, quick) in BAD.items() if quick or mode == "full"}
    assert {os.path.basename(path) for path in bad} == set(expected)
    for path, reason in bad.items():
        assert reason.startswith(expected[os.path.basename(path)]), path
        assert len(reason) < 90
    # Exactly one list has each file; labels and order are those of the list.
    listed = read_videos(folder / "list.txt")
    good = read_videos(tmp_path / "out" / "good.txt")
    assert good == [video for video in listed if video.path not in bad]
    assert drop_quarantined(listed, tmp_path / "out" / "bad.txt") == good

    record = read_record(tmp_path / "out" / "verify.jsonl")
    for name, (_, warnings) in GOOD.items():
        facts = record[str(folder / name)]
        if mode == "full":
            assert set(warnings) <= set(facts["warnings"]), name
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == f"{len(bad)} of {len(listed)} files are bad: see {tmp_path}/out/bad.txt"
    table = "\n".join(out)
    assert f"{len(good):>8}  good" in table
    assert "       2  bad      truncated" in table
    assert "warning  rotated" in table


def test_the_record_says_what_was_found(folder, tmp_path):
    full = examine(str(folder / "plain.mp4"), "full", 0.5, 10)
    assert full == {
        "codec": "h264",
        "pix_fmt": "yuv420p",
        "bits": 8,
        "width": 64,
        "height": 64,
        "rotation": 0,
        "fps": 25.0,
        "duration": 0.48,
        "frames_claimed": 12,
        "frames": 12,
        "warnings": [],
    }
    assert examine(str(folder / "plain.mp4"), "quick", 0.5, 10) == full | {"frames": None}
    assert examine(str(folder / "turned.mp4"), "full", 0.5, 10)["rotation"] == 90
    broken = examine(str(folder / "damaged.avi"), "full", 0.5, 10)
    assert broken["frames"] == 15
    assert broken["error"].endswith("after 15 frames")


def test_good_files_train_and_bad_ones_do_not(folder):
    for name in GOOD:
        for window in (0, 0.3, 0.5, 0.8, 0.999):
            assert decode_window(str(folder / name), 4, 2, 16, window).shape == (4, 16, 16, 3)
    for name in ("empty.mp4", "text.mp4", "sound.mp4", "folder.mp4", "pipe.mp4", "loop.mp4"):
        with pytest.raises(DecodeError):
            decode_window(str(folder / name), 4, 2, 16)


CUTS = {
    "a.mp4": FASTSTART,
    "a.avi": {"codec": "mpeg4", "options": {"g": "15", "bf": "2", "qscale": "4"}},
    "x264.avi": {"options": {"g": "10", "bf": "0"}},
    "a.mkv": {"options": {"g": "10", "bf": "0"}},
    "a.flv": {"codec": "flv"},
}


@pytest.mark.parametrize("name", CUTS)
def test_both_modes_agree_on_what_is_cut_off(tmp_path, name):
    for share, expected in ((0.8, "ends early"), (0.97, None), (0.25, "truncated")):
        cut(tmp_path / name, share, **CUTS[name])
        for mode in ("quick", "full"):
            facts = examine(str(tmp_path / name), mode, 0.5, 1)
            if expected == "truncated":
                assert facts["error"].startswith("truncated: ")
                assert "error" not in examine(str(tmp_path / name), mode, 0.05, 1)
            else:
                assert "error" not in facts
                assert ("ends early" in facts["warnings"]) == (expected is not None)


def test_sound_that_goes_on_does_not_make_a_video_truncated(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        video, sound = out.add_stream("mpeg4", rate=25), out.add_stream("aac", rate=16000)
        video.width = video.height = 32
        for _ in range(25):
            image = np.zeros((32, 32, 3), np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for _ in range(16 * 5):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate = 16000
            out.mux(sound.encode(frame))
        out.mux(video.encode())
        out.mux(sound.encode())
    for mode in ("quick", "full"):
        facts = examine(str(path), mode, 0.5, 1)
        assert facts["duration"] > 5
        assert facts["warnings"] == ["no frame count in the header"]


def test_a_fragmented_file_that_begins_late_is_whole(tmp_path):
    """FFmpeg counts its duration from zero: 2.4 s from the tenth on were "2.4 of 12.4 s"."""
    path = write_video(
        tmp_path / "a.mp4",
        60,
        pts=[10_000 + 40 * number for number in range(60)],
        options={"g": "10", "bf": "0"},
        container_options={"movflags": "frag_keyframe+delay_moov+frag_discont+dash"},
    )
    for mode in ("quick", "full"):
        facts = examine(str(path), mode, 0.5, 1)
        assert facts["warnings"] == ["no frame count in the header"]
        assert facts["duration"] == pytest.approx(2.4)


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.webm", "libvpx-vp9")])
def test_a_matroska_file_that_begins_late_is_whole(tmp_path, name, codec):
    """FFmpeg counts its duration from zero too: 2.4 s from the tenth on were 2.4 of 12.4 s."""
    late = [10_000 + 40 * number for number in range(60)]
    path = write_video(tmp_path / name, 60, codec, pts=late)
    for mode in ("quick", "full"):
        facts = examine(str(path), mode, 0.5, 1)
        assert "error" not in facts and "ends early" not in facts["warnings"]


def test_the_more_generous_claim_decides():
    # A trimmed MP4 keeps all its frames and shows a part: 300 of 1000 frames, 10 of 10 s.
    claims = Claims("h264", 30.0, frames=1000, duration=10.0, origin=1.0, of_stream=True)
    assert claims.share(Findings(None, False, counted=300, end=11.0)) == 1.0
    assert claims.share(Findings(None, False, counted=300)) == 0.3
    assert claims.share(Findings(None, False)) == 1.0


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_no_permission(tmp_path):
    plain(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").chmod(0)
    assert "Permission denied" in examine(str(tmp_path / "a.mp4"), "quick", 0.5, 1)["error"]


def test_a_folder_without_labels_gives_a_plain_list(tmp_path, monkeypatch, capsys):
    (tmp_path / "videos" / "sub").mkdir(parents=True)
    for name in ("b.mp4", "sub/a.mp4"):
        plain(tmp_path / "videos" / name)
    monkeypatch.chdir(tmp_path)
    assert main(["verify", "--root=videos", "--out=out"]) == 0
    names = [f"{tmp_path}/videos/{name}" for name in ("b.mp4", "sub/a.mp4")]
    assert (tmp_path / "out" / "good.txt").read_text().splitlines() == names
    assert (tmp_path / "out" / "bad.txt").read_text() == ""
    assert capsys.readouterr().out.splitlines()[-1] == "all 2 files are good: see out/good.txt"
    plain(tmp_path / "videos" / "line\nbreak.mp4")
    assert main(["verify", "--root=videos", "--out=out"]) == 1
    bad = read_bad(tmp_path / "out" / "bad.txt")
    assert bad == {f"{tmp_path}/videos/line break.mp4": "a name with a line break cannot be listed"}


def test_repeated_files_keep_their_rows(tmp_path):
    plain(tmp_path / "a.mp4")
    (tmp_path / "list.txt").write_text("a.mp4 1\nno.mp4 2\na.mp4 3\nno.mp4 4\n")
    assert main(["verify", f"--list={tmp_path}/list.txt", f"--out={tmp_path}/out"]) == 1
    assert [video.label for video in read_videos(tmp_path / "out" / "good.txt")] == [1, 3]
    assert read_bad(tmp_path / "out" / "bad.txt") == {f"{tmp_path}/no.mp4": "missing"}


@pytest.mark.parametrize(
    "options, words",
    [
        ([], ["--list=FILE or --root=FOLDER"]),
        (["--list=no.txt"], ["--list=no.txt", "no such file"]),
        (["--root=no"], ["--root=no", "no such"]),
        (["--list=list.txt", "--root=no"], ["--root=no", "no such folder"]),
        (["--list=gone.txt"], ["--list=gone.txt", "none of 1 listed paths exists", "set --root"]),
        (["--list=list.txt", "--workers=0"], ["--workers=0: must be at least 1"]),
        (["--list=list.txt", "--timeout=0"], ["--timeout=0.0: must be above 0"]),
        (["--list=list.txt", "--frames=0"], ["--frames=0: must be at least 1"]),
        (
            ["--list=list.txt", "--min-share=nan"],
            ["--min-share=nan: must be at least 0 and at most 1"],
        ),
        (["--list=list.txt", "--out=a.mp4"], ["a.mp4", "cannot be written"]),
        (["--list=good.txt", "--out=."], ["--out=.", "would overwrite --list"]),
    ],
)
def test_wrong_use_is_one_sentence(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    plain(tmp_path / "a.mp4")
    for name in ("list.txt", "good.txt"):
        (tmp_path / name).write_text("a.mp4 1\n")
    (tmp_path / "gone.txt").write_text("nowhere.mp4 1\n")
    assert main(["verify", "--out=out", *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines[0]
    assert (tmp_path / "good.txt").read_text() == "a.mp4 1\n"
