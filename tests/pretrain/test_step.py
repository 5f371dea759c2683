"""The step's shape: one forward for whoever wraps it, and the nine lines in their order."""

from __future__ import annotations

import re

import torch
from project import ROOT

from tats_fast.engine.distributed import World
from tats_fast.masking import uniform_from
from tats_fast.models.patchify import motion_energy, patchify
from tats_fast.pretrain import step
from tats_fast.pretrain.learner import make_learner
from tats_fast.pretrain.step import Drawing, StepPlan

CPU = World(0, 1, torch.device("cpu"))


def test_one_forward_touches_every_parameter_of_the_wrapped_module(run_config):
    """DDP would wait for a gradient that never comes; the sampler's come from elsewhere."""
    learner = make_learner(run_config(), CPU)
    model = learner.config.model
    clips = torch.randint(0, 256, (2, 8, 32, 32, 3), dtype=torch.uint8)
    patches = patchify(clips, model.tubelet_size, model.patch_size)
    motion = motion_energy(patches, model.tubelet_size)
    uniform = uniform_from(learner.generator)
    drawing = Drawing(StepPlan(0, 1e-3, 16, False), learner.sampler, uniform, motion)
    batch = learner.runner.module(patches, drawing)
    batch.error.mean().backward()
    for name, parameter in learner.runner.module.named_parameters():
        assert parameter.grad is not None, name
    owned = {id(parameter) for parameter in learner.runner.module.parameters()}
    assert not owned & {id(parameter) for parameter in learner.sampler.parameters()}


def test_the_nine_lines_stand_in_their_order():
    """Each numbered line of the step once, as docs/method.md numbers them."""
    code = (ROOT / "tats_fast/pretrain/step.py").read_text()
    numbered = re.findall(r"(\w+)\(.*  # (\d)(?: to (\d))?$", code, re.MULTILINE)
    names = ["embed", "sample_policy", "draw", "encode", "decode_tokens", "masked_mse"]
    names += ["roll_out", "credit", "update_networks", "inner_epochs"]
    assert [name for name, *_ in numbered] == names
    assert [int(first) for _, first, _ in numbered] == [1, 2, 3, 4, 5, 6, 1, 7, 8, 9]
    assert all(callable(getattr(step, name)) for name in (names[1], names[2], *names[6:]))
    listed = re.findall(r"^(\d)  ", (ROOT / "docs/method.md").read_text(), re.MULTILINE)
    assert listed == list("123456789")
