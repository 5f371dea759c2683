"""An evaluation's result, and the table and files that present it.

Legend: M readable videos, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tats_fast.config import ConfigError
from tats_fast.data.files import shown, write_bytes, write_csv, write_json
from tats_fast.data.lists import Video
from tats_fast.recognition.accuracy import Accuracy, best_first, confusion_matrix, measure
from tats_fast.recognition.confusion import confusion_picture, confusion_rows
from tats_fast.recognition.options import Views
from tats_fast.recognition.scores import Scored

FOLDER = "evaluation"  # of a run, by default
TOP = 5
_WORST = 5  # classes that the printed table names


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: everything that its files hold."""

    classes: list[str]
    videos: Sequence[Video]
    labels: Tensor
    """Class id of every listed video, (M + unreadable,) int64."""
    scored: Scored
    accuracy: Accuracy
    """Over the readable videos."""
    lower_bound: Accuracy
    """The same with every unreadable video counted as wrong."""
    order: Tensor
    """Class ids of each readable video from the most probable on, (M, K) int64."""
    confusion: Tensor
    """(K, K) int64, rows true."""


def make_evaluation(
    classes: Sequence[str],
    videos: Sequence[Video],
    labels: Tensor,
    scored: Scored,
    key: str = "list",
) -> Evaluation:
    """Accuracies of ``scored``, whose positions are those in ``videos`` and ``labels``.

    Args:
        key: what messages call the list.

    Raises:
        ConfigError: no video could be read, or the scores are not finite.
    """
    if not scored.numbers:
        path, reason = scored.bad[0]
        raise ConfigError(f"{key}: no video could be read, for example {shown(path)}: {reason}")
    true, lost = labels[scored.numbers], labels[scored.bad_numbers]
    try:
        accuracy = measure(scored.probabilities, true)
    except ValueError as error:
        raise ConfigError(f"checkpoint: {error}") from error
    order = best_first(scored.probabilities)
    return Evaluation(
        classes=[shown(name) for name in classes],
        videos=videos,
        labels=labels,
        scored=scored,
        accuracy=accuracy,
        lower_bound=measure(scored.probabilities, true, lost),
        order=order,
        confusion=confusion_matrix(order[:, 0], true, len(classes)),
    )


def write_files(folder: Path, result: Evaluation, facts: dict[str, Any]) -> None:
    """Write the evaluation's files into ``folder``, ``evaluation.json`` last.

    Args:
        facts: further entries of ``evaluation.json``.

    Raises:
        ConfigError: the folder cannot be written.
    """
    names, scored = result.classes, result.scored
    write_csv(folder / "predictions.csv", prediction_rows(result))
    write_csv(folder / "per_class.csv", class_rows(result))
    write_csv(folder / "confusion.csv", confusion_rows(result.confusion, names))
    title = f"top-1 {percent(result.accuracy.top1)} %"
    subtitle = f"{len(names)} classes, {len(scored.numbers)} videos"
    picture = confusion_picture(result.confusion, names, title, subtitle)
    write_bytes(folder / "confusion.png", picture)
    record = {
        **facts,
        "videos": len(result.videos),
        "readable": len(scored.numbers),
        "accuracy": _totals(result.accuracy),
        "lower_bound": _totals(result.lower_bound),
        "unreadable": scored.bad,
        "classes": names,
    }
    write_json(folder / "evaluation.json", record)


def prediction_rows(result: Evaluation) -> Iterator[list[object]]:
    """A header, then per readable video path, class and the most probable classes."""
    classes, top = result.classes, min(TOP, len(result.classes))
    columns = [f"{name}_{n}" for n in range(1, top + 1) for name in ("predicted", "probability")]
    yield ["path", "label", *columns]
    scored = result.scored
    rows = zip(scored.numbers, scored.probabilities, result.order[:, :top], strict=True)
    for number, probabilities, best in rows:
        pairs = ((classes[i], f"{probabilities[i]:.6f}") for i in best.tolist())
        label = classes[result.labels[number]]
        yield [shown(result.videos[number].path), label, *(cell for pair in pairs for cell in pair)]


def class_rows(result: Evaluation) -> Iterator[list[object]]:
    """A header, then per class its accuracy, and the class that it was most often taken for."""
    yield ["class", "videos", "unreadable", "right", "accuracy", "taken_for", "times"]
    classes, lost = result.classes, result.labels[result.scored.bad_numbers]
    unreadable = torch.bincount(lost, minlength=len(classes)).tolist()
    for number, (name, share) in enumerate(zip(classes, result.accuracy.per_class, strict=True)):
        row = result.confusion[number]
        counts = [int(row.sum()), unreadable[number], int(row[number])]
        accuracy = None if share is None else f"{share:.6f}"
        yield [name, *counts, accuracy, *_taken_for(result, number)]


def table(result: Evaluation, views: Views) -> str:
    """The evaluation in words: accuracies, then the worst classes."""
    classes, bad = result.classes, result.scored.bad
    lines = [
        f"{len(result.scored.numbers)} videos, {len(classes)} classes, "
        f"{views.clips} clips x {views.crops} crops, {views.sampling}; {len(bad)} unreadable",
        f"{'':<18} {'top-1':>6} {'top-5':>6} {'mean class':>10}",
    ]
    kinds = [("readable videos", result.accuracy), ("unreadable wrong", result.lower_bound)]
    for name, accuracy in kinds if bad else kinds[:1]:
        top5 = "-" if accuracy.top5 is None else percent(accuracy.top5)
        lines.append(
            f"{name:<18} {percent(accuracy.top1):>6} {top5:>6} {percent(accuracy.mean_class):>10}"
        )
    shares = result.accuracy.per_class
    flawed = [i for i, share in enumerate(shares) if share is not None and share < 1]
    if flawed:
        lines.append("worst classes, top-1:")
    for number in sorted(flawed, key=shares.__getitem__)[:_WORST]:
        row = result.confusion[number]
        other, times = _taken_for(result, number)
        lines.append(
            f"{percent(shares[number]):>6}  {classes[number]}: {row[number]} of {row.sum()}, "
            f"{times} taken for {other}"
        )
    return "\n".join(lines)


def percent(share: float) -> str:
    """0.8315 -> 83.15, as papers give it."""
    return f"{100 * share:.2f}"


def _taken_for(result: Evaluation, number: int) -> tuple[str | None, int]:
    """The class that videos of class ``number`` were most often mistaken for, and how often."""
    mistakes = result.confusion[number].clone()
    mistakes[number] = 0
    times = int(mistakes.max())
    return (result.classes[int(mistakes.argmax())] if times else None), times


def _totals(accuracy: Accuracy) -> dict[str, float | None]:
    return {name: getattr(accuracy, name) for name in ("top1", "top5", "mean_class")}
