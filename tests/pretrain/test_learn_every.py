"""``sampler.learn_every``: draws as ever, and learns what the n-th clips alone would teach."""

from __future__ import annotations

import pytest
import torch
from fixed_noise import Noise
from run_checks import assert_identical, weights

from tats_fast.config import ConfigError
from tats_fast.engine.distributed import World
from tats_fast.pretrain import step as step_module
from tats_fast.pretrain.learner import make_learner
from tats_fast.pretrain.step import StepPlan, pretrain_step
from tats_fast.pretrain.trainer import Trainer
from tats_fast.rl import RewardScale

CPU = World(0, 1, torch.device("cpu"))
CLIPS, TOKENS = 6, 64
WAYS = {
    "token": {"ppo": {"epochs": 3, "reward": "error_motion"}},
    "sparse": {"ppo": {"epochs": 1, "reward": "sparse_change"}},
    "set": {"ppo": {"epochs": 2, "credit": "set"}},
    "draws": {"masking": {"draws_per_clip": 2}},
    "adamae": {"masking": {"strategy": "adamae"}},
}


def one_step(tiny_config, monkeypatch, way, every, clips, noise):
    """A learner after one step with rewards that mean something, its metrics, and the split."""
    sections = dict(WAYS[way])
    masking = {"ratio": 0.75, **sections.pop("masking", {})}
    train = {"batch_size": len(clips), "steps": 4}
    sampler = {"learn_every": every}
    config = tiny_config(masking=masking, train=train, sampler=sampler, **sections)
    learner, splits = make_learner(config, CPU), []
    learner.reward_scale = RewardScale(*torch.tensor([0.5, 0.5, 0.9]))
    cut = step_module.split_for_training
    with monkeypatch.context() as patch:
        patch.setattr(
            step_module, "split_for_training", lambda *a: splits.append(cut(*a)) or splits[-1]
        )
        patch.setattr(step_module, "StepDraws", Noise(noise))
        metrics = pretrain_step(learner, [clips], StepPlan(1, 1e-3, 16, warmup=False))
    return learner, metrics, splits[0].order


@pytest.mark.parametrize("way", WAYS)
def test_the_others_are_drawn_and_teach_nothing(tiny_config, monkeypatch, way):
    clips = torch.randint(0, 256, (CLIPS, 8, 32, 32, 3), dtype=torch.uint8)
    noise = list(torch.rand(3, CLIPS, TOKENS))
    torch.set_default_dtype(torch.float64)
    try:
        args = tiny_config, monkeypatch, way
        whole, _, every_order = one_step(*args, 1, clips, noise)
        part, metrics, order = one_step(*args, 3, clips, noise)
        alone, expected, _ = one_step(*args, 1, clips[::3], [one[::3] for one in noise])
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(order, every_order)
    # The autoencoder learns from all clips as it did ...
    for (name, one), (_, two) in zip(
        part.mae.state_dict().items(), whole.mae.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9, msg=name)
    # ... and the sampler from two as if there were no others.
    moved = 0
    for (name, one), (_, two) in zip(
        part.sampler.state_dict().items(), alone.sampler.state_dict().items(), strict=True
    ):
        if name not in ("actor.bias", "norm.bias"):  # without a gradient: of rounding alone
            torch.testing.assert_close(one, two, rtol=0, atol=1e-8, msg=name)
        moved += not torch.allclose(two, whole.sampler.state_dict()[name], rtol=0, atol=1e-6)
    assert moved > 5, "the test is about clips that teach different things"
    for name in {"approx_kl", "clip_frac", "grad_norm_sampler"} & expected.keys():
        torch.testing.assert_close(metrics[name], expected[name], rtol=1e-5, atol=1e-9, msg=name)


def test_in_bf16_every_weight_of_the_sampler_learns(tiny_config):
    """Autocast keeps a cast of each weight: one that was made without a history would stay."""
    train = {"batch_size": 4, "steps": 4, "precision": "bf16"}
    learner = make_learner(tiny_config(train=train, sampler={"learn_every": 2}), CPU)
    before = {name: value.clone() for name, value in learner.sampler.state_dict().items()}
    clips = torch.randint(0, 256, (4, 8, 32, 32, 3), dtype=torch.uint8)
    for step in range(3):
        pretrain_step(learner, [clips], StepPlan(step, 1e-3, 16, warmup=False))
    for name, value in learner.sampler.state_dict().items():
        if name != "actor.bias":
            assert not torch.equal(value, before[name]), name


def test_a_run_resumes_bit_by_bit(run_config, tmp_path):
    sampler = {"learn_every": 2}
    Trainer(run_config("whole", sampler=sampler), CPU).run()
    Trainer(run_config("parts", sampler=sampler), CPU).run()
    folder = tmp_path / "parts" / "checkpoints"
    again = run_config("parts", sampler=sampler, train={"resume": str(folder / "step_000002")})
    Trainer(again, CPU).run()
    assert_identical(weights(tmp_path / "parts", 6), weights(tmp_path / "whole", 6))


def test_a_micro_batch_has_its_teachers(tiny_config):
    train = {"batch_size": 24, "accumulation": 2}
    config = tiny_config(train=train, sampler={"learn_every": 4})
    config.check_world_size(3)
    with pytest.raises(ConfigError, match=r"train\.batch_size=24: .*sampler\.learn_every=4"):
        config.check_world_size(2)
    tiny_config(
        train=train, sampler={"learn_every": 4}, masking={"strategy": "tube", "ratio": 0.75}
    ).check_world_size(2)  # nothing learns
