"""Shared fixtures: seeds, small configurations, real clips of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from deepspeed_op import use_own_folder
from project import ROOT, TINY_MODEL

from tats_fast.config import RunConfig
from tats_fast.config.reading import build_config

use_own_folder()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny_config():
    """Factory of run configurations small enough for a unit test; sections merge over defaults.

    In fp32 unless told otherwise: ``auto`` depends on the processor. With two inner epochs, without
    which nothing of PPO's ratio and clipping would run.
    """

    def make(**sections) -> RunConfig:
        tree = {"model": TINY_MODEL, "masking": {"ratio": 0.75}, **sections}
        tree["model"] = {**TINY_MODEL, **sections.get("model", {})}
        tree["ppo"] = {"epochs": 2, **sections.get("ppo", {})}
        tree["train"] = {"precision": "fp32", **sections.get("train", {})}
        return build_config(tree)

    return make


@pytest.fixture(scope="session")
def demo_clips() -> Path:
    """Folder of real training clips."""
    return ROOT / "demo" / "clips" / "train"


@pytest.fixture
def run_config(tiny_config, tmp_path, demo_clips):
    def make(name="run", **sections):
        train = {
            "batch_size": 4,
            "steps": 6,
            "log_every": 2,
            "checkpoint_every": 2,
            "image_every": 0,
            "eval_clips": 4,
            **sections.pop("train", {}),
        }
        data = {"train": str(demo_clips), "workers": 0, "stride": 1, **sections.pop("data", {})}
        sections["optim"] = {"base_lr": 0.05, **sections.get("optim", {})}
        return tiny_config(
            name=name, output_dir=str(tmp_path), device="cpu", train=train, data=data, **sections
        )

    return make
