"""ZeRO-3, which splits the weights too: how they are gathered for a step, and a module made whole
for what one process computes alone.

Every forward pass of split weights is an exchange between all processes. So what one of them
measures, or each of them on its own share of the videos, runs on a twin with all weights.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
LIVE = 100_000_000
"""Weights that may be gathered at once, blocks ahead of their use included. DeepSpeed fetches up to
50 million more with every block it enters, and with its own limit, a billion, has all of a model of
this project together before the middle of a forward pass."""


def gather_by_unit(module: nn.Module) -> None:
    """Tell DeepSpeed, before it takes over ``module``, what to gather when.

    The weights of a module that says ``unit`` are gathered together: one exchange for a transformer
    block, and no hooks inside it, so that it compiles as elsewhere. A module's ``reads`` names the
    parameters of inner modules that its forward reads without calling them.
    """
    from deepspeed.runtime.zero.partition_parameters import register_external_parameter
    from deepspeed.utils import set_z3_leaf_module

    for part in module.modules():
        if getattr(part, "unit", False):
            set_z3_leaf_module(part, True)
        for name in getattr(part, "reads", ()):
            register_external_parameter(part, part.get_parameter(name))


def in_low_precision(module: nn.Module) -> list[str]:
    """Full names of the classes inside ``module`` whose weights are gathered, and their gradients
    exchanged, in autocast's precision: linear maps, and what says ``autocasts``."""
    kinds = {
        type(part)
        for part in module.modules()
        if isinstance(part, nn.Linear) or getattr(part, "autocasts", False)
    }
    return sorted(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Around a forward pass of split weights: what autograd keeps of a gathered weight is which one
    it was. A linear map keeps a transposed view, and with it, after DeepSpeed has let the weight
    go, all of its numbers until the backward pass, for which they are gathered again anyway.
    Not for compiled modules: what those keep is their compiler's choice.
    """

    def pack(kept: Tensor) -> Tensor | _View:
        weight = kept._base
        if weight is None or not hasattr(weight, "ds_tensor"):
            return kept
        return _View(weight, tuple(kept.shape), kept.stride(), kept.storage_offset())

    def unpack(kept: Tensor | _View) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        return kept.weight.data.as_strided(kept.shape, kept.stride, kept.offset)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


class _View(NamedTuple):
    weight: Tensor
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


def empty_twin(module: M) -> M:
    """A module like this one, to be made before that is compiled or given to DeepSpeed; parameters
    take no memory until they are filled."""
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
        for p in module.parameters()
    }
    return copy.deepcopy(module, empty)


@contextlib.contextmanager
def filled(twin: M, weights: dict[str, Tensor], device: torch.device) -> Iterator[M]:
    """The twin with these weights, named as in its ``state_dict``, on ``device``."""
    empty = twin.state_dict()
    twin.load_state_dict({name: value.to(device) for name, value in weights.items()}, assign=True)
    try:
        yield twin
    finally:
        twin.load_state_dict(empty, assign=True)
