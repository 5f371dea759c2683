"""A run folder belongs to one run at a time, and to none once its process is gone."""

from __future__ import annotations

import os
import signal
import socket

import pytest
import torch
from run_processes import finish, start, steps, wait_for

from tats_fast.config import ConfigError, save_config
from tats_fast.engine import run_lock
from tats_fast.engine.distributed import World
from tats_fast.pretrain.trainer import Trainer

CPU = World(0, 1, torch.device("cpu"))


@pytest.mark.slow
def test_a_second_start_is_refused_until_the_first_is_gone(run_config, tmp_path):
    train = {"steps": 100_000, "checkpoint_every": 5, "log_every": 1}
    save_config(run_config("run", train=train, data={"workers": 1}), tmp_path / "run.yaml")
    run = tmp_path / "run"
    first = start(tmp_path / "run.yaml")
    try:
        wait_for(lambda: len(steps(run)) > 5, first)
        second = start(tmp_path / "run.yaml", "optim.base_lr=1e-5", "train.steps=1000")
        output, _ = second.communicate(timeout=100)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert second.returncode == 2
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert f"process {first.pid} on {socket.gethostname()}" in line and str(run) in line
    done = steps(run)
    assert done == list(range(1, len(done) + 1))
    finish(start(tmp_path / "run.yaml", f"train.steps={done[-1] + 1}"))
    assert steps(run) == list(range(1, done[-1] + 2))


def test_a_forked_worker_does_not_keep_the_lock(tmp_path):
    """The lock ends with its process, whatever that left behind."""
    ready, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        run_lock.hold(tmp_path)
        if os.fork() == 0:  # the worker, which outlives it
            os.close(done[1])
            os.read(done[0], 1)
            os._exit(0)
        os.write(ready[1], b"x")
        signal.pause()
    os.read(ready[0], 1)
    with pytest.raises(ConfigError, match=f"in use by process {pid} on "):
        run_lock.hold(tmp_path)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    run_lock.hold(tmp_path)
    run_lock.release(tmp_path)
    os.close(done[1])


def test_a_start_that_prepared_while_another_trained_is_refused(run_config, tmp_path, monkeypatch):
    """There was no folder to lock when it looked for a checkpoint."""
    make = Trainer.make_learner

    def meanwhile(trainer):
        monkeypatch.setattr(Trainer, "make_learner", make)
        Trainer(run_config(train={"steps": 2}), CPU).run()
        return make(trainer)

    monkeypatch.setattr(Trainer, "make_learner", meanwhile)
    with pytest.raises(ConfigError, match="another start has trained here meanwhile"):
        Trainer(run_config(), CPU)
    assert steps(tmp_path / "run") == [2]
    Trainer(run_config(), CPU).run()
    assert steps(tmp_path / "run") == [2, 4, 6]


def test_a_run_gives_its_folder_back(run_config, tmp_path):
    config = run_config(train={"steps": 2})
    Trainer(config, CPU).run()
    assert locked_by_another(tmp_path / "run") is False
    trainer = Trainer(run_config(train={"steps": 4}), CPU)
    assert locked_by_another(tmp_path / "run") is True
    with pytest.raises(ConfigError):
        Trainer(run_config(model={"depth": 1}), CPU)
    trainer.run()
    assert locked_by_another(tmp_path / "run") is False


def locked_by_another(folder):
    """Whether another process is refused."""
    pid = os.fork()
    if pid == 0:
        run_lock._HELD.clear()
        try:
            run_lock.hold(folder)
        except ConfigError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
