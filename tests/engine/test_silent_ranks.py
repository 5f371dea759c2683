"""No wait without an end, and none without a word: a frozen rank, a killed one, a folder unseen."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest
import torch
from children import gone
from run_processes import finish, ranks_below, start, steps, wait_for

from tats_fast.config import ConfigError, save_config
from tats_fast.engine.distributed import ANSWER_WITHIN, World
from tats_fast.engine.resume import checkpoint_to_resume
from tats_fast.pretrain.trainer import Trainer
from tats_fast.run_folder import list_checkpoints

CPU = World(0, 1, torch.device("cpu"))
HASTY = """
import sys
from tats_fast.cli import run_and_exit
from tats_fast.engine import loop

loop.ANSWER_WITHIN = 6.0
run_and_exit(["pretrain", *sys.argv[1:]])
"""
SLOW_DISK = """
import sys, time
import torch
from tats_fast.cli import run_and_exit
from tats_fast.engine import saving
from tats_fast.engine.distributed import World
from tats_fast.pretrain.trainer import Trainer

write, within, train_step = saving.write_checkpoint, World.answer_within, Trainer.train_step
written = []

def slow_write(*arguments):
    written.append(time.sleep(12 if len(written) < 2 else 0))
    return write(*arguments)

def second_skipped(self, batches):
    metrics = train_step(self, batches)
    return {**metrics, "skipped": torch.ones(())} if self.position.step == 1 else metrics

saving.write_checkpoint, Trainer.train_step = slow_write, second_skipped
World.answer_within = lambda self, seconds: within(self, 5.0)
run_and_exit(["pretrain", *sys.argv[1:]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
@pytest.mark.parametrize("signum", [signal.SIGSTOP, signal.SIGKILL], ids=["frozen", "killed"])
def test_the_others_end_with_a_sentence(run_config, tmp_path, signum, launcher):
    """With a shorter patience than users have, to spare the wait."""
    script = tmp_path / "hasty.py"
    script.write_text(HASTY)
    train = {"steps": 100_000, "checkpoint_every": 5, "log_every": 1}
    config = run_config("run", train=train, data={"timeout_s": 1.0})
    save_config(config, tmp_path / "run.yaml")
    process = start(tmp_path / "run.yaml", launcher=launcher, script=str(script))
    run = tmp_path / "run"
    ranks = []
    try:
        wait_for(lambda: len(steps(run)) > 5, process, seconds=200)
        ranks = ranks_below(process.pid, str(script))
        began = time.monotonic()
        os.kill(ranks[1], signum)
        assert gone(ranks[0], within=60)
        waited = time.monotonic() - began
    finally:
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, output[-3000:]
    expected = "does not answer" if signum == signal.SIGSTOP else "has ended"
    assert expected in errors[0] and "last good checkpoint" in errors[0]
    assert waited > 5 or signum == signal.SIGKILL
    assert process.returncode != 0


@pytest.mark.slow
def test_a_slow_disk_is_waited_for_by_all(run_config, tmp_path):
    """Two writes take longer than a rank may be silent: what is said of a skipped step waits for
    the first, the next save for the second."""
    script = tmp_path / "slow_disk.py"
    script.write_text(SLOW_DISK)
    config = run_config("run", train={"steps": 5, "checkpoint_every": 1, "log_every": 1})
    save_config(config, tmp_path / "run.yaml")
    finish(start(tmp_path / "run.yaml", launcher="torchrun", script=str(script)))
    saved = [int(folder.name[-6:]) for folder in list_checkpoints(tmp_path / "run")]
    assert saved == [3, 4, 5] and steps(tmp_path / "run") == [1, 2, 3, 4, 5]


def test_the_limit_is_longer_than_a_hanging_file_takes(run_config, monkeypatch):
    """A reader is replaced after twice data.timeout_s; until then its rank keeps the others up."""
    asked = []
    monkeypatch.setattr(World, "answer_within", lambda self, seconds: asked.append(seconds))
    Trainer(run_config(train={"steps": 2}, data={"timeout_s": 60.0}), CPU).run()
    Trainer(run_config("brief", train={"steps": 2}, data={"timeout_s": 5.0}), CPU).run()
    assert asked == [140.0, ANSWER_WITHIN]


def test_a_process_that_does_not_see_the_checkpoint_is_named(run_config, tmp_path, monkeypatch):
    Trainer(run_config(), CPU).run()
    sees = [("here", True), ("there", False)]
    gather = World.gather

    def two_hosts(self, value, patient=False):
        return sees if value[-1] is True else gather(self, value, patient)

    monkeypatch.setattr(World, "gather", two_hosts)
    with pytest.raises(ConfigError, match=r"process 1 on there does not see .*step_000006"):
        checkpoint_to_resume(tmp_path / "run", "auto", CPU)
