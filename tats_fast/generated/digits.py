"""Handwritten digits of scikit-learn as shapes: classes of appearance beside those of motion.

Legend: K digits, D side of a shape in pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tats_fast.config import ConfigError

SIDE = 32
"""D: the digits' 8 pixels, enlarged."""


class Digits(NamedTuple):
    """Digits in the order of their classes."""

    alpha: Tensor
    """(K, D, D) fp32 opacity."""
    ink: Tensor
    """(K,) mean opacity."""
    counts: Tensor
    """(10,) how many there are of each class."""

    def pick(self, labels: Tensor, draws: Tensor) -> Tensor:
        """A random digit of each class (B,) by ``draws`` (B,) in [0, 1): numbers (B,) int64."""
        first = self.counts.cumsum(0) - self.counts
        labels = labels.long()
        return first[labels] + (draws * self.counts[labels]).long()


def load_digits(half: int, key: str = "task") -> Digits:
    """Every second digit of scikit-learn's, on the host.

    Args:
        half: 0 or 1; the two share no picture.
        key: what the message calls the option that asks for them.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise ConfigError(
            f"{key}=digit: needs the digits of scikit-learn, which is not installed; "
            "pip install scikit-learn"
        ) from None
    data = datasets.load_digits()
    labels = torch.from_numpy(data.target)[half::2]
    images = torch.from_numpy(data.images)[half::2].float() / 16
    order = labels.argsort(stable=True)
    images = F.pad(images[order], (1, 1, 1, 1))[:, None]
    large = F.interpolate(images, (SIDE, SIDE), mode="bicubic", align_corners=False)[:, 0]
    alpha = ((large - 0.45) * 5 + 0.5).clamp(0, 1)  # strokes with an edge of about two pixels
    return Digits(alpha, alpha.mean((1, 2)), labels.bincount(minlength=10))
