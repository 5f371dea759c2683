"""The files that users really have: training passes over the bad ones, evaluation reports them."""

from __future__ import annotations

import json
import os
from collections import Counter

import numpy as np
import pytest
import torch
from data_files import CAN_TURN, noise, write_audio, write_video

from tats_fast.data.clip import ClipDraw
from tats_fast.data.dali import dali_problem
from tats_fast.data.eval_clips import load_eval_clips
from tats_fast.data.lists import Video, read_videos
from tats_fast.data.loader import make_loader
from tats_fast.data.order import StreamBatches
from tats_fast.engine.distributed import World
from tats_fast.pretrain.trainer import Trainer

FRAMES, STRIDE, SIZE, SEED = 8, 1, 32, 3


def truncated(path):
    write_video(path, 30, turn=noise)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])


def half_a_webm(path):
    write_video(path, 40, "libvpx-vp9", turn=noise)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])


def loop(path):
    path.symlink_to(path.name)


READABLE = {
    "plain.mp4": lambda path: write_video(path, 30),
    "one frame.mp4": lambda path: write_video(path, 1),
    "shorter than the window.mp4": lambda path: write_video(path, 5),
    "turned.mp4": lambda path: write_video(
        path,
        12,
        height=48,
        prepare=lambda stream: stream.set_display_rotation(90) if CAN_TURN else None,
    ),
    "variable rate.mkv": lambda path: write_video(
        path, 20, pts=np.cumsum([10 if n % 3 else 90 for n in range(20)]).tolist()
    ),
    "no frame count.webm": lambda path: write_video(path, 12, "libvpx-vp9"),
    "odd size.webm": lambda path: write_video(path, 12, "libvpx-vp9", width=61, height=43),
    "10 bit.mp4": lambda path: write_video(path, 12, "libx265", pix_fmt="yuv420p10le"),
    "grey.avi": lambda path: write_video(path, 12, "ffv1", pix_fmt="gray"),
    "mjpeg.avi": lambda path: write_video(path, 12, "mjpeg", pix_fmt="yuvj420p"),
    "ünï (c) #1 + 'x' \u65e5\u672c.mp4": lambda path: write_video(path, 12),
    "half a film.webm": half_a_webm,
}
BAD = {
    "truncated.mp4": (truncated, "not a video container"),
    "zero bytes.mp4": (lambda path: path.touch(), "empty file"),
    "text.mp4": (lambda path: path.write_text("no video\n" * 99), "not a video container"),
    "audio only.mp4": (write_audio, "no video stream"),
    "symlink loop.mp4": (loop, "missing"),
    "pipe.mp4": (os.mkfifo, "not a regular file"),
    "absent.mp4": (lambda path: None, "missing"),
}


@pytest.fixture(scope="module")
def listing(tmp_path_factory):
    """A list file that names them all, good and bad in turns."""
    folder = tmp_path_factory.mktemp("odd files")
    for name, make in READABLE.items():
        make(folder / name)
    for name, (make, _) in BAD.items():
        make(folder / name)
    names = sorted([*READABLE, *BAD], key=lambda name: hash_of(name))
    (folder / "list.txt").write_text("".join(f"{name}\n" for name in names))
    return folder / "list.txt"


def hash_of(name: str) -> int:
    return sum(name.encode()) % 97


def expected_failures(videos: list[Video], samples: int) -> Counter[str]:
    """Files that fail while ``samples`` windows are drawn, by the definition of the stand-ins."""
    failures: Counter[str] = Counter()
    batches = StreamBatches(len(videos), SEED, samples, stop_sample=samples)
    for key in next(iter(batches)):
        for attempt in range(10):
            index = key.index
            if attempt:
                draw = ClipDraw.of(SEED, key.epoch, key.index, attempt)
                index = int(draw.substitute * len(videos))
            name = os.path.basename(videos[index].path)
            if name not in BAD:
                break
            failures[name] += 1
    return failures


@pytest.mark.parametrize("backend", ["pyav", "dali"])
@pytest.mark.parametrize("workers", [0, 2])
def test_training_passes_over_bad_files_and_loses_nothing_else(
    listing, tiny_config, tmp_path, backend, workers
):
    if backend == "dali" and dali_problem() is not None:
        pytest.skip(dali_problem())
    config = tiny_config(
        name="run",
        output_dir=str(tmp_path),
        device="cpu",
        seed=SEED,
        data={
            "train": str(listing),
            "stride": STRIDE,
            "workers": workers,
            "backend": backend,
            "max_bad_fraction": 0.5,
            "timeout_s": 20,
        },
        train={"batch_size": 6, "steps": 8, "log_every": 4, "image_every": 0},
    )
    Trainer(config, World(0, 1, torch.device("cpu"))).run()
    failures = expected_failures(read_videos(listing), samples=48)
    assert set(failures) == set(BAD)  # every bad file was met
    recorded = (tmp_path / "run" / "bad_files.txt").read_text().splitlines()
    rows = dict(line.split("\t") for line in recorded)
    assert {os.path.basename(path): reason for path, reason in rows.items()} == {
        name: reason for name, (_, reason) in BAD.items()
    }
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["skipped_clips"] == failures.total()
    assert last["replaced_workers"] == 0
    assert last["passes"] == last["epoch"] == pytest.approx(48 / (len(READABLE) + len(BAD)))


def test_readable_files_are_never_replaced(listing):
    """Each readable file's clips are those of a list without any bad file."""
    from tats_fast.config import DataConfig

    config = DataConfig(stride=STRIDE, backend="pyav", workers=1)
    videos = read_videos(listing)
    order = StreamBatches(len(videos), SEED, len(videos), stop_sample=2 * len(videos))
    for batch in make_loader(videos, config, FRAMES, SIZE, SEED, order):
        assert sorted(key.index for key in batch.keys) == list(range(len(videos)))
        for key, clip in zip(batch.keys, batch.clips, strict=True):
            name = os.path.basename(videos[key.index].path)
            if name in BAD:
                continue
            # The same key in a list where this video stands at every place: no stand-in possible.
            alone = [videos[key.index]] * len(videos)
            one = StreamBatches(len(alone), SEED, 1, start_sample=0, stop_sample=1)
            one.stream = [key]
            (again,) = make_loader(alone, config, FRAMES, SIZE, SEED, one)
            assert torch.equal(again.clips[0], clip)


def test_evaluation_reports_each_and_replaces_none(listing):
    videos = read_videos(listing)
    clips = load_eval_clips(videos, len(videos), FRAMES, STRIDE, SIZE)
    assert {os.path.basename(path): reason for path, reason in clips.bad} == {
        name: reason for name, (_, reason) in BAD.items()
    }
    names = [os.path.basename(videos[index].path) for index in clips.indices]
    assert sorted(names) == sorted(READABLE)
    for index, clip in zip(clips.indices, clips.clips, strict=True):
        alone = load_eval_clips([videos[index]], 1, FRAMES, STRIDE, SIZE)
        assert torch.equal(alone.clips[0], clip)


def test_a_quarantine_list_keeps_bad_files_out(listing, tiny_config, tmp_path, caplog):
    videos = read_videos(listing)
    bad = [v.path for v in videos if os.path.basename(v.path) in BAD]
    quarantine = tmp_path / "bad.txt"
    quarantine.write_text("".join(f"{path}\twhatever\n" for path in bad))
    config = tiny_config(
        name="run",
        output_dir=str(tmp_path),
        device="cpu",
        data={
            "train": str(listing),
            "stride": STRIDE,
            "workers": 0,
            "quarantine": str(quarantine),
            "max_bad_fraction": 0.0,
        },
        train={"batch_size": 4, "steps": 4, "log_every": 4, "image_every": 0},
    )
    with caplog.at_level("INFO", logger="tats_fast"):
        trainer = Trainer(config, World(0, 1, torch.device("cpu")))
    assert len(trainer.videos) == len(READABLE)
    assert f"leaves out {len(BAD)} of the {len(videos)} videos of data.train" in caplog.text
    trainer.run()
    assert not (tmp_path / "run" / "bad_files.txt").exists()
