"""Analysis of single clips: exact un-normalisation, fair comparisons of strategies."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from pages import NAMES, models, noise_clips, tiny

from tats_fast import kernels
from tats_fast.models.patchify import motion_energy, patchify
from tats_fast.report.analysis import analyze, fill_masked, unnormalize
from tats_fast.report.pictures import mask_strips


def test_unnormalize_inverts_the_target_exactly():
    patches = patchify(noise_clips(), 2, 8)
    patches[0, 3] = 77  # a flat patch has no contrast: its target is zero
    back = unnormalize(kernels.normalized_patches(patches), patches)
    torch.testing.assert_close(back, patches.float() / 255, atol=2e-6, rtol=0)
    masked = torch.arange(patches.shape[1]).expand(len(patches), -1)
    assert torch.equal(fill_masked(patches, kernels.normalized_patches(patches), masked), patches)


def test_perfect_predictions_give_the_clip_back_with_zero_error():
    config, clips = tiny(), noise_clips(1)
    mae, sampler = models(config)
    target = kernels.normalized_patches(patchify(clips, 2, 8))
    mae.decode = lambda latent, split: kernels.token_gather(target, split.masked)
    (result,) = analyze(config, mae, sampler, clips, draws=1)
    for draw in result.draws.values():
        assert np.array_equal(draw.reconstruction, clips[0].numpy())
        assert draw.loss < 1e-10


def test_reconstruction_keeps_visible_tokens_and_repaints_the_others():
    config, clips = tiny(), noise_clips(1)
    (result,) = analyze(config, *models(config), clips, draws=1)
    source = patchify(clips, 2, 8)[0]
    for draw in result.draws.values():
        shown = patchify(torch.from_numpy(draw.reconstruction)[None], 2, 8)[0]
        same = (shown == source).all(dim=-1).numpy()
        assert set(np.flatnonzero(same)) == set(draw.visible.tolist())


def test_errors_belong_to_their_tokens_and_are_nan_where_visible():
    config, clips = tiny(), noise_clips(1)
    mae, sampler = models(config)
    target = kernels.normalized_patches(patchify(clips, 2, 8))
    offset = torch.linspace(0, 1, 128)[None, :, None].expand_as(target)
    mae.decode = lambda latent, split: kernels.token_gather(target + offset, split.masked)
    (result,) = analyze(config, mae, sampler, clips, draws=1)
    expected = np.linspace(0, 1, 128) ** 2
    for draw in result.draws.values():
        hidden = ~np.isnan(draw.error)
        assert set(np.flatnonzero(~hidden)) == set(draw.visible.tolist())
        np.testing.assert_allclose(draw.error[hidden], expected[hidden], atol=1e-5)
        assert draw.loss == pytest.approx(expected[hidden].mean(), abs=1e-5)


def test_all_strategies_show_equally_many_tokens():
    config = tiny()
    for result in analyze(config, *models(config), noise_clips(), draws=1):
        assert tuple(result.draws) == NAMES
        assert {len(draw.visible) for draw in result.draws.values()} == {12}
        assert all(len(set(draw.visible.tolist())) == 12 for draw in result.draws.values())
    config = tiny("tube")  # 8 frames x 1 place: fewer than the 12 that the others could show
    for result in analyze(config, *models(config), noise_clips(), draws=1):
        assert tuple(result.draws) == ("tube", "random", "motion")
        assert {len(draw.visible) for draw in result.draws.values()} == {8}


def test_analysis_is_deterministic_and_leaves_the_global_generator_alone():
    config, clips = tiny(), noise_clips()
    mae, sampler = models(config)
    before = torch.get_rng_state()
    one, same = (analyze(config, mae, sampler, clips, seed=3, draws=2) for _ in range(2))
    mask_strips(config, mae, sampler, clips)
    assert torch.equal(torch.get_rng_state(), before)
    other = analyze(config, mae, sampler, clips, seed=4, draws=2)
    for a, b in zip(one, same, strict=True):
        for name in NAMES:
            for key, value in dataclasses.asdict(a.draws[name]).items():
                assert np.array_equal(value, getattr(b.draws[name], key), equal_nan=True)
    assert not np.array_equal(one[0].draws["random"].visible, other[0].draws["random"].visible)
    assert not np.array_equal(one[0].draws["random"].visible, one[1].draws["random"].visible)


def test_motion_lift_and_heat_mean_what_they_say():
    config, clips = tiny(), noise_clips(1)
    (result,) = analyze(config, *models(config), clips, draws=4)
    assert result.heat.mean() == pytest.approx(1, abs=1e-4) and result.heat.std() > 0.05
    energy = motion_energy(patchify(clips, 2, 8), 2)[0].numpy()
    np.testing.assert_allclose(result.motion, energy / energy.mean(), rtol=1e-4)
    for draw in result.draws.values():
        expected = energy[draw.visible].mean() / energy.mean()
        assert draw.motion_lift == pytest.approx(expected, rel=1e-4)
    # Half of the tokens stand still and the other half move alike.
    assert result.draws["motion"].mean_motion_lift == pytest.approx(2, abs=0.05)
    assert abs(result.draws["random"].mean_motion_lift - 1) < 0.3


def test_every_strategy_has_draws_of_its_own():
    """A sampler that wants nothing draws as random does, but not the same tokens."""
    config, clips = tiny(), noise_clips()
    mae, sampler = models(config)
    for parameter in sampler.parameters():
        torch.nn.init.zeros_(parameter)
    for result in analyze(config, mae, sampler, clips, draws=1):
        assert np.ptp(result.heat) < 1e-5
        own, random = (set(result.draws[name].visible.tolist()) for name in ("sampler", "random"))
        assert own != random


def test_still_clip_has_no_motion_and_no_nan():
    config = tiny()
    clips = noise_clips(1)[:, :1].expand(1, 16, 32, 32, 3).contiguous()
    (result,) = analyze(config, *models(config), clips, draws=1)
    assert not result.motion.any()
    assert all(draw.motion_lift == 1 for draw in result.draws.values())


@pytest.mark.parametrize(
    ("clips", "arguments", "message"),
    [
        (noise_clips().float(), {}, "uint8"),
        (noise_clips()[:, :8], {}, "16, 32, 32, 3"),
        (noise_clips(), {"draws": 0}, "draws"),
    ],
)
def test_wrong_input_is_named(clips, arguments, message):
    config = tiny()
    with pytest.raises(ValueError, match=message):
        analyze(config, *models(config), clips, **arguments)
