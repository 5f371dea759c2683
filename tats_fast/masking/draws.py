"""Where chance comes from: uniform numbers for the clips of a batch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor

Uniform = Callable[[int, int], Tensor]
"""``uniform(clips, numbers)``: (clips, numbers) fp32 in [0, 1) on the device of the draw."""


def uniform_from(generator: torch.Generator) -> Uniform:
    """The generator's next numbers, on its device."""
    return lambda clips, numbers: torch.rand(
        (clips, numbers), device=generator.device, generator=generator
    )


def shared_among(uniform: Uniform, draws: int) -> Uniform:
    """The numbers of clips as those of their draws, a clip's in a row: for whom a row is a draw."""
    return lambda rows, numbers: uniform(rows // draws, draws * numbers).view(rows, numbers)


class StepDraws:
    """The numbers of one optimizer step: drawn on every process for the clips of all of them, and
    handed out by a clip's place in the global batch.

    So a clip's draw depends neither on the number of processes nor on that of micro-batches. At
    256 clips of 1,568 tokens that is 1.6 MB per draw.

    Args:
        generator: seeded alike on every process.
        clips: of the global batch.
    """

    def __init__(self, generator: torch.Generator, clips: int) -> None:
        self._uniform = uniform_from(generator)
        self._clips = clips
        self._drawn: list[Tensor] = []

    def of_clips(self, first: int) -> Uniform:
        """The numbers of a micro-batch whose first clip is the global batch's number ``first``.

        Micro-batches of a step ask for the same numbers in the same order.
        """
        number = count()

        def uniform(clips: int, numbers: int) -> Tensor:
            index = next(number)
            if index == len(self._drawn):
                self._drawn.append(self._uniform(self._clips, numbers))
            return self._drawn[index][first : first + clips]

        return uniform
