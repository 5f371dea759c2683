"""The order of clips: the same for every process count, and continued exactly."""

from itertools import chain, islice

import numpy as np
import pytest

from tats_fast.data.clip import ClipDraw, window_start
from tats_fast.data.order import ClipStream, StreamBatches, epoch_order


def test_each_epoch_is_its_own_permutation():
    orders = [epoch_order(50, 7, epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] == epoch_order(50, 7, 0).tolist()
    assert orders[0] != epoch_order(50, 8, 0).tolist()


def test_stream_walks_through_the_epochs():
    stream = ClipStream(5, seed=3)
    keys = [stream[sample] for sample in range(15)]
    assert [key.epoch for key in keys] == [0] * 5 + [1] * 5 + [2] * 5
    assert [key.index for key in keys[5:10]] == epoch_order(5, 3, 1).tolist()
    assert all(type(key.index) is int for key in keys)


def test_order_and_draws_share_no_random_numbers():
    first = np.random.default_rng([3, 0, 0, 0]).random(5)
    again = np.random.default_rng([3, 0]).random(5)
    assert (first == again).all()  # numpy pads seeds with zeros: the reason for the fifth word
    order = np.random.default_rng([3, 0, 0, 0]).permutation(50).tolist()
    assert epoch_order(50, 3, 0).tolist() != order


@pytest.mark.parametrize("world_size, micro_batch", [(1, 8), (1, 2), (2, 4), (2, 1), (4, 2)])
def test_global_batch_does_not_depend_on_the_processes(world_size, micro_batch):
    # 5 videos, 8 clips a batch: every batch crosses epochs.
    expected = [[ClipStream(5, 0)[s] for s in range(8 * b, 8 * b + 8)] for b in range(3)]
    ranks = [
        list(StreamBatches(5, 0, 8, rank, world_size, micro_batch, stop_sample=24))
        for rank in range(world_size)
    ]
    steps = 8 // (world_size * micro_batch)
    for batch in range(3):
        parts = [rank[batch * steps : (batch + 1) * steps] for rank in ranks]
        assert list(chain.from_iterable(chain.from_iterable(parts))) == expected[batch]
    assert all(len(part) == micro_batch for rank in ranks for part in rank)


def test_resume_continues_exactly():
    whole = list(StreamBatches(7, 1, 4, 1, 2, 1, stop_sample=40))
    resumed = list(StreamBatches(7, 1, 4, 1, 2, 1, start_sample=12, stop_sample=40))
    assert resumed == whole[6:]
    # Another number of ranks goes on from the same sample.
    joined = list(StreamBatches(7, 1, 4, 0, 1, 4, start_sample=12, stop_sample=16))
    assert joined[0] == [ClipStream(7, 1)[sample] for sample in range(12, 16)]


def test_finite_and_endless_stream():
    batches = StreamBatches(3, 0, 4, 0, 2, 1, start_sample=4, stop_sample=23)
    assert len(list(batches)) == 8  # 16 of 19 samples fill batches, 2 per rank
    endless = StreamBatches(3, 0, 4)
    assert len(list(islice(endless, 100))) == 100


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((5, 0, 6, 0, 4), "got 6"),
        ((5, 0, 8, 0, 2, 3), "got 8"),
        ((5, 0, 8, 2, 2), "got 2"),
        ((0, 0, 8), "got 0"),
        ((5, 0, 8, 0, 1, 8, -1), "got -1"),
    ],
)
def test_impossible_batches(arguments, words):
    with pytest.raises(ValueError, match=words):
        StreamBatches(*arguments)


def test_draw_is_a_pure_function_of_all_four_words():
    base = ClipDraw.of(1, 2, 3, 4)
    assert base == ClipDraw.of(1, 2, 3, 4)
    others = [(0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)]
    assert all(ClipDraw.of(*words).window != base.window for words in others)


def test_window_start_reaches_both_ends():
    starts = {window_start(20, 6, ClipDraw.of(0, 0, i).window) for i in range(500)}
    assert starts == set(range(15))
    assert window_start(5, 6, 0.99) == 0


def test_repeats_have_draws_of_their_own():
    draws = [ClipDraw.of(1, 2, 3, 0, repeat) for repeat in range(4)]
    assert draws[0] == ClipDraw.of(1, 2, 3)
    assert len({draw.scales for draw in draws}) == len({draw.position for draw in draws}) == 4
    assert draws[2] == ClipDraw.of(1, 2, 3, 0, 2) != ClipDraw.of(1, 2, 3, 1, 2)
