"""Worker processes: outcomes of every item, deaths, time limits, errors, order of blame."""

import gc
import os
import signal
import threading
import time

import pytest
from children import gone, left_behind

from tats_fast.data.workers import processes
from tats_fast.data.workers.pool import Lost, Workers


def double(item):
    if item == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "leave":
        os._exit(3)
    if item == "hang":
        time.sleep(60)
    if item == "fail":
        raise KeyError("no such thing")
    return item * 2


def test_every_item_comes_back_once():
    with Workers(double, 2) as workers:
        assert sorted(workers.map(range(50))) == [(i, 2 * i) for i in range(50)]
        assert list(workers.map([])) == []
        assert workers.collect() == []


@pytest.mark.parametrize("count", [1, 2])
def test_a_death_costs_its_item_alone(count):
    items = [1, 2, "die", 3, 4, 5, "leave", 6]
    with Workers(double, count) as workers:
        outcomes = list(workers.map(items))
        assert workers.replaced == 2
        assert sorted(workers.map([7, 8])) == [(7, 14), (8, 16)]
    lost = {item: outcome.reason for item, outcome in outcomes if isinstance(outcome, Lost)}
    assert lost == {
        "die": "the process reading it died (SIGKILL)",
        "leave": "the process reading it died (exit 3)",
    }
    good = sorted((i, o) for i, o in outcomes if not isinstance(o, Lost))
    assert good == [(i, 2 * i) for i in range(1, 7)]


@pytest.mark.parametrize("items", [["die"], ["die", 1]], ids=["last", "next_in_hand"])
def test_a_death_within_a_result_is_one_too(items):
    def function(item):
        if item == "die":
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return bytes(1_000_000)  # does not fit in the pipe

    with Workers(function, 1) as workers:
        (pid,) = workers.pids
        tickets = [workers.submit(item) for item in items]
        assert gone(pid)
        outcomes = {}
        while len(outcomes) < len(items):
            outcomes.update(workers.collect())
        assert workers.replaced == 1
    assert outcomes.pop(tickets[0]) == Lost("the process reading it died (SIGKILL)")
    assert [len(outcome) for outcome in outcomes.values()] == [1_000_000] * len(tickets[1:])


def test_a_hanging_item_is_given_up():
    start = time.monotonic()
    with Workers(double, 1, timeout=0.5) as workers:
        outcomes = dict(workers.map([1, "hang", 2]))
    assert outcomes == {1: 2, "hang": Lost("took longer than 0.5 s", died=False), 2: 4}
    assert time.monotonic() - start < 10


def test_waiting_in_line_is_not_taking_long():
    def slow(item):
        time.sleep(0.3)
        return item

    with Workers(slow, 1, timeout=0.8) as workers:
        tickets = [workers.submit(i) for i in range(5)]
        time.sleep(1.0)  # nobody collects meanwhile: results wait, the time of none has run out
        outcomes = {}
        while len(outcomes) < 5:
            outcomes.update(workers.collect())
    assert outcomes == dict(zip(tickets, range(5), strict=True))


def test_errors_of_the_function_are_raised_here():
    with Workers(double, 1) as workers:
        with pytest.raises(KeyError, match="no such thing") as error:
            list(workers.map([1, "fail"]))
        assert "in a worker process" in str(error.value.__cause__)


@pytest.mark.parametrize("kind", [EOFError, ConnectionResetError, FileNotFoundError])
def test_errors_like_those_of_a_broken_pipe_are_raised_too(kind):
    def fail(item):
        raise kind("of the function")

    with Workers(fail, 1) as workers:
        workers.submit(1)
        with pytest.raises(kind, match="of the function"):
            workers.collect()
        assert workers.replaced == 0


def test_idle_deaths_blame_nobody():
    with Workers(double, 2) as workers:
        list(workers.map([1, 2]))
        for pid in workers.pids:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
        assert dict(workers.map([3, 4])) == {3: 6, 4: 8}
        assert workers.replaced == 2


def test_close_ends_all_processes():
    workers = Workers(double, 3)
    pids = workers.pids
    workers.submit("hang")
    workers.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_leave_with_their_parent():
    """The idle, the busy, and those in the middle of a result that nobody will read."""
    code = """
from multiprocessing import connection
from children import much_or_nothing
from tats_fast.data.workers import pool, processes
processes._PARENT_CHECK = 0.1
workers = pool.Workers(much_or_nothing, 4)
for item in ("much", "hang", "much"):
    workers.submit(item)
for number in (0, 2):
    assert connection.wait([workers._workers[number].pipe], 20)
print(*workers.pids, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert left_behind(code) == []


def test_interrupts_do_not_reach_the_workers():
    with Workers(double, 2) as workers:
        for pid in workers.pids:
            os.kill(pid, signal.SIGINT)
        assert dict(workers.map([1, 2])) == {1: 2, 2: 4}
        assert workers.replaced == 0


def test_processes_are_renewed_before_they_grow(monkeypatch):
    monkeypatch.setattr(processes, "LIFE", 10)
    with Workers(lambda item: (item, os.getpid()), 2) as workers:
        outcomes = [outcome for _, outcome in workers.map(range(100))]
        assert workers.replaced == 0
    assert sorted(item for item, _ in outcomes) == list(range(100))
    pids = [pid for _, pid in outcomes]
    assert max(pids.count(pid) for pid in pids) == 10


def test_workers_leave_the_garbage_of_their_parent_alone():
    parent = os.getpid()

    class Fragile:
        def __init__(self):
            self.me = self  # a cycle: only the collector can end it

        def __del__(self):
            if os.getpid() != parent:
                os._exit(9)

    def collect(item):
        return item, gc.collect() >= 0

    gc.disable()
    try:
        Fragile()
        with Workers(collect, 1) as workers:
            assert dict(workers.map([1, 2])) == {1: (1, True), 2: (2, True)}
    finally:
        gc.enable()


def test_needs_a_process():
    with pytest.raises(ValueError, match="at least 1 process, got 0"):
        Workers(double, 0)
