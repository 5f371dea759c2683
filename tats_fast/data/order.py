"""Which clip comes when: an endless, resumable order that no process count can change.

The only state is the number of samples consumed. Sample g belongs to epoch g // num_videos, and
every epoch is its own permutation, so a batch may cross epochs and a resumed run continues exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

# Fifth word of the seed. Clip draws use four words, and a seed is padded with zeros only up to
# four, so no clip can share its random numbers with an epoch's order.
_ORDER = 1


class ClipKey(NamedTuple):
    """Names one clip of a run: pass over the list, and index into the list."""

    epoch: int
    index: int


def epoch_order(num_videos: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of one epoch: (num_videos,) int64, a pure function of its arguments."""
    rng = np.random.default_rng([seed, epoch, 0, 0, _ORDER])
    return rng.permutation(num_videos)


class ClipStream:
    """The endless sequence of clips; ``stream[g]`` is the ``ClipKey`` of sample g >= 0."""

    def __init__(self, num_videos: int, seed: int) -> None:
        """Raises ``ValueError`` unless there is at least one video."""
        if num_videos < 1:
            raise ValueError(f"expected at least 1 video, got {num_videos}")
        self.num_videos = num_videos
        # Two epochs meet in a batch at most, unless the list is shorter than the batch.
        self._order = lru_cache(maxsize=2)(lambda epoch: epoch_order(num_videos, seed, epoch))

    def __getitem__(self, sample: int) -> ClipKey:
        epoch, position = divmod(sample, self.num_videos)
        return ClipKey(epoch, int(self._order(epoch)[position]))


class StreamBatches:
    """Batch sampler: one rank's micro-batches of consecutive global batches.

    Global batch b holds samples [start + b G, start + (b + 1) G) for any world size; rank r takes
    the r-th of ``world_size`` equal runs of it, in micro-batches. Example: G=8, 2 ranks, micro 2:
    rank 1 yields [4, 5], [6, 7], [12, 13], ...

    ``stop_sample`` none = endless. Samples that no longer fill a global batch are left out.
    """

    def __init__(
        self,
        num_videos: int,
        seed: int,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batch: int | None = None,
        start_sample: int = 0,
        stop_sample: int | None = None,
    ) -> None:
        """Raises ``ValueError`` where the global batch does not split evenly."""
        if micro_batch is None:
            micro_batch = max(1, global_batch // world_size)
        if global_batch < 1 or global_batch % (world_size * micro_batch):
            raise ValueError(
                f"expected a global batch divisible by {world_size} ranks x {micro_batch} clips, "
                f"got {global_batch}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"expected a rank in [0, {world_size}), got {rank}")
        if start_sample < 0:
            raise ValueError(f"expected a start_sample of at least 0, got {start_sample}")
        self.stream = ClipStream(num_videos, seed)
        self.global_batch = global_batch
        self.rank_batch = global_batch // world_size
        self.rank = rank
        self.micro_batch = micro_batch
        self.start_sample = start_sample
        self.stop_sample = stop_sample

    def __iter__(self) -> Iterator[list[ClipKey]]:
        start = self.start_sample
        while self.stop_sample is None or start + self.global_batch <= self.stop_sample:
            first = start + self.rank * self.rank_batch
            for micro in range(first, first + self.rank_batch, self.micro_batch):
                yield [self.stream[sample] for sample in range(micro, micro + self.micro_batch)]
            start += self.global_batch
