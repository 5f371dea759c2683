"""Two processes over gloo: DDP, ZeRO-1 and ZeRO-2 train alike, and resume exactly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from project import ROOT, TINY_MODEL

from tats_fast.run_folder import read_tensors

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
TRAIN = str(ROOT / "tats_fast" / "train.py")
PORT = iter(range(29611, 29700))


def launch(launcher, folder, name, *overrides):
    """Run the pretraining command with two processes; returns its output."""
    tree = {
        "output_dir": str(folder),
        "device": "cpu",
        "model": TINY_MODEL,
        "masking": {"ratio": 0.75},
        "data": {"train": str(ROOT / "demo/clips/train"), "workers": 0, "stride": 1},
        "optim": {"base_lr": 0.05, "warmup_frac": 0.0},
        "train": {
            **{"batch_size": 8, "steps": 6, "log_every": 2, "image_every": 0},
            "precision": "fp32",
        },
    }
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(tree))
    port = str(next(PORT))
    command = {
        "python": [sys.executable],
        "torchrun": [str(BIN / "torchrun"), "--nproc_per_node=2", f"--master_port={port}"],
        "deepspeed": [str(BIN / "deepspeed"), "--num_accelerators=2", f"--master_port={port}"],
    }[launcher]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        [*command, TRAIN, "--config", str(config), f"name={name}", *overrides],
        capture_output=True,
        text=True,
        env=env,
        cwd=folder,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def final_weights(folder, name, step=6):
    return read_tensors(folder / name / "checkpoints" / f"step_{step:06d}" / "model.pt")


def rows(folder, name):
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_close(one, two, **tolerance):
    for part in ("mae", "sampler"):
        for name, value in one[part].items():
            # A shift of all logits changes nothing: this bias has no gradient but rounding noise,
            # which Adam scales to full steps. Runs that must be bit-identical compare it too.
            if name == "actor.bias" and tolerance["rtol"] > 0:
                continue
            torch.testing.assert_close(
                two[part][name], value, msg=lambda m, n=name: f"{n}: {m}", **tolerance
            )


def test_ddp_and_zero_train_alike(tmp_path):
    shared = ("train.accumulation=2", "optim.grad_clip=0.5")
    launch("torchrun", tmp_path, "ddp", *shared)
    expected = final_weights(tmp_path, "ddp")
    losses = [row["loss_recon"] for row in rows(tmp_path, "ddp")]
    assert losses[-1] < losses[0]
    for stage in (1, 2):
        name = f"zero{stage}"
        output = launch("deepspeed", tmp_path, name, *shared, f"distributed.zero_stage={stage}")
        assert "2 process(es) on cpu (deepspeed)" in output
        assert [row["loss_recon"] for row in rows(tmp_path, name)] == pytest.approx(losses, 1e-3)
        assert_close(expected, final_weights(tmp_path, name), rtol=1e-2, atol=2e-4)


def test_stage_zero_under_the_deepspeed_launcher_is_plain_ddp(tmp_path):
    output = launch("deepspeed", tmp_path, "plain", "distributed.zero_stage=0")
    assert "2 process(es) on cpu (ddp)" in output


def test_zero_resumes_exactly(tmp_path):
    settings = ("distributed.zero_stage=2", "train.precision=bf16", "train.checkpoint_every=3")
    launch("deepspeed", tmp_path, "straight", *settings)
    launch("deepspeed", tmp_path, "halves", *settings)
    # Take the run back to its middle, as a kill after step 3 would have left it.
    last = tmp_path / "halves" / "checkpoints" / "step_000006"
    last.rename(tmp_path / "taken_away")
    launch("deepspeed", tmp_path, "halves", *settings)
    assert_close(
        final_weights(tmp_path, "straight"), final_weights(tmp_path, "halves"), rtol=0, atol=0
    )


def test_both_ranks_take_different_clips_and_masks(tmp_path):
    """One process alone sees the same clips as two together: the first losses agree closely."""
    launch("python", tmp_path, "alone", "train.steps=2")
    launch("torchrun", tmp_path, "two", "train.steps=2")
    one, two = (rows(tmp_path, name)[0] for name in ("alone", "two"))
    assert one["epoch"] == two["epoch"]
    assert one["lr"] == two["lr"]
    assert two["loss_recon"] == pytest.approx(one["loss_recon"], rel=0.02)
    assert two["motion_lift"] != one["motion_lift"]  # other masks


def test_one_rank_cannot_take_a_batch_of_an_odd_size(tmp_path):
    with pytest.raises(AssertionError, match=r"batch_size=7: must be divisible by world size"):
        launch("torchrun", tmp_path, "odd", "train.batch_size=7")
