"""tats_fast/pretrain/planner.py and the command: what a run will take."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from tats_fast.cli import main
from tats_fast.config import ConfigError, load_config
from tats_fast.engine.distributed import World
from tats_fast.engine.peak import MEMORY_GIB, PEAK_TFLOPS
from tats_fast.engine.videos import total_steps
from tats_fast.models.restore import build_models
from tats_fast.pretrain.flops import training_step
from tats_fast.pretrain.plan import plan_step
from tats_fast.pretrain.planner import make_plan
from tats_fast.pretrain.planner_options import CHIPS, PlanOptions
from tats_fast.pretrain.trainer import Trainer

PLACES = ("optimizer", "weights")
LARGER = {"width": 256, "depth": 4, "decoder_width": 128}


def plan(*overrides, **options):
    return make_plan(load_config(overrides=list(overrides)), PlanOptions(**options))


def test_every_chip_has_its_numbers():
    assert set(CHIPS) == set(MEMORY_GIB) == set(PEAK_TFLOPS)


def test_parameters_are_those_of_the_models():
    config = load_config(overrides=["model.preset=vit_tiny"])
    mae, sampler = build_models(config, "cpu")
    counts = make_plan(config, PlanOptions(gpus=1)).counts
    assert counts.mae == sum(p.numel() for p in mae.parameters())
    assert counts.sampler == sum(p.numel() for p in sampler.parameters())


@pytest.mark.parametrize(
    ("overrides", "clips"),
    [
        ((), 1),
        (("train.recompute=true",), 1),
        (("train.accumulation=2",), 1),
        (("train.batch_size=72", "data.repeats=6", "sampler.learn_every=4"), 12),
        (("train.batch_size=72", "data.repeats=6", "masking.strategy=tube"), 6),
    ],
)
def test_the_largest_batch_fits_and_a_larger_does_not(overrides, clips):
    """Of those that a run may have, in steps of so many clips."""
    base = plan(*overrides, gpus=2, zero=1, batch=72)
    exact, more = (
        plan(*overrides, gpus=2, zero=1, batch=base.largest + extra) for extra in (0, clips)
    )
    assert exact.fits and not more.fits
    assert base.largest_recomputing >= base.largest > 0


def test_what_a_run_would_refuse():
    with pytest.raises(ConfigError, match=r"world size 8 x sampler\.learn_every=4"):
        plan("sampler.learn_every=4", gpus=8, batch=2)


def test_a_model_that_is_too_large_for_any_batch():
    huge = plan("model.width=8192", "model.heads=64", "model.depth=48", gpus=1, batch=1)
    assert not huge.fits and huge.largest == huge.largest_recomputing == 0


def test_hours_are_flop_over_rate():
    """ViT-B, K = 1, ratio .95: 276 GFLOP per clip (docs/method.md)."""
    overrides = ("masking.ratio=0.95", "ppo.epochs=1", "sampler.warmup_frac=0", "train.epochs=800")
    one = plan(*overrides, gpus=1, batch=128, dataset="ssv2", mfu=0.4)
    seconds = 800 * 168_913 * 276.13e9 / (989e12 * 0.4)
    assert one.hours == pytest.approx(seconds / 3600, rel=1e-3)
    eight = make_plan(one.config, replace(one.options, gpus=8))
    assert eight.hours == pytest.approx(one.hours / 8, rel=1e-3)
    slower = plan(*overrides, "train.recompute=true", gpus=1, batch=128, dataset="ssv2", mfu=0.4)
    assert slower.hours == pytest.approx(one.hours * 4 / 3)


@pytest.mark.parametrize(
    "overrides",
    [
        ("masking.start_ratio=0.5", "masking.schedule=linear"),
        ("masking.start_ratio=0.97", "masking.schedule=cosine", "sampler.warmup_frac=0.3"),
    ],
    ids=["linear", "cosine"],
)
def test_the_work_is_that_of_all_steps(overrides):
    overrides += ("model.preset=vit_tiny", "train.steps=3000")
    found = plan(*overrides, gpus=1, batch=8)
    steps = [plan_step(found.config, step, 3000) for step in range(3000)]
    work = sum(training_step(found.config, step.visible, step.warmup) for step in steps)
    assert found.flop == pytest.approx(8 * work, rel=1e-3)


def test_epochs_are_of_what_is_listed():
    generated = ("generated.share=0.75", "train.epochs=800")
    found = plan(*generated, gpus=1, batch=256, videos=240_000)
    assert found.steps == total_steps(found.config, 240_000) == 3_000_000
    assert plan(*generated, "train.steps=7", gpus=1).steps == 7


def test_a_checkpoint_is_as_large_as_planned(run_config, tmp_path):
    """Up to what is small in it: the schedule's state, names, tables."""
    for decay in (0.0, 0.9):
        config = run_config(f"run{decay}", train={"ema_decay": decay, "steps": 2}, model=LARGER)
        Trainer(config, World(0, 1, torch.device("cpu"))).run()
        folder = tmp_path / f"run{decay}" / "checkpoints" / "step_000002"
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        assert make_plan(config, PlanOptions(gpus=1)).checkpoint == pytest.approx(size, rel=0.03)


def test_the_command(capsys):
    line = "plan --model vit_huge --gpus 8 --batch 64 --zero 2 --dataset kinetics400"
    assert main(line.split()) == 0
    text = capsys.readouterr().out
    assert "8 x H100 (ZeRO-2), train.batch_size=512" in text
    sizes = dict(re.findall(r"^  (\w+).*?(\d+\.\d\d)(?:\s|$)", text, re.MULTILINE))
    # 16 bytes a parameter and 693 M of them, of which ZeRO-2 leaves a process an eighth of most.
    assert float(sizes["optimizer"]) == pytest.approx(8 * (693 / 8 + 28) * 1e6 / 2**30, rel=0.02)
    assert "240,000 videos" in text and "hours at 28% MFU" in text
    assert main(["plan", "--videos", "1000", "train.epochs=10"]) == 0
    assert "in 20 steps over 1,000 videos" in capsys.readouterr().out
    assert main(["plan", "--batch", "0"]) == 2
    assert "--batch=0: must be at least 1" in capsys.readouterr().err
    # 256 clips, a configuration's default, would not divide by 3.
    assert main(["plan", "--gpus", "1", "--batch", "2", "train.accumulation=3"]) == 0
    assert "train.batch_size=6" in capsys.readouterr().out


def test_zero_3_and_offloading(capsys):
    peaks = [
        plan("model.preset=vit_huge", gpus=8, batch=8, **how).memory
        for how in ({"zero": 2}, {"zero": 3}, *({"zero": 3, "offload": o} for o in PLACES))
    ]
    assert sorted((memory.peak for memory in peaks), reverse=True) == [m.peak for m in peaks]
    assert [memory.host > 0 for memory in peaks] == [False, False, True, True]
    line = "plan --model vit_huge --gpus 8 --batch 8 --zero 3 --offload weights"
    assert main(line.split()) == 0
    text = capsys.readouterr().out
    assert "8 x H100 (ZeRO-3)" in text and "gathered weights" in text
    assert f"offloaded: {peaks[-1].host / 2**30:.1f} GiB of the host's memory" in text
    assert main(["plan", "--zero", "2", "--offload", "weights"]) == 2
    assert "--offload=weights: needs --zero 3 or more" in capsys.readouterr().err
