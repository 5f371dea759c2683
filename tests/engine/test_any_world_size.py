"""A run that changes its engine and number of processes on the way trains as one that never did."""

from __future__ import annotations

import pytest
import torch
from records import read_lines
from run_processes import finish, start

from tats_fast.config import save_config
from tats_fast.run_folder import list_checkpoints, read_tensors

LEGS = [
    ("python", 1, 0),
    ("torchrun", 2, 0),
    ("deepspeed", 2, 1),
    ("deepspeed", 4, 2),
    ("torchrun", 4, 0),
    ("deepspeed", 2, 2),
    ("python", 1, 0),
]
"""Launcher, processes, ZeRO stage; ``STEPS`` steps each."""
STEPS = 2
TOLERANCE = 5e-4
"""Relative, of losses in fp32: sums in another order."""
NO_GRADIENT = ("actor.bias", "norm.bias")
"""Of the sampler: shifts of all logits, which change no policy."""


@pytest.mark.slow
def test_a_run_goes_on_under_any_engine_and_number_of_processes(run_config, tmp_path):
    """Losses and weights agree only where every leg takes the next clips and none twice, with the
    draws and the optimizer's moments that belong to them."""
    for name in ("straight", "legs"):
        config = run_config(
            name,
            train={"batch_size": 8, "log_every": 1, "checkpoint_every": 100},
            # The same rate at every step, so that the end may move.
            optim={"base_lr": 0.05, "min_lr": 0.05, "warmup_frac": 0.0, "grad_clip": 0.5},
            sampler={"warmup_frac": 0.0},
            data={"repeats": 2},
        )
        save_config(config, tmp_path / f"{name}.yaml")
    total = STEPS * len(LEGS)
    finish(start(tmp_path / "straight.yaml", f"train.steps={total}"))
    before = 1
    for number, (launcher, processes, stage) in enumerate(LEGS, start=1):
        settings = (f"train.steps={STEPS * number}", f"distributed.zero_stage={stage}")
        leg = start(tmp_path / "legs.yaml", *settings, launcher=launcher, ranks=processes)
        output = finish(leg, seconds=400)
        assert (f"processes: {before} -> {processes}" in output) == (before != processes)
        before = processes
    rows = [read_lines(tmp_path / name / "metrics.jsonl") for name in ("straight", "legs")]
    for one, two in zip(*rows, strict=True):
        assert (one["step"], one["epoch"], one["lr"]) == (two["step"], two["epoch"], two["lr"])
        for loss in ("loss_recon", "loss_value", "motion_lift"):
            assert two[loss] == pytest.approx(one[loss], rel=TOLERANCE), (one["step"], loss)
    folders = [list_checkpoints(tmp_path / name)[-1] for name in ("straight", "legs")]
    assert all(folder.name == f"step_{total:06d}" for folder in folders)
    compare(*(read_tensors(folder / "model.pt") for folder in folders), tolerance=1e-2)
    compare(*(read_tensors(folder / "optimizer.pt") for folder in folders), tolerance=2e-2)


def compare(one, two, tolerance, where=""):
    """Tensors of equal shape, as far apart as a share of the largest number in them."""
    if isinstance(one, torch.Tensor):
        assert one.shape == two.shape, where
        far = (one - two).abs().max().item()
        assert far <= tolerance * one.abs().max().item() + 1e-8, (where, far)
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            if key not in NO_GRADIENT and key != "param_groups":
                compare(one[key], two[key], tolerance, f"{where}.{key}")
