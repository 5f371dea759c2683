"""Packed batches: shares of an adaptive budget, index bookkeeping, and equality with dense ones."""

from __future__ import annotations

import pytest
import torch

from tats_fast import kernels
from tats_fast.config.schema import MaskingConfig
from tats_fast.masking import split_for_training, uniform_from
from tats_fast.masking.budget import allocate
from tats_fast.models import MaskedAutoencoder, Packing, TokenSplit
from tats_fast.models.patchify import patchify

CLIPS, TOKENS = 5, 48


def orders(clips=CLIPS, tokens=TOKENS):
    return torch.stack([torch.randperm(tokens) for _ in range(clips)])


def packed_split(counts, length=TOKENS, tokens=TOKENS, longest=None):
    counts = torch.tensor(counts)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
    packing = Packing(offsets, longest or int(counts.max()))
    return TokenSplit(
        order=orders(len(counts), tokens),
        count=int(counts.sum()) // len(counts),
        length=length,
        packing=packing,
    )


@pytest.mark.parametrize(
    ("scores", "total", "low", "high", "expected"),
    [
        ([1, 1, 4], 12, 1, 10, [2, 2, 8]),
        ([1, 1, 4], 12, 3, 10, [3, 3, 6]),
        ([1, 1, 4], 12, 1, 5, [4, 3, 5]),  # a tie goes to the first
        ([1, 1, 1], 10, 1, 10, [4, 3, 3]),
        ([0, 0, 7], 9, 1, 9, [1, 1, 7]),
        ([float("nan"), 1, 1], 9, 1, 9, [1, 4, 4]),
        ([5], 7, 1, 7, [7]),
        ([1, 2, 3], 6, 2, 2, [2, 2, 2]),
    ],
)
def test_shares_worked_out_by_hand(scores, total, low, high, expected):
    counts = allocate(torch.tensor(scores, dtype=torch.float32), total, low, high)
    assert counts.tolist() == expected


def test_shares_add_up_within_bounds_and_follow_the_scores():
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        batch = int(torch.randint(1, 40, (), generator=generator))
        scores = torch.rand(batch, generator=generator) ** (seed % 5 + 1)
        mean, low, high = 20, 20 - seed % 20, 20 + seed % 60
        counts = allocate(scores, batch * mean, low, high)
        assert counts.sum() == batch * mean
        assert counts.min() >= low and counts.max() <= high
        ranked = counts[scores.argsort()]
        assert (ranked.diff() >= -1).all()  # largest remainders may swap neighbours by one


def test_dense_split_is_slices():
    split = TokenSplit(order=orders(), count=7, length=30)
    assert torch.equal(split.visible, split.order[:, :7])
    assert torch.equal(split.masked, split.order[:, 7:30])
    assert split.visible_mask.sum() == 7 * CLIPS and split.scored.sum() == 23 * CLIPS
    assert not (split.visible_mask * split.scored).any()


@pytest.mark.parametrize("length", [TOKENS, 20])
def test_packed_split_clip_by_clip(length):
    counts = [1, 12, 5, 7, 10]
    split = packed_split(counts, length, longest=16)
    visible, masked, slots = [], [], []
    for b, count in enumerate(counts):
        visible += (split.order[b, :count] + b * TOKENS).tolist()
        masked += (split.order[b, count:length] + b * TOKENS).tolist()
        slots += range(b * length + count, (b + 1) * length)
    assert split.visible.tolist() == visible
    assert split.masked.tolist() == masked
    assert split.masked_slots.tolist() == slots
    assert split.visible_mask.sum(1).tolist() == counts
    assert split.scored.sum(1).tolist() == [length - count for count in counts]
    values = torch.rand(len(masked))
    assert torch.equal(split.scatter(values).flatten()[masked], values)


def test_left_out_tokens_are_a_uniform_part_of_the_masked_ones():
    """Not the next ones in drawing order, which the policy nearly chose."""
    config = MaskingConfig(strategy="random", decoder_keep_ratio=0.5)
    generator = torch.Generator().manual_seed(0)
    order = torch.arange(40).expand(2000, -1)
    split = split_for_training(config, order, 10, uniform_from(generator), None)
    assert torch.equal(split.visible, order[:, :10])
    assert split.length == 25
    assert torch.equal(split.order.sort(dim=1).values, order)
    seen = torch.bincount(split.masked.flatten(), minlength=40)[10:] / 2000
    torch.testing.assert_close(seen, torch.full((30,), 0.5), atol=0.06, rtol=0)


def test_adaptive_budget_gives_uncertain_clips_more():
    config = MaskingConfig(budget="adaptive", budget_min=0.5, budget_max=2.0)
    scores = torch.tensor([1.0, 1.0, 1.0, 1.0, 9.0])
    split = split_for_training(config, orders(), 10, uniform_from(torch.Generator()), scores)
    assert split.counts.tolist() == [8, 8, 7, 7, 20]
    assert split.packing.longest == 20
    assert len(split.visible) == 50 and len(split.masked) == 5 * TOKENS - 50


def test_a_clip_keeps_at_least_one_token_to_rebuild():
    config = MaskingConfig(budget="adaptive", budget_max=9.0, decoder_keep_ratio=0.1)
    scores = torch.tensor([1e-9, 1.0, 1.0, 1.0, 1e9])
    split = split_for_training(config, orders(), 10, uniform_from(torch.Generator()), scores)
    assert (split.scored.sum(1) >= 1).all()
    assert split.counts.max() == split.length - 1


@pytest.fixture
def mae(tiny_config):
    model = MaskedAutoencoder(tiny_config().model)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    return model.double()


def run(mae, patches, split):
    mae.zero_grad()
    prediction = mae(patches, split)
    error = kernels.masked_mse(prediction, patches, split.masked)
    error.mean().backward()
    return split.scatter(error.detach()), [p.grad.clone() for p in mae.parameters()]


def clips_of(mae, count):
    config = mae.config
    shape = (count, config.num_frames, config.image_size, config.image_size, 3)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8)
    return patchify(clips, config.tubelet_size, config.patch_size)


@pytest.mark.parametrize("longest", [9, 30])
def test_packed_of_equal_lengths_equals_dense(mae, longest):
    patches = clips_of(mae, 3)
    packed = packed_split([9, 9, 9], patches.shape[1], patches.shape[1], longest)
    dense = TokenSplit(order=packed.order, count=9, length=packed.length)
    error, gradients = run(mae, patches, packed)
    expected, expected_gradients = run(mae, patches, dense)
    torch.testing.assert_close(error, expected, rtol=1e-9, atol=1e-10)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-8, atol=1e-10)


def test_packed_equals_each_clip_on_its_own(mae):
    counts = [1, 14, 6]
    patches = clips_of(mae, 3)
    packed = packed_split(counts, 40, patches.shape[1], longest=20)
    error, gradients = run(mae, patches, packed)
    total = packed.scored.sum()
    sums = [torch.zeros_like(g) for g in gradients]
    for b, count in enumerate(counts):
        alone = TokenSplit(order=packed.order[b : b + 1], count=count, length=40)
        expected, expected_gradients = run(mae, patches[b : b + 1], alone)
        torch.testing.assert_close(error[b : b + 1], expected, rtol=1e-9, atol=1e-10)
        for running, gradient in zip(sums, expected_gradients, strict=True):
            running += gradient * (alone.scored.sum() / total)
    for gradient, expected in zip(gradients, sums, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)
