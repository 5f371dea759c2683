"""How the mask ratio moves over training."""

from __future__ import annotations

import math

from tats_fast.config import MaskingConfig


def mask_ratio_at(config: MaskingConfig, progress: float) -> float:
    """Share of tokens hidden at ``progress`` in [0, 1] of training.

    linear: start + (end - start) t; cosine: start + (end - start) (1 - cos(pi t)) / 2.
    """
    if config.schedule == "constant" or config.start_ratio is None:
        return config.ratio
    moved = progress if config.schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return config.start_ratio + (config.ratio - config.start_ratio) * moved
