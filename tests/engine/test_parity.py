"""However the global batch is cut up, among processes, engines and micro-batches, training is the
same: 20 steps on the same clips, whose draws follow from their place in the batch."""

from __future__ import annotations

import json
import re

import parity
import pytest
import torch
from project import ROOT
from run_processes import finish, start

from tats_fast.config import load_config, save_config
from tats_fast.engine.distributed import World

CPU = World(0, 1, torch.device("cpu"))
LOSSES = ("loss_recon", "loss_policy", "loss_value", "entropy_frac", "grad_norm")
ADVANTAGE = {"loss_policy": 0.2}
"""Means of advantages, which are of size 1 and cancel: what is left is no measure."""
CUTS = [f"ppo.epochs={k} train.accumulation={a}" for k in (1, 2) for a in (1, 4)]
EVERY = "sampler.learn_every=2"
NO_GRADIENT = ("actor.bias", "norm.bias")
"""Of the sampler: they shift all logits alike, which changes no policy. What AdamW makes full steps
of there is rounding."""


@pytest.fixture
def config_file(tiny_config, tmp_path):
    config = tiny_config(
        device="cpu",
        data={"train": "none"},
        optim={"base_lr": 0.05, "warmup_frac": 0.0, "grad_clip": 0.5},
        sampler={"warmup_frac": 0.1},
        train={"batch_size": 8, "steps": 20},
    )
    save_config(config, tmp_path / "run.yaml")
    return tmp_path / "run.yaml"


def alone(config_file, epochs, accumulation, dtype, *more):
    cut = [f"ppo.epochs={epochs}", f"train.accumulation={accumulation}", *more]
    return parity.numbers(load_config(str(config_file), cut), CPU, dtype)


def assert_same_losses(found, expected, relative):
    assert len(found["rows"]) == len(expected["rows"]) == 20
    for number, (one, two) in enumerate(zip(found["rows"], expected["rows"], strict=True)):
        assert one["skipped"] == 0
        for name in LOSSES:
            if name in two:
                close = pytest.approx(
                    two[name], rel=relative, abs=ADVANTAGE.get(name, 0) * relative
                )
                assert one[name] == close, (number, name)


def assert_same_weights(found, expected, absolute):
    for part in ("mae", "sampler"):
        for name, value in expected["weights"][part].items():
            if part == "sampler" and name in NO_GRADIENT:
                continue
            worst = (found["weights"][part][name] - value).abs().max().item()
            assert worst < absolute, (part, name)


@pytest.mark.parametrize(
    "how",
    [["masking.draws_per_clip=2", "masking.decoder_keep_ratio=0.5"], [EVERY]],
    ids=["draws", "every"],
)
def test_four_micro_batches_are_one_batch_of(how, config_file):
    cut = ["ppo.epochs=2", *how]
    config = [load_config(str(config_file), [*cut, f"train.accumulation={n}"]) for n in (1, 4)]
    whole, parts = (parity.numbers(one, CPU, torch.float64) for one in config)
    assert_same_weights(parts, whole, absolute=1e-12)


@pytest.mark.parametrize("epochs", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_four_micro_batches_are_one_batch(config_file, epochs):
    whole, parts = (alone(config_file, epochs, count, torch.float64) for count in (1, 4))
    assert {v.dtype for v in whole["weights"]["mae"].values()} == {torch.float64}
    assert whole["rows"][-1]["loss_policy"] != 0
    assert_same_weights(parts, whole, absolute=1e-12)
    assert_same_losses(parts, whole, relative=1e-6)  # logged in fp32


ZERO = {
    "distributed.zero_stage=1": {},
    "distributed.zero_stage=2": {},
    "distributed.zero_stage=2 distributed.deepspeed_config=offload.json": {
        "offload_optimizer": {"device": "cpu"}
    },
    "distributed.zero_stage=3 distributed.deepspeed_config=split.json": {
        "stage3_param_persistence_threshold": 2048
    },
    "distributed.zero_stage=3 distributed.deepspeed_config=split.json "
    "train.compile=true train.recompute=true": {"stage3_param_persistence_threshold": 2048},
    "distributed.zero_stage=3 distributed.deepspeed_config=all.json": {
        "stage3_param_persistence_threshold": 2048,
        "sub_group_size": 5_000,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
    },
}
"""Settings, and what their file of DeepSpeed's holds."""
ONE_CUT = [engine for engine in ZERO if "offload" in str(ZERO[engine]) or "compile" in engine]
"""Engines for which two inner epochs of four micro-batches must do."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "engines", "dtypes"),
    [
        ("torchrun", ["distributed.engine=ddp"], ("float32", "float64")),
        ("deepspeed", list(ZERO), ("float32",)),
    ],
    ids=["DDP", "ZeRO"],
)
def test_two_processes_train_as_one(config_file, tmp_path, launcher, engines, dtypes):
    for engine, settings in ZERO.items():
        if ".json" in engine:
            path = tmp_path / re.search(r"\w+\.json", engine)[0]
            path.write_text(json.dumps({"zero_optimization": settings}))
    runs = [
        f"{cut} {engine}"
        for engine in engines
        for cut in (CUTS[-1:] if engine in ONE_CUT else CUTS)
    ]
    plain = [engine for engine in engines if engine not in ONE_CUT]
    runs += [f"ppo.epochs=2 train.accumulation=2 {EVERY} {engine}" for engine in plain]
    process = start(
        config_file,
        *("--out", str(tmp_path / "found.pt")),
        *(part for run in runs for part in ("--cut", run)),
        *(part for dtype in dtypes for part in ("--dtype", dtype)),
        launcher=launcher,
        script=str(ROOT / "tests/support/parity.py"),
    )
    finish(process, seconds=600)
    found = torch.load(tmp_path / "found.pt")
    for dtype in dtypes:
        for epochs, more in ((1, ()), (2, ()), (2, (EVERY,))):
            expected = alone(config_file, epochs, 1, getattr(torch, dtype), *more)
            for run in runs:
                if run.startswith(f"ppo.epochs={epochs} ") and (EVERY in run) == bool(more):
                    assert_same_losses(found[dtype, run], expected, relative=5e-4)
                    if dtype == "float64":
                        assert_same_weights(found[dtype, run], expected, absolute=1e-12)
