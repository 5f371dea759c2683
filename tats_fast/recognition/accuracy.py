"""Accuracy of class scores, as pure functions. Legend: M videos, U lost videos, K classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Accuracy:
    """Shares of videos in [0, 1] whose class was predicted."""

    top1: float
    top5: float | None
    """Whose class is among the five best; None with five classes or fewer."""
    mean_class: float
    """Mean of ``per_class`` over the classes that have a video, each counting the same."""
    per_class: list[float | None]
    """Top-1 among the videos of class 0, 1, ...; None where there is none."""


def best_first(scores: Tensor) -> Tensor:
    """Class ids from the greatest score to the least: (M, K) -> (M, K) int64. The first one is the
    prediction. Of equal scores the lower id comes first, a rule that does not look at the labels.
    """
    return scores.argsort(dim=1, descending=True, stable=True)


def places(scores: Tensor, labels: Tensor) -> Tensor:
    """Place of the true class in ``best_first``: (M, K), (M,) -> (M,) int64; 0 = it is predicted.

    NaN comes before all numbers, and a true class whose score is not finite is in place K: a model
    that computes no number is never right.
    """
    place = (best_first(scores) == labels[:, None]).int().argmax(1)
    finite = scores.gather(1, labels[:, None])[:, 0].isfinite()
    return place.where(finite, scores.shape[1])


def top_accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Share of videos, in [0, 1], whose class is among the ``k`` best: (M, K), (M,)."""
    return (places(scores, labels) < k).float().mean().item()


def measure(scores: Tensor, labels: Tensor, lost: Tensor | None = None) -> Accuracy:
    """Accuracy of ``scores`` (M, K), float, for videos of the classes ``labels`` (M,), int64.

    Classes 0, 0, 1 of which one video of class 0 is right -> top1 1/3, mean_class 1/4.

    Args:
        lost: (U,) int64, classes of videos without scores, which count as wrong; none = there are
            none.

    Raises:
        ValueError: no video, or a score that is not finite.
    """
    classes = scores.shape[1]
    everything = labels if lost is None else torch.cat([labels, lost])
    if not len(everything):
        raise ValueError("expected at least one video, got none")
    broken = int((~scores.isfinite()).any(1).sum())
    if broken:
        raise ValueError(f"the scores of {broken} of {len(scores)} videos are not finite")
    place = places(scores, labels)
    right = torch.bincount(labels[place == 0], minlength=classes).double()
    videos = torch.bincount(everything, minlength=classes)
    shares = right / videos  # NaN where there is no video
    return Accuracy(
        top1=right.sum().item() / len(everything),
        top5=(place < 5).sum().item() / len(everything) if classes > 5 else None,
        mean_class=shares[videos > 0].mean().item(),
        per_class=[s if n else None for s, n in zip(shares.tolist(), videos.tolist(), strict=True)],
    )


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How many videos of class i (row) were taken for class j (column): (M,), (M,) -> (K, K)."""
    cells = torch.bincount(labels * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes)
