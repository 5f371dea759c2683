"""tats_fast/masking/draws.py: a clip's numbers follow from its place in the global batch."""

from __future__ import annotations

import pytest
import torch

from tats_fast.masking import StepDraws


def drawn(clips, sizes, first=0):
    """Two draws for each micro-batch of ``sizes`` clips, from clip ``first`` on."""
    draws = StepDraws(torch.Generator().manual_seed(3), clips)
    parts = []
    for size in sizes:
        uniform, first = draws.of_clips(first), first + size
        parts.append((uniform(size, 5), uniform(size, 7)))
    return [torch.cat(draw) for draw in zip(*parts, strict=True)]


@pytest.mark.parametrize("sizes", [(4, 4), (2, 2, 2, 2), (1,) * 8])
def test_micro_batches_get_the_rows_of_the_whole(sizes):
    for part, whole in zip(drawn(8, sizes), drawn(8, (8,)), strict=True):
        assert torch.equal(part, whole)
        assert len(whole.unique()) == whole.numel()


def test_processes_get_theirs():
    whole = drawn(8, (8,))
    for rank in range(4):
        for part, expected in zip(drawn(8, (1, 1), first=2 * rank), whole, strict=True):
            assert torch.equal(part, expected[2 * rank : 2 * rank + 2])
