"""Fine-tuning with two processes over gloo: DDP and ZeRO train as one process does."""

from __future__ import annotations

import json

import pytest
import torch
from labelled_files import write_labelled
from legs import run_legs
from models_exchanged import write_run
from project import ROOT, TINY_MODEL
from records import read_lines
from run_processes import finish, start

import tats_fast
from tats_fast.config import load_finetune_config, save_config
from tats_fast.weights_file import read_state

pytestmark = pytest.mark.slow
EXACT = (
    "augment.rand_ops=0 augment.erase=0 augment.mixup=0 augment.cutmix=0 model.drop_path=0 "
    "train.ema_decay=0.5 optim.grad_clip=1"
)
SPLIT = "distributed.zero_stage=3 distributed.deepspeed_config=split.json"
"""Stage 3 that splits all matrices, however small the model is."""


@pytest.fixture(scope="module")
def folder(demo_clips, tmp_path_factory):
    made = tmp_path_factory.mktemp("two")
    write_labelled(demo_clips, made)
    torch.manual_seed(0)
    write_run(made / "pretrained", tats_fast.create_model("vit_tiny", **TINY_MODEL))
    return made


@pytest.fixture(scope="module")
def config(folder):
    settings = {
        "name": "run",
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
    split = {"zero_optimization": {"stage3_param_persistence_threshold": 2048}}
    (folder / "split.json").write_text(json.dumps(split))
    made = load_finetune_config(None, [f"{key}={value}" for key, value in settings.items()])
    save_config(made, folder / "run.yaml")
    return folder / "run.yaml"


def alone(config, monkeypatch, *runs):
    """Train in this process."""
    monkeypatch.chdir(config.parent)
    run_legs(str(config), list(runs), finetune=True)


def launch(config, launcher, *runs):
    """Train so many runs one after the other in the same two processes; returns their output."""
    arguments = [part for run in runs for part in ("--leg", run)]
    script = str(ROOT / "tests/support/legs.py")
    return finish(
        start(config, "--finetune", *arguments, launcher=launcher, script=script), seconds=400
    )


def model(folder, name):
    checkpoint = folder / name / "checkpoints" / "step_000004"
    return read_state(checkpoint / "model.safetensors")["classifier"]


def test_two_processes_train_and_evaluate_as_one(folder, config, monkeypatch):
    alone(config, monkeypatch, f"name=one {EXACT}")
    output = launch(
        config,
        "deepspeed",
        f"name=ddp {EXACT} train.accumulation=2 distributed.engine=ddp",
        f"name=zero {EXACT} distributed.zero_stage=2",
        f"name=split {EXACT} {SPLIT}",
    )
    assert output.count("2 process(es) on cpu (deepspeed)") == 2
    expected = model(folder, "one")
    for name in ("ddp", "zero", "split"):
        for key, value in model(folder, name).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-2, atol=2e-4, msg=key)
        one, two = (read_lines(folder / n / "metrics.jsonl") for n in ("one", name))
        losses = [row["loss"] for row in one]
        assert [row["loss"] for row in two] == pytest.approx(losses, rel=1e-3)
        # Each process evaluates its share of the videos; together that is the same list.
        evaluations = [read_lines(folder / n / "eval.jsonl") for n in ("one", name)]
        assert evaluations[0] == evaluations[1]
        assert evaluations[0][-1]["videos"] == 4


def test_processes_augment_differently_and_resume_exactly(folder, config):
    settings = "data.repeats=2 model.head_dropout=0.5 train.checkpoint_every=2"
    launch(config, "torchrun", f"name=straight {settings}", f"name=halves {settings}")
    # Take the run back to its middle, as a kill after step 2 would have left it.
    (folder / "halves" / "checkpoints" / "step_000004").rename(folder / "taken_away")
    launch(config, "torchrun", f"name=halves {settings}")
    for key, value in model(folder, "straight").items():
        assert torch.equal(value, model(folder, "halves")[key]), key


def test_one_process_goes_on_from_two_under_zero(folder, config, monkeypatch, capsys):
    """Layer decay has two parameter groups for every layer, each of which ZeRO splits."""
    settings = f"{EXACT} train.checkpoint_every=2"
    alone(config, monkeypatch, f"name=never_changed {settings}")
    expected = model(folder, "never_changed")
    # As the documentation starts it: the command is a module.
    stage_2 = f"name=changed {settings} distributed.zero_stage=2".split()
    finish(
        start(config, *stage_2, launcher="deepspeed", script=("--module", "tats_fast", "finetune"))
    )
    launch(config, "deepspeed", f"name=split_changed {settings} {SPLIT}")
    for name in ("changed", "split_changed"):
        (folder / name / "checkpoints" / "step_000004").rename(folder / f"{name}_with_zero")
        capsys.readouterr()
        alone(config, monkeypatch, f"name={name} {settings}")
        output = "".join(capsys.readouterr())
        assert "processes: 2 -> 1" in output and "distributed.engine: deepspeed -> " in output
        for key, value in model(folder, name).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-2, atol=2e-4, msg=key)
