"""Masking strategies: same interface, same count, the right tokens."""

from __future__ import annotations

import pytest
import torch

from tats_fast.config.schema import MaskingConfig, visible_count
from tats_fast.masking import mask_ratio_at, split_tokens, visible_tokens
from tats_fast.masking.strategies import token_change

STRATEGIES = ["random", "tube", "frame", "motion", "motion_bins", "everest", "adamae", "tats"]


@pytest.fixture
def model(tiny_config):
    return tiny_config().model  # 4 token-frames of 16 tokens


def draw(strategy, model, ratio=0.75, clips=3, patches=None, log_p=None, seed=0, embedded=None):
    if patches is None:
        shape = (clips, model.num_tokens, model.patch_dim)
        patches = torch.randint(0, 256, shape, dtype=torch.uint8)
    if log_p is None and strategy in ("adamae", "tats"):
        log_p = torch.zeros(clips, model.num_tokens)
    if embedded is None and strategy == "everest":
        embedded = torch.zeros(clips, model.num_tokens, 8)
        embedded[:, ::3, 0] = torch.arange(22.0)
    visible = visible_tokens(strategy, model, ratio)
    generator = torch.Generator().manual_seed(seed)
    return split_tokens(strategy, model, patches, log_p, visible, generator, embedded)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_token_is_visible_or_masked_once(strategy, model):
    split = draw(strategy, model)
    together = torch.cat([split.visible, split.masked], dim=1).sort(dim=1).values
    assert torch.equal(together, torch.arange(model.num_tokens).expand(3, -1))
    assert split.visible.shape == (3, 16)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_draws_follow_the_generator_alone(strategy, model):
    patches = torch.randint(0, 256, (2, model.num_tokens, model.patch_dim), dtype=torch.uint8)
    one, same, other = (
        draw(strategy, model, clips=2, patches=patches, seed=s).visible for s in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("ratio", "expected"), [(0.85, 235), (0.90, 156), (0.95, 78), (0.0, 1568)])
def test_visible_count_at_vit_base(ratio, expected):
    assert visible_count(1568, ratio) == expected


def test_tube_rounds_per_frame_and_the_others_do_not(tiny_config):
    model = tiny_config().model
    assert visible_tokens("random", model, 0.9) == 6
    assert visible_tokens("tube", model, 0.9) == 4 * 1
    split = draw("tube", model, ratio=0.75)
    tokens = split.visible.view(3, 4, 4)  # place by place, each in all four frames
    assert ((tokens % 16) == (tokens[:, :, :1] % 16)).all(), "the same places in every frame"


def test_frame_shows_whole_frames_and_part_of_one(model):
    for seed in range(20):
        split = draw("frame", model, ratio=0.6, seed=seed)  # 25 visible: one frame and 9 tokens
        for clip in split.visible:
            counts = torch.bincount(clip // 16, minlength=4).sort().values.tolist()
            assert counts == [0, 0, 9, 16]


def test_motion_draws_in_proportion_to_frame_difference(model):
    pixels = torch.zeros(1, model.num_tokens, 2, model.patch_dim // 2, dtype=torch.uint8)
    pixels[0, :8, 1] = 200  # eight moving tokens in a still clip
    split = draw("motion", model, ratio=1 - 8 / 64, clips=1, patches=pixels.flatten(2))
    assert sorted(split.visible[0].tolist()) == list(range(8))


def test_motion_on_a_still_clip_is_uniform(model):
    still = torch.full((400, model.num_tokens, model.patch_dim), 9, dtype=torch.uint8)
    split = draw("motion", model, clips=400, patches=still)
    counts = torch.bincount(split.visible.flatten(), minlength=64) / 400
    assert counts.min() > 0.1 and counts.max() < 0.45  # 0.25 expected


def test_motion_bins_show_as_many_of_either_half(model):
    pixels = torch.zeros(1, model.num_tokens, 2, model.patch_dim // 2, dtype=torch.uint8)
    pixels[0, :, 1] = torch.arange(model.num_tokens, dtype=torch.uint8)[:, None]
    counts = torch.zeros(model.num_tokens)
    for seed in range(200):
        split = draw("motion_bins", model, clips=1, patches=pixels.flatten(2), seed=seed)
        high = split.visible[0] >= 32
        assert high.sum() == 8  # of 16
        counts[split.visible[0]] += 1
        places = [sorted((split.visible[0][part] % 32).tolist()) for part in (high, ~high)]
        assert places[0] != places[1]  # the halves are drawn independently
    assert counts.min() > 20 and counts.max() < 85  # 50 expected


def test_motion_bins_on_a_still_clip_are_uniform(model):
    still = torch.full((400, model.num_tokens, model.patch_dim), 9, dtype=torch.uint8)
    split = draw("motion_bins", model, clips=400, patches=still)
    counts = torch.bincount(split.visible.flatten(), minlength=64) / 400
    assert counts.min() > 0.1 and counts.max() < 0.45  # 0.25 expected


def test_change_is_the_distance_to_the_next_frame():
    embedded = torch.zeros(1, 6, 2)  # three frames of two places
    embedded[0, 2] = torch.tensor([3.0, 4.0])  # the first place moves in the second frame
    assert token_change(embedded, 3).tolist() == [[5, 0, 5, 0, 5, 0]]
    assert token_change(embedded, 1).tolist() == [[0] * 6]


def test_everest_draws_among_the_tokens_that_change_most(model):
    embedded = torch.zeros(300, model.num_tokens, 4)
    embedded[:, 16:26, 0] = 1.0  # ten places differ in the second of four frames
    split = draw("everest", model, ratio=1 - 16 / 64, clips=300, embedded=embedded)
    counts = torch.bincount(split.visible.flatten(), minlength=64)
    # Both neighbours of the change are 20 = 30 % of 64, rounded up; 16 of them are drawn, evenly.
    chosen = torch.cat([torch.arange(10), torch.arange(16, 26)])
    assert counts.sum() == counts[chosen].sum() == 300 * 16
    assert counts[chosen].min() > 200 and counts[chosen].max() < 280  # 240 expected


def test_everest_on_a_still_clip_is_uniform(model):
    """Also where some of the pool is clear and the rest of it is not."""
    embedded = torch.ones(2000, model.num_tokens, 4)
    split = draw("everest", model, clips=2000, embedded=embedded)
    counts = torch.bincount(split.visible.flatten(), minlength=64)
    assert counts.min() > 400 and counts.max() < 600  # 500 expected
    embedded[:, 21, 0] = 2.0  # a place changes twice: from frame 0 to 1, from 1 to 2
    split = draw("everest", model, ratio=1 - 20 / 64, clips=2000, embedded=embedded)
    counts = torch.bincount(split.visible.flatten(), minlength=64)
    assert counts[[5, 21]].tolist() == [2000, 2000]
    others = torch.cat([counts[:5], counts[6:21], counts[22:]])
    assert others.min() > 470 and others.max() < 690  # 18 of 62: 581 expected


def test_policy_draws_what_it_prefers(model):
    log_p = torch.full((2, model.num_tokens), -20.0)
    log_p[:, 40:56] = 0
    assert (draw("tats", model, clips=2, log_p=log_p).visible.sort().values[0] >= 40).all()


def test_schedules():
    constant = MaskingConfig(ratio=0.9)
    assert mask_ratio_at(constant, 0.3) == 0.9
    linear = MaskingConfig(ratio=0.9, start_ratio=0.5, schedule="linear")
    assert [mask_ratio_at(linear, t) for t in (0, 0.5, 1)] == pytest.approx([0.5, 0.7, 0.9])
    cosine = MaskingConfig(ratio=0.9, start_ratio=0.5, schedule="cosine")
    values = [mask_ratio_at(cosine, t) for t in (0, 0.25, 0.5, 1)]
    assert values == pytest.approx([0.5, 0.5586, 0.7, 0.9], abs=1e-3)
