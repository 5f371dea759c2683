"""Training batches of which generated clips are a part, or all."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count, repeat

import numpy as np
import torch
from torch import Tensor

from tats_fast.config import RunConfig
from tats_fast.data.loader import ClipBatch, ClipLoader
from tats_fast.generated import Scenes

# Third word of the seed: the scenes of a run are not those of a test with the same number.
_TRAINING = 1


def make_scenes(config: RunConfig, rank: int, device: torch.device) -> Scenes:
    """The scenes of ``config.generated``, each process with its own."""
    seed = np.random.SeedSequence([config.seed, rank, _TRAINING]).generate_state(1, np.uint64)[0]
    model = config.model
    return Scenes(config.generated, model.num_frames, model.image_size, int(seed >> 1), device)


class GeneratedLoader:
    """Micro-batches of clips from files, if there are any, followed by generated ones.

    On a CPU a thread makes the next micro-batch's while a step runs; a GPU only queues them.

    Args:
        files: iterated and closed with this; None = all clips are generated.
        size: generated clips per micro-batch.
        first: number of the first micro-batch in the run. The clips follow from it.
    """

    def __init__(self, files: ClipLoader | None, scenes: Scenes, size: int, first: int = 0) -> None:
        self.files, self.scenes, self.size, self.first = files, scenes, size, first

    @property
    def replaced_workers(self) -> int:
        return 0 if self.files is None else self.files.replaced_workers

    def __iter__(self) -> Iterator[ClipBatch]:
        made = self._ahead() if self.scenes.device.type == "cpu" else self._queued()
        for batch, clips in zip(self.files or repeat(None), made, strict=False):
            if batch is None:
                yield ClipBatch(clips, [], [], [])
            else:
                yield replace(batch, clips=torch.cat([batch.clips, clips]))

    def close(self) -> None:
        if self.files is not None:
            self.files.close()

    def _queued(self) -> Iterator[Tensor]:
        for number in count(self.first):
            yield self._clips(number)

    def _ahead(self) -> Iterator[Tensor]:
        with ThreadPoolExecutor(1) as thread:
            pending = thread.submit(self._clips, self.first)
            for number in count(self.first + 1):
                clips = pending.result()
                pending = thread.submit(self._clips, number)
                yield clips

    def _clips(self, number: int) -> Tensor:
        return self.scenes.batch(self.size, number).clips
