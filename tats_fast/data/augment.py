"""Augmentation on the device, decided by the same draws as the cut of the clip."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tats_fast.data.clip import ClipDraw
from tats_fast.data.order import ClipKey


def random_flip(clips: torch.Tensor, keys: Sequence[ClipKey], seed: int) -> torch.Tensor:
    """Mirror half of the clips left to right.

    clips: (B, T, H, W, 3), any dtype and device. keys: the B clips' keys. Which clips are mirrored
    is a pure function of (seed, key), whatever backend decoded them. Returns the clips' shape and
    dtype. Raises ``ValueError`` on a different number of keys.
    """
    if len(keys) != len(clips):
        raise ValueError(f"expected one key per clip, {len(clips)}, got {len(keys)}")
    flips = [ClipDraw.of(seed, *key).flip for key in keys]
    mask = torch.tensor(flips, dtype=torch.bool).to(clips.device, non_blocking=True)
    return torch.where(mask[:, None, None, None, None], clips.flip(3), clips)
