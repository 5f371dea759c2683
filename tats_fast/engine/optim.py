"""AdamW's parameter groups and the learning-rate schedule."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tats_fast.config import OptimConfig
from tats_fast.engine.distributed import World

LR_REFERENCE_BATCH = 256


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: matrices with decay; biases, norms, mask token and positions without."""
    decay, plain = [], []
    for name, parameter in module.named_parameters():
        is_plain = parameter.ndim <= 1 or name.split(".")[-1] == "positions"
        (plain if is_plain else decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over ``parameter_groups``."""
    return make_adamw(parameter_groups(module, config.weight_decay), config)


def make_adamw(groups: list[dict], config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW: one launch, and it can skip a step on the device (``skip_step_if``).

    The learning rate is set at each step by ``set_lr``.
    """
    return torch.optim.AdamW(groups, lr=config.base_lr, betas=tuple(config.betas), fused=True)


def skip_step_if(optimizer: torch.optim.Optimizer, flag: Tensor) -> None:
    """Make the next ``step`` do nothing where ``flag`` (0-d, fp32) is 1, without a host sync.

    Fused optimizers read these two attributes, which ``torch.amp.GradScaler`` sets the same way.
    """
    optimizer.grad_scale = None
    optimizer.found_inf = flag


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over a saved ``state_dict``: the moments, but not weight decay, betas or ``lr_scale``,
    which are those that the optimizer was made with."""
    own = settings_of(optimizer)
    optimizer.load_state_dict(state)
    restore_settings(optimizer, own)


def settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Of each parameter group, everything but the parameters."""
    return [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def restore_settings(optimizer: torch.optim.Optimizer, settings: list[dict[str, Any]]) -> None:
    """Give every parameter group what ``settings_of`` returned before."""
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


def set_lr(optimizer: torch.optim.Optimizer, lr: float | Tensor) -> None:
    """Set every group's learning rate to ``lr`` times its ``lr_scale``, if it has one.

    As a 0-d fp64 tensor on the parameters' device it may change after the update was recorded in a
    CUDA graph. The product is then the host's, and so is the fused kernel's only rounding, to fp32:
    it updates to the same bits.
    """
    for group in optimizer.param_groups:
        rate = lr * group["lr_scale"] if "lr_scale" in group else lr
        group["lr"] = rate.float() if isinstance(rate, Tensor) else rate


@contextlib.contextmanager
def capturable(*optimizers: torch.optim.Optimizer) -> Iterator[None]:
    """Let ``step`` be recorded in a CUDA graph. A fused optimizer whose state exists does the same
    work either way, so its state dict need not say that it once was."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    before = [group["capturable"] for group in groups]
    try:
        for group in groups:
            group["capturable"] = True
        yield
    finally:
        for group, value in zip(groups, before, strict=True):
            group["capturable"] = value


def lr_at(config: OptimConfig, step: int, total_steps: int, global_batch: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0): linear warm-up, then half a cosine.

    All three configured rates scale by global_batch / 256 (Goyal et al. 2017, section 2.1).
    """
    scale = global_batch / LR_REFERENCE_BATCH
    warmup = round(config.warmup_frac * total_steps)
    if step < warmup:
        rate = config.warmup_lr + (config.base_lr - config.warmup_lr) * step / warmup
    else:
        progress = (step - warmup) / max(1, total_steps - 1 - warmup)
        cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
        rate = config.min_lr + (config.base_lr - config.min_lr) * cosine
    return rate * scale


def any_not_finite(world: World, losses: list[Tensor]) -> Tensor:
    """1 if any loss of any process is not finite, else 0; 0-d fp32, no host sync."""
    finite = torch.isfinite(torch.stack(losses)).all()
    return world.maximum((~finite).float())
