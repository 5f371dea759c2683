"""A run that changes its engine and number of processes on the way trains as one that never did."""

from __future__ import annotations

import json

import pytest
import torch
from legs import run_legs
from project import ROOT
from records import read_lines
from run_processes import finish, start

from tats_fast.config import save_config
from tats_fast.run_folder import list_checkpoints, read_tensors
from tats_fast.weights_file import read_state

LAUNCHES = [
    ("python", 1, ("ddp",)),
    ("torchrun", 2, ("ddp", "zero1", "zero3", "offload3")),
    ("deepspeed", 4, ("zero3", "zero2", "ddp")),
    ("python", 1, ("ddp",)),
]
"""Launcher, processes, engine and ZeRO stage of each leg in the same processes; ``STEPS`` steps
each."""
STEPS = 2
TOLERANCE = 5e-4
"""Relative, of losses in fp32: sums in another order."""
NO_GRADIENT = ("actor.bias", "norm.bias")
"""Of the sampler: shifts of all logits, which change no policy."""


@pytest.fixture
def config_files(run_config, tmp_path):
    # Nothing but vectors stays whole under ZeRO-3, however small the model is.
    split = {"stage3_param_persistence_threshold": 2048}
    cpu = {"device": "cpu"}
    for name, zero in (
        ("zero3", split),
        ("offload3", {**split, "offload_optimizer": cpu, "offload_param": cpu}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps({"zero_optimization": zero}))
    for name in ("straight", "legs"):
        config = run_config(
            name,
            train={
                **{"batch_size": 8, "log_every": 1, "checkpoint_every": 100},
                **{"image_every": 3, "eval_every": STEPS},
            },
            # The same rate at every step, so that the end may move.
            optim={"base_lr": 0.05, "min_lr": 0.05, "warmup_frac": 0.0, "grad_clip": 0.5},
            sampler={"warmup_frac": 0.0},
            data={"repeats": 2, "eval": str(ROOT / "demo/clips/heldout")},
        )
        save_config(config, tmp_path / f"{name}.yaml")
    return tmp_path


def settings_of(leg, number, folder):
    settings = f"train.steps={STEPS * number} distributed.engine=ddp"
    if leg != "ddp":
        settings = settings.replace("=ddp", f"=deepspeed distributed.zero_stage={leg[-1]}")
    if (file := folder / f"{leg}.json").exists():
        settings += f" distributed.deepspeed_config={file.name}"
    return settings


@pytest.mark.slow
def test_a_run_goes_on_under_any_engine_and_number_of_processes(
    config_files, tmp_path, monkeypatch, capsys
):
    """Losses, held-out losses and weights agree only where every leg takes the next clips and none
    twice, with the draws and the optimizer's moments that belong to them."""
    monkeypatch.chdir(tmp_path)
    total = STEPS * sum(len(legs) for _, _, legs in LAUNCHES)
    run_legs("straight.yaml", [f"train.steps={total}"])
    before, number = 1, 0
    for launcher, processes, legs in LAUNCHES:
        settings = []
        for leg in legs:
            number += 1
            settings.append(settings_of(leg, number, tmp_path))
        if launcher == "python":
            capsys.readouterr()
            run_legs("legs.yaml", settings)
            output = "".join(capsys.readouterr())
        else:
            arguments = [part for leg in settings for part in ("--leg", leg)]
            script = str(ROOT / "tests/support/legs.py")
            running = start(
                tmp_path / "legs.yaml",
                *arguments,
                launcher=launcher,
                ranks=processes,
                script=script,
            )
            output = finish(running, seconds=400)
        assert (f"processes: {before} -> {processes}" in output) == (before != processes)
        before = processes
    rows = [read_lines(tmp_path / name / "metrics.jsonl") for name in ("straight", "legs")]
    for one, two in zip(*rows, strict=True):
        assert (one["step"], one["epoch"], one["lr"]) == (two["step"], two["epoch"], two["lr"])
        for loss in ("loss_recon", "loss_value", "frame_spread"):
            assert two[loss] == pytest.approx(one[loss], rel=TOLERANCE), (one["step"], loss)
    held_out = [read_lines(tmp_path / name / "eval.jsonl") for name in ("straight", "legs")]
    for one, two in zip(*held_out, strict=True):
        assert one["step"] == two["step"]
        assert two["loss_recon_random"] == pytest.approx(one["loss_recon_random"], rel=TOLERANCE)
    folders = [list_checkpoints(tmp_path / name)[-1] for name in ("straight", "legs")]
    assert all(folder.name == f"step_{total:06d}" for folder in folders)
    compare(*(read_state(folder / "model.safetensors") for folder in folders), tolerance=1e-2)
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
