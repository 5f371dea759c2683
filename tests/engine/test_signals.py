"""Signals to a run, to one of its processes and to its launcher: saved, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
import torch
from children import gone
from run_processes import ranks_below, start, steps, wait_for

from tats_fast.config import save_config
from tats_fast.engine import signals
from tats_fast.engine.distributed import World
from tats_fast.engine.signals import StopRequest
from tats_fast.run_folder import damage, list_checkpoints

CPU = World(0, 1, torch.device("cpu"))
LAUNCHERS = ["torchrun", "deepspeed"]


@pytest.fixture
def running(run_config, tmp_path):
    """Start a run of endless steps, and wait until it trains: the process, its folder, its ranks.
    None outlives the test."""
    with contextlib.ExitStack() as stack:

        def begin(launcher, *overrides, **train):
            endless = {"steps": 100_000, "checkpoint_every": 100_000, "log_every": 1, **train}
            config = run_config("run", train={"batch_size": 4, **endless}, data={"workers": 1})
            save_config(config, tmp_path / "run.yaml")
            process = start(tmp_path / "run.yaml", *overrides, launcher=launcher)
            stack.callback(process.kill)
            run = tmp_path / "run"
            wait_for(lambda: len(steps(run)) >= 2, process, seconds=200)
            alone = launcher == "python"
            ranks = [process.pid] if alone else ranks_below(process.pid)
            stack.callback(lambda: [_end(pid) for pid in ranks])
            return process, run, ranks

        yield begin


def _end(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def assert_saved(run):
    (checkpoint,) = list_checkpoints(run)
    assert damage(checkpoint) is None
    assert checkpoint.name == f"step_{steps(run)[-1]:06d}"


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_end_with_their_launcher_and_save(running, launcher, signum):
    process, run, ranks = running(launcher)
    assert len(ranks) == 2
    process.send_signal(signum)
    assert all(gone(pid, within=30) for pid in ranks)
    assert_saved(run)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["python", *LAUNCHERS])
def test_a_signal_to_every_process_saves(running, launcher):
    """As a scheduler's: the launcher passes it on, so that each rank gets it twice."""
    process, run, ranks = running(launcher)
    for pid in {process.pid, *ranks}:
        os.kill(pid, signal.SIGTERM)
    for pid in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    assert all(gone(pid, within=30) for pid in ranks)
    assert_saved(run)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["python", "torchrun"])
def test_a_reader_that_leaves_ends_no_run(running, launcher):
    """As `tee` does in `tats-fast pretrain | tee log` on Ctrl-C, before the run can save."""
    process, run, ranks = running(launcher)
    process.stdout.close()  # stderr's, too
    before = steps(run)[-1]
    wait_for(lambda: steps(run)[-1] > before + 3, process)
    os.kill(ranks[0], signal.SIGTERM)
    assert all(gone(pid, within=30) for pid in ranks)
    assert_saved(run)
    if launcher == "python":
        assert process.wait() == 143


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_signal_to_one_rank_stops_all_within_two_steps(running, which):
    """Between two logged lines, of which there is but one in so many steps."""
    _, run, ranks = running("torchrun")
    os.kill(ranks[which], signal.SIGTERM)
    before = steps(run)[-1]
    assert all(gone(pid, within=30) for pid in ranks)
    assert_saved(run)
    assert steps(run)[-1] <= before + 3  # one more where a line was being written


def test_after_a_first_signal_only_a_later_sigint_stops_at_once(monkeypatch):
    def survives(*later):
        pid = os.fork()
        if pid == 0:
            with StopRequest(CPU) as request:
                os.kill(os.getpid(), signal.SIGTERM)
                assert request.agreed()
                for signum, seconds in later:
                    monkeypatch.setattr(signals, "ECHO", -1.0 if seconds else 1.0)
                    os.kill(os.getpid(), signum)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert survives((signal.SIGTERM, 0), (signal.SIGTERM, 5), (signal.SIGINT, 0)) == 0
    assert survives((signal.SIGTERM, 5), (signal.SIGINT, 5)) == -signal.SIGINT


def test_signals_are_left_as_they_were():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest(CPU) as request:
        assert not request.agreed()
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
