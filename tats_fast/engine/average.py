"""The exponential moving average of a model's weights (Polyak and Juditsky 1992, in its decaying
form)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

PART = 2**24
"""Numbers that one update works on at a time, which bounds its temporary to 64 MB."""


class WeightAverage:
    """average <- decay average + (1 - decay) weights after every update, in the weights' precision.

    It starts at the weights it is made with, and remembers about 1 / (1 - decay) updates. Under
    ZeRO 1 and 2 every process has all weights after an update, and so the same average.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}
        """By the parameters' names."""
        self._weights = dict(module.named_parameters())
        self._parts: list[tuple[list[Tensor], list[Tensor]]] = []
        size = PART
        for name, value in self.values.items():
            if size >= PART:
                self._parts.append(([], []))
                size = 0
            self._parts[-1][0].append(value)
            self._parts[-1][1].append(self._weights[name])
            size += value.numel()

    @torch.no_grad()
    def update(self, skip: Tensor) -> None:
        """Take in the weights, unless ``skip`` (0-d, on the device) is 1. Nothing waits."""
        share = (1 - self.decay) * (1 - skip)
        for values, weights in self._parts:
            change = torch._foreach_sub(weights, values)
            torch._foreach_mul_(change, share)
            torch._foreach_add_(values, change)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Start from these instead; in place."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The module computes with the average inside, and has its own weights back after."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, value in self.values.items():
            weight = self._weights[name]
            weight.data, value.data = value.data, weight.data
