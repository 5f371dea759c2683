"""The reward ``sparse_change``: clips in which everything changes move the sampler little."""

from __future__ import annotations

import pytest
import torch

from tats_fast.config import ConfigError, PPOConfig
from tats_fast.generated import SceneConfig, Scenes
from tats_fast.models import Policy, TokenSplit
from tats_fast.models.patchify import motion_energy, patchify
from tats_fast.rl import RewardScale, make_experience
from tats_fast.rl.reward import sparsity


def test_sparsity_is_that_of_the_scored_tokens():
    scored = torch.tensor([1.0, 1, 1, 1, 0]).expand(4, -1)
    clips = {
        "one token": ([0.5, 0, 0, 0, 0], 1),  # deviates by 1.7 means
        "half a mean": ([1, 3, 1, 3, 0], 0.25),
        "all alike": ([0.3, 0.3, 0.3, 0.3, 0], 0),
        "nothing": ([0, 0, 0, 0, 0], 0),
    }
    raw = torch.tensor([rewards for rewards, _ in clips.values()])
    expected = torch.tensor([[value] for _, value in clips.values()], dtype=raw.dtype)
    torch.testing.assert_close(sparsity(raw, scored), expected)
    torch.testing.assert_close(sparsity(raw * 1e-3, scored), expected)  # of any size


def test_a_clip_in_which_all_changes_has_no_say():
    order = torch.arange(9).expand(2, -1)
    split = TokenSplit(order=order, count=3, length=9)
    policy = Policy(torch.zeros(2, 9).log_softmax(1), torch.zeros(2), torch.ones(2))
    scale = RewardScale.initial().update(torch.tensor(0.2), torch.tensor(0.01), 0.99)
    little, everything = [0.9, 0, 0, 0, 0, 0], [0.5, 0.6, 0.5, 0.6, 0.5, 0.6]
    raw = split.scatter(torch.tensor([little, everything]))
    plain, ours = (
        make_experience(PPOConfig(reward=reward), policy, split, raw, scale)[0]
        for reward in ("change_error", "sparse_change")
    )
    assert torch.equal(ours.advantage[0], plain.advantage[0])
    assert plain.advantage[1, 3:].min() > 2  # the more it moves, the more it has to say
    assert ours.advantage[1].abs().max() < 0.03
    assert torch.equal(ours.reward, plain.reward)  # the critic's target


@pytest.mark.parametrize(
    ("scene", "least", "most"),
    [
        ({"task": "object", "area": 0.02}, 0.95, 1),
        ({"task": "object", "area": 0.08}, 0.95, 1),
        ({"task": "object", "area": 0.06, "camera": "pan"}, 0.1, 0.2),
        ({"task": "pan"}, 0.03, 0.1),
    ],
)
def test_generated_clips_with_a_moving_camera_have_little_to_say(scene, least, most):
    """A model that predicts no change errs by the frame difference (docs/method.md)."""
    tubelet = 2
    scenes = Scenes(SceneConfig(**scene), 8, 32, 0, torch.device("cpu"))
    patches = patchify(scenes.batch(128, 0).clips, tubelet, 8)
    change = motion_energy(patches, tubelet).sqrt()
    assert least <= sparsity(change, torch.ones_like(change)).median() <= most


def test_a_whole_draw_has_no_tokens_to_compare():
    with pytest.raises(ConfigError, match=r"ppo\.credit=set: rewards whole clips"):
        PPOConfig(reward="sparse_change", credit="set")
