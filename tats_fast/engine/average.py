"""The exponential moving average of a model's weights (Polyak and Juditsky 1992, in its decaying
form)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

PART = 2**24
"""Numbers that one update works on at a time, which bounds its temporary to 64 MB."""


class WeightAverage:
    """average <- decay average + (1 - decay) weights after every update, in the weights' precision.

    It starts at the weights it is made with, and remembers about 1 / (1 - decay) updates. Each
    process averages what it keeps (``Runner.parts``): all weights, or under ZeRO-3 a part.
    """

    def __init__(self, parts: Callable[[], Mapping[str, Tensor]], decay: float) -> None:
        """
        Args:
            parts: the weights by name, to be changed in place; the same names every time.
        """
        self.decay = decay
        self.values = {name: part.detach().clone() for name, part in parts().items()}
        """By the same names."""
        self._parts = parts

    @torch.no_grad()
    def update(self, skip: Tensor) -> None:
        """Take in the weights, unless ``skip`` (0-d, on the device) is 1. Nothing waits, unless the
        weights lie on the host."""
        share = (1 - self.decay) * (1 - skip)
        for values, weights in self._in_parts():
            change = torch._foreach_sub(weights, values)
            torch._foreach_mul_(change, share.to(weights[0].device))
            torch._foreach_add_(values, change)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Start from these instead; in place."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average inside, and its own weights back after. No step may be taken
        there."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, part in self._parts().items():
            training = part.clone()
            part.copy_(self.values[name])
            self.values[name].copy_(training)

    def _in_parts(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        values: list[Tensor] = []
        weights: list[Tensor] = []
        size = 0
        for name, weight in self._parts().items():
            values.append(self.values[name])
            weights.append(weight)
            size += weight.numel()
            if size >= PART:
                yield values, weights
                values, weights, size = [], [], 0
        if weights:
            yield values, weights
