"""Numbers that are not finite: no weight of theirs is saved, and no run ends well with them."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from records import read_lines
from run_processes import BIN

from tats_fast.config import save_config
from tats_fast.engine.distributed import World
from tats_fast.engine.finite import NonFiniteLoss
from tats_fast.pretrain.trainer import Trainer
from tats_fast.run_folder import list_checkpoints, read_tensors

CPU = World(0, 1, torch.device("cpu"))
POISONED = """
import math, sys
from tats_fast.cli import run_and_exit
from tats_fast.pretrain.trainer import Trainer

bad = [int(step) for step in sys.argv[2].split(",")]
make = Trainer.make_learner

def make_learner(self):
    learner = make(self)
    weight = learner.mae.encoder.embed.proj.weight
    weight.register_hook(lambda g: g * (math.inf if self.position.step + 1 in bad else 1.0))
    return learner

Trainer.make_learner = make_learner
run_and_exit(["pretrain", "--config", sys.argv[1], *sys.argv[3:]])
"""


def poisoned(config, folder, *steps, overrides=()):
    """A run whose gradient is infinite in these steps: exit code, output, its metrics."""
    save_config(config, folder / "run.yaml")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            POISONED,
            str(folder / "run.yaml"),
            ",".join(map(str, steps)),
            *overrides,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"},
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr, read_lines(folder / "run" / "metrics.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, 1, 2], ids=["plain", "zero1", "zero2"])
def test_an_infinite_gradient_is_skipped_and_counted(run_config, tmp_path, stage):
    config = run_config(train={"log_every": 1})
    engine = [] if stage is None else ["distributed.engine=deepspeed"]
    engine += [] if stage is None else [f"distributed.zero_stage={stage}"]
    code, output, rows = poisoned(config, tmp_path, 2, 3, overrides=engine)
    assert code == 0, output[-3000:]
    assert [row["skipped_steps"] for row in rows] == [0, 1, 2, 2, 2, 2]
    assert rows[-1]["loss_recon"] is not None
    notes = read_lines(tmp_path / "run" / "skipped_steps.jsonl")
    assert [note["step"] for note in notes] == [2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, 1], ids=["plain", "zero1"])
def test_an_end_that_is_not_finite_is_no_success(run_config, tmp_path, stage):
    engine = [] if stage is None else ["distributed.engine=deepspeed"]
    code, output, _ = poisoned(run_config(), tmp_path, 5, 6, overrides=engine)
    assert code == 1
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert "2 steps in a row (to step 6)" in line and "step_000004" in line
    assert list_checkpoints(tmp_path / "run")[-1].name == "step_000004"


def test_no_checkpoint_is_claimed_where_none_is(run_config):
    config = run_config(train={"max_skipped": 2, "log_every": 1, "checkpoint_every": 6})
    trainer = Trainer(config, CPU)
    weight = trainer.learner.mae.encoder.embed.proj.weight
    weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteLoss, match=r"2 steps in a row .*no checkpoint was written"):
        trainer.run()


@pytest.mark.parametrize("part", ["mae", "sampler"])
def test_weights_that_are_not_finite_are_not_saved(run_config, tmp_path, part):
    trainer = Trainer(run_config(), CPU)
    module = getattr(trainer.learner, part)
    name, weight = list(module.named_parameters())[-1]

    def spoil(log):
        if trainer.position.step == 4:
            with torch.no_grad():
                weight.view(-1)[-1] = math.inf

    trainer.picture = spoil
    with pytest.raises(NonFiniteLoss, match=rf"{part}\.{name} .*step_000002") as raised:
        trainer.run()
    assert "\n" not in str(raised.value)
    (kept,) = list_checkpoints(tmp_path / "run")
    values = read_tensors(kept / "model.pt")[part].values()
    assert all(value.isfinite().all() for value in values)
