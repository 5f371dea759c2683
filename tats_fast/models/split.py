"""Which tokens a batch shows, hides and scores, dense or packed.

Legend: B clips, N tokens, N_v visible, L tokens of a decoder sequence, T rows of a packed batch, M
draws of each clip (1, but where ``masking.draws_per_clip`` says otherwise).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from tats_fast.kernels import batch_rows


class Packing(NamedTuple):
    """Sequences of different lengths one after another: clip b owns rows offsets[b] to
    offsets[b + 1]. ``offsets`` (B + 1,) int32 on the device; ``longest`` bounds every length on
    the host, so that nobody has to ask the device for it."""

    offsets: Tensor
    longest: int


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenSplit:
    """One draw for every clip of a batch.

    Example with N = 5, N_v = 2: order [[3, 0, 1, 2, 4]] shows tokens 3 and 0 and hides the rest;
    with ``length`` 4 the decoder rebuilds 1 and 2 only, and token 4 is neither seen nor scored.

    ``visible`` and ``masked`` index tokens as the kernels take them: (B, N_v) and (B, L - N_v)
    inside each clip, or with ``packing`` 1-D rows b*N + i of the batch, clip after clip.
    """

    order: Tensor
    """(B, N) int64: each clip's tokens, the visible ones first and in drawing order."""
    count: int
    """N_v, visible tokens per clip; on average, where clips differ."""
    length: int
    """L <= N: leading entries of ``order`` that the decoder sees."""
    packing: Packing | None = None
    """Where clips differ in their visible tokens: their packed rows."""
    draws: int = 1
    """M. Above 1 every B here counts draws, a clip's M in a row, and there is no ``packing``."""

    visible: Tensor = field(init=False)
    """Tokens that the encoder sees."""
    masked: Tensor = field(init=False)
    """Tokens that the decoder rebuilds and the loss scores."""
    masked_slots: Tensor | None = field(init=False)
    """Packed only: rows b*L + position of the masked tokens in the decoder's sequences."""

    def __post_init__(self) -> None:
        # Computed at once, not when first read: that would break a compiled model's graph.
        if self.packing is None:
            visible, slots = self.order[:, : self.count], None
            masked = self.order[:, self.count : self.length]
        else:
            batch, offsets = self.order.shape[0], self.packing.offsets.long()
            visible, _ = self._packed_rows(offsets, batch * self.count, torch.zeros_like(offsets))
            clips = torch.arange(batch + 1, device=self.order.device)
            masked, slots = self._packed_rows(
                clips * self.length - offsets, batch * (self.length - self.count), offsets.diff()
            )
        for name, value in (("visible", visible), ("masked", masked), ("masked_slots", slots)):
            object.__setattr__(self, name, value)  # frozen for everyone else

    def by_clip(self, values: Tensor) -> Tensor:
        """What draws have, (B M, n, ...), as what their clips have, (B, M n, ...); no copy of a
        contiguous tensor."""
        return values if self.draws == 1 else values.unflatten(0, (-1, self.draws)).flatten(1, 2)

    def by_draw(self, values: Tensor) -> Tensor:
        """What clips have, (B, ...), for each of their draws, (B M, ...)."""
        return values if self.draws == 1 else values.repeat_interleave(self.draws, dim=0)

    @property
    def sequence(self) -> Tensor:
        """(B, L): the decoder's tokens, visible first."""
        return self.order[:, : self.length]

    def scatter(self, values: Tensor) -> Tensor:
        """Values of ``masked``'s shape -> (B, N) by token, 0 where nothing is scored."""
        batch, tokens = self.order.shape
        rows = batch_rows(self.masked, tokens).flatten()
        flat = values.new_zeros(batch * tokens)
        return flat.scatter(0, rows, values.flatten()).view(batch, tokens)

    @cached_property
    def scored(self) -> Tensor:
        """(B, N) fp32: 1 for masked tokens that are rebuilt, else 0."""
        return self.scatter(torch.ones(self.masked.shape, device=self.order.device))

    @cached_property
    def visible_mask(self) -> Tensor:
        """(B, N) fp32: 1 for visible tokens, else 0."""
        batch, tokens = self.order.shape
        rows = batch_rows(self.visible, tokens).flatten()
        flat = torch.zeros(batch * tokens, device=self.order.device)
        return flat.scatter(0, rows, 1.0).view(batch, tokens)

    @cached_property
    def counts(self) -> Tensor:
        """(B,) int64: visible tokens of each clip."""
        if self.packing is None:
            return self.order.new_full(self.order.shape[:1], self.count)
        return self.packing.offsets.diff().long()

    def _packed_rows(self, offsets: Tensor, total: int, start: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of tokens and of sequence slots that clips contribute: offsets[b + 1] - offsets[b]
        of them from slot start[b] on. ``total`` is known on the host, so no shape depends on
        what the device holds."""
        tokens = self.order.shape[1]
        row = torch.arange(total, device=self.order.device)
        clip = torch.searchsorted(offsets[1:], row, right=True)
        slot = row - offsets[clip] + start[clip]
        return clip * tokens + self.order[clip, slot], clip * self.length + slot
