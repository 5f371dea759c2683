"""A run whose batches take more or less of the list than before goes on with its next clips."""

from __future__ import annotations

import contextlib

import pytest
import torch
from records import read_lines

from tats_fast.data.order import ClipStream
from tats_fast.engine import run_lock
from tats_fast.engine.distributed import World
from tats_fast.pretrain.trainer import Trainer

CPU = World(0, 1, torch.device("cpu"))


def next_keys(config):
    """A trainer of ``config``, the clips that it takes next from the list, and the list's."""
    trainer = Trainer(config, CPU)
    with contextlib.closing(trainer.loader()) as loader:
        keys = next(iter(loader)).keys
    run_lock.release(trainer.folder)
    stream = ClipStream(len(trainer.videos), config.seed)
    return trainer, keys, [stream[n] for n in range(100)]


@pytest.mark.parametrize("batch_size", [4, 6])
def test_another_share_of_generated_clips(run_config, batch_size):
    """Six steps of four took 24 windows; half of each batch does from here on."""
    Trainer(run_config(), CPU).run()
    train = {"steps": 8, "batch_size": batch_size}
    trainer, keys, stream = next_keys(run_config(generated={"share": 0.5}, train=train))
    half = batch_size // 2
    assert keys == stream[24 : 24 + half]
    trainer.run()
    *_, row = read_lines(trainer.folder / "metrics.jsonl")
    assert row["epoch"] == row["passes"] == pytest.approx((24 + 2 * half) / len(trainer.videos))
    _, keys, stream = next_keys(run_config(train={"steps": 9}))
    assert keys == stream[24 + 2 * half : 28 + 2 * half]
