"""Shared fixtures: seeds, small configurations, real clips of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tats_fast.config import RunConfig
from tats_fast.config.load import build_config

ROOT = Path(__file__).resolve().parent.parent
TINY_MODEL = {
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 8,
    "width": 32,
    "depth": 2,
    "heads": 2,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny_config():
    """Factory of run configurations small enough for a unit test; sections merge over defaults."""

    def make(**sections) -> RunConfig:
        tree = {"model": TINY_MODEL, "masking": {"ratio": 0.75}, **sections}
        tree["model"] = {**TINY_MODEL, **sections.get("model", {})}
        return build_config(tree)

    return make


@pytest.fixture(scope="session")
def demo_clips() -> Path:
    """Folder of real training clips."""
    return ROOT / "demo" / "clips" / "train"
