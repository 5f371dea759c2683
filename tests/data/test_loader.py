"""Clips through workers: same bytes everywhere, bad files skipped, counted and never hidden."""

import logging
import os
import signal
import time
from dataclasses import replace
from itertools import islice, pairwise

import pytest
import torch
from data_files import numbers, write_video

from tats_fast.config import DataConfig
from tats_fast.data.bad_files import BadFileRecord, TooManyBadFiles
from tats_fast.data.cutter import ClipCutter
from tats_fast.data.lists import Video
from tats_fast.data.loader import make_loader, rows_needed
from tats_fast.data.order import StreamBatches
from tats_fast.data.video import DecodeError

CONFIG = DataConfig(stride=2, backend="pyav", workers=0)
FRAMES, SIZE, SEED = 4, 32, 11


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [Video(str(write_video(folder / f"{i}.mp4", 30 + i))) for i in range(5)]


@pytest.fixture
def broken(videos, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    return [*videos[:2], Video(str(tmp_path / "bad.mp4")), *videos[2:4]]


def loader(videos, seed=SEED, batches=None, stream=SEED, **config):
    data = replace(CONFIG, **config)
    order = StreamBatches(
        len(videos), stream, **{"global_batch": 4, "stop_sample": 24, **(batches or {})}
    )
    return make_loader(videos, data, FRAMES, SIZE, seed, order)


def load(videos, workers=0, config=None, **batches):
    return list(loader(videos, batches=batches, workers=workers, **(config or {})))


def same(left, right):
    return left.keys == right.keys and torch.equal(left.clips, right.clips)


@pytest.mark.parametrize("workers", [1, 2, 5])
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
    clips = [batch.clips for batch in load(videos[:1], global_batch=1, stop_sample=6)]
    assert len({clip.numpy().tobytes() for clip in clips}) > 3
    assert torch.equal(clips[0], load(videos[:1], global_batch=1, stop_sample=1)[0].clips)
    others = [next(iter(loader(videos[:1], seed, {"global_batch": 1}))).clips for seed in range(6)]
    assert not all(torch.equal(clips[0], other) for other in others)


def test_stride_and_scales_reach_the_decoder(videos):
    clip = load(videos, config={"stride": 3, "scales": (1.0,)})[0].clips[0].numpy()
    frames = numbers(clip)  # a crop of scale 1 is the whole square frame
    assert [b - a for a, b in pairwise(frames)] == [3] * 3


def test_half_of_the_clips_are_mirrored(videos):
    plain = load(videos, config={"scales": (1.0,)})
    mirrored = load(videos, config={"scales": (1.0,), "flip": True})
    flips = 0
    for one, two in zip(plain, mirrored, strict=True):
        for a, b in zip(one.clips, two.clips, strict=True):
            flipped = torch.equal(a.flip(2), b)
            assert flipped != torch.equal(a, b)
            flips += flipped
    assert 4 < flips < 20


@pytest.mark.parametrize("workers", [0, 2])
def test_repeats_cut_one_window_several_times(videos, workers):
    single = load(videos, global_batch=2, stop_sample=12)
    config = {"repeats": 3, "flip": False}
    repeated = load(videos, workers, config, global_batch=2, stop_sample=12)
    for one, many in zip(single, repeated, strict=True):
        assert many.keys == one.keys
        assert many.clips.shape == (6, FRAMES, SIZE, SIZE, 3)
        assert torch.equal(many.clips[::3], one.clips)  # the first crop is the one without repeats
    crops = torch.cat([batch.clips for batch in repeated]).unflatten(0, (-1, 3))
    assert not torch.equal(crops[:, 0], crops[:, 1])
    assert not torch.equal(crops[:, 1], crops[:, 2])
    whole = {"repeats": 3, "scales": (1.0,)}
    for batch in load(videos, workers, whole, global_batch=2, stop_sample=12):
        for crop in batch.clips.unflatten(0, (-1, 3)):
            assert len({tuple(numbers(clip.numpy())) for clip in crop}) == 1  # the same window


def test_a_window_is_decoded_once_however_often_it_is_cut(videos, monkeypatch):
    from tats_fast.data import video

    frames = []
    decode = video.decoded_frames
    monkeypatch.setattr(
        video, "decoded_frames", lambda *a, **k: (frames.append(f) or f for f in decode(*a, **k))
    )
    counts = []
    for repeats in (1, 4):
        frames.clear()
        load(videos, config={"repeats": repeats}, global_batch=1, stop_sample=5)
        counts.append(len(frames))
    assert counts[0] == counts[1] > 5 * FRAMES


def test_bad_file_is_replaced_and_reported(broken):
    hit = [batch for batch in load(broken, global_batch=1, stop_sample=40) if batch.bad]
    assert len(hit) > 5
    for batch in hit:
        assert set(batch.bad) == {(broken[2].path, "not a video container")}
        assert batch.clips.shape[0] == 1
    named = [batch for batch in hit if batch.keys[0].index == 2]
    assert len({batch.clips.numpy().tobytes() for batch in named}) > 2  # not one video for all


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_bad_files_raises(tmp_path, workers):
    bad = [Video(str(tmp_path / f"{i}.mp4")) for i in range(3)]
    with pytest.raises(DecodeError, match="missing") as error:
        load(bad, workers)
    assert "10 failures in a row" in str(error.value)


def test_global_random_state_is_untouched(videos):
    before = torch.get_rng_state()
    load(videos, workers=1)
    load(videos)
    assert torch.equal(before, torch.get_rng_state())


def test_workers_survive_ctrl_c(videos):
    batches = loader(videos, batches={"stop_sample": 80}, workers=2)
    iterator = iter(batches)
    next(iterator)
    for pid in children():
        os.kill(pid, signal.SIGINT)
    assert len(list(iterator)) == 19
    assert batches.replaced_workers == 0


def children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        pids = [int(pid) for pid in file.read().split()]
    for task in os.listdir("/proc/self/task"):  # children belong to the thread that forked them
        with open(f"/proc/self/task/{task}/children") as file:
            pids += [int(pid) for pid in file.read().split()]
    return sorted(set(pids))


def test_a_killed_worker_costs_no_clip(videos):
    expected = load(videos, stop_sample=160)
    batches = loader(videos, batches={"stop_sample": 160}, workers=2)
    iterator = iter(batches)
    got = [next(iterator)]
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    got += iterator
    assert batches.replaced_workers == 2
    assert len(got) == 40
    assert all(same(a, b) and not b.bad for a, b in zip(expected, got, strict=True))


class Trap:
    """Stands in for the decoder of one path."""

    def __init__(self, monkeypatch, path, act):
        from tats_fast.data import cutter

        decode = cutter.decode_crops

        def trapped(name, *arguments):
            if name == path:
                act()
            decode(name, *arguments)

        monkeypatch.setattr(cutter, "decode_crops", trapped)


def test_a_file_that_kills_its_reader_is_left_alone_from_then_on(videos, monkeypatch):
    deadly = videos[3].path
    Trap(monkeypatch, deadly, lambda: os.kill(os.getpid(), signal.SIGKILL))
    batches = loader(videos, batches={"stop_sample": 120}, workers=2)
    loaded = list(batches)
    assert len(loaded) == 30
    assert all(len(batch.clips) == 4 for batch in loaded)
    bad = [entry for batch in loaded for entry in batch.bad]
    assert set(bad) == {(deadly, "the process reading it died (SIGKILL)")}
    assert len(bad) >= 24  # every epoch counts it
    # Twice, as the first may have been an accident, and what was already on its way.
    assert 2 <= batches.replaced_workers <= 6


def test_a_file_that_hangs_is_given_up(videos, monkeypatch):
    Trap(monkeypatch, videos[3].path, lambda: time.sleep(60))
    start = time.monotonic()
    loaded = load(videos, 2, {"timeout_s": 0.5}, stop_sample=40)
    assert time.monotonic() - start < 15
    assert {entry for b in loaded for entry in b.bad} == {(videos[3].path, "took longer than 1 s")}


def test_batches_are_prepared_while_the_trainer_is_busy(videos, monkeypatch):
    Trap(monkeypatch, videos[0].path, lambda: time.sleep(0.4))
    iterator = iter(loader(videos[:1], batches={"global_batch": 2, "stop_sample": 12}, workers=2))
    next(iterator)
    time.sleep(2.0)  # a step of training
    start = time.monotonic()
    next(iterator)
    assert time.monotonic() - start < 0.3  # a batch takes 0.4 s to load
    iterator.close()


def test_a_slow_file_is_given_up_without_losing_the_process(videos):
    with pytest.raises(DecodeError, match="took longer than 1e-09 s"):
        load(videos, config={"timeout_s": 1e-9})


def test_closing_early_leaves_no_process(videos):
    before = children()
    iterator = iter(loader(videos, batches={"stop_sample": None}, workers=2))
    next(iterator)
    assert len(children()) == len(before) + 2
    iterator.close()
    assert children() == before


def test_a_deleted_file_costs_its_clips_alone(videos, tmp_path):
    gone = write_video(tmp_path / "gone.mp4", 30)
    listed = [*videos, Video(str(gone))]
    iterator = iter(loader(listed, batches={"stop_sample": 72}, workers=1))
    first = next(iterator)
    gone.unlink()
    rest = list(iterator)
    assert not first.bad
    assert len(rest) == 17
    assert {entry for batch in rest for entry in batch.bad} == {(str(gone), "missing")}


def memory(workers: list[int]) -> tuple[int, int]:
    """KiB of own memory (shared pages once) and open files of this process and its workers."""
    size = files = 0
    for pid in ["self", *workers]:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            rows = dict(line.split(":") for line in file.read().splitlines()[1:])
        size += sum(int(rows[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem"))
        files += len(os.listdir(f"/proc/{pid}/fd"))
    return size, files


def test_memory_and_handles_stay_level_over_thousands_of_clips(tmp_path):
    listed = [
        Video(str(write_video(tmp_path / f"{i}.mp4", 8, width=32, height=32))) for i in range(4)
    ]
    (tmp_path / "bad.mp4").write_text("no video")
    listed.append(Video(str(tmp_path / "bad.mp4")))
    others = children()  # of tests before, which end as they are collected
    iterator = iter(loader(listed, batches={"global_batch": 8, "stop_sample": None}, workers=2))
    readings = []
    for _ in range(4):
        for _ in islice(iterator, 125):
            pass
        readings.append(memory([pid for pid in children() if pid not in others]))
    iterator.close()
    warm, last = readings[1], readings[-1]
    assert last[1] <= warm[1] + 2
    # 2,000 clips later: less than half of what 2,000 clips (12 KiB each) would take.
    assert last[0] <= warm[0] + 10 * 1024


def test_rows_keep_all_workers_busy():
    assert rows_needed(4, 0) == 8
    assert rows_needed(1, 4) == 9
    assert rows_needed(4, 5) == 16


def test_a_cutter_needs_videos():
    with pytest.raises(ValueError, match="at least 1 video, got 0"):
        ClipCutter([], CONFIG, FRAMES, SIZE, SEED, rows=1)


def test_clips_are_memory_of_their_own(videos):
    """What the workers write later does not reach a batch that was handed out."""
    seen = [(batch.clips, batch.clips.clone()) for batch in loader(videos, workers=1)]
    assert all(torch.equal(clips, copy) for clips, copy in seen)
    assert len({copy.numpy().tobytes() for _, copy in seen}) == len(seen)


def test_bad_files_are_recorded_once(tmp_path, caplog, monkeypatch):
    """With absolute paths: elsewhere a relative one would name another file, or none."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run" / "bad_files.txt"
    bad = BadFileRecord(path, num_videos=10, max_fraction=0.3)
    with caplog.at_level(logging.WARNING, logger="tats_fast"):
        bad.record([("a.mp4", "missing"), ("b\t.mp4", "empty file"), ("a.mp4", "missing")])
        bad.record([("a.mp4", "missing")])
        bad.record([])
    assert len(caplog.records) == 2
    assert "a.mp4 (missing)" in caplog.text
    assert path.read_text() == f"{tmp_path}/a.mp4\tmissing\n{tmp_path}/b .mp4\tempty file\n"
    assert bad.skipped == 4


def test_a_past_outage_does_not_count_for_ever(tmp_path):
    """What was decoded since, or failed before this start only, is no bad file any more; the record
    keeps each file's line."""
    path = tmp_path / "bad_files.txt"
    outage = BadFileRecord(path, 10, 0.3)
    with pytest.raises(TooManyBadFiles, match=r"4 of 10 .*data\.max_bad_fraction=0\.3") as error:
        outage.record([(name, "Input/output error") for name in "abcd"])
    assert "\n" not in str(error.value)
    after = BadFileRecord(path, 10, 0.3)
    after.record([("a", "missing"), ("e", "missing"), ("f", "missing")])  # 3 of 10: just allowed
    after.record([("g", "missing")], good=["e"])
    with pytest.raises(TooManyBadFiles, match="4 of 10"):
        after.record([("b", "missing")])  # which had a line already
    assert [line.split("\t")[0][-1] for line in path.read_text().splitlines()] == list("abcdefg")
