"""``train.ema_decay``: the average of the autoencoder's weights beside them."""

from __future__ import annotations

import json

import pytest
import torch
from project import ROOT
from run_checks import assert_identical, weights
from run_processes import finish, start

import tats_fast
from tats_fast.cli import main
from tats_fast.config import ConfigError, save_config
from tats_fast.engine.distributed import World
from tats_fast.interchange import read_weights
from tats_fast.pretrain.trainer import Trainer
from tats_fast.weights_file import read_state

CPU = World(0, 1, torch.device("cpu"))
DECAY = {"ema_decay": 0.75}


def model(folder, step):
    return read_state(folder / "checkpoints" / f"step_{step:06d}" / "model.safetensors")


def test_it_follows_the_weights_and_is_measured(run_config, tmp_path):
    held_out = str(ROOT / "demo" / "clips" / "heldout")
    config = run_config(
        train={**DECAY, "checkpoint_every": 1, "keep_checkpoints": 9}, data={"eval": held_out}
    )
    run = Trainer(config, CPU)
    average = {name: p.detach().clone() for name, p in run.learner.mae.named_parameters()}
    run.run()
    for step in range(1, 7):
        saved = model(tmp_path / "run", step)
        for name, value in average.items():
            value.mul_(0.75).add_(saved["mae"][name], alpha=0.25)
            torch.testing.assert_close(saved["ema"][name], value, rtol=1e-5, atol=1e-7)
    # What evaluation put in place is back in its place.
    assert_identical(dict(run.learner.mae.state_dict()), saved["mae"])
    rows = [json.loads(x) for x in (tmp_path / "run" / "eval.jsonl").read_text().splitlines()]
    before, after = ((row["loss_recon_random"], row["loss_recon_random_ema"]) for row in rows)
    assert before[0] == before[1] and after[0] != after[1]


def test_training_is_what_it_is_without(run_config, tmp_path):
    Trainer(run_config("plain"), CPU).run()
    Trainer(run_config("kept", train=DECAY), CPU).run()
    plain, kept = (weights(tmp_path / name, 6) for name in ("plain", "kept"))
    kept["model"].pop("ema")
    assert_identical(kept, plain)


def test_it_resumes_bit_by_bit(run_config, tmp_path):
    Trainer(run_config("whole", train=DECAY), CPU).run()
    Trainer(run_config("parts", train=DECAY), CPU).run()
    folder = tmp_path / "parts" / "checkpoints" / "step_000002"
    Trainer(run_config("parts", train={**DECAY, "resume": str(folder)}), CPU).run()
    assert_identical(weights(tmp_path / "parts", 6), weights(tmp_path / "whole", 6))


def test_it_may_begin_and_end_on_the_way(run_config, tmp_path):
    Trainer(run_config(train={"steps": 4}), CPU).run()
    begun = Trainer(run_config(train=DECAY), CPU)
    assert_identical(begun.learner.average.values, dict(begun.learner.mae.state_dict()))
    begun.run()
    assert "ema" in model(tmp_path / "run", 6)
    Trainer(run_config(train={"steps": 8}), CPU).run()
    assert "ema" not in model(tmp_path / "run", 8)


def test_it_is_exported_and_loaded(run_config, tmp_path):
    Trainer(run_config(train=DECAY), CPU).run()
    run, out = tmp_path / "run", tmp_path / "out"
    arguments = ["export", "--checkpoint", str(run), "--to", "huggingface", "--out", str(out)]
    assert main([*arguments, "--ema"]) == 0
    average = model(run, 6)["ema"]
    state = read_weights(out).state
    assert state.keys() == average.keys()  # the decoder, too
    for name, value in state.items():
        assert torch.equal(value, average[name]), name
    assert (
        "| these weights | their moving average, decay 0.75 per step |"
        in (out / "README.md").read_text()
    )
    encoder = tats_fast.load_encoder(run, ema=True)
    assert torch.equal(encoder.norm.weight, average["encoder.norm.weight"])


def test_where_none_was_kept_one_sentence_says_so(run_config, tmp_path):
    Trainer(run_config(train={"steps": 1}), CPU).run()
    with pytest.raises(ConfigError, match=r"no moving average .* train\.ema_decay=0\.9999"):
        tats_fast.load_encoder(tmp_path / "run", ema=True)


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "stage"), [("torchrun", 0), ("deepspeed", 3)])
def test_two_processes_average_as_one(run_config, tmp_path, launcher, stage):
    """Under ZeRO-3 each averages its part of the weights."""
    for name in ("one", "two"):
        config = run_config(name, train=DECAY, masking={"ratio": 0.75, "draws_per_clip": 2})
        save_config(config, tmp_path / f"{name}.yaml")
    finish(start(tmp_path / "one.yaml"))
    finish(start(tmp_path / "two.yaml", f"distributed.zero_stage={stage}", launcher=launcher), 400)
    one, two = (model(tmp_path / name, 6)["ema"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-2, atol=5e-4, msg=name)
