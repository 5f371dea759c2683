"""The sampler learns the right thing: signs, optima, probabilities."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tats_fast import kernels
from tats_fast.config import PPOConfig
from tats_fast.models import Policy, TokenSplit
from tats_fast.rl import (
    Experience,
    RewardScale,
    RewardStatistics,
    make_experience,
    sampler_loss,
    token_rewards,
)
from tats_fast.rl.metrics import frame_spread, lift, policy_metrics
from tats_fast.rl.plackett_luce import ordered_draw_logprob
from tats_fast.rl.ppo import action_log_ratio, adamae_loss, clipped_surrogate, explained_variance
from tats_fast.rl.reward import initial_value

TOKENS, VISIBLE, CLIPS = 50, 10, 16
MOTION = torch.arange(TOKENS) < 10  # 20% motion tokens ...
ERROR = torch.where(MOTION, 3.0, 1.0)  # ... with three times the error


def learn(credit: str, steps: int, *, lr=0.05, error=ERROR, **ppo):
    """Train free logits on a bandit: hidden tokens pay their error. Returns the policy's p (N,)."""
    config = None if credit == "adamae" else PPOConfig(credit=credit, epochs=2, **ppo)
    logits = torch.zeros(TOKENS, requires_grad=True)
    value = torch.full((), initial_value(credit), requires_grad=True)
    optimizer = torch.optim.Adam([logits, value], lr=lr)
    scale = RewardScale.initial()
    generator = torch.Generator().manual_seed(0)

    def policy():
        log_p, entropy = kernels.policy_logprob(logits.expand(CLIPS, -1), 0.0)
        return Policy(log_p, entropy, value.expand(CLIPS))

    for _ in range(steps):
        current = policy()
        uniform = torch.rand(CLIPS, TOKENS, generator=generator)
        order = kernels.policy_sample(current.log_p, uniform, 0.0)[2]
        split = TokenSplit(order=order, count=VISIBLE, length=TOKENS)
        noise = 1 + 0.1 * torch.randn(CLIPS, TOKENS - VISIBLE, generator=generator)
        raw = split.scatter(error[split.masked] * noise)
        if config is None:
            # AdaMAE's coefficient is tiny; Adam's step does not depend on it.
            adamae_loss(current.log_p, split, raw).backward()
            optimizer.step()
            optimizer.zero_grad()
            continue
        experience, seen = make_experience(config, current, split, raw, scale)
        scale = scale.update(*seen, config.reward_momentum)
        for _ in range(config.epochs):
            sampler_loss(config, policy(), experience).total.backward()
            optimizer.step()
            optimizer.zero_grad()
    return logits.detach().softmax(0)


@pytest.mark.parametrize("credit", ["token", "token_uniform", "set", "adamae"])
def test_hard_tokens_become_visible(credit):
    """The sign: tokens that are hard to rebuild gain probability, in every mode."""
    coef = 0.05 if credit == "set" else 0.5
    p = learn(credit, 150, entropy_coef=coef) if credit != "adamae" else learn(credit, 60)
    assert p[MOTION].mean() > 1.5 * p[~MOTION].mean(), p


def test_token_credit_has_an_interior_optimum_where_uniform_collapses():
    stable = learn("token", 300, entropy_coef=0.5)
    later = learn("token", 600, entropy_coef=0.5)
    collapsed = learn("token_uniform", 600, entropy_coef=0.01)
    assert TOKENS * stable.min() > 0.1
    assert TOKENS * later.min() > 0.8 * TOKENS * stable.min()  # it rests there
    assert TOKENS * collapsed.min() < 0.001


def test_a_larger_entropy_bonus_gives_a_flatter_policy():
    odds = []
    for tau in (0.5, 1.0, 3.0):
        p = learn("token", 400, entropy_coef=tau)
        odds.append((p[MOTION].mean() / p[~MOTION].mean()).item())
    assert odds[0] > odds[1] > odds[2] > 1.2, odds


def test_plackett_luce_sums_to_one_over_ordered_draws():
    log_p = torch.randn(5, dtype=torch.float64)
    for size in (1, 2, 3, 5):
        total = 0.0
        for draw in itertools.permutations(range(5), size):
            order = torch.tensor([[*draw, *(i for i in range(5) if i not in draw)]])
            total += ordered_draw_logprob(log_p[None], order, torch.tensor([size])).exp().item()
        assert total == pytest.approx(1, abs=1e-12)


def test_plackett_luce_matches_sampling_frequencies():
    log_p = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    count = 60_000
    uniform = torch.rand(count, 4, generator=torch.Generator().manual_seed(3))
    drawn = kernels.policy_sample(log_p.expand(count, 4), uniform, 0.0)[2][:, :2]
    for draw in itertools.permutations(range(4), 2):
        order = torch.tensor([[*draw, *(i for i in range(4) if i not in draw)]])
        expected = ordered_draw_logprob(log_p[None], order, torch.tensor([2])).exp().item()
        seen = (drawn == torch.tensor(draw)).all(1).float().mean().item()
        assert seen == pytest.approx(expected, abs=4 * math.sqrt(expected / count) + 1e-3)


def test_plackett_luce_is_shift_invariant_and_differentiable():
    log_p = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    order = torch.tensor([[3, 0, 1, 2, 4, 5], [5, 1, 0, 2, 3, 4]])
    counts = torch.tensor([2, 3])
    torch.testing.assert_close(
        ordered_draw_logprob(log_p + 7, order, counts), ordered_draw_logprob(log_p, order, counts)
    )
    assert torch.autograd.gradcheck(lambda x: ordered_draw_logprob(x, order, counts), (log_p,))


def experience_for(log_p, advantage, credit):
    clips, tokens = log_p.shape
    split = first_three(clips, tokens)
    width = 1 if credit == "set" else tokens
    reward = torch.ones(clips)
    return Experience(split, log_p, reward, reward, advantage.expand(clips, width))


def first_three(clips, tokens):
    order = torch.arange(tokens).expand(clips, -1)
    return TokenSplit(order=order, count=3, length=tokens)


@pytest.mark.parametrize("credit", ["token", "token_uniform", "set"])
def test_first_epoch_ratio_is_one_and_a_uniform_policy_weighs_one(credit):
    log_p = torch.zeros(4, 9).log_softmax(1)
    experience = experience_for(log_p, torch.ones(1, 1), credit)
    log_ratio, weight = action_log_ratio(credit, log_p, experience)
    torch.testing.assert_close(log_ratio, torch.zeros_like(log_ratio))
    torch.testing.assert_close(weight.sum(1), torch.ones(4))


def test_token_weights_fade_with_the_mass_that_is_masked():
    """Three visible tokens hold most of the mass: what is left must weigh little in all."""
    log_p = torch.tensor([[5.0, 5, 5, 0, 0, 0, 0, 0, 0]]).log_softmax(1)
    experience = experience_for(log_p, torch.ones(1, 1), "token")
    _, weight = action_log_ratio("token", log_p, experience)
    masked_mass = log_p[0, 3:].exp().sum().item()
    assert weight.sum().item() == pytest.approx(masked_mass * 9 / 6)


def test_clipping_stops_the_gradient_only_in_the_direction_of_gain():
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5], requires_grad=True)
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    clipped_surrogate(ratio, advantage, 0.2).sum().backward()
    assert ratio.grad.tolist() == [0.0, 1.0, -1.0, 0.0]


def test_diagnostics_measure_the_move():
    config = PPOConfig(clip_eps=0.2)
    old = torch.zeros(1, 9).log_softmax(1)
    new = old.clone()
    new[0, 3] += math.log(1.5)
    moved = Policy(new, torch.zeros(1), torch.ones(1))
    loss = sampler_loss(config, moved, experience_for(old, torch.ones(1, 1), "token"))
    assert loss.clip_frac.item() == pytest.approx(1 / 6)
    assert loss.approx_kl.item() == pytest.approx((0.5 - math.log(1.5)) / 6, rel=1e-4)


def test_reward_scale_is_unbiased_from_the_first_batch_and_ignores_nan():
    scale = RewardScale.initial().update(torch.tensor(4.0), torch.tensor(9.0), 0.99)
    assert scale.mean.item() == pytest.approx(4)
    assert scale.std.item() == pytest.approx(3)
    same = scale.update(torch.tensor(math.nan), torch.tensor(1.0), 0.99)
    assert [t.item() for t in same] == [t.item() for t in scale]


def test_statistics_of_parts_are_those_of_the_whole():
    whole = 1e3 + torch.randn(4, 10, dtype=torch.float64)
    parts = [RewardStatistics(part.mean(), part.var(correction=0)) for part in whole]
    found = RewardStatistics.of_all(parts, lambda x: x)
    assert found.mean.item() == pytest.approx(whole.mean().item(), rel=1e-12)
    assert found.var.item() == pytest.approx(whole.var(correction=0).item(), rel=1e-12)


@pytest.mark.parametrize("credit", ["token", "token_uniform", "set"])
def test_before_any_reward_is_known_nothing_is_learned_from_one(credit):
    """To the last bit: AdamW would make full steps of what rounding leaves."""
    config = PPOConfig(credit=credit, entropy_coef=0.0)
    logits = torch.randn(2, 9, requires_grad=True)
    value = torch.rand(2, requires_grad=True)
    policy = Policy(logits.log_softmax(1), torch.zeros(2), value)
    split = first_three(2, 9)
    experience, _ = make_experience(
        config, policy, split, split.scatter(torch.rand(2, 6)), RewardScale.initial()
    )
    sampler_loss(config, policy, experience).total.backward()
    assert not logits.grad.any() and not value.grad.any()


@pytest.mark.parametrize("credit", ["token", "set"])
def test_advantages_are_clamped_and_not_standardised_per_clip(credit):
    config = PPOConfig(credit=credit)
    log_p = torch.zeros(2, 9).log_softmax(1)
    policy = Policy(log_p, torch.zeros(2), torch.full((2,), initial_value(credit)))
    split = first_three(2, 9)
    raw = split.scatter(torch.tensor([[1.0] * 6, [1.0] * 5 + [100.0]]))
    _, seen = make_experience(config, policy, split, raw, RewardScale.initial())
    scale = RewardScale.initial().update(*seen, 0.99)
    experience, _ = make_experience(config, policy, split, raw, scale)
    assert experience.advantage.abs().max() <= config.advantage_clip
    # A hard clip has a higher mean advantage (lower for set, where the error is a cost).
    means = experience.advantage[:, 3 if credit == "token" else 0 :].mean(1)
    assert (means[1] > means[0]) == (credit == "token")
    assert not experience.advantage.requires_grad


def test_motion_reward_weighs_by_the_root_of_the_frame_difference():
    error, motion = torch.tensor([[2.0, 2.0]]), torch.tensor([[4.0, 0.0]])
    assert token_rewards("error", error, motion).tolist() == [[2.0, 2.0]]
    assert token_rewards("error_motion", error, motion).tolist() == [[4.0, 0.0]]


def test_explained_variance():
    reward = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(reward, reward).item() == pytest.approx(1)
    assert explained_variance(torch.full((3,), 2.0), reward).item() == pytest.approx(0)
    assert explained_variance(-reward, reward).item() < 0
    assert explained_variance(reward, torch.ones(3)).item() == 0


def test_metrics_of_known_policies():
    uniform = torch.zeros(3, 16).log_softmax(1)
    values = policy_metrics(uniform, -(uniform.exp() * uniform).sum(1))
    expected = {"entropy_frac": 1, "min_prob": 1, "visible_prob_max": 1 / 16}
    for name, value in expected.items():
        assert values[name].item() == pytest.approx(value, rel=1e-4)
    assert values["content_dependence"].item() == pytest.approx(0, abs=1e-5)
    one_each = (40 * torch.eye(3, 16)).log_softmax(1)
    values = policy_metrics(one_each, torch.zeros(3))
    assert values["content_dependence"].item() == pytest.approx(
        math.log(3) / math.log(16), rel=1e-3
    )


def test_lift_and_spread():
    energy = torch.tensor([[4.0, 0, 0, 0], [0, 0, 0, 0]])  # the second clip stands still
    shown = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0]])
    assert lift(energy, shown).item() == pytest.approx(2)
    assert lift(energy[1:], shown[1:]).item() == 1
    spread, together = torch.zeros(1, 16), torch.zeros(1, 16)
    spread[0, [0, 4, 8, 12]] = 1
    together[0, :4] = 1
    assert frame_spread(spread, 4).item() == pytest.approx(1)
    assert frame_spread(together, 4).item() == pytest.approx(0)
