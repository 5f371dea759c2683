"""What makes a step fast must not change it: compiled, recomputed, and never waiting."""

from __future__ import annotations

import pytest
import torch
from run_checks import RefuseToWait

from tats_fast import kernels
from tats_fast.engine.distributed import World
from tats_fast.models import TokenSplit
from tats_fast.models.execution import blocks
from tats_fast.models.patchify import patchify
from tats_fast.pretrain.learner import make_learner
from tats_fast.pretrain.step import StepPlan, pretrain_step

CPU = World(0, 1, torch.device("cpu"))
PLAN = StepPlan(step=0, lr=1e-3, visible=16, warmup=False)
WAYS = {
    "dense": {},
    "adaptive": {"masking": {"ratio": 0.75, "budget": "adaptive", "decoder_keep_ratio": 0.5}},
}
STEPS = {**WAYS, "every": {"sampler": {"learn_every": 2}}}


def learner_for(tiny_config, train=None, **sections):
    train = {"batch_size": 4, "steps": 4, "precision": "fp32", **(train or {})}
    return make_learner(tiny_config(train=train, **sections), CPU)


def clips(count=4):
    return torch.randint(0, 256, (count, 8, 32, 32, 3), dtype=torch.uint8)


def parameters(learner):
    modules = (learner.mae, learner.sampler)
    return [p.detach().clone() for module in modules for p in module.parameters()]


@pytest.mark.parametrize("way", STEPS)
@pytest.mark.parametrize("option", ["recompute", "compile"])
def test_same_step(tiny_config, option, way, monkeypatch):
    if option == "compile":  # without a compiler's minute: the same graphs, run as they are
        function = torch.compile
        monkeypatch.setattr(
            torch,
            "compile",
            lambda f, **kw: function(f, **kw, backend="aot_eager", fullgraph=True),
        )
    batch = clips()
    results = []
    for train in ({}, {option: True}):
        learner = learner_for(tiny_config, train, **STEPS[way])
        metrics = [pretrain_step(learner, [batch], PLAN) for _ in range(2)]
        results.append((metrics[-1], parameters(learner)))
    (plain, expected), (other, found) = results
    for name, value in plain.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-3, atol=2e-5)


def test_recompute_keeps_less(tiny_config):
    kept = {}
    for recompute in (False, True):
        learner = learner_for(tiny_config, {"recompute": recompute})
        sizes: list[int] = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        tokens = torch.randn(2, 64, 32, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            for block in blocks(learner.sampler):
                block(tokens).sum().backward()
        kept[recompute] = sum(sizes)
    assert kept[True] < 0.2 * kept[False]


@pytest.mark.slow
def test_compiled_by_inductor_trains_alike(tiny_config):
    batch = clips()
    losses = []
    for compile_ in (False, True):
        learner = learner_for(tiny_config, {"compile": compile_})
        losses.append(
            [pretrain_step(learner, [batch], PLAN)["loss_recon"].item() for _ in range(3)]
        )
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_model_and_sampler_are_one_graph(tiny_config, way):
    learner = learner_for(tiny_config, **WAYS[way])
    mae, sampler = learner.mae, learner.sampler
    patches = patchify(clips(), 2, 8)
    noise = torch.rand(4, 64)

    def forward(patches, noise):
        tokens = mae.embed(patches)
        policy = sampler(tokens.detach(), noise)
        split = TokenSplit(order=policy.order, count=16, length=64)
        prediction = mae.decode(mae.encode(tokens, split), split)
        return kernels.masked_mse(prediction, patches, split.masked).mean() + policy.value.mean()

    whole = torch.compile(forward, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(patches, noise), forward(patches, noise))
    whole(patches, noise).backward()


@pytest.mark.parametrize(
    "sections",
    [
        {},
        WAYS["adaptive"],
        {"ppo": {"credit": "set", "reward": "error_motion"}, "optim": {"grad_clip": 1.0}},
        {"masking": {"ratio": 0.75, "strategy": "adamae"}},
        {"masking": {"ratio": 0.75, "strategy": "tube"}},
        {"masking": {"ratio": 0.75, "draws_per_clip": 3}},
        {"sampler": {"learn_every": 2}},
        {"train": {"accumulation": 2, "recompute": True}},
    ],
    ids=["tats", "adaptive", "set", "adamae", "tube", "draws", "every", "accumulation"],
)
def test_no_step_waits_for_the_device(tiny_config, sections):
    learner = learner_for(tiny_config, **sections)
    batches = list(clips().chunk(learner.config.train.accumulation))
    pretrain_step(learner, batches, PLAN)  # optimizers create their state in the first step
    with RefuseToWait():
        pretrain_step(learner, batches, PLAN)


def test_the_watch_for_waiting_sees_one():
    with pytest.raises(AssertionError, match="waits for the device"), RefuseToWait():
        torch.ones(3).sum().item()
    with pytest.raises(AssertionError, match="boolean index"), RefuseToWait():
        torch.ones(3)[torch.tensor([True, False, True])]
