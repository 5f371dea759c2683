"""Each evaluation is on record exactly once, whenever the run was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from records import read_lines
from run_processes import finish, start, steps

from tats_fast.config import save_config
from tats_fast.engine.distributed import World
from tats_fast.engine.logs import SilentLog
from tats_fast.pretrain.trainer import Trainer

CPU = World(0, 1, torch.device("cpu"))
KILLED = """
import os, signal, sys
from tats_fast.cli import main
from tats_fast.pretrain.trainer import Trainer

evaluate = Trainer.evaluate

def killed(self, due, log):
    if self.position.step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    evaluate(self, due, log)
    if self.position.step == -int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

Trainer.evaluate = killed
main(["pretrain", "--config", sys.argv[1]])
"""


def killed_at(config, step):
    """Run until just before the evaluation of this step; of a negative one, just after it."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED, str(config), str(step)], env=env)
    assert done.returncode == -signal.SIGKILL


@pytest.fixture
def evaluated(run_config, tmp_path, demo_clips):
    def make(name, **sections):
        train = {"eval_every": 2, **sections.pop("train", {})}
        config = run_config(name, train=train, data={"eval": str(demo_clips)}, **sections)
        path = tmp_path / f"{name}.yaml"
        save_config(config, path)
        return config, path

    return make


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, -4, 6])
def test_an_evaluation_that_a_kill_prevented_is_made_up_for(evaluated, tmp_path, step):
    _, path = evaluated("straight")
    finish(start(path))
    _, path = evaluated("killed")
    killed_at(path, step)
    finish(start(path))
    straight, killed = (
        read_lines(tmp_path / name / "eval.jsonl") for name in ("straight", "killed")
    )
    assert [row["step"] for row in killed] == [0, 2, 4, 6]
    assert killed == straight
    finish(start(path))  # finished: nothing is measured again
    assert read_lines(tmp_path / "killed" / "eval.jsonl") == straight


def test_step_0_is_on_record_once(evaluated, tmp_path):
    """A run that ended before its first checkpoint starts anew, its lines too."""
    config, _ = evaluated("run")
    trainer = Trainer(config, CPU)
    trainer.train_step = lambda batches: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    assert steps(tmp_path / "run", "eval.jsonl") == [0]
    Trainer(config, CPU).run()
    assert steps(tmp_path / "run", "eval.jsonl") == [0, 2, 4, 6]


def test_probes_are_made_up_for_apart_from_the_held_out_loss(evaluated, tmp_path, monkeypatch):
    """The two have lines of their own at the same step."""
    config, _ = evaluated("run", train={"steps": 4, "checkpoint_every": 4})
    monkeypatch.setattr(
        Trainer, "evaluations", lambda self: ["loss_recon_random", "probe_unreadable"]
    )
    measured = []

    class Prober:
        def measure(self, mae):
            measured.append(1)
            return {"probe_unreadable": 0}, "probed"

    trainer = Trainer(config, CPU)
    trainer.prober = Prober()
    trainer.run()
    lines = (tmp_path / "run" / "eval.jsonl").read_text().splitlines()
    kept = [line for line in lines if not ('"step": 4' in line and "probe" in line)]
    assert len(kept) == len(lines) - 1
    (tmp_path / "run" / "eval.jsonl").write_text("\n".join(kept) + "\n")
    measured.clear()
    again = Trainer(config, CPU)
    again.prober = Prober()
    again.run()
    assert len(measured) == 1
    found = read_lines(tmp_path / "run" / "eval.jsonl")
    assert sorted(map(str, found)) == sorted(map(str, map(json.loads, lines)))


def test_all_wait_before_the_average_is_gathered(evaluated, monkeypatch):
    """The first process has measured alone by then; under ZeRO-3 the others would give it up."""
    config, _ = evaluated("run", train={"ema_decay": 0.9, "steps": 2})
    trainer, order = Trainer(config, CPU), []
    monkeypatch.setattr(World, "barrier", lambda world: order.append("wait"))
    whole = trainer.learner.whole_mae

    def gathered(averaged=False):
        order.append("average" if averaged else "weights")
        return whole(averaged)

    trainer.learner.whole_mae = gathered
    trainer.evaluate(["loss_recon_random"], SilentLog())
    assert order == ["weights", "wait", "average"]
