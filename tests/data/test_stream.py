"""Streams of parts: order, back pressure, deaths, time limits, and processes that go away."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
from children import gone, left_behind, pids_then_much

from tats_fast.data.workers.pool import Done, Lost, stream_parts


def count_to(item):
    """Parts (item, 0), (item, 1), ... Strings do, after two parts, what they say."""
    for part in range(2 if isinstance(item, str) else item):
        yield item, part
    if item == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "leave":
        os._exit(3)
    if item == "hang":
        time.sleep(60)
    if item == "fail":
        raise KeyError("no such thing")
    return f"{item} done"


def collected(events):
    """{item: its events in order}."""
    by_item = {}
    for item, event in events:
        by_item.setdefault(item, []).append(event)
    return by_item


def whole(item: int) -> list:
    return [*((item, part) for part in range(item)), Done(f"{item} done")]


@pytest.mark.parametrize("count", [1, 3])
def test_every_part_comes_once_and_in_order(count):
    assert collected(stream_parts(count_to, range(20), count)) == {n: whole(n) for n in range(20)}
    assert list(stream_parts(count_to, [], count)) == []


@pytest.mark.parametrize("count", [1, 2])
def test_a_death_costs_its_item_alone(count):
    items = [1, 2, "die", 3, 4, "leave", 5]
    by_item = collected(stream_parts(count_to, items, count))
    for item, how in (("die", "SIGKILL"), ("leave", "exit 3")):
        parts = [(item, 0), (item, 1)]  # what was sent before counts
        assert by_item.pop(item) == [*parts, Lost(f"the process reading it died ({how})")]
    assert by_item == {n: whole(n) for n in (1, 2, 3, 4, 5)}


@pytest.mark.parametrize("items", [["die"], ["die", 1]], ids=["last", "next_in_hand"])
def test_a_death_within_a_message_is_one_too(items):
    def function(item):
        yield "first"
        if item == "die":
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
        yield np.zeros(1_000_000, np.uint8)  # does not fit in the pipe

    with contextlib.closing(stream_parts(function, items, 1)) as events:
        assert next(events) == ("die", "first")
        time.sleep(0.5)
        by_item = collected(events)
    assert by_item.pop("die") == [Lost("the process reading it died (SIGKILL)")]
    assert [len(events) for events in by_item.values()] == [3] * len(items[1:])


def test_a_hanging_item_is_given_up():
    start = time.monotonic()
    by_item = collected(stream_parts(count_to, [1, "hang", 2], 1, timeout=0.5))
    lost = Lost("took longer than 0.5 s", died=False)
    assert by_item == {1: whole(1), "hang": [("hang", 0), ("hang", 1), lost], 2: whole(2)}
    assert time.monotonic() - start < 10


def test_the_time_limit_is_for_one_part_and_not_for_waiting_to_be_read():
    def slow(item):
        for _ in range(4):
            time.sleep(0.25)
            yield np.zeros(1_000_000, np.uint8)

    events = stream_parts(slow, [0], 1, timeout=0.6)  # 1 s in all
    outcomes = []
    for _, event in events:
        outcomes.append(type(event).__name__)
        if len(outcomes) < 3:
            time.sleep(1.0)
    assert outcomes == ["ndarray"] * 4 + ["Done"]


def test_nobody_reads_so_nothing_is_made():
    made = multiprocessing.get_context("fork").Value("i", 0)

    def parts(item):
        for _ in range(50):
            with made.get_lock():
                made.value += 1
            yield np.zeros(1_000_000, np.uint8)

    with contextlib.closing(stream_parts(parts, range(4), 2)) as events:
        for read in range(1, 6):
            next(events)
            time.sleep(0.2)
            # Of each of the two processes: one part in the pipe, which it does not fit in.
            assert made.value <= read + 2
        assert made.value >= 5
    assert len(list(stream_parts(parts, range(2), 2))) == 102, "nor is any lost"


def test_items_are_read_lazily():
    drawn = []

    def source():
        for number in range(100):
            drawn.append(number)
            yield number + 1

    with contextlib.closing(stream_parts(count_to, source(), 2)) as events:
        next(events)
        assert len(drawn) <= 5


def test_errors_of_the_function_are_raised_here():
    with pytest.raises(KeyError, match="no such thing") as error:
        list(stream_parts(count_to, [1, "fail"], 1))
    assert "in a worker process" in str(error.value.__cause__)


def test_closing_ends_all_processes():
    pids = set()
    with contextlib.closing(stream_parts(pids_then_much, range(5), 2)) as events:
        while len(pids) < 2:
            _, event = next(events)
            if isinstance(event, int):
                pids.add(event)
    assert all(gone(pid) for pid in pids)


def test_interrupts_do_not_reach_the_processes():
    others = multiprocessing.active_children()  # of tests before, which end as they are collected
    events = stream_parts(count_to, [5, 6], 1)
    first = next(events)
    (child,) = set(multiprocessing.active_children()) - set(others)
    os.kill(child.pid, signal.SIGINT)
    by_item = collected(events)
    assert [first[1], *by_item[5]] == whole(5) and by_item[6] == whole(6)


def test_processes_leave_with_their_parent():
    """Also those that wait in the middle of a part that nobody will read."""
    code = """
from children import pids_then_much
from tats_fast.data.workers import pool, processes
processes._PARENT_CHECK = 0.1
events = pool.stream_parts(pids_then_much, range(5), 3)
pids = set()
while len(pids) < 3:
    _, event = next(events)
    if isinstance(event, int):
        pids.add(event)
print(*pids, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert left_behind(code) == []


def test_processes_leave_the_garbage_of_their_parent_alone():
    parent = os.getpid()

    class Fragile:
        def __init__(self):
            self.me = self  # a cycle: only the collector can end it

        def __del__(self):
            if os.getpid() != parent:
                os._exit(9)

    def collect(item):
        yield gc.collect() >= 0

    gc.disable()
    try:
        Fragile()
        assert collected(stream_parts(collect, [1, 2], 1)) == {
            1: [True, Done(None)],
            2: [True, Done(None)],
        }
    finally:
        gc.enable()


def test_needs_a_process():
    with pytest.raises(ValueError, match="at least 1 process, got 0"):
        next(stream_parts(count_to, [], 0))
