"""``masking.draws_per_clip``: M draws of a clip are M experiences of one state."""

from __future__ import annotations

import pytest
import torch
from fixed_noise import Noise
from run_checks import assert_identical, weights

from tats_fast.config import ConfigError
from tats_fast.engine.distributed import World
from tats_fast.pretrain import step as step_module
from tats_fast.pretrain.flops import training_step
from tats_fast.pretrain.learner import make_learner
from tats_fast.pretrain.step import StepPlan, pretrain_step
from tats_fast.pretrain.trainer import Trainer

CPU = World(0, 1, torch.device("cpu"))
CLIPS, TOKENS = 3, 64
WAYS = {
    "token": {"ppo": {"epochs": 3, "reward": "error_motion"}},
    "change": {"ppo": {"epochs": 2, "reward": "change_error"}},
    "sparse": {"ppo": {"epochs": 2, "reward": "sparse_change"}},
    "set": {"ppo": {"epochs": 2, "credit": "set"}},
    "adamae": {"masking": {"strategy": "adamae"}},
    "everest": {"masking": {"strategy": "everest"}},
    "part": {"masking": {"decoder_keep_ratio": 0.5}},
}


def trained(tiny_config, monkeypatch, way, draws, clips, noise):
    """Two steps of a learner on ``clips``: metrics and weights."""
    sections = dict(WAYS[way])
    masking = {"ratio": 0.75, **sections.pop("masking", {}), "draws_per_clip": draws}
    train = {"batch_size": len(clips), "steps": 4}
    learner = make_learner(tiny_config(masking=masking, train=train, **sections), CPU)
    plans = [StepPlan(step, 1e-3, 16, warmup=False) for step in range(2)]
    rows = []
    for plan, numbers in zip(plans, noise, strict=True):
        monkeypatch.setattr(step_module, "StepDraws", Noise(numbers))
        rows.append(pretrain_step(learner, [clips], plan))
    return rows, learner.model_state()


@pytest.mark.parametrize("way", WAYS)
def test_two_draws_of_a_clip_train_as_the_clip_twice(tiny_config, monkeypatch, way):
    """With the same numbers behind the draws: losses, rewards, metrics and both updates."""
    clips = torch.randint(0, 256, (CLIPS, 8, 32, 32, 3), dtype=torch.uint8)
    shared, apart = [], []
    for _ in range(2):
        one, two = torch.rand(2, CLIPS, TOKENS)
        left_out = torch.rand(CLIPS, 2 * TOKENS)
        if way == "everest":  # what it ranks equal changes by, after each draw's own numbers
            first, second = left_out.split(TOKENS, dim=1)
            shared.append([one, first, two, second])
        else:
            shared.append([one, two, left_out])
        both = torch.stack([one, two], dim=1).flatten(0, 1)
        apart.append([both, left_out.view(-1, TOKENS)])
    torch.set_default_dtype(torch.float64)
    try:
        found = trained(tiny_config, monkeypatch, way, 2, clips, shared)
        twice = clips.repeat_interleave(2, dim=0)
        expected = trained(tiny_config, monkeypatch, way, 1, twice, apart)
    finally:
        torch.set_default_dtype(torch.float32)
    for one, two in zip(found[0], expected[0], strict=True):
        assert one.keys() == two.keys() and one["skipped"] == 0
        for name, value in two.items():
            torch.testing.assert_close(one[name], value, rtol=1e-5, atol=1e-6, msg=name)
    for part, state in expected[1].items():
        for name, value in (state or {}).items():
            if name not in ("actor.bias", "norm.bias"):  # without a gradient: of rounding alone
                assert (found[1][part][name] - value).abs().max() < 1e-8, name


def test_draws_differ(tiny_config, monkeypatch):
    learner = make_learner(tiny_config(masking={"ratio": 0.75, "draws_per_clip": 4}), CPU)
    splits = []
    cut = step_module.split_for_training
    monkeypatch.setattr(
        step_module, "split_for_training", lambda *a: splits.append(cut(*a)) or splits[-1]
    )
    clips = torch.randint(0, 256, (2, 8, 32, 32, 3), dtype=torch.uint8)
    for warmup in (True, False):
        pretrain_step(learner, [clips], StepPlan(0, 1e-3, 16, warmup))
    for split in splits:
        assert split.visible.shape == (8, 16) and split.draws == 4
        shown = {tuple(sorted(row)) for row in split.visible.tolist()}
        assert len(shown) == 8


def test_a_run_with_draws_resumes_bit_by_bit(run_config, tmp_path):
    masking = {"ratio": 0.75, "draws_per_clip": 2}
    Trainer(run_config("whole", masking=masking), CPU).run()
    Trainer(run_config("parts", masking=masking, train={"steps": 6}), CPU).run()
    folder = tmp_path / "parts" / "checkpoints"
    again = run_config("parts", masking=masking, train={"resume": str(folder / "step_000002")})
    Trainer(again, CPU).run()
    assert_identical(weights(tmp_path / "parts", 6), weights(tmp_path / "whole", 6))


def test_what_draws_share_costs_once(tiny_config):
    costs = [
        training_step(tiny_config(masking={"ratio": 0.75, "draws_per_clip": draws}))
        for draws in (1, 2, 3)
    ]
    assert costs[2] - costs[1] == costs[1] - costs[0] < costs[0]


def test_an_adaptive_budget_has_one_draw(tiny_config):
    masking = {"ratio": 0.75, "budget": "adaptive", "draws_per_clip": 2}
    with pytest.raises(ConfigError, match=r"masking\.draws_per_clip=2: .* masking\.budget=fixed"):
        tiny_config(masking=masking)
