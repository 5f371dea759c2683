"""How the transformer blocks of a run are executed: compiled, recomputed, or as they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tats_fast.config.training import LoopConfig
from tats_fast.models.layers import Block
from tats_fast.models.patchify import patches_and_statistics


def blocks(*modules: nn.Module | None) -> list[Block]:
    """All transformer blocks inside ``modules``; None counts as an empty module."""
    return [part for part in _parts(*modules) if isinstance(part, Block)]


def _parts(*modules: nn.Module | None) -> list[nn.Module]:
    return [part for module in modules if module is not None for part in module.modules()]


def prepare_blocks(
    train: LoopConfig,
    device: torch.device,
    fixed_length: bool,
    *modules: nn.Module | None,
    split: bool = False,
) -> None:
    """Apply ``train.compile`` and ``train.recompute``.

    fixed_length: whether the number of tokens is the same throughout the run.
    split: whether ZeRO-3 gathers weights in hooks of modules, which no graph may hold.

    One graph per block rather than one per model: blocks of a kind share it, so that compiling
    costs a minute and not twenty, and no wrapper's hooks (DDP, ZeRO) are in its way. What lies
    between the blocks and passes over every token has graphs of its own: the methods that a module
    names in ``regions``.
    """
    # Shapes never change within a run with a constant ratio; but dynamo, meeting blocks of several
    # sizes, would compile one graph for any size.
    dynamic, compiled = False if fixed_length else None, train.compiles(device.type)
    for block in blocks(*modules):
        block.recompute = train.recompute
        if compiled and split:
            block.forward = torch.compile(block.forward, dynamic=dynamic)
        elif compiled:
            block.compile(dynamic=dynamic)
    if compiled:
        for part in _parts(*modules):
            for name in getattr(part, "regions", ()):
                if split:
                    if name == "forward":  # others call modules, and with them their hooks
                        part.forward = torch.compile(part.forward, dynamic=dynamic)
                elif name == "forward":
                    part.compile(dynamic=dynamic)
                else:
                    setattr(part, name, torch.compile(getattr(part, name), dynamic=dynamic))
        # Past this many variants of a function dynamo silently runs it eagerly.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)


def compiled_cut() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """``patches_and_statistics`` in few passes over the bytes (statistics on the CPU, ViT-B: 0.1 ms
    per clip against 11)."""
    return torch.compile(patches_and_statistics, dynamic=False)
