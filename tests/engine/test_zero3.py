"""tats_fast/engine/zero3.py: what a forward pass of split weights keeps.

Runs under DeepSpeed are in test_parity.py, and their memory in ../pretrain/test_memory.py.
"""

from __future__ import annotations

import torch
from torch import nn

from tats_fast.engine.zero3 import without_weights


def gradients(x, first, second, let_go):
    """Of a two-layer map whose weights are let go after its forward pass and gathered before its
    backward pass, as DeepSpeed does, and the memories that held them meanwhile."""
    weights = [first.weight, second.weight]
    if let_go:
        with without_weights():
            loss = second(torch.tanh(first(x))).square().sum()
    else:
        loss = second(torch.tanh(first(x))).square().sum()
    whole = [weight.data.clone() for weight in weights]
    storages = [weight.untyped_storage()._weak_ref() for weight in weights]
    for weight in weights:
        weight.data = torch.empty(0)
    kept = [not torch.UntypedStorage._expired(storage) for storage in storages]
    for weight, values in zip(weights, whole, strict=True):
        weight.data = values
    return torch.autograd.grad(loss, [x, *weights]), kept


def test_no_weight_is_kept_and_gradients_are_the_same():
    # Of two and of three dimensions, and none that is square: a transposed view shows.
    for shape in ((5, 7), (2, 5, 7)):
        first, second = nn.Linear(7, 3), nn.Linear(3, 4)
        for weight in (first.weight, second.weight):
            weight.ds_tensor = None  # DeepSpeed's mark of a weight that it has split
        x = torch.randn(shape, requires_grad=True)
        expected, kept = gradients(x, first, second, let_go=False)
        assert any(kept), "autograd keeps views by itself"
        found, kept = gradients(x, first, second, let_go=True)
        assert not any(kept)
        for one, two in zip(found, expected, strict=True):
            assert torch.equal(one, two)
