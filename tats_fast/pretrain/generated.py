"""Training batches of which generated clips are a part, or all."""

from __future__ import annotations

from collections import Counter
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


class Stream:
    """The generated clips of a process: scenes of the configured task, behind some that pan."""

    def __init__(self, config: RunConfig, rank: int, device: torch.device) -> None:
        words = np.random.SeedSequence([config.seed, rank, _TRAINING])
        seeds = [int(word) >> 1 for word in words.generate_state(2, np.uint64)]
        shape = config.model.num_frames, config.model.image_size
        self.device, self.pans = device, config.generated.pans
        self._scenes = Scenes(config.generated, *shape, seeds[0], device)
        # Everything else about them is alike, as far as it has a meaning for a pan.
        pan = replace(config.generated, task="pan", camera="still", distractors=0)
        self._panning = Scenes(pan, *shape, seeds[1], device) if self.pans else None

    def clips(self, size: int, number: int) -> Tensor:
        """(B, T, S, S, 3) uint8: batch ``number``, always the same."""
        pans = round(self.pans * size)
        parts = [self._panning.batch(pans, number).clips] if pans else []
        if pans < size:
            parts.append(self._scenes.batch(size - pans, number).clips)
        return torch.cat(parts)


def uneven_teaching(config: RunConfig, processes: int) -> str | None:
    """What to say where ``sampler.learn_every`` picks its clips from some sources more than from
    others: a micro-batch has files, pans and scenes in this order in every step.

    Args:
        processes: of the run, by which micro-batches are smaller.
    """
    every, micro_batches = config.sampler.learn_every, processes * config.train.accumulation
    made = config.generated_per_step // micro_batches
    pans = round(config.generated.pans * made)
    counts = {
        "files": config.listed_per_step // micro_batches,
        "pans": pans,
        config.generated.task: made - pans,
    }
    sources = [source for source, clips in counts.items() for _ in range(clips)]
    teaching = Counter(sources[::every])
    if all(every * teaching[source] == clips for source, clips in counts.items()):
        return None
    parts = ", ".join(
        f"{teaching[source]} of {clips} {source}" for source, clips in counts.items() if clips
    )
    return (
        f"sampler.learn_every={every}: of every micro-batch the same clips teach the sampler, "
        f"{parts}; multiples of {every} of each would have an equal say"
    )


class GeneratedLoader:
    """Micro-batches of clips from files, if there are any, followed by generated ones.

    On a CPU a thread makes the next micro-batch's while a step runs; a GPU only queues them.

    Args:
        files: iterated and closed with this; None = all clips are generated.
        size: generated clips per micro-batch.
        first: number of the first micro-batch in the run. The clips follow from it.
    """

    def __init__(self, files: ClipLoader | None, stream: Stream, size: int, first: int = 0) -> None:
        self.files, self.stream, self.size, self.first = files, stream, size, first

    @property
    def replaced_workers(self) -> int:
        return 0 if self.files is None else self.files.replaced_workers

    def __iter__(self) -> Iterator[ClipBatch]:
        made = self._ahead() if self.stream.device.type == "cpu" else self._queued()
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
        return self.stream.clips(self.size, number)
