"""Clips through workers: same bytes everywhere, bad files skipped, counted and never hidden."""

import logging
import os
import signal
from itertools import pairwise

import pytest
import torch
from data_files import numbers, write_video

from tats_fast.config import DataConfig
from tats_fast.data import (
    BadFiles,
    ClipBatch,
    ClipDataset,
    ClipKey,
    DecodeError,
    StreamBatches,
    TooManyBadFiles,
    Video,
    load_eval_clips,
    make_loader,
)
from tats_fast.data.dataset import eval_plan

CONFIG = DataConfig(stride=2)
FRAMES, SIZE, SEED = 4, 32, 11


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [Video(str(write_video(folder / f"{i}.mp4", 30 + i))) for i in range(5)]


@pytest.fixture
def broken(videos, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    return [*videos[:2], Video(str(tmp_path / "bad.mp4")), *videos[2:4]]


def dataset(videos, seed=SEED):
    return ClipDataset(videos, CONFIG, FRAMES, SIZE, seed)


def load(videos, workers=0, **kwargs):
    batches = StreamBatches(len(videos), SEED, **{"global_batch": 4, "stop_sample": 24, **kwargs})
    return list(make_loader(dataset(videos), batches, workers))


def same(left, right):
    return left.keys == right.keys and torch.equal(left.clips, right.clips)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_byte(broken, workers):
    alone = load(broken)
    assert [len(batch.keys) for batch in alone] == [4] * 6
    assert alone[0].clips.shape == (4, FRAMES, SIZE, SIZE, 3)
    assert alone[0].clips.dtype == torch.uint8
    together = load(broken, workers)
    assert all(same(a, b) and a.bad == b.bad for a, b in zip(alone, together, strict=True))


def test_resume_gives_the_same_continuation(broken):
    whole = load(broken)
    resumed = load(broken, workers=1, start_sample=12)
    assert len(resumed) == 3
    assert all(same(a, b) for a, b in zip(whole[3:], resumed, strict=True))


def test_two_ranks_load_the_same_global_batch(videos):
    whole = load(videos)
    ranks = [load(videos, rank=rank, world_size=2, micro_batch=1) for rank in range(2)]
    for step, batch in enumerate(whole):
        parts = [part for rank in ranks for part in rank[2 * step : 2 * step + 2]]
        assert [key for part in parts for key in part.keys] == batch.keys
        assert torch.equal(torch.cat([part.clips for part in parts]), batch.clips)


def test_clips_vary_with_epoch_and_seed(videos):
    clips = [dataset(videos)[ClipKey(epoch, 0)].clips for epoch in range(6)]
    assert len({clip.numpy().tobytes() for clip in clips}) > 3
    again = dataset(videos)[ClipKey(0, 0)].clips
    assert torch.equal(clips[0], again)
    others = [dataset(videos, seed)[ClipKey(0, 0)].clips for seed in range(6)]
    assert not all(torch.equal(clips[0], other) for other in others)


def test_stride_and_scales_reach_the_decoder(videos):
    config = DataConfig(stride=3, scales=(1.0,))
    clip = ClipDataset(videos, config, FRAMES, SIZE, SEED)[ClipKey(0, 1)].clips[0].numpy()
    shown = numbers(clip)  # a crop of scale 1 is the whole square frame
    assert [b - a for a, b in pairwise(shown)] == [3] * 3


def test_bad_file_is_replaced_and_reported(broken):
    clip = dataset(broken)[ClipKey(0, 2)]
    assert set(clip.bad) == {(broken[2].path, "not a video container")}
    assert clip.keys == [ClipKey(0, 2)]
    assert torch.equal(clip.clips, dataset(broken)[ClipKey(0, 2)].clips)
    stand_ins = {dataset(broken)[ClipKey(epoch, 2)].clips.numpy().tobytes() for epoch in range(8)}
    assert len(stand_ins) > 2  # not one video for all
    batch = next(batch for batch in load(broken) if any(key.index == 2 for key in batch.keys))
    assert broken[2].path in {path for path, _ in batch.bad}


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_bad_files_raises(tmp_path, workers):
    bad = [Video(str(tmp_path / f"{i}.mp4")) for i in range(3)]
    batch = load(bad, workers)[0]
    with pytest.raises(DecodeError, match="missing") as error:
        batch.require_complete()
    assert "10 failures in a row" in str(error.value)


def test_global_random_state_is_untouched(videos):
    before = torch.get_rng_state()
    load(videos, workers=1)
    load(videos)
    assert torch.equal(before, torch.get_rng_state())


def test_workers_survive_ctrl_c(videos):
    batches = StreamBatches(len(videos), SEED, 4, stop_sample=80)
    iterator = iter(make_loader(dataset(videos), batches, 2))
    next(iterator)
    for worker in iterator._workers:
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(iterator)) == 19


def test_batch_moves_and_keeps_its_record():
    batch = ClipBatch(torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8), [ClipKey(0, 1)], [("a", "b")])
    moved = batch.to("meta", non_blocking=True)
    assert moved.clips.device.type == "meta"
    assert (moved.keys, moved.bad) == (batch.keys, batch.bad)


def test_eval_plan_spreads_over_list_and_time():
    assert eval_plan(10, 5) == [(0, 0.5), (2, 0.5), (4, 0.5), (6, 0.5), (8, 0.5)]
    assert eval_plan(2, 3) == [(0, 0.25), (0, 0.75), (1, 0.5)]
    assert len(eval_plan(7, 32)) == 32


def test_eval_clips_are_fixed_and_strict(broken):
    clips = load_eval_clips(broken, 5, FRAMES, 2, SIZE)
    assert clips.indices == [0, 1, 3, 4]
    assert clips.bad == [(broken[2].path, "not a video container")]
    assert clips.clips.shape == (4, FRAMES, SIZE, SIZE, 3)
    assert numbers(clips.clips[0].numpy()) == [12, 14, 16, 18]
    again = load_eval_clips(broken, 5, FRAMES, 2, SIZE, threads=3)
    assert torch.equal(clips.clips, again.clips)
    parts = [load_eval_clips(broken, 5, FRAMES, 2, SIZE, rank=r, world_size=2) for r in range(2)]
    assert sorted(parts[0].indices + parts[1].indices) == clips.indices
    none = load_eval_clips(broken[2:3], 2, FRAMES, 2, SIZE)
    assert none.clips.shape == (0, FRAMES, SIZE, SIZE, 3)
    assert len(none.bad) == 1


def test_eval_windows_differ_when_there_are_few_videos(videos):
    clips = load_eval_clips(videos[:1], 3, FRAMES, 1, SIZE).clips.numpy()
    assert [numbers(clip)[0] for clip in clips] == [4, 13, 22]


def test_bad_files_are_recorded_once(tmp_path, caplog):
    path = tmp_path / "run" / "bad_files.txt"
    bad = BadFiles(path, num_videos=10, max_fraction=0.3)
    with caplog.at_level(logging.WARNING, logger="tats_fast"):
        bad.record([("a.mp4", "missing"), ("b\t.mp4", "empty file"), ("a.mp4", "missing")])
        bad.record([("a.mp4", "missing")])
        bad.record([])
    assert len(caplog.records) == 2
    assert "a.mp4 (missing)" in caplog.text
    assert path.read_text() == "a.mp4\tmissing\nb .mp4\tempty file\n"
    assert bad.skipped == 4


def test_bad_files_count_on_after_resume(tmp_path):
    path = tmp_path / "bad_files.txt"
    BadFiles(path, 10, 0.3).record([("a", "missing"), ("b", "missing")])
    resumed = BadFiles(path, 10, 0.3)
    resumed.record([("a", "missing"), ("c", "missing")])  # 3 of 10: just allowed
    with pytest.raises(TooManyBadFiles, match=r"4 of 10 .*data\.max_bad_fraction=0\.3") as error:
        resumed.record([("d", "missing")])
    assert "\n" not in str(error.value)
    assert [line.split("\t")[0] for line in path.read_text().splitlines()] == ["a", "b", "c", "d"]


def test_bad_files_without_a_file(tmp_path):
    bad = BadFiles(None, 4, 0.25)
    bad.record([("a", "missing")])
    with pytest.raises(TooManyBadFiles):
        bad.record([("b", "missing")])
    assert list(tmp_path.iterdir()) == []
