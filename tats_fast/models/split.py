"""Which tokens a batch shows, hides and scores, dense or packed.

Legend: B clips, N tokens, N_v visible, L tokens of a decoder sequence, T rows of a packed batch.
"""

from __future__ import annotations

from dataclasses import dataclass
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

    @cached_property
    def visible(self) -> Tensor:
        """Tokens that the encoder sees."""
        if self.packing is None:
            return self.order[:, : self.count]
        return self._packed_rows(self.packing.offsets.long(), self.order.shape[0] * self.count)[0]

    @cached_property
    def masked(self) -> Tensor:
        """Tokens that the decoder rebuilds and the loss scores."""
        if self.packing is None:
            return self.order[:, self.count : self.length]
        return self._masked_rows[0]

    @cached_property
    def masked_slots(self) -> Tensor:
        """Where ``masked`` tokens stand in the decoder's sequences: as ``masked``, but positions
        in [0, L) and rows b*L + position."""
        if self.packing is None:
            slots = torch.arange(self.count, self.length, device=self.order.device)
            return slots.expand(self.order.shape[0], -1)
        return self._masked_rows[1]

    @cached_property
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
    def shown(self) -> Tensor:
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

    @cached_property
    def _masked_rows(self) -> tuple[Tensor, Tensor]:
        batch = self.order.shape[0]
        clips = torch.arange(batch + 1, device=self.order.device)
        offsets = clips * self.length - self.packing.offsets
        return self._packed_rows(offsets, batch * (self.length - self.count), self.counts)

    def _packed_rows(
        self, offsets: Tensor, total: int, start: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rows of tokens and of sequence slots that clips contribute: offsets[b + 1] - offsets[b]
        of them from slot start[b] on. ``total`` is known on the host, so no shape depends on
        what the device holds."""
        tokens = self.order.shape[1]
        row = torch.arange(total, device=self.order.device)
        clip = torch.searchsorted(offsets[1:], row, right=True)
        slot = row - offsets[clip] + (0 if start is None else start[clip])
        return clip * tokens + self.order[clip, slot], clip * self.length + slot
