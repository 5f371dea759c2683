"""tats-fast extract-features: windows, files, resuming, bad videos, and its page of the docs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import write_video
from models_exchanged import randomize
from project import TINY_MODEL
from records import read_lines
from safetensors.numpy import load_file

from tats_fast.config import ConfigError, ModelConfig
from tats_fast.data.clip import centre_crop
from tats_fast.data.lists import Video
from tats_fast.data.pixels import FrameScaler
from tats_fast.data.video import DecodeError, decoded_frames, open_video
from tats_fast.data.views import segment_views
from tats_fast.data.windows import video_windows
from tats_fast.data.workers.pool import stream_parts
from tats_fast.models.encoder import VideoEncoder
from tats_fast.models.patchify import IMAGENET_MEAN, IMAGENET_STD
from tats_fast.recognition import extract as module
from tats_fast.recognition.extract import Extraction, ExtractSettings, extract_features

# T = 8 frames, S = 32: see TINY_MODEL. Windows of 15 frames, one every 16.
SETTINGS = ExtractSettings(stride=2, batch_size=4, workers=2)


@pytest.fixture
def encoder() -> VideoEncoder:
    return randomize(VideoEncoder(ModelConfig(**TINY_MODEL)))


@pytest.fixture
def videos(tmp_path) -> list[Video]:
    """40, 5 and 16 frames: three windows, one of a video that is too short, exactly one."""
    folder = tmp_path / "clips"
    folder.mkdir()
    return [Video(str(write_video(folder / f"{n}.mp4", n)), n) for n in (40, 5, 16)]


def all_frames(path: str) -> np.ndarray:
    """(F, 32, 32, 3), each frame alone."""
    pictures = []
    with open_video(path) as (container, stream):
        for frame in decoded_frames(container.demux(stream)):
            pictures.append(np.empty((32, 32, 3), np.uint8))
            FrameScaler(32, centre_crop).write(frame, pictures[-1])
    return np.stack(pictures)


def by_hand(encoder: VideoEncoder, path: str, chosen: list[list[int]]) -> torch.Tensor:
    """(W, N, C), window by window, of the frames with the given numbers."""
    pictures = all_frames(path)
    features = []
    for window in chosen:
        normalised = (pictures[window] / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
        video = torch.tensor(normalised, dtype=torch.float32).permute(3, 0, 1, 2)[None]
        with torch.no_grad():
            features.append(encoder.forward_features(video)[0])
    return torch.stack(features)


def index_of(out: Path) -> list[dict]:
    return read_lines(out / "index.jsonl")


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_features_are_those_of_the_windows(encoder, videos, tmp_path):
    done = extract_features(encoder.train(), videos, SETTINGS, tmp_path / "out")
    assert encoder.training, "the encoder is left as it was"
    assert done == Extraction(videos=3, skipped=0, windows=5, bad=[])
    short = [0, 2, 4, 4, 4, 4, 4, 4]
    chosen = [[list(range(s, s + 15, 2)) for s in (0, 16, 24)], [short], [list(range(0, 15, 2))]]
    for number, line in enumerate(index_of(tmp_path / "out")):
        video, windows = videos[number], chosen[number]
        stat = os.stat(video.path)
        assert line == {
            "number": number,
            "path": video.path,
            "label": video.label,
            "file": f"{number:06d}_{video.label}.npy",
            "windows": len(windows),
            "starts": [window[0] for window in windows],
            "frames": video.label,
            "fps": 25.0,
            "stamp": [stat.st_size, stat.st_mtime_ns],
        }
        features = np.load(tmp_path / "out" / line["file"])
        assert features.dtype == np.float32
        expected = by_hand(encoder, video.path, windows).mean(1)
        torch.testing.assert_close(torch.from_numpy(features), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_tokens_of_overlapping_windows(encoder, videos, tmp_path, kind):
    settings = ExtractSettings(what="tokens", stride=1, hop=5, batch_size=3, format=kind)
    extract_features(encoder, videos, settings, tmp_path / "out")
    line = index_of(tmp_path / "out")[0]
    starts = [0, 5, 10, 15, 20, 25, 30, 32]
    assert line["starts"] == starts and line["file"] == f"000000_40.{kind}"
    file = tmp_path / "out" / line["file"]
    if kind == "npy":
        features = np.load(file, mmap_mode="r")
    else:
        tensors = load_file(file)
        features = tensors["features"]
        assert tensors["starts"].dtype == np.int64 and tensors["starts"].tolist() == starts
    assert features.dtype == np.float16 and features.shape == (8, 64, 32)
    expected = by_hand(encoder, videos[0].path, [list(range(s, s + 8)) for s in starts])
    # Half precision: 11 bits.
    found = torch.from_numpy(np.array(features)).float()
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-3)


def test_means_in_safetensors(encoder, videos, tmp_path):
    extract_features(encoder, videos, SETTINGS, tmp_path / "npy")
    settings = ExtractSettings(stride=2, format="safetensors")
    extract_features(encoder, videos, settings, tmp_path / "safe")
    for one, other in zip(index_of(tmp_path / "npy"), index_of(tmp_path / "safe"), strict=True):
        tensors = load_file(tmp_path / "safe" / other["file"])
        assert tensors["starts"].tolist() == one["starts"]
        # Other batches, so another order of sums.
        np.testing.assert_allclose(
            tensors["features"], np.load(tmp_path / "npy" / one["file"]), rtol=1e-5, atol=1e-6
        )


def test_stride_0_is_one_frame_per_segment(encoder, videos, tmp_path):
    extract_features(encoder, videos, ExtractSettings(stride=0), tmp_path / "out")
    for video, line in zip(videos, index_of(tmp_path / "out"), strict=True):
        chosen = segment_views(video.label, 8, 1)
        assert (line["windows"], line["starts"]) == (1, [chosen[0][0]])
        assert (line["frames"], line["fps"]) == (video.label, 25.0)
        features = torch.from_numpy(np.load(tmp_path / "out" / line["file"]))
        expected = by_hand(encoder, video.path, chosen).mean(1)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_resumes_after_an_interruption(encoder, videos, tmp_path, monkeypatch):
    settings = ExtractSettings(stride=2, batch_size=1, workers=1)
    listed = [*videos, *videos]
    extract_features(encoder, listed, settings, tmp_path / "whole")
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 7:  # 5 windows of three videos, then in the middle of the fourth
            raise KeyboardInterrupt
        return encode(*args)

    out, encode = tmp_path / "out", module.encode
    with monkeypatch.context() as patch:
        patch.setattr(module, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract_features(encoder, listed, settings, out)
    assert len(index_of(out)) == 3 and len(list(out.glob("*.npy"))) == 3
    assert not list(out.glob(".*.tmp"))
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.npy")}
    # What a kill can leave behind: half a line, and half a file.
    with open(out / "index.jsonl", "a") as index:
        index.write('{"number": 3, "pa')
    (out / ".000007_40.npy.tmp").write_bytes(b"half")
    done = extract_features(encoder, listed, settings, out)
    assert done == Extraction(videos=6, skipped=3, windows=10, bad=[])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents(out) == contents(tmp_path / "whole")


def test_a_finished_call_is_not_repeated(encoder, videos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    extract_features(encoder, videos, SETTINGS, out)
    before = contents(out)

    def watched(function, items, *args):
        todo.extend(items)
        return stream_parts(function, items, *args)

    todo: list[int] = []
    monkeypatch.setattr(module, "stream_parts", watched)
    relabelled = [Video(video.path, "x") for video in videos]
    done = extract_features(encoder, relabelled, SETTINGS, out)
    assert done == Extraction(videos=3, skipped=3, windows=5, bad=[])
    assert {line["label"] for line in index_of(out)} == {"x"}
    extract_features(encoder, videos[:1], SETTINGS, out)
    extract_features(encoder, videos, SETTINGS, out)
    assert contents(out) == before and todo == []
    # A file that is cut short or gone, and a video that was replaced.
    for number, spoil in enumerate(
        (
            lambda: (out / "000000_40.npy").write_bytes(b"short"),
            (out / "000001_5.npy").unlink,
            lambda: os.utime(videos[2].path, (1, 1)),
        )
    ):
        spoil()
        todo.clear()
        assert extract_features(encoder, videos, SETTINGS, out).skipped == 2
        assert todo == [number]
    # A video that was deleted since its features were taken.
    os.unlink(videos[0].path)
    assert extract_features(encoder, videos, SETTINGS, out).skipped == 3


def test_a_folder_holds_one_kind_of_features(encoder, videos, tmp_path):
    out = tmp_path / "out"
    extract_features(encoder, videos, SETTINGS, out)
    before = contents(out)
    other = ExtractSettings(stride=2, hop=8)
    with pytest.raises(ConfigError, match=r"holds features of other settings \(hop 16\); give"):
        extract_features(encoder, videos, other, out)
    with pytest.raises(ConfigError, match=r"number 0 is .*40.mp4 there and .*16.mp4 in this"):
        extract_features(encoder, videos[::-1], SETTINGS, out)
    encoder.blocks[1].norm1.bias.data[0] += 1e-3
    with pytest.raises(ConfigError, match=r"other settings \(encoder [0-9a-f]{64}\)"):
        extract_features(encoder, videos, SETTINGS, out)
    (out / "settings.json").write_text("[]")
    with pytest.raises(ConfigError, match="other settings"):
        extract_features(encoder, videos, SETTINGS, out)
    assert {**contents(out), "settings.json": before["settings.json"]} == before


def test_bad_videos_cost_themselves_alone(encoder, videos, tmp_path, monkeypatch, caplog):
    def decode(path, *args):
        windows = video_windows(path, *args)
        if "dies" in path:
            yield next(windows)
            os._exit(3)
        if "hangs" in path:
            yield next(windows)
            time.sleep(60)
        if "breaks" in path:
            yield next(windows)
            raise DecodeError(path, "decoding error: as ordered")
        if "huge" in path:
            raise MemoryError
        return (yield from windows)

    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    names = ("dies", "hangs", "breaks", "huge")
    for name in names:
        os.link(videos[0].path, tmp_path / f"{name}.mp4")
    bad = [broken, tmp_path / "missing.mp4", *(tmp_path / f"{name}.mp4" for name in names)]
    reasons = [
        *("not a video container", "missing", "the process reading it died (exit 3)"),
        *("took longer than 1 s", "decoding error: as ordered", "not enough memory"),
    ]
    listed = [videos[0], *(Video(str(path), "y") for path in bad), videos[2]]
    settings = ExtractSettings(stride=2, workers=2, timeout=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(module, "video_windows", decode)
        done = extract_features(encoder, listed, settings, tmp_path / "out")
    assert done.bad == [(str(p), reason) for p, reason in zip(bad, reasons, strict=True)]
    assert (done.videos, done.windows) == (2, 4)
    lines = index_of(tmp_path / "out")
    assert [line["number"] for line in lines] == list(range(8))
    assert lines[3] == {"number": 3, "path": str(bad[2]), "label": "y", "error": reasons[2]}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    files = {"000000_40.npy", "000007_16.npy"}
    assert names == files | {"index.jsonl", "settings.json", ".lock"}
    for path, reason in done.bad:
        assert f"could not read {path}: {reason}" in caplog.text

    again = extract_features(encoder, listed, settings, tmp_path / "out")
    assert again.skipped == 2 and again.videos == 6
    assert [reason for _, reason in again.bad] == reasons[:2]
    expected = by_hand(encoder, videos[0].path, [list(range(s, s + 15, 2)) for s in (0, 16, 24)])
    features = torch.from_numpy(np.load(tmp_path / "out" / "000003_dies.npy"))
    torch.testing.assert_close(features, expected.mean(1), rtol=1e-4, atol=1e-5)


def test_odd_names(encoder, videos, tmp_path):
    names = [
        *(
            "a b.mp4",
            "a/b.mp4",
            "a/../b.mp4",
            "-x.mp4",
            "a:b?*.mp4",
            "動画.mp4",
            "x" * 200 + ".mp4",
        ),
        *(os.fsdecode(b"caf\xe9.mp4"), ".mp4", "two\nlines.mp4", "😀" * 60 + ".mp4"),
    ]
    listed = []
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            os.link(videos[1].path, path)
        listed.append(Video(str(path)))
    listed += [listed[0], listed[0]]
    settings = ExtractSettings(stride=2)
    done = extract_features(encoder, listed, settings, tmp_path / "out")
    assert done == Extraction(videos=13, skipped=0, windows=13, bad=[])
    lines = index_of(tmp_path / "out")
    assert [line["path"] for line in lines] == [video.path for video in listed]
    files = [line["file"] for line in lines]
    assert files[:6] == [
        *("000000_a_b.npy", "000001_b.npy", "000002_b.npy", "000003_-x.npy", "000004_a_b_.npy"),
        "000005_動画.npy",
    ]
    assert files[7] == "000007_caf_.npy" and files[9] == "000009_two_lines.npy"
    assert len(set(files)) == 13
    arrays = [np.load(tmp_path / "out" / file) for file in files]
    assert all(np.array_equal(array, arrays[0]) for array in arrays)
    assert extract_features(encoder, listed, settings, tmp_path / "out").skipped == 13


def test_two_processes_do_not_share_a_folder(encoder, videos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    code = "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.lockf(lock, fcntl.LOCK_EX)\n"
    code += "print('in', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(out / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(ConfigError, match="another process is writing it"):
            extract_features(encoder, videos, SETTINGS, out)
        other.stdin.close()
    assert extract_features(encoder, videos, SETTINGS, out).videos == 3


def test_what_cannot_be_written_is_one_line(encoder, videos, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        extract_features(encoder, videos, SETTINGS, tmp_path / "file" / "out")
    encoder.norm.weight.data.fill_(1e6)
    with pytest.raises(ConfigError, match="features are not finite in fp16"):
        settings = ExtractSettings(stride=2, what="tokens")
        extract_features(encoder, videos, settings, tmp_path / "tokens")
    assert not list((tmp_path / "tokens").glob("*.npy"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("what", "max", "what=max: must be one of mean, tokens"),
        ("format", "pt", "format=pt: must be one of npy, safetensors"),
        ("stride", -1, "stride=-1: must be at least 0"),
        ("hop", 0, "hop=0: must be at least 1"),
        ("batch_size", 0, "batch_size=0: must be"),
        ("workers", 0, "workers=0: must be"),
        ("timeout", 0.0, "timeout=0.0: must be above 0"),
    ],
)
def test_impossible_settings_are_refused(field, value, message):
    with pytest.raises(ConfigError, match=message):
        ExtractSettings(**{field: value})


def test_one_window_has_no_hop():
    with pytest.raises(ConfigError, match="hop=8: with stride=0 a video is one window"):
        ExtractSettings(stride=0, hop=8)
