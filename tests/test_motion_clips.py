"""The demo's generated videos: motion tells their class, and nothing else does."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from tats_fast.data import load_clip, read_videos
from tats_fast.recognition.probes import accuracy, fit_linear

sys.path.append(str(ROOT / "demo"))

import motion_clips
from motion_clips import CLASSES, FRAMES, SPEED, random_texture, render

OPPOSITE = {name: CLASSES[number ^ 1] for number, name in enumerate(CLASSES)}


def random_clips(count: int, seed: int, side: int = 48, frames: int = FRAMES):
    """``count`` clips of every class and their class numbers, each clip with its own texture."""
    labels = np.arange(len(CLASSES)).repeat(count)
    generators = [np.random.default_rng([seed, n]) for n in range(len(labels))]
    clips = [
        render(random_texture(g), CLASSES[label], g.uniform(*SPEED), frames, side)
        for g, label in zip(generators, labels, strict=True)
    ]
    return np.stack(clips), labels


def flow(clip: np.ndarray) -> np.ndarray:
    """Motion (rightwards, downwards, growth, clockwise turn) that explains the brightness changes
    best, I_t + u I_x + v I_y = 0 over all pixels, in half sides per frame at a picture's edge."""
    light = clip.astype(np.float64).sum(-1)
    middle = (light[1:] + light[:-1]) / 2
    rows, columns = np.gradient(middle, axis=(1, 2))
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, clip.shape[1])], indexing="ij")
    terms = (columns, rows, x * columns + y * rows, x * rows - y * columns)
    matrix = np.stack([term.ravel() for term in terms], axis=1)
    return np.linalg.lstsq(matrix, -np.diff(light, axis=0).ravel(), rcond=None)[0]


def test_motion_alone_gives_every_class_away():
    clips, labels = random_clips(8, seed=0)
    found = [flow(clip) for clip in clips]
    order = {0: ("left", "right"), 1: ("up", "down"), 2: ("zoom_out", "zoom_in")}
    order[3] = ("counterclockwise", "clockwise")
    names = [order[int(np.abs(f).argmax())][int(f[np.abs(f).argmax()] > 0)] for f in found]
    assert names == [CLASSES[label] for label in labels]
    # In pixels: at the given speed.
    clip = render(random_texture(np.random.default_rng(0)), "right", 0.02, side=48)
    assert flow(clip)[:2] == pytest.approx([0.02 * 48, 0], abs=0.1)


@pytest.mark.parametrize("name", CLASSES[::2])
def test_the_opposite_motion_is_the_same_frames_in_reverse(name):
    texture = random_texture(np.random.default_rng(1))
    clip, opposite = (render(texture, label, 0.02, side=32) for label in (name, OPPOSITE[name]))
    assert np.array_equal(clip[::-1], opposite)
    assert not np.array_equal(clip, opposite)


def picture_statistics(pictures: np.ndarray) -> torch.Tensor:
    """Of single pictures (M, S, S, 3): colours, contrast, power and slopes along both axes and
    towards the rim, at several scales."""
    light = pictures.astype(np.float64).mean(-1)
    parts = [pictures.mean((1, 2)), pictures.std((1, 2))]
    radius = np.hypot(*np.meshgrid(*2 * [np.linspace(-1, 1, pictures.shape[1])]))
    for step in (1, 2, 4, 8):
        for axis in (1, 2):
            change = np.take(light, np.arange(step, light.shape[1]), axis) - np.take(
                light, np.arange(light.shape[1] - step), axis
            )
            parts.append(np.log((change**2).mean((1, 2)) + 1)[:, None])
    parts.append(light.reshape(len(light), -1) @ radius.reshape(-1, 1))
    return torch.from_numpy(np.concatenate(parts, axis=1)).float()


@pytest.mark.parametrize("frame", [0, FRAMES // 2, FRAMES - 1])
def test_single_frames_tell_nothing(frame):
    """A classifier on pictures stays at chance; on the whole clip's mean it does not."""
    (train, known), (test, true) = (random_clips(n, seed=s, side=32) for n, s in ((48, 1), (32, 2)))
    known, true = torch.from_numpy(known), torch.from_numpy(true)

    def top1(part) -> float:
        features, unseen = (picture_statistics(part(clips)) for clips in (train, test))
        scores = fit_linear(features, known, 8, weight_decay=1e-2, batch_norm=True)
        return accuracy(scores(unseen), true)

    # 256 questions: chance is 1/8 with a deviation of 2.1 points; this is three of them.
    assert top1(lambda clips: clips[:, frame]) < 1 / 8 + 0.062
    # The classifier is not blind: the blur of a clip's mean shows the axis of its motion.
    assert top1(lambda clips: clips.mean(1)) > 1 / 8 + 0.1
