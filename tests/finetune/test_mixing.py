"""Mixup, cutmix, random erasing and soft labels against loops over samples."""

from __future__ import annotations

import math

import pytest
import torch

from tats_fast.finetune.augment.mixing import (
    cutmix_map,
    draw_beta,
    erase_boxes,
    mix,
    mixing_map,
    random_erase,
    smooth_labels,
    soft_cross_entropy,
)

B, T, H, W, K = 4, 3, 20, 28, 6  # H and W differ: a swap would show


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def clips():
    return torch.randn(B, 3, T, H, W)


LABELS = torch.tensor([5, 0, 2, 2])
KINDS = {
    "mixup": {"cutmix_alpha": 0.0},
    "cutmix": {"mixup_alpha": 0.0},
    "both": {},
    "none": {"mixup_alpha": 0.0, "cutmix_alpha": 0.0},
}


def flat_target(label: int, smoothing: float) -> list[float]:
    return [(1 - smoothing) * (k == label) + smoothing / K for k in range(K)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mix_equals_a_loop_over_samples(clips, kind, smoothing):
    before = clips.clone()
    mixed, targets = mix(clips, LABELS, K, generator(), smoothing=smoothing, **KINDS[kind])
    share = mixing_map((H, W), generator(), **KINDS[kind])
    assert torch.equal(clips, before)
    for b in range(B):
        other = B - 1 - b
        for t in range(T):
            expected = share * clips[b, :, t] + (1 - share) * clips[other, :, t]
            torch.testing.assert_close(mixed[b, :, t], expected)
        own, theirs = (flat_target(int(LABELS[i]), smoothing) for i in (b, other))
        part = share.sum().item() / (H * W)
        expected = [part * x + (1 - part) * y for x, y in zip(own, theirs, strict=True)]
        assert targets[b].tolist() == pytest.approx(expected, abs=1e-6)
    if kind == "none":
        assert torch.equal(mixed, clips)


def test_cutmix_takes_one_box_from_the_partner_in_all_frames(clips):
    for seed in range(20):
        mixed, targets = mix(clips, LABELS, K, generator(seed), smoothing=0, mixup_alpha=0)
        foreign = (mixed != clips).all(dim=1)  # (B, T, H, W)
        assert (foreign == foreign[:1, :1]).all()
        box = foreign[0, 0]
        rows, columns = box.any(dim=1), box.any(dim=0)
        assert torch.equal(box, rows[:, None] & columns)
        if box.any():
            first, last = rows.nonzero()[[0, -1], 0].tolist()
            assert int(rows.sum()) == last - first + 1
        assert torch.equal(mixed, torch.where(box, clips.flip(0), clips))
        # Clip 0 has label 5 and its partner label 2.
        assert targets[0, 2].item() == pytest.approx(box.float().mean().item(), abs=1e-6)


def test_cutmix_boxes_lie_everywhere():
    maps = torch.stack([cutmix_map((H, W), 1.0, generator(seed)) for seed in range(400)])
    covered = 1 - maps.mean(dim=0)
    # E[1 - lambda] = 1/2 at alpha 1 before boxes are cut at the edges, so less, most in corners.
    assert 0.25 < covered.mean() < 0.5
    assert covered[H // 2, W // 2] > covered[0, 0] > 0.03
    torch.testing.assert_close(covered, covered.flip(0), atol=0.15, rtol=0)
    torch.testing.assert_close(covered, covered.flip(1), atol=0.15, rtol=0)


def test_cutmix_boxes_have_the_shape_of_the_frame():
    for seed in range(40):
        own = cutmix_map((10, 200), 1.0, generator(seed)) == 0
        tall, wide = own.any(dim=1).sum().item(), own.any(dim=0).sum().item()
        # sqrt(1 - lambda), from the same draws
        side = math.sqrt(1 - draw_beta(1.0, generator(seed)).item())
        if side >= 0.1:  # else no pixel high, and empty
            # The centre is inside, and with it at least half of each side.
            assert int(10 * side) // 2 <= tall <= int(10 * side)
            assert int(200 * side) // 2 <= wide <= int(200 * side)


def test_switch_probability():
    maps = [mixing_map((H, W), generator(seed), switch=0.3) for seed in range(300)]
    cut = sum(bool(((m == 0) | (m == 1)).all()) for m in maps) / 300
    assert abs(cut - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 300)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 2.0])
def test_beta_has_its_moments(alpha):
    own = generator()
    drawn = torch.stack([draw_beta(alpha, own) for _ in range(1500)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert abs(drawn.mean().item() - 0.5) < 4 * math.sqrt(variance / 1500)
    # A bounded variable's sample variance has a relative deviation below 1 / sqrt(1500) = 2.6%.
    assert drawn.var().item() == pytest.approx(variance, rel=0.1)


def test_erasing_is_the_same_in_all_frames_and_independent_across_clips():
    clips = torch.full((32, 3, T, H, W), 9.0)  # no noise is 9
    erased = random_erase(clips, generator(), probability=1.0)
    changed = (erased != clips).all(dim=1)
    assert torch.equal((erased != clips).any(dim=1), changed)
    assert (changed == changed[:, :1]).all()
    boxes = changed[:, 0]
    assert torch.equal(boxes, erase_boxes(32, (H, W), generator(), probability=1.0))
    # Two clips of 32 with the same box would be rare chance.
    assert len({tuple(box.flatten().tolist()) for box in boxes}) >= 31
    noise = erased[changed[:, None].expand_as(erased)]
    assert abs(noise.mean().item()) < 0.03 and abs(noise.std().item() - 1) < 0.03
    assert len(noise.unique()) > 0.99 * len(noise)  # per pixel, colour and frame


def test_erased_boxes_have_the_area_and_shape_asked_for():
    boxes = erase_boxes(4000, (100, 120), generator())
    chosen = boxes.flatten(1).any(dim=1)
    assert abs(chosen.float().mean().item() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    rows, columns = boxes[chosen].any(dim=2), boxes[chosen].any(dim=1)
    tall, wide = rows.sum(dim=1), columns.sum(dim=1)
    assert torch.equal(boxes[chosen], rows[:, :, None] & columns[:, None])
    share, ratio = tall * wide / 12000, tall / wide
    # Sides are rounded: at worst half of 8 pixels' worth.
    assert 0.018 < share.min() < 0.04 and 0.31 < share.max() < 0.345
    assert 0.27 < ratio.min() < 0.36 and 2.9 < ratio.max() < 3.6
    # All places: first and last row and column are reached.
    assert rows[:, 0].any() and rows[:, -1].any() and columns[:, 0].any() and columns[:, -1].any()


def test_no_erasing_at_probability_zero(clips):
    assert torch.equal(random_erase(clips, generator(), probability=0.0), clips)


def test_same_generator_same_result(clips):
    for function in (lambda g: mix(clips, LABELS, K, g), lambda g: (random_erase(clips, g),)):
        first = function(generator(7))
        torch.manual_seed(123)  # the default generator has no part in it
        state = torch.get_rng_state()
        again, other = function(generator(7)), function(generator(8))
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
        if len(first) == 2:
            assert not torch.equal(first[0], other[0])


def test_soft_cross_entropy_equals_a_loop():
    logits = torch.randn(B, K, requires_grad=True)
    targets = smooth_labels(LABELS, K, 0.1)
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        norm = math.log(sum(math.exp(x) for x in row))
        total += sum(y * (norm - x) for x, y in zip(row, target, strict=True))
    loss = soft_cross_entropy(logits, targets)
    assert loss.item() == pytest.approx(total / B, rel=1e-5)
    loss.backward()
    torch.testing.assert_close(logits.grad, (logits.softmax(dim=1) - targets).detach() / B)
    assert soft_cross_entropy(logits.bfloat16(), targets).dtype == torch.float32


def test_bytes_and_impossible_alphas_are_refused(clips):
    with pytest.raises(ValueError, match="normalised floats"):
        mix(clips.byte(), LABELS, K, generator())
    with pytest.raises(ValueError, match="normalised floats"):
        random_erase(clips[0], generator())
    with pytest.raises(ValueError, match=r"expected 0\.1 to 2"):
        mix(clips, LABELS, K, generator(), mixup_alpha=3.0)
