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
from tats_fast.run_folder import list_checkpoints
from tats_fast.weights_file import read_state

CPU = World(0, 1, torch.device("cpu"))
POISONED = """
import math, sys
from tats_fast.cli import main
from tats_fast.engine.distributed import end_process
from tats_fast.pretrain.trainer import Trainer

bad = [int(step) for step in sys.argv[2].split(",")]
make = Trainer.make_learner

def make_learner(self):
    learner = make(self)
    weight = learner.mae.encoder.embed.proj.weight
    weight.register_hook(lambda g: g * (math.inf if self.position.step + 1 in bad else 1.0))
    return learner

Trainer.make_learner = make_learner
codes = [main(["pretrain", "--config", sys.argv[1], *run.split()]) for run in sys.argv[3:]]
end_process(max(codes))
sys.exit(max(codes))
"""


def poisoned(config, folder, *steps, runs=("name=run",)):
    """Runs in one process whose gradient is infinite in these steps: exit code, output."""
    save_config(config, folder / "run.yaml")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            POISONED,
            str(folder / "run.yaml"),
            ",".join(map(str, steps)),
            *runs,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"},
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stages", [[], [1, 2, 3]], ids=["plain", "ZeRO"])
def test_an_infinite_gradient_is_skipped_and_counted(run_config, tmp_path, stages):
    config = run_config(train={"log_every": 1})
    zero = "name=run{0} distributed.engine=deepspeed distributed.zero_stage={0}"
    runs = [zero.format(stage) for stage in stages] or ["name=run"]
    code, output = poisoned(config, tmp_path, 2, 3, runs=runs)
    assert code == 0, output[-3000:]
    for run in runs:
        folder = tmp_path / run.split()[0].removeprefix("name=")
        rows = read_lines(folder / "metrics.jsonl")
        assert [row["skipped_steps"] for row in rows] == [0, 1, 2, 2, 2, 2], run
        assert rows[-1]["loss_recon"] is not None
        notes = read_lines(folder / "skipped_steps.jsonl")
        assert [note["step"] for note in notes] == [2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, 1], ids=["plain", "zero1"])
def test_an_end_that_is_not_finite_is_no_success(run_config, tmp_path, stage):
    run = "name=run" if stage is None else "name=run distributed.engine=deepspeed"
    code, output = poisoned(run_config(), tmp_path, 5, 6, runs=[run])
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
    values = read_state(kept / "model.safetensors")[part].values()
    assert all(value.isfinite().all() for value in values)
