"""Masking strategies behind one interface."""

from tats_fast.masking.schedule import mask_ratio_at
from tats_fast.masking.strategies import split_tokens, visible_tokens

__all__ = ["mask_ratio_at", "split_tokens", "visible_tokens"]
