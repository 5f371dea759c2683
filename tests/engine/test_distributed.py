"""Two processes over gloo: DDP and ZeRO train alike, and resume exactly."""

from __future__ import annotations

import json

import pytest
import torch
from legs import run_legs
from models_exchanged import randomize, write_run
from project import ROOT, TINY_MODEL
from records import read_lines
from run_processes import finish, start

import tats_fast
from tats_fast.config import save_config
from tats_fast.config.reading import build_config
from tats_fast.weights_file import read_state

pytestmark = pytest.mark.slow
LEGS = str(ROOT / "tests/support/legs.py")
SPLIT = "distributed.zero_stage=3 distributed.deepspeed_config=split.json"
"""Stage 3 that splits all matrices, however small the model is."""


@pytest.fixture
def config(tmp_path):
    split = {"zero_optimization": {"stage3_param_persistence_threshold": 2048}}
    (tmp_path / "split.json").write_text(json.dumps(split))
    tree = {
        "output_dir": str(tmp_path),
        "device": "cpu",
        "model": TINY_MODEL,
        "masking": {"ratio": 0.75},
        "data": {"train": str(ROOT / "demo/clips/train"), "workers": 0, "stride": 1},
        # One rate throughout, so that a run's end may move.
        "optim": {"base_lr": 0.05, "min_lr": 0.05, "warmup_frac": 0.0},
        "sampler": {"warmup_frac": 0.0},
        "train": {
            **{"batch_size": 8, "steps": 6, "log_every": 2, "image_every": 0},
            "precision": "fp32",
        },
    }
    save_config(build_config(tree), tmp_path / "run.yaml")
    return tmp_path / "run.yaml"


def launch(config, launcher, *runs):
    """Train so many runs one after the other in the same two processes; returns their output."""
    arguments = [part for run in runs for part in ("--leg", run)]
    return finish(start(config, *arguments, launcher=launcher, script=LEGS), seconds=400)


def final_weights(folder, name, step=6):
    return read_state(folder / name / "checkpoints" / f"step_{step:06d}" / "model.safetensors")


def rows(folder, name):
    return read_lines(folder / name / "metrics.jsonl")


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


def test_ddp_and_zero_train_alike(config, tmp_path):
    """Also from given weights, of which DeepSpeed takes copies of its own."""
    write_run(tmp_path / "given", randomize(tats_fast.create_model("vit_tiny", **TINY_MODEL)))
    shared = "train.accumulation=2 optim.grad_clip=0.5"
    engines = {
        "ddp": "distributed.zero_stage=0",  # DeepSpeed's own would be wrong in bf16
        "zero1": "distributed.zero_stage=1",
        "zero2": "distributed.zero_stage=2",
        "zero3": SPLIT,
    }
    runs = [f"name={name} {engine} {shared}" for name, engine in engines.items()]
    runs += [
        f"name={name}_given {engine} train.init_from=given train.steps=2 train.log_every=1"
        for name, engine in engines.items()
    ]
    output = launch(config, "deepspeed", *runs)
    assert output.count("2 process(es) on cpu (deepspeed)") == 6
    assert output.count("2 process(es) on cpu (ddp)") == 2
    expected = final_weights(tmp_path, "ddp")
    losses = [row["loss_recon"] for row in rows(tmp_path, "ddp")]
    assert losses[-1] < losses[0]
    given = [row["loss_recon"] for row in rows(tmp_path, "ddp_given")]
    for name in ("zero1", "zero2", "zero3"):
        assert [row["loss_recon"] for row in rows(tmp_path, name)] == pytest.approx(losses, 1e-3)
        assert_close(expected, final_weights(tmp_path, name), rtol=1e-2, atol=2e-4)
        found = [row["loss_recon"] for row in rows(tmp_path, f"{name}_given")]
        assert found == pytest.approx(given, 1e-3), name


def test_zero_resumes_exactly(config, tmp_path):
    """In new processes; in bf16, which ZeRO-3 gathers in."""
    stages = {"zero2": "distributed.zero_stage=2", "zero3": SPLIT}
    runs = {name: f"train.precision=bf16 {stage}" for name, stage in stages.items()}
    straight = [f"name=straight_{name} {run}" for name, run in runs.items()]
    halves = [f"name=halves_{name} {run}" for name, run in runs.items()]
    launch(config, "deepspeed", *straight, *[f"{half} train.steps=3" for half in halves])
    output = launch(config, "deepspeed", *halves)
    assert output.count("continuing") == 2
    for name in stages:
        one, two = (final_weights(tmp_path, f"{part}_{name}") for part in ("straight", "halves"))
        assert_close(one, two, rtol=0, atol=0)
    losses = [[row["loss_recon"] for row in rows(tmp_path, f"straight_{name}")] for name in stages]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_both_ranks_take_different_clips_and_masks(config, tmp_path):
    """One process alone sees the same clips as two together: the first losses agree closely."""
    run_legs(str(config), ["name=alone train.steps=2"])
    launch(config, "torchrun", "name=two train.steps=2")
    one, two = (rows(tmp_path, name)[0] for name in ("alone", "two"))
    assert one["epoch"] == two["epoch"]
    assert one["lr"] == two["lr"]
    assert two["loss_recon"] == pytest.approx(one["loss_recon"], rel=0.02)
    assert two["motion_lift"] != one["motion_lift"]  # other masks


def test_one_rank_cannot_take_a_batch_of_an_odd_size(config):
    """By the command itself, as a user starts it."""
    with pytest.raises(AssertionError, match=r"batch_size=7: must be divisible by world size"):
        finish(start(config, "train.batch_size=7", launcher="torchrun"))
