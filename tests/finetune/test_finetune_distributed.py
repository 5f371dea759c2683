"""Fine-tuning with two processes over gloo: DDP and ZeRO train as one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from labelled_files import write_labelled
from models_exchanged import write_run
from project import TINY_MODEL

import tats_fast
from tats_fast.run_folder import read_tensors

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
PORT = iter(range(29711, 29800))
EXACT = (
    *("augment.rand_ops=0", "augment.erase=0", "augment.mixup=0", "augment.cutmix=0"),
    *("model.drop_path=0", "train.ema_decay=0.5", "optim.grad_clip=1"),
)


@pytest.fixture(scope="module")
def folder(demo_clips, tmp_path_factory):
    made = tmp_path_factory.mktemp("two")
    write_labelled(demo_clips, made)
    torch.manual_seed(0)
    write_run(made / "pretrained", tats_fast.create_model("vit_tiny", **TINY_MODEL))
    return made


def launch(launcher, folder, name, *overrides):
    """Run the fine-tuning command under a launcher; returns its output."""
    port = f"--master_port={next(PORT)}"
    command = {
        "python": [sys.executable, "-m"],
        "torchrun": [str(BIN / "torchrun"), "--nproc_per_node=2", port, "-m"],
        "deepspeed": [str(BIN / "deepspeed"), "--num_accelerators=2", port, "--module"],
    }[launcher]
    settings = {
        "init_from": "pretrained",
        "output_dir": ".",
        "device": "cpu",
        "data.train": "train.txt",
        "data.eval": "val.txt",
        "data.stride": 1,
        "data.workers": 0,
        "optim.base_lr": 0.05,
        "train.batch_size": 8,
        "train.precision": "fp32",
        "train.steps": 4,
        "train.log_every": 2,
    }
    done = subprocess.run(
        [*command, "tats_fast", "finetune", f"name={name}"]
        + [f"{key}={value}" for key, value in settings.items()]
        + list(overrides),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"},
        cwd=folder,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def model(folder, name):
    return read_tensors(folder / name / "checkpoints" / "step_000004" / "model.pt")["classifier"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_processes_train_and_evaluate_as_one(folder):
    launch("python", folder, "one", *EXACT)
    launch("torchrun", folder, "ddp", *EXACT, "train.accumulation=2")
    output = launch("deepspeed", folder, "zero", *EXACT, "distributed.zero_stage=2")
    assert "2 process(es) on cpu (deepspeed)" in output
    expected = model(folder, "one")
    for name in ("ddp", "zero"):
        for key, value in model(folder, name).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-2, atol=2e-4, msg=key)
        one, two = (lines(folder / n / "metrics.jsonl") for n in ("one", name))
        losses = [row["loss"] for row in one]
        assert [row["loss"] for row in two] == pytest.approx(losses, rel=1e-3)
        # Each process evaluates its share of the videos; together that is the same list.
        evaluations = [lines(folder / n / "eval.jsonl") for n in ("one", name)]
        assert evaluations[0] == evaluations[1]
        assert evaluations[0][-1]["videos"] == 4


def test_processes_augment_differently_and_resume_exactly(folder):
    settings = ("data.repeats=2", "model.head_dropout=0.5", "train.checkpoint_every=2")
    launch("torchrun", folder, "straight", *settings)
    launch("torchrun", folder, "halves", *settings)
    # Take the run back to its middle, as a kill after step 2 would have left it.
    (folder / "halves" / "checkpoints" / "step_000004").rename(folder / "taken_away")
    launch("torchrun", folder, "halves", *settings)
    for key, value in model(folder, "straight").items():
        assert torch.equal(value, model(folder, "halves")[key]), key


def test_one_process_goes_on_from_two_under_zero(folder):
    """Layer decay has two parameter groups for every layer, each of which ZeRO splits."""
    settings = (*EXACT, "train.checkpoint_every=2")
    launch("python", folder, "never_changed", *settings)
    launch("deepspeed", folder, "changed", *settings, "distributed.zero_stage=2")
    (folder / "changed" / "checkpoints" / "step_000004").rename(folder / "with_zero")
    output = launch("python", folder, "changed", *settings)
    assert "processes: 2 -> 1" in output and "distributed.engine: deepspeed -> " in output
    expected = model(folder, "never_changed")
    for key, value in model(folder, "changed").items():
        torch.testing.assert_close(value, expected[key], rtol=1e-2, atol=2e-4, msg=key)
