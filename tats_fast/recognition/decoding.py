"""Views of listed videos, decoded and in batches, and models at work on them.

Legend: V views (clips x crops) of a video, B views of a batch, T frames, S side.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from tats_fast.config import ModelConfig
from tats_fast.data.lists import Video
from tats_fast.data.opening import DecodeError
from tats_fast.data.timed import shown_times
from tats_fast.data.views import decode_views, side_crops
from tats_fast.data.workers.pool import Lost, Workers
from tats_fast.data.workers.progress import JobProgress
from tats_fast.recognition.options import Views


class ViewReader:
    """Decodes views in processes of their own, so that a broken file costs itself alone.

    Attributes:
        bad: reason of each video that could not be read, by its number in the list.
        lost: those of them that killed their process or took too long; another try may succeed.
    """

    def __init__(
        self, videos: Sequence[Video], views: Views, model: ModelConfig, timeout: float
    ) -> None:
        """Read ``views`` of ``videos`` as ``model`` takes them, each in up to ``timeout`` s."""
        self.videos, self.views, self.model, self.timeout = videos, views, model, timeout
        self.bad: dict[int, str] = {}
        self.lost: dict[int, Lost] = {}

    def read(self, numbers: Sequence[int], workers: int) -> Iterator[tuple[int, np.ndarray]]:
        """(number, views (V, T, S, S, 3) uint8 RGB) of each readable video, as it is decoded."""
        with Workers(self._decode, max(1, min(workers, len(numbers))), self.timeout) as pool:
            for number, outcome in pool.map(numbers):
                if isinstance(outcome, np.ndarray):
                    yield number, outcome
                elif isinstance(outcome, Lost):
                    self.lost[number], self.bad[number] = outcome, outcome.reason
                else:
                    self.bad[number] = outcome

    def retry(self, workers: int) -> Iterator[tuple[int, np.ndarray]]:
        """The same for what has been lost, once more."""
        # What died may have lacked memory, so it is tried alone; what was slow may have met a busy
        # disk, and one after the other could take hours.
        lost, self.lost = self.lost, {}
        for died, count in ((True, 1), (False, workers)):
            again = sorted(number for number, outcome in lost.items() if outcome.died == died)
            for number in again:
                del self.bad[number]
            if again:
                yield from self.read(again, count)

    def _decode(self, number: int) -> np.ndarray | str:
        try:
            return decoded_views(self.videos[number].path, self.views, self.model)
        except DecodeError as error:
            return error.reason


def decoded_views(path: str, views: Views, model: ModelConfig) -> np.ndarray:
    """The views (V, T, S, S, 3) uint8 RGB of one video, as ``model`` takes them.

    Raises:
        DecodeError: it cannot be read.
    """
    times = None if views.fps is None else shown_times(path)
    choose = partial(views.frames, num_frames=model.num_frames, times=times)
    decoded = decode_views(path, choose, side_crops(views.crops), model.image_size)
    return decoded.reshape(-1, *decoded.shape[2:])


class NoProgress:
    """The calls of ``JobProgress``, which show nothing."""

    def __enter__(self) -> NoProgress:
        return self

    def __exit__(self, *_error: object) -> None: ...

    def at(self, done: int, failed: int = 0) -> None: ...

    def step(self, failed: bool = False) -> None: ...


def progress_of(title: str | None, total: int) -> JobProgress | NoProgress:
    """A sparse display on stderr of ``total`` items that are called ``title``; without a title
    none, as inside a training run, which has its own."""
    return NoProgress() if title is None else JobProgress(title, total, sparse=True)


def batches(
    views: Iterable[tuple[int, np.ndarray]], size: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """(numbers, views (B, T, S, S, 3)) of up to ``size`` views at a time."""
    views = iter(views)
    while batch := list(itertools.islice(views, size)):
        yield [number for number, _ in batch], np.stack([view for _, view in batch])


@contextlib.contextmanager
def inference(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode without gradients, in bf16 on a GPU; yields the model's device.

    Each module gets its own mode back afterwards, since some may be frozen.
    """
    device = next(model.parameters()).device
    training = [module for module in model.modules() if module.training]
    model.eval()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    try:
        with torch.no_grad(), autocast:
            yield device
    finally:
        for module in training:
            module.training = True
