"""DALI's CPU decoder against PyAV: same windows, same crops, same handling of what goes wrong."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import write_video

from tats_fast.config import ConfigError, DataConfig
from tats_fast.data.cutter import Encoded
from tats_fast.data.dali import CPU_FORMATS, DaliDecoder, dali_problem
from tats_fast.data.lists import Video
from tats_fast.data.loader import make_loader, resolved_backend
from tats_fast.data.order import StreamBatches
from tats_fast.data.plan import choose_frames, plan_clip
from tats_fast.data.video import Timing, decode_crops, open_video

pytestmark = pytest.mark.skipif(dali_problem() is not None, reason=str(dali_problem()))
CONFIG = DataConfig(stride=2, backend="dali", workers=2)
FRAMES, SIZE, SEED = 8, 48, 11
VP9 = {"deadline": "realtime", "cpu-used": "8", "g": "12"}


def window_choice(frames: int, stride: int, window: float):
    """Frames of one window, as pretraining chooses them."""
    return partial(choose_frames, num_frames=frames, stride=stride, window=window)


def colourful(image: np.ndarray) -> np.ndarray:
    """Blocks of numbers on a coloured ramp, so that every shift and every colour error shows."""
    height, width = image.shape[:2]
    ramp = np.stack(
        [
            np.broadcast_to(np.linspace(0, 200, width), (height, width)),
            np.broadcast_to(np.linspace(0, 200, height)[:, None], (height, width)),
            np.full((height, width), 90.0),
        ],
        -1,
    )
    return (0.4 * image + 0.6 * ramp).astype(np.uint8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """VP9, VP8 and MJPEG: long, short, wide, tall, odd, of variable frame rate."""
    folder = tmp_path_factory.mktemp("videos")
    pts = np.cumsum(np.random.default_rng(0).integers(20, 120, 60)).tolist()
    made = [
        write_video(folder / "a.webm", 40, "libvpx-vp9", turn=colourful, options=VP9),
        write_video(
            folder / "b é ü.avi",
            33,
            "mjpeg",
            pix_fmt="yuvj420p",
            width=120,
            height=80,
            turn=colourful,
        ),
        write_video(folder / "short.webm", 5, "libvpx-vp9", width=70, height=110, turn=colourful),
        write_video(
            folder / "odd.webm",
            50,
            "libvpx-vp9",
            width=161,
            height=121,
            turn=colourful,
            options=VP9,
        ),
        write_video(folder / "vfr.mkv", 60, "libvpx-vp9", pts=pts, turn=colourful, options=VP9),
        # Hidden reference frames, and frames decoded in another order than shown.
        write_video(
            folder / "alt.webm",
            90,
            "libvpx-vp9",
            turn=colourful,
            options={
                "auto-alt-ref": "1",
                "lag-in-frames": "25",
                "deadline": "good",
                "cpu-used": "5",
            },
        ),
        write_video(
            folder / "vp8.webm",
            90,
            "libvpx",
            turn=colourful,
            options={
                "auto-alt-ref": "1",
                "lag-in-frames": "16",
                "deadline": "good",
                "cpu-used": "5",
            },
        ),
    ]
    return [Video(str(path)) for path in made]


def loader(videos, batches=None, **config):
    data = replace(CONFIG, **config)
    order = StreamBatches(
        len(videos), SEED, **{"global_batch": 6, "stop_sample": 48, **(batches or {})}
    )
    made = make_loader(videos, data, FRAMES, SIZE, SEED, order)
    yield from made
    assert made.replaced_workers == 0  # forked beside DALI's threads, and none the worse for it


def assert_alike(one, two):
    """Equal within the rounding of a resize."""
    error = (one.clips.int() - two.clips.int()).abs().float()
    assert one.keys == two.keys
    assert one.bad == two.bad
    assert error.mean() < 0.5
    assert torch.quantile(error.flatten()[::7], 0.999) <= 4


@pytest.mark.parametrize("repeats", [1, 3])
def test_same_batches_as_pyav(videos, repeats):
    dali = list(loader(videos, repeats=repeats, flip=True))
    pyav = list(loader(videos, repeats=repeats, flip=True, backend="pyav"))
    assert len(dali) == len(pyav) == 8
    assert dali[0].clips.shape == (6 * repeats, FRAMES, SIZE, SIZE, 3)
    assert dali[0].clips.dtype == torch.uint8
    for one, two in zip(dali, pyav, strict=True):
        assert_alike(one, two)
    assert sum(batch.on_host for batch in dali) == 0  # DALI did decode all of it


def test_resumes_mid_epoch(videos):
    whole = list(loader(videos))
    resumed = list(loader(videos, {"start_sample": 18}))
    assert len(resumed) == 5
    for one, two in zip(whole[3:], resumed, strict=True):
        assert one.keys == two.keys
        assert torch.equal(one.clips, two.clips)


def test_two_ranks_cover_the_epoch_without_overlap(videos):
    def keys(rank):
        batches = {"rank": rank, "world_size": 2, "global_batch": 2, "stop_sample": 14}
        return [key for batch in loader(videos, batches) for key in batch.keys]

    shards = keys(0), keys(1)
    assert not set(shards[0]) & set(shards[1])
    epochs = [sorted(k.index for k in shards[0] + shards[1] if k.epoch == e) for e in range(2)]
    assert epochs == [list(range(7))] * 2


def test_what_dali_cannot_read_goes_to_pyav(videos, tmp_path):
    mixed = [*videos[:2], Video(str(write_video(tmp_path / "h264.mp4", 40, turn=colourful)))]
    dali, pyav = list(loader(mixed)), list(loader(mixed, backend="pyav"))
    for one, two in zip(dali, pyav, strict=True):
        assert_alike(one, two)
        assert one.on_host == sum(key.index == 2 for key in one.keys)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_cost_their_own_clips(videos, tmp_path, workers):
    (tmp_path / "text.webm").write_text("no video")
    (tmp_path / "empty.webm").touch()
    cut = tmp_path / "cut.webm"
    whole = Path(videos[3].path).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    os.mkfifo(tmp_path / "fifo.webm")
    (tmp_path / "whole.webm").write_bytes(whole)  # to which these refer
    (tmp_path / "concat.webm").write_text("ffconcat version 1.0\nfile whole.webm\n")
    listing = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nwhole.webm\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.webm").write_text(listing)
    names = ["text.webm", "empty.webm", "cut.webm", "fifo.webm", "absent.webm"]
    names += ["concat.webm", "list.webm"]
    listed = [*videos, *(Video(str(tmp_path / name)) for name in names)]
    dali = list(loader(listed, workers=workers))
    pyav = list(loader(listed, workers=workers, backend="pyav"))
    assert {reason for batch in dali for _, reason in batch.bad} == {
        *("not a video container", "empty file", "not a regular file", "missing")
    }
    for one, two in zip(dali, pyav, strict=True):
        assert_alike(one, two)


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_that_only_decoding_shows(videos, tmp_path, workers):
    """DALI's batch fails; the damaged file gets a second chance, the others lose nothing."""
    data = Path(videos[3].path).read_bytes()
    packets = _packets(videos[3].path)
    assert sum(keyframe for _, _, keyframe in packets) > 3
    first, middle = tmp_path / "first.webm", tmp_path / "middle.webm"
    # PyAV starts at a later keyframe where it can; what lies inside the window stops it.
    for path, (start, size, _) in ((first, packets[0]), (middle, packets[20])):
        path.write_bytes(data[:start] + b"\xff" * size + data[start + size :])
    listed = [videos[0], Video(str(first)), Video(str(middle)), videos[3]]
    dali = list(loader(listed, workers=workers))
    pyav = list(loader(listed, workers=workers, backend="pyav"))
    assert any(batch.on_host for batch in dali)
    assert {path for batch in dali for path, _ in batch.bad} <= {str(first), str(middle)}
    assert any(batch.bad for batch in dali)
    for one, two in zip(dali, pyav, strict=True):
        assert_alike(one, two)


def _packets(path):
    """(position of the data in the file, size, keyframe) of every packet."""
    with open_video(path) as (container, stream):
        packets = [(bytes(p), p.is_keyframe) for p in container.demux(stream) if p.size]
    data = Path(path).read_bytes()
    return [(data.index(packet), len(packet), keyframe) for packet, keyframe in packets]


def test_the_decoder_says_which_clip_failed(videos, caplog):
    plan = plan_clip(videos[0].path, window_choice(FRAMES, 2, 0.5), CPU_FORMATS)
    good = Encoded(videos[0].path, plan, [(0, 0, 64, 64)], [False])
    past = replace(plan, segment=replace(plan.segment, frames=[1000] * FRAMES))
    past = replace(good, plan=past)
    gone = replace(plan, segment=replace(plan.segment, data=b"no video"))
    gone = replace(good, plan=gone)
    other = replace(good, plan=replace(plan, width=32))
    decoder = DaliDecoder(torch.device("cpu"), SIZE, 2)
    clips = decoder.decode([good, past, good, gone, other])
    assert [clip is None for clip in clips] == [False, True, False, True, True]
    assert torch.equal(clips[0], clips[2])
    assert clips[0].shape == (1, FRAMES, SIZE, SIZE, 3)
    again = decoder.decode([good])  # the failures did not spoil the decoder
    assert torch.equal(again[0], clips[0])
    assert decoder.decode([]) == []
    assert [r.message for r in caplog.records if "DALI could not decode" in r.message] != []
    assert len(caplog.records) == 1  # once is enough


def test_a_mirrored_crop_is_the_crop_mirrored(videos):
    plan = plan_clip(videos[0].path, window_choice(FRAMES, 2, 0.5), CPU_FORMATS)
    clip = Encoded(videos[0].path, plan, [(3, 5, 50, 40), (3, 5, 50, 40)], [False, True])
    (both,) = DaliDecoder(torch.device("cpu"), SIZE, 1).decode([clip])
    assert (both[0].int() - both[1].flip(2).int()).abs().max() <= 1


@pytest.mark.parametrize("index", range(7))
def test_planned_frames_are_those_that_pyav_takes(videos, index, monkeypatch):
    """Every file's plan against the frames PyAV's decoder hands out, at many windows."""
    from tats_fast.data import video

    path = videos[index].path
    with open_video(path) as (container, stream):
        frames = [frame.to_ndarray(format="gray").tobytes() for frame in container.decode(stream)]
    number = {frame: index for index, frame in enumerate(frames)}
    assert len(number) == len(frames)

    def write(_self, frame, out):
        out[...] = number[frame.to_ndarray(format="gray").tobytes()]

    monkeypatch.setattr(video.FrameScaler, "write", write)
    clip = np.empty((1, FRAMES, 1, 1, 3), np.uint8)
    for window in np.linspace(0, 0.999, 7):
        decode_crops(path, clip, 2, window, [None])
        plan = plan_clip(path, window_choice(FRAMES, 2, window), CPU_FORMATS)
        assert plan.frames == clip[0, :, 0, 0, 0].tolist()


def test_no_plan_where_frame_numbers_would_mislead(tmp_path):
    rotated = write_video(
        tmp_path / "rotated.mp4",
        10,
        "mjpeg",
        pix_fmt="yuvj420p",
        prepare=lambda stream: stream.set_display_rotation(90),
    )
    assert plan_clip(str(rotated), window_choice(4, 1, 0.5), CPU_FORMATS) is None
    h264 = write_video(tmp_path / "h264.mp4", 10)
    assert plan_clip(str(h264), window_choice(4, 1, 0.5), CPU_FORMATS) is None
    coloured = write_video(
        tmp_path / "709.webm",
        10,
        "libvpx-vp9",
        prepare=lambda stream: setattr(stream.codec_context, "colorspace", 1),
    )
    assert plan_clip(str(coloured), window_choice(4, 1, 0.5), CPU_FORMATS) is None
    assert (
        plan_clip(str(coloured), window_choice(4, 1, 0.5), replace(CPU_FORMATS, matrices=None))
        is not None
    )
    full = write_video(tmp_path / "444.webm", 10, "libvpx-vp9", pix_fmt="yuv444p")
    assert plan_clip(str(full), window_choice(4, 1, 0.5), CPU_FORMATS) is None


def test_frames_chosen_by_hand():
    def chosen(header, real, frames, stride, window):
        timing = Timing(origin=2.0, rate=10.0, frames=header)
        return choose_frames(timing, [2 + i / 10 for i in range(real)], frames, stride, window)

    assert chosen(20, 20, 4, 2, 0.5) == [7, 9, 11, 13]
    assert chosen(5, 5, 4, 2, 0.9) == [0, 2, 4, 4]  # shorter than the window
    assert chosen(40, 20, 4, 2, 0.9) == [12, 14, 16, 18]  # half of what the header promises
    assert chosen(20, 21, 4, 2, 0.999) == [13, 15, 17, 19]


def test_backends_by_name(monkeypatch):
    assert resolved_backend("auto", "cpu") == "pyav"
    assert resolved_backend("auto", "cuda") == "dali"
    assert resolved_backend("dali", "cpu") == "dali"
    monkeypatch.setattr("tats_fast.data.dali.dali_problem", lambda: "DALI is not installed; do")
    assert resolved_backend("auto", "cuda") == "pyav"
    with pytest.raises(ConfigError, match=r"data\.backend=dali: DALI is not installed; do"):
        resolved_backend("dali", "cpu")


def test_dali_without_a_package_it_needs_is_one_sentence():
    """``doctor`` ended in a traceback."""
    code = "import sys; sys.modules['gast'] = None; from tats_fast import doctor; "
    code += "print(*(line for line in doctor.report_lines() if 'DALI' in line))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert re.fullmatch(r"  DALI: no, DALI does not load \(.*gast.*\)\n", done.stdout), done.stderr
