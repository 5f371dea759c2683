"""The whole training step on Triton kernels equals the step on PyTorch's ops."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE, interpreted

from tats_fast import kernels
from tats_fast.engine.distributed import World
from tats_fast.models import TokenSplit
from tats_fast.models.patchify import patchify
from tats_fast.pretrain.learner import make_learner
from tats_fast.pretrain.step import StepPlan, pretrain_step

pytestmark = [pytest.mark.interpret, pytest.mark.gpu, interpreted]

# One inner epoch: Adam makes a full step of a gradient that is nothing but rounding (the actor's
# bias has no other), and a second epoch would see it.
WAYS = {
    "dense": {"ppo": {"epochs": 1}},
    "adaptive": {
        "masking": {"ratio": 0.75, "budget": "adaptive", "decoder_keep_ratio": 0.5},
        "ppo": {"epochs": 1},
    },
    "draws": {
        # More masked tokens of a clip than it has tokens, and some of them twice.
        "masking": {"ratio": 0.75, "draws_per_clip": 2},
        "ppo": {"reward": "change_error", "epochs": 1},
    },
    # Kernels meet every second row of the noise, and of the gradients.
    "every": {"sampler": {"learn_every": 2}, "ppo": {"epochs": 1}},
    "sparse": {"masking": {"ratio": 0.75}, "ppo": {"reward": "sparse_change", "epochs": 1}},
    "set": {
        "ppo": {"credit": "set", "reward": "error_motion", "epochs": 1},
        "masking": {"ratio": 0.9},
    },
}
SIZES = {"image_size": 24, "num_frames": 6, "width": 32, "depth": 1}  # 3 x 9 tokens


def learner_for(tiny_config, way):
    train = {"batch_size": 2, "steps": 4, "precision": "fp32"}
    config = tiny_config(train=train, model=SIZES, **WAYS[way])
    learner = make_learner(config, World(0, 1, torch.device(DEVICE)))
    generator = torch.Generator(DEVICE).manual_seed(1)
    for module in (learner.mae, learner.sampler):
        # Every part of the model must matter: at the start biases are zero and the critic exact.
        for parameter in module.parameters():
            parameter.data.normal_(std=0.2, generator=generator)
    return learner


def clips():
    return torch.randint(0, 256, (2, 6, 24, 24, 3), dtype=torch.uint8, device=DEVICE)


@pytest.mark.parametrize("way", WAYS)
def test_same_step(tiny_config, way):
    """Losses, draws and gradients of one step."""
    batch = clips()
    results = []
    for level in ("torch", "triton"):
        learner = learner_for(tiny_config, way)
        gradients = []
        for optimizer in (learner.runner.optimizer, learner.sampler_optimizer):
            optimizer.register_step_pre_hook(
                lambda opt, *_, kept=gradients: kept.extend(
                    p.grad.clone()
                    for group in opt.param_groups
                    for p in group["params"]
                    if p.grad is not None
                )
            )
        with kernels.use(level):
            metrics = pretrain_step(learner, [batch], StepPlan(0, 1e-3, 6, False))
        results.append((metrics, gradients))
    (plain, expected), (fused, found) = results
    for name in ("loss_recon", "entropy_frac", "motion_lift", "frame_spread"):
        torch.testing.assert_close(fused[name], plain[name], rtol=1e-5, atol=1e-6, msg=name)
    # Relative to the reward's small deviation, as the gradients below.
    torch.testing.assert_close(fused["loss_value"], plain["loss_value"], rtol=1e-4, atol=1e-6)
    assert len(expected) == len(found) > 40
    for one, two in zip(expected, found, strict=True):
        # The sampler's are divided by the reward's small deviation, which costs digits.
        assert (two - one).abs().max() <= 2e-3 * one.abs().max() + 1e-6


def test_one_graph_with_custom_ops(tiny_config):
    """Triton kernels are no break in a compiled model."""
    learner = learner_for(tiny_config, "dense")
    mae, sampler = learner.mae, learner.sampler
    patches, noise = patchify(clips(), 2, 8), torch.rand(2, 27, device=DEVICE)

    def forward(patches, noise):
        tokens = mae.embed(patches)
        policy = sampler(tokens.detach(), noise)
        split = TokenSplit(order=policy.order, count=6, length=27)
        prediction = mae.decode(mae.encode(tokens, split), split)
        return kernels.masked_mse(prediction, patches, split.masked).mean() + policy.value.mean()

    with kernels.use("triton"):
        whole = torch.compile(forward, fullgraph=True, backend="aot_eager")
        loss = whole(patches, noise)
        loss.backward()
        torch.testing.assert_close(loss, forward(patches, noise), rtol=1e-4, atol=1e-5)
