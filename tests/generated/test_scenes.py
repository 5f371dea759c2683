"""Generated clips: reproducible, labelled by their motion alone, with the truth of what moves."""

from __future__ import annotations

import math

import pytest
import torch
from run_checks import RefuseToWait
from torch.nn import functional as F

from tats_fast.generated import SceneConfig, Scenes, moving_share
from tats_fast.models.patchify import patchify

FRAMES, SIDE = 8, 32
TASKS = ("pan", "object", "spin", "relation", "digit")


def scenes(seed=0, frames=FRAMES, side=SIDE, **settings) -> Scenes:
    return Scenes(SceneConfig(**settings), frames, side, seed)


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_is_a_function_of_its_number(task):
    first, again = scenes(task=task), scenes(task=task)
    wanted = first.batch(6, 5)
    assert wanted.clips.shape == (6, FRAMES, SIDE, SIDE, 3)
    assert wanted.clips.dtype == torch.uint8
    assert wanted.moving.shape == (6, FRAMES, SIDE, SIDE)
    again.batch(3, 1)
    for one, other in zip(wanted, again.batch(6, 5), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(wanted.clips, first.batch(6, 6).clips)
    assert not torch.equal(wanted.clips, scenes(1, task=task).batch(6, 5).clips)


@pytest.mark.parametrize("task", TASKS)
def test_nothing_in_a_batch_waits_for_the_device(task):
    made = scenes(task=task)
    with RefuseToWait():
        made.batch(4, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("task", TASKS)
def test_a_gpu_makes_the_same_scenes(task):
    """Of its own textures and noise, which come from its own generator."""
    config = SceneConfig(task=task, area=0.2)
    here = Scenes(config, FRAMES, SIDE, 0).batch(64, 3)
    made = Scenes(config, FRAMES, SIDE, 0, "cuda")
    there = made.batch(64, 3)
    assert torch.equal(there.labels.cpu(), here.labels)
    assert (there.moving.cpu() == here.moving).float().mean() > 0.999
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = made.batch(64, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(there.clips, again.clips)
    assert there.clips.float().std() > 20


def test_a_large_batch_is_made_in_parts_that_differ():
    """300 clips are rendered in several parts; the noise of each is its own."""
    clips = scenes(area=0.02, noise=5).batch(300, 0).clips
    assert len(clips.flatten(1).unique(dim=0)) == 300


@pytest.mark.parametrize("task", TASKS)
def test_classes_are_equally_likely(task):
    made = scenes(task=task, frames=1)
    counts = made.batch(4000, 0).labels.bincount(minlength=len(made.classes))
    share = 1 / len(made.classes)
    assert len(counts) == len(made.classes)
    assert (counts / 4000 - share).abs().max() < 4 * math.sqrt(share * (1 - share) / 4000)


@pytest.mark.parametrize(
    ("task", "area"), [("object", 0.02), ("object", 0.08), ("object", 0.5), ("relation", 0.08)]
)
def test_objects_cover_their_share(task, area):
    moving = scenes(task=task, area=area).batch(200, 0).moving.float()
    assert moving.mean().item() == pytest.approx(area, rel=0.05)
    if task == "object":  # at every moment, because what leaves comes in again
        assert moving.mean((0, 2, 3)).std() < 0.02 * area


def test_only_what_moves_of_itself_is_marked():
    batch = scenes(area=0.05, distractors=3, noise=0, seed=2).batch(40, 0)
    change = (batch.clips[:, 1:].int() - batch.clips[:, :-1].int()).abs().amax(-1) > 0
    either = batch.moving[:, 1:] | batch.moving[:, :-1]
    near = F.max_pool2d(either.float(), 5, 1, 2) > 0  # edges are soft
    ring = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    ring[2:-2, 2:-2] = True  # pooling knows no wrapping around
    assert not (change & ~near & ring).any()
    assert (change & either).sum() > 0.9 * either.sum()
    still = scenes(task="spin").batch(40, 0)
    assert still.moving.flatten(1).any(1).equal(still.labels != 4)


def test_the_share_of_a_token_that_moves_follows_the_order_of_patches():
    moving = torch.rand(2, 4, 16, 16) < 0.3
    pixels = moving[..., None].expand(-1, -1, -1, -1, 3).float()
    expected = patchify(pixels, 2, 8).mean(-1)
    torch.testing.assert_close(moving_share(moving, 2, 8), expected)


@pytest.mark.parametrize(
    ("task", "frame"), [("pan", 0), ("object", 0), ("spin", None), ("relation", 3)]
)
def test_a_single_frame_says_nothing_about_the_class(task, frame):
    """A linear classifier of pixels and their squares, on the first frame, a random one, or the
    middle."""
    made = scenes(task=task, area=0.2, frames=7)
    batch = made.batch(4000, 0)
    generator = torch.Generator().manual_seed(3)
    chosen = torch.randint(7, (4000,), generator=generator) if frame is None else frame
    images = batch.clips[torch.arange(4000), chosen].float().mean(-1)
    pixels = F.avg_pool2d(images, 2).flatten(1)
    pixels = (pixels - pixels.mean(1, keepdim=True)) / pixels.std(1, keepdim=True)
    accuracy = ridge_accuracy(torch.cat([pixels, pixels**2], 1), batch.labels)
    chance = 1 / len(made.classes)
    assert abs(accuracy - chance) < 4 * math.sqrt(chance * (1 - chance) / 2000)


def ridge_accuracy(features: torch.Tensor, labels: torch.Tensor) -> float:
    """Fitted on the first half, scored on the second."""
    half = len(features) // 2
    features = (features - features[:half].mean(0)) / features[:half].std(0)
    features = torch.cat([features, torch.ones(len(features), 1)], 1)
    fitted, targets = features[:half], F.one_hot(labels[:half]).float()
    gram = fitted.T @ fitted + 100 * torch.eye(features.shape[1])
    weights = torch.linalg.solve(gram, fitted.T @ targets)
    return ((features[half:] @ weights).argmax(1) == labels[half:]).float().mean().item()


@pytest.mark.parametrize("task", ["pan", "object"])
def test_two_frames_tell_the_direction(task):
    """The shift that best explains a later frame by an earlier one, by circular correlation."""
    batch = scenes(task=task, area=0.05).batch(400, 0)
    grey = batch.clips.float().mean(-1)
    if task == "object":  # what is not there most of the time
        grey = (grey - grey.median(1, keepdim=True).values).abs()
    grey = grey - grey.mean((2, 3), keepdim=True)
    if task == "pan":  # the picture is a window on something larger
        window = torch.hann_window(SIDE, periodic=False)
        grey = grey * window * window[:, None]
    spectra = torch.fft.fft2(grey)
    product = spectra[:, 3:] * spectra[:, :-3].conj()
    if task == "pan":  # phase correlation
        product = product / (product.abs() + 1e-6)
    peak = torch.fft.ifft2(product.mean(1)).real.flatten(1).argmax(1)
    shift = torch.stack([peak % SIDE, peak // SIDE], 1)
    shift = (shift + SIDE // 2) % SIDE - SIDE // 2
    angle = torch.atan2(shift[:, 1].float(), shift[:, 0].float())
    guess = torch.round(angle / (math.pi / 4)).long() % 8
    assert (guess == batch.labels).float().mean() > 0.95


def test_frames_in_polar_coordinates_tell_the_turn_and_masks_the_growth():
    batch = scenes(task="spin", area=0.2, noise=0).batch(400, 0)
    turned = batch.labels < 2
    line = torch.arange(SIDE) + 0.5
    moving, clips = batch.moving[turned], batch.clips[turned].float().mean(-1)
    weight = moving.float() / moving.float().sum((2, 3), keepdim=True)
    x, y = (weight.sum(2) @ line).mean(1), (weight.sum(3) @ line).mean(1)  # it rests
    angles = torch.arange(64) * (2 * math.pi / 64)
    radii = torch.tensor([2.0, 3, 4, 5, 6])[:, None]
    places = torch.stack([radii * angles.cos(), radii * angles.sin()], -1)
    places = (places + torch.stack([x, y], 1)[:, None, None]) / (SIDE / 2) - 1  # (B, R, A, 2)
    places = places.repeat_interleave(FRAMES, 0)
    rings = F.grid_sample(clips.flatten(0, 1)[:, None], places, align_corners=False)
    rings = rings.view(-1, FRAMES, 5, 64)
    spectra = torch.fft.fft(rings - rings.mean(-1, keepdim=True))
    product = (spectra[:, 2:] * spectra[:, :-2].conj()).sum((1, 2))
    correlation = torch.fft.ifft(product).real
    clockwise = correlation[:, 1:9].amax(1) > correlation[:, -8:].amax(1)
    assert (clockwise == (batch.labels[turned] == 0)).float().mean() > 0.95
    sizes = batch.moving.float().mean((2, 3))
    assert (sizes[:, -1] > sizes[:, 0])[batch.labels == 2].all()
    assert (sizes[:, -1] < sizes[:, 0])[batch.labels == 3].all()
