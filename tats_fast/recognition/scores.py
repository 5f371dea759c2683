"""What a classifier says about videos, averaged over several views of each.

Legend: M videos, V views (clips x crops) of a video, B views of a batch, T frames, S side,
K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tats_fast.config import ConfigError
from tats_fast.data.lists import Video
from tats_fast.data.video import DecodeError
from tats_fast.data.views import decode_views, dense_views, segment_views, side_crops
from tats_fast.data.workers.pool import Lost, Workers
from tats_fast.models.classifier import VideoClassifier
from tats_fast.models.patchify import normalised_video
from tats_fast.recognition.features import batches


@dataclass(frozen=True, kw_only=True)
class Views:
    """What is looked at of each video; the defaults are VideoMAE's for Kinetics and UCF101."""

    stride: int = 4
    """Frames from one of a clip to the next; 0 = one frame per equal segment of the video, as for
    Something-Something."""
    clips: int = 5
    crops: int = 3

    def __post_init__(self) -> None:
        for name, least in (("stride", 0), ("clips", 1), ("crops", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name}={getattr(self, name)}: must be at least {least}")

    def frames(self, total: int, num_frames: int) -> list[list[int]]:
        """Frame numbers of each clip of a video of ``total`` frames."""
        if self.stride == 0:
            return segment_views(total, num_frames, self.clips)
        return dense_views(total, num_frames, self.stride, self.clips)


@dataclass(frozen=True)
class Scored:
    """What a classifier says about the readable ones of a list's videos.

    numbers: positions in the list, ascending. probabilities: (M, K) fp32 on the CPU, their rows.
    bad: (path, reason) of each unreadable file, in the order of the list; bad_numbers: their
    positions.
    """

    numbers: list[int]
    probabilities: Tensor
    bad: list[tuple[str, str]]
    bad_numbers: list[int]


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
) -> Scored:
    """Softmax of each view's logits, averaged over the views, of videos rank, rank + world_size...

    Runs in evaluation mode on the classifier's device, in bf16 on a GPU and in fp32 on a CPU, and
    leaves the classifier as it was. No result depends on ``batch_size`` beyond rounding.

    A file that cannot be read, crashes its decoder or takes longer than ``timeout`` s is named in
    ``bad`` and never replaced by another. A crash or hang is tried once more before that.

    Args:
        batch_size: views on the device at once.
        workers: decoding processes. 0 counts as 1: a decoder's crash must not be ours.
    """
    mine = range(rank, len(videos), world_size)
    config = classifier.encoder.config
    crops = side_crops(views.crops)

    def decode(number: int) -> np.ndarray | str:
        try:
            decoded = decode_views(
                videos[number].path,
                lambda total: views.frames(total, config.num_frames),
                crops,
                config.image_size,
            )
        except DecodeError as error:
            return error.reason
        return decoded.reshape(-1, *decoded.shape[2:])  # (V, T, S, S, 3)

    bad: dict[int, str] = {}
    sums = torch.zeros(len(mine), classifier.head.out_features)
    decoded = _decoded(decode, mine, max(1, min(workers, len(mine))), timeout, bad)
    with contextlib.closing(decoded), _evaluation_mode(classifier):
        each = ((number, view) for number, shots in decoded for view in shots)
        for numbers, batch in batches(each, batch_size):
            rows = torch.tensor([mine.index(number) for number in numbers])
            sums.index_add_(0, rows, view_probabilities(classifier, batch))
    readable = [row for row, number in enumerate(mine) if number not in bad]
    unreadable = sorted(bad)
    return Scored(
        numbers=[mine[row] for row in readable],
        probabilities=sums[readable] / (views.clips * views.crops),
        bad=[(videos[number].path, bad[number]) for number in unreadable],
        bad_numbers=unreadable,
    )


def merged(parts: Sequence[Scored]) -> Scored:
    """The parts of all ranks as one, in the order of the list."""
    numbers = [number for part in parts for number in part.numbers]
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    bad = sorted(pair for part in parts for pair in zip(part.bad_numbers, part.bad, strict=True))
    return Scored(
        numbers=[numbers[row] for row in order],
        probabilities=torch.cat([part.probabilities for part in parts])[order],
        bad=[named for _, named in bad],
        bad_numbers=[number for number, _ in bad],
    )


@torch.no_grad()
def view_probabilities(classifier: VideoClassifier, views: np.ndarray) -> Tensor:
    """(B, T, S, S, 3) uint8 RGB -> (B, K) fp32 on the CPU, softmax in fp32."""
    device = next(classifier.parameters()).device
    video = normalised_video(torch.from_numpy(views).to(device))
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = classifier(video)
    return logits.float().softmax(1).cpu()


def _decoded(
    decode: Callable[[int], np.ndarray | str],
    numbers: Iterable[int],
    workers: int,
    timeout: float,
    bad: dict[int, str],
) -> Iterator[tuple[int, np.ndarray]]:
    """(number, views) of each readable video, as it is decoded; the others go into ``bad``."""
    lost: dict[int, Lost] = {}

    def attempt(numbers: Iterable[int], workers: int) -> Iterator[tuple[int, np.ndarray]]:
        with Workers(decode, workers, timeout) as pool:
            for number, outcome in pool.map(numbers):
                if isinstance(outcome, np.ndarray):
                    yield number, outcome
                elif isinstance(outcome, Lost):
                    lost[number] = outcome
                    bad[number] = outcome.reason
                else:
                    bad[number] = outcome

    yield from attempt(numbers, workers)
    # What died may have lacked memory, so it is tried alone; what was slow may have met a busy
    # disk, and one after the other could take hours.
    first = dict(lost)
    for died, count in ((True, 1), (False, workers)):
        again = sorted(number for number, outcome in first.items() if outcome.died == died)
        for number in again:
            del bad[number]
        if again:
            yield from attempt(again, min(count, len(again)))


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode meanwhile. Each module gets its own mode back: some may be frozen."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
