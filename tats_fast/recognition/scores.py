"""What a classifier says about videos, averaged over several views of each.

Legend: M videos, V views (clips x crops) of a video, B views of a batch, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from tats_fast.data.lists import Video
from tats_fast.data.opening import BadFiles
from tats_fast.models.classifier import VideoClassifier
from tats_fast.models.patchify import normalised_video
from tats_fast.recognition.decoding import ViewReader, batches, inference, progress_of
from tats_fast.recognition.options import Views


@dataclass(frozen=True)
class Scored:
    """What a classifier says about the videos of a list."""

    numbers: list[int]
    """Positions of the readable videos in the list, ascending."""
    probabilities: Tensor
    """(M, K) fp32 on the CPU, a row for each of ``numbers``."""
    bad: BadFiles
    bad_numbers: list[int]
    """Positions of the unreadable ones, ascending."""


def class_scores(
    classifier: VideoClassifier,
    videos: Sequence[Video],
    views: Views,
    *,
    batch_size: int,
    workers: int,
    timeout: float,
    rank: int = 0,
    world_size: int = 1,
    shows: bool = False,
) -> Scored:
    """Softmax of each view's logits, averaged over the views, of videos rank, rank + world_size...

    Runs in evaluation mode on the classifier's device, in bf16 on a GPU and in fp32 on a CPU, and
    leaves the classifier as it was. No result depends on ``batch_size`` beyond rounding.

    A file that cannot be read, crashes its decoder or takes longer than ``timeout`` s is named in
    ``bad`` and never replaced by another. A crash or hang is tried once more before that.

    Args:
        batch_size: views on the device at once.
        shows: a progress display on stderr.
        workers: decoding processes. 0 counts as 1: a decoder's crash must not be ours.
    """
    mine = range(rank, len(videos), world_size)
    reader = ViewReader(videos, views, classifier.encoder.config, timeout)
    sums = torch.zeros(len(mine), classifier.head.out_features)
    done = 0.0
    with (
        contextlib.closing(reader.read(mine, workers)) as first,
        contextlib.closing(reader.retry(workers)) as second,
        inference(classifier) as device,
        progress_of("videos" if shows else None, len(mine)) as progress,
    ):
        single = ((number, view) for number, shots in chain(first, second) for view in shots)
        for numbers, batch in batches(single, batch_size):
            logits = classifier(normalised_video(torch.from_numpy(batch).to(device)))
            rows = torch.tensor([mine.index(number) for number in numbers])
            sums.index_add_(0, rows, logits.float().softmax(1).cpu())
            done += len(numbers) / (views.clips * views.crops)
            progress.at(int(done) + len(reader.bad), len(reader.bad))
    readable = [row for row, number in enumerate(mine) if number not in reader.bad]
    return Scored(
        numbers=[mine[row] for row in readable],
        probabilities=sums[readable] / (views.clips * views.crops),
        bad=[(videos[number].path, reason) for number, reason in sorted(reader.bad.items())],
        bad_numbers=sorted(reader.bad),
    )


def merged(parts: Sequence[Scored]) -> Scored:
    """The parts of all ranks as one, in the order of the list."""
    numbers = torch.tensor([number for part in parts for number in part.numbers])
    order = numbers.argsort()
    bad = sorted(pair for part in parts for pair in zip(part.bad_numbers, part.bad, strict=True))
    return Scored(
        numbers=numbers[order].tolist(),
        probabilities=torch.cat([part.probabilities for part in parts])[order],
        bad=[file for _, file in bad],
        bad_numbers=[number for number, _ in bad],
    )
