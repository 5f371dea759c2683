"""tats_fast/engine/runner.py: one update, whatever the gradients hold."""

from __future__ import annotations

import pytest
import torch

from tats_fast.config import OptimConfig
from tats_fast.engine.optim import make_optimizer
from tats_fast.engine.runner import update


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_gradient_that_is_not_finite_changes_nothing(clip, bad):
    module = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(module, OptimConfig())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    module.weight.grad[0, 1] = bad
    done = update(optimizer, module, 0.1, clip, torch.zeros(()))
    assert done.skip == 1 and not done.grad_norm.isfinite()
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    # The next step is an ordinary one.
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert update(optimizer, module, 0.1, clip, torch.zeros(())).skip == 0
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert not torch.equal(module.weight, before["weight"])
