"""Clips of fine-tuning: one random frame per segment, Inception's crops, labels of stand-ins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from data_files import numbers, write_video

from tats_fast.config.finetune import LabelledDataConfig
from tats_fast.data.clip import ClipDraw, random_resized_crop
from tats_fast.data.dali import dali_problem
from tats_fast.data.lists import Video
from tats_fast.data.loader import make_loader
from tats_fast.data.order import StreamBatches

FRAMES, SIZE = 8, 48
# The whole frame of a square video: its numbers stay readable.
WHOLE = LabelledDataConfig(stride=0, area=(1.0, 1.0), aspect=(1.0, 1.0), backend="pyav", workers=0)


def batches(videos, config, count=1, seed=3):
    order = StreamBatches(len(videos), seed, 2, 0, 1, 2, stop_sample=2 * count)
    return list(make_loader(videos, config, FRAMES, SIZE, seed, order))


@pytest.fixture
def videos(tmp_path):
    return [Video(str(write_video(tmp_path / f"{n}.mp4", n))) for n in (40, 5)]


def test_one_frame_of_each_segment(videos):
    taken = {40: [], 5: []}
    for batch in batches(videos, WHOLE, count=12):
        for index, clip in zip(batch.videos, batch.clips.numpy(), strict=True):
            taken[(40, 5)[index]].append(numbers(clip))
    for total, clips in taken.items():
        assert len(clips) == 12
        # Another draw every pass, of which a video of 5 frames has not many.
        assert len({tuple(clip) for clip in clips}) > (6 if total == 40 else 2)
        for clip in clips:
            for segment, number in enumerate(clip):
                assert int(segment * total / FRAMES) <= number < (segment + 1) * total / FRAMES


def test_repeats_share_the_frames_and_differ_in_the_crop(videos):
    config = replace(WHOLE, repeats=3, area=(0.3, 0.6), aspect=(0.75, 1.3333))
    (batch,) = batches(videos, config)
    crops = batch.clips.numpy().reshape(2, 3, FRAMES, SIZE, SIZE, 3)
    assert not np.array_equal(crops[0, 0], crops[0, 1])
    (whole,) = batches(videos, replace(WHOLE, repeats=3))
    for clips in whole.clips.numpy().reshape(crops.shape):
        assert numbers(clips[0]) == numbers(clips[1]) == numbers(clips[2])


@pytest.mark.skipif(dali_problem() is not None, reason=str(dali_problem()))
def test_dali_takes_the_same_frames(tmp_path):
    options = {"deadline": "realtime", "cpu-used": "8", "g": "12"}
    videos = [
        Video(str(write_video(tmp_path / f"{n}.webm", n, "libvpx-vp9", options=options)))
        for n in (40, 21)
    ]
    (one,), (other,) = (
        batches(videos, replace(WHOLE, backend=backend)) for backend in ("pyav", "dali")
    )
    assert other.on_host == 0
    assert one.videos == other.videos
    for a, b in zip(one.clips.numpy(), other.clips.numpy(), strict=True):
        assert numbers(a) == numbers(b)


def test_random_resized_crops_have_the_asked_area_and_aspect():
    draws = [ClipDraw.of(0, 0, index) for index in range(4000)]
    boxes = np.array(
        [random_resized_crop(340, 256, (0.08, 0.5), (0.75, 1.3333), draw) for draw in draws]
    )
    x, y, w, h = boxes.T
    assert (x >= 0).all() and (y >= 0).all()
    assert (x + w <= 340).all() and (y + h <= 256).all()
    area, aspect = w * h / (340 * 256), w / h
    # Uniform areas of .08 to .5: mean .29, deviation .121, so .002 per 4000 draws; 5 of them.
    assert abs(area.mean() - 0.29) < 0.01
    assert area.min() >= 0.078 and area.max() <= 0.505
    assert aspect.min() >= 0.74 and aspect.max() <= 1.35
    assert abs(np.log(aspect).mean()) < 0.015  # as often wide as tall
    # Every place of the frame occurs, the last column and row too.
    assert x.min() == 0 and y.min() == 0 and (x + w).max() == 340 and (y + h).max() == 256


def test_a_crop_of_a_thin_frame_ends_at_its_edges():
    draw = replace(ClipDraw.of(0, 0, 0), scales=0.999, position=0.0)  # tall and large
    x, y, w, h = random_resized_crop(400, 50, (0.08, 1.0), (0.75, 1.3333), draw)
    assert (y, h) == (0, 50) and 0 <= x <= 400 - w


def test_pretraining_draws_are_what_they_were():
    """The two numbers of the new crop come after those that pretraining uses."""
    draw = ClipDraw.of(1, 2, 3, 4)
    first = np.random.default_rng([1, 2, 3, 4]).random(5)
    window, scales, position, flip, substitute = first.tolist()
    assert (draw.window, draw.scales, draw.position) == (window, scales, position)
    assert (draw.flip, draw.substitute) == (flip < 0.5, substitute)
