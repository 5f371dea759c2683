"""Labels of listed videos as class numbers."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from tats_fast.config import ConfigError
from tats_fast.config.finetune import LabelledDataConfig
from tats_fast.data.files import shown
from tats_fast.data.lists import Video, is_integer

LOGGER = logging.getLogger("tats_fast")
CLASSES_FILE = "classes.txt"
# Of lists that mark what has no label with -1, or hold scores.
_ODD = r"-[0-9]+|[+-]?[0-9]*\.[0-9]+"


def label_numbers(
    train: Sequence[Video],
    evaluated: Sequence[Video],
    keys: tuple[str, str] = ("train", "eval"),
) -> tuple[Tensor, Tensor, list[str]]:
    """Labels as numbers 0..K-1, int64, of both lists, and the K class names by number.

    Classes are those of the training list in sorted order, integers by value.

    Args:
        keys: what messages call the lists.

    Raises:
        ConfigError: a video without label, a class that only ``evaluated`` has, or one class only.
    """
    for key, videos in zip(keys, (train, evaluated), strict=True):
        if not videos:
            raise ConfigError(f"{key}: lists no video")
        _require_labels(videos, key)
    classes = {video.label for video in train}
    # "12" among words is a word: a list is of integers only if all its labels are.
    if not all(isinstance(label, int) for label in classes):
        classes = {str(label) for label in classes}
        train, evaluated = ([Video(v.path, str(v.label)) for v in x] for x in (train, evaluated))
    numbers = {label: number for number, label in enumerate(sorted(classes))}
    if len(numbers) < 2:
        raise ConfigError(f"{keys[0]}: every label is {next(iter(classes))}; expected two or more")
    for video in evaluated:
        if video.label not in numbers:
            raise ConfigError(f"{keys[1]}: the label {video.label} does not occur in {keys[0]}")
    labels, true = (torch.tensor([numbers[v.label] for v in x]) for x in (train, evaluated))
    return labels, true, list(map(str, numbers))


def warn_of_odd_names(names: Sequence[str], key: str = "train") -> None:
    """Say so where names of classes look like a mark of no label, or like scores.

    Args:
        key: what the message calls the list they come from.
    """
    odd = [name for name in names if re.fullmatch(_ODD, name)]
    if odd:
        LOGGER.warning(
            "%s: %s is taken as the name of a class%s, not as a number; such videos may be better "
            "left out",
            key,
            odd[0],
            f", like {len(odd) - 1} more" if odd[1:] else "",
        )


def classes_file(config: LabelledDataConfig) -> str | None:
    """``data.classes``, or the ``classes.txt`` that ``tats-fast prepare`` leaves beside a list; of
    several lists, beside the first."""
    if config.classes is not None or not config.train_lists:
        return config.classes
    first = os.path.expanduser(config.train_lists[0].list)
    beside = os.path.join(os.path.dirname(first), CLASSES_FILE)
    return beside if os.path.isfile(beside) else None


def class_ids(
    videos: Sequence[Video], classes: Sequence[str], key: str = "list", named: bool = False
) -> Tensor:
    """Labels of ``videos`` as positions in ``classes``: (M,) int64.

    A list whose labels are all integers holds class ids, unless the classes are integers too, which
    then say which id is which. Any other list holds names.

    Args:
        key: what messages call the list.
        named: the classes were called as labels are: a list that holds none but names of classes,
            integers as they may be, holds names.

    Raises:
        ConfigError: a video without label, or a label that is no class; one line.
    """
    _require_labels(videos, key)
    ids: dict[int | str, int] = {name: number for number, name in enumerate(classes)}
    integers = all(isinstance(video.label, int) for video in videos)
    if integers:
        words = [name for name in classes if not is_integer(name)]
        numbered = {int(name): number for name, number in ids.items() if name not in words}
        by_name = not words or (named and all(video.label in numbered for video in videos))
        ids = numbered if by_name else {number: number for number in range(len(classes))}
    labels = [video.label if integers else str(video.label) for video in videos]
    for video, label in zip(videos, labels, strict=True):
        if label not in ids:
            some = ", ".join(shown(str(name)) for name in [*ids][:3])
            raise ConfigError(
                f"{key}: the label {shown(str(label))} of {shown(video.path)} is not one of the "
                f"checkpoint's {len(classes)} classes ({some}{', ...' * (len(ids) > 3)})"
            )
    return torch.tensor([ids[label] for label in labels], dtype=torch.int64)


def _require_labels(videos: Sequence[Video], key: str) -> None:
    for video in videos:
        if video.label is None:
            raise ConfigError(
                f"{key}: {shown(video.path)} has no label; write a list of path and label, as "
                "tats-fast prepare does"
            )
