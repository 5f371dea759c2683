"""The demo's generated videos: motion tells their class, and nothing else does."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from motion_clips import DRIFTS, FRAMES, SIDE, SPEED, random_texture, render, write_set

from tats_fast.data.lists import read_videos
from tats_fast.data.video import load_clip
from tats_fast.recognition.accuracy import top_accuracy
from tats_fast.recognition.probe_heads import fit_linear

CLASSES = tuple(DRIFTS)
OPPOSITES = (("left", "right"), ("up", "down"))


def random_clips(count: int, seed: int, side: int) -> tuple[np.ndarray, torch.Tensor]:
    """``count`` clips of every class and their class numbers, each clip with its own texture."""
    labels = torch.arange(len(CLASSES)).repeat_interleave(count)
    clips = []
    for number, label in enumerate(labels):
        generator = np.random.default_rng([seed, number])
        texture = random_texture(generator)
        clips.append(render(texture, CLASSES[label], generator.uniform(*SPEED), side=side))
    return np.stack(clips), labels


def flow(clip: np.ndarray) -> np.ndarray:
    """The motion (x, y) in sides per frame that explains the changes of brightness best: least
    squares of I_t + u I_x + v I_y = 0 over all pixels (Lucas and Kanade 1981)."""
    light = clip.astype(np.float64).sum(-1)
    down, right = np.gradient((light[1:] + light[:-1]) / 2, axis=(1, 2))
    matrix = np.stack([right.ravel(), down.ravel()], axis=1)
    motion = np.linalg.lstsq(matrix, -np.diff(light, axis=0).ravel(), rcond=None)[0]
    return motion / clip.shape[1]


@pytest.mark.parametrize("name", CLASSES)
def test_motion_alone_gives_the_class_and_the_speed_away(name):
    for seed in range(6):
        generator = np.random.default_rng(seed)
        clip = render(random_texture(generator), name, speed := generator.uniform(*SPEED))
        assert clip.shape == (FRAMES, SIDE, SIDE, 3) and clip.dtype == np.uint8
        # Within what differences between frames underestimate waves that move by up to a fifth.
        assert flow(clip) == pytest.approx(speed * np.array(DRIFTS[name]), abs=0.2 * speed)


@pytest.mark.parametrize(("name", "opposite"), OPPOSITES)
def test_the_opposite_drift_is_the_same_frames_in_reverse(name, opposite):
    texture = random_texture(np.random.default_rng(1))
    clip, other = (render(texture, label, 0.03, side=32) for label in (name, opposite))
    assert not np.array_equal(clip, other)
    # Up to rounding: the phases are of opposite sign.
    assert np.abs(clip[::-1].astype(int) - other).max() <= 1


def test_drifting_by_whole_pixels_moves_the_pixels():
    clip = render(random_texture(np.random.default_rng(2)), "down", 2 / 32, side=32)
    for one, two in pairwise(clip.astype(int)):
        assert np.abs(one[:-2] - two[2:]).max() <= 1


def picture_statistics(pictures: np.ndarray) -> torch.Tensor:
    """Of pictures (M, S, S, 3): colours, contrasts, contrast at each place of a 4 x 4 grid,
    and log power of the differences along both axes at several distances."""
    light = pictures.astype(np.float64).mean(-1)
    parts = [pictures.mean((1, 2)), pictures.std((1, 2))]
    contrast = np.log1p(np.abs(light - light.mean((1, 2), keepdims=True)))
    places = contrast.reshape(len(light), 4, light.shape[1] // 4, 4, light.shape[2] // 4)
    parts.append(places.mean((2, 4)).reshape(len(light), 16))
    for distance in (1, 2, 4, 8):
        for axis in (1, 2):
            change = light - np.roll(light, distance, axis)
            parts.append(np.log1p((change**2).mean((1, 2)))[:, None])
    return torch.from_numpy(np.concatenate(parts, axis=1)).float()


def test_single_frames_tell_nothing_and_frames_without_order_half():
    train, known = random_clips(48, seed=1, side=32)
    test, true = random_clips(64, seed=2, side=32)

    def top1(pictures) -> float:
        features, unseen = (picture_statistics(pictures(clips)) for clips in (train, test))
        scores = fit_linear(features, known, len(CLASSES), weight_decay=1e-2, batch_norm=True)
        return top_accuracy(scores(unseen), true)

    # 256 questions: chance is 25% with a deviation of 2.7 points; these are three of them.
    for frame in (0, FRAMES // 2, FRAMES - 1):
        assert top1(lambda clips, frame=frame: clips[:, frame]) < 0.25 + 0.081
    # The classifier is not blind: the mean over a clip is blurred along its drift.
    assert 0.4 < top1(lambda clips: clips.mean(1)) < 0.5 + 0.094


def test_a_written_set_is_labelled_readable_and_of_its_seed(tmp_path):
    lists = write_set(tmp_path / "a", seed=3, train=2, test=1)
    train, test = map(read_videos, lists)
    assert [video.label for video in train] == [name for name in CLASSES for _ in range(2)]
    assert [video.label for video in test] == list(CLASSES)
    # Every video has a texture of its own: no first frame looks like another.
    clips = {video.path: load_clip(video.path, FRAMES, 1, SIDE) for video in train + test}
    first = np.stack([clip[0].astype(float) for clip in clips.values()])
    distances = np.abs(first[:, None] - first[None]).mean((2, 3, 4))
    assert distances[~np.eye(len(first), dtype=bool)].min() > 10
    # What is decoded is what was rendered, and its motion is still its class.
    generator = np.random.default_rng([3, 1, CLASSES.index("up"), 0])
    texture = random_texture(generator)
    rendered = render(texture, "up", generator.uniform(*SPEED))
    decoded = clips[str(tmp_path / "a/test/up_00.mp4")]
    assert np.abs(decoded.astype(int) - rendered).mean() < 6
    for video in train + test:
        assert np.dot(flow(clips[video.path]), DRIFTS[video.label]) > 0.5 * SPEED[0]
    write_set(tmp_path / "b", seed=3, train=1, test=1)
    write_set(tmp_path / "c", seed=4, train=1, test=1)
    files = [(tmp_path / f"{name}/test/up_00.mp4").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]
