"""Which clip comes when: an endless, resumable order that no process count can change.

The only state is the number of samples consumed. Sample g belongs to epoch g // num_videos, and
every epoch is its own permutation, so a batch may cross epochs and a resumed run continues exactly.

Of several weighted lists every epoch deals fixed numbers of its samples to each, in an order of its
own, and each list has passes of its own: no video of a list comes again before all of it came.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np

# Fifth word of the seed. Clip draws use four words, and a seed is padded with zeros only up to
# four, so no clip can share its random numbers with an epoch's order.
_ORDER, _DEAL = 1, 4


class Part(NamedTuple):
    """One of several lists; its videos follow those of the lists before it."""

    videos: int
    draws: int
    """Samples of each epoch that are this list's."""


def parts_of(sizes: Sequence[int], weights: Sequence[float]) -> list[Part]:
    """Lists of so many videos, with draws as the weights share out an epoch of sum(sizes) samples:
    whole numbers, at least 1 each. Sizes 10 and 90, weights 1 and 1 -> 50 draws each."""
    total, scale = sum(sizes), sum(weights)
    exact = [total * weight / scale for weight in weights]
    draws = [max(1, int(share)) for share in exact]
    while sum(draws) != total:  # what rounding left, where it is missed most
        step = 1 if sum(draws) < total else -1
        able = [n for n in range(len(draws)) if draws[n] + step >= 1]
        draws[max(able, key=lambda n: step * (exact[n] - draws[n]))] += step
    return [Part(*pair) for pair in zip(sizes, draws, strict=True)]


class ClipKey(NamedTuple):
    """Names one clip of a run: pass over the video's list, and index into all lists' videos."""

    epoch: int
    index: int


def epoch_order(num_videos: int, seed: int, epoch: int, part: int = 0) -> np.ndarray:
    """The permutation of one epoch of one list: (num_videos,) int64, a pure function of its
    arguments."""
    rng = np.random.default_rng([seed, epoch, part, 0, _ORDER])
    return rng.permutation(num_videos)


def _dealt(draws: Sequence[int], seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Whose each sample of an epoch is, and how many of that list came before it in the epoch; both
    (sum(draws),) int64."""
    whose = np.repeat(np.arange(len(draws)), draws)
    if len(draws) > 1:
        np.random.default_rng([seed, epoch, 0, 0, _DEAL]).shuffle(whose)
    before = np.empty_like(whose)
    for part, count in enumerate(draws):
        before[whose == part] = np.arange(count)
    return whose, before


class ClipStream:
    """The endless sequence of clips; ``stream[g]`` is the ``ClipKey`` of sample g >= 0."""

    def __init__(self, num_videos: int, seed: int, parts: Sequence[Part] = ()) -> None:
        """parts: the lists that the videos are of; none = one list.

        Raises ``ValueError`` unless there is at least one video, and as many as in the parts.
        """
        if num_videos < 1:
            raise ValueError(f"expected at least 1 video, got {num_videos}")
        parts = parts or [Part(num_videos, num_videos)]
        if {num_videos} != {sum(column) for column in zip(*parts, strict=True)}:
            raise ValueError(f"expected parts of {num_videos} videos, got {parts}")
        self.num_videos, self._parts = num_videos, parts
        self._first = list(accumulate((part.videos for part in parts), initial=0))
        # Two epochs meet in a batch at most, unless the list is shorter than the batch.
        self._dealt = lru_cache(maxsize=2)(
            lambda epoch: _dealt([part.draws for part in parts], seed, epoch)
        )
        self._order = lru_cache(maxsize=2 * len(parts))(
            lambda part, epoch: epoch_order(parts[part].videos, seed, epoch, part)
        )

    def __getitem__(self, sample: int) -> ClipKey:
        epoch, position = divmod(sample, self.num_videos)
        whose, before = self._dealt(epoch)
        number = int(whose[position])
        part = self._parts[number]
        own, place = divmod(epoch * part.draws + int(before[position]), part.videos)
        return ClipKey(own, self._first[number] + int(self._order(number, own)[place]))


class StreamBatches:
    """Batch sampler: one rank's micro-batches of consecutive global batches.

    Global batch b holds samples [start + b G, start + (b + 1) G) for any world size; rank r takes
    the r-th of ``world_size`` equal runs of it, in micro-batches. Example: G=8, 2 ranks, micro 2:
    rank 1 yields [4, 5], [6, 7], [12, 13], ...

    ``stop_sample`` none = endless. Samples that no longer fill a global batch are left out.
    ``parts`` as of ``ClipStream``.
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
        parts: Sequence[Part] = (),
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
        self.stream = ClipStream(num_videos, seed, parts)
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
