"""Which tokens stay visible: strategies behind one interface, ratio schedule, budget.

How a strategy learns belongs to ``rl``.
"""

from tats_fast.masking.draws import StepDraws, Uniform, uniform_from
from tats_fast.masking.schedule import mask_ratio_at
from tats_fast.masking.strategies import (
    decoder_length,
    draw_order,
    split_for_training,
    split_tokens,
    visible_tokens,
)

__all__ = [
    "StepDraws",
    "Uniform",
    "decoder_length",
    "draw_order",
    "mask_ratio_at",
    "split_for_training",
    "split_tokens",
    "uniform_from",
    "visible_tokens",
]
