"""``vit_giant``, ViT-g of VideoMAE V2: patches of 14 pixels, heads of 88 channels, odd MLPs."""

from __future__ import annotations

import json
from dataclasses import replace

import parity
import pytest
import torch
from project import ROOT
from run_processes import finish, start

from tats_fast.config import load_config, save_config
from tats_fast.config.reading import build_config
from tats_fast.engine.distributed import World
from tats_fast.models.restore import build_models
from tats_fast.pretrain.planner import make_plan
from tats_fast.pretrain.planner_options import PlanOptions

CPU = World(0, 1, torch.device("cpu"))
SHRUNK = {
    **{"preset": "vit_giant", "image_size": 56, "num_frames": 8},
    **{"width": 176, "depth": 2, "heads": 2},
    **{"decoder_width": 64, "decoder_depth": 1, "decoder_heads": 1},
}


def test_its_sizes_are_the_published_ones():
    config = load_config(overrides=["model.preset=vit_giant"])
    with torch.device("meta"):
        mae, sampler = build_models(config, "cpu")
    width, hidden, depth, decoder, decoder_hidden = 1408, 6144, 40, 512, 2234
    assert mae.encoder.blocks[0].mlp.fc1.weight.shape == (hidden, width)
    assert mae.decoder[0].mlp.fc1.weight.shape == (decoder_hidden, decoder)
    assert config.model.num_tokens == 8 * 16 * 16 and config.model.width // 16 == 88
    # Weights of attention and MLP, their biases (none on keys), two norms.
    block = 4 * width**2 + 2 * width * hidden + 3 * width + hidden + width + 4 * width
    patch = 2 * 14 * 14 * 3
    expected = depth * block + (patch + 1) * width + 2 * width
    assert sum(p.numel() for p in mae.encoder.parameters()) == expected
    assert expected / 1e6 == pytest.approx(1011, abs=1), "1,011 M of the paper's table"
    assert mae.head.weight.shape == (patch, decoder)
    assert sampler.block.attention.heads == 16


def test_the_planner_counts_it():
    config = load_config(overrides=["model.preset=vit_giant"])
    plan = make_plan(config, PlanOptions(model="vit_giant", gpus=8, batch=16, zero=3))
    assert plan.counts.mae / 1e6 == pytest.approx(1026, abs=1)
    # Weights, master copy, two moments and gradients: 20 bytes, an eighth of them here.
    share = plan.memory.weights + plan.memory.optimizer + plan.memory.gradients
    share -= 16 * plan.counts.sampler + 4 * plan.counts.tables
    assert share == pytest.approx(20 * plan.counts.mae / 8, rel=1e-6)
    assert plan.largest_recomputing > 2 * plan.largest > 0


@pytest.fixture
def config_file(tmp_path):
    config = build_config(
        {
            "model": SHRUNK,
            "device": "cpu",
            "data": {"train": "none"},
            "masking": {"ratio": 0.75},
            "optim": {"base_lr": 0.05, "warmup_frac": 0.0},
            "sampler": {"warmup_frac": 0.0},
            "train": {"precision": "fp32", "batch_size": 4, "steps": 3, "recompute": True},
        }
    )
    assert config.model.mlp_ratio == 48 / 11 and config.model.patch_size == 14
    save_config(config, tmp_path / "run.yaml")
    return tmp_path / "run.yaml"


def test_a_shrunken_one_trains_with_recompute(config_file):
    config = load_config(str(config_file))
    kept = replace(config, train=replace(config.train, recompute=False))
    one, two = (parity.numbers(c, CPU) for c in (config, kept))
    assert [row["loss_recon"] for row in one["rows"]] == [r["loss_recon"] for r in two["rows"]]
    assert one["rows"][-1]["loss_recon"] < one["rows"][0]["loss_recon"]
    for part in ("mae", "sampler"):
        for name, value in one["weights"][part].items():
            assert torch.equal(value, two["weights"][part][name]), name


@pytest.mark.slow
def test_a_shrunken_one_trains_under_zero_3(config_file, tmp_path):
    zero = {"stage3_param_persistence_threshold": 2048, "stage3_max_live_parameters": 400_000}
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": zero}))
    cut = "distributed.zero_stage=3 distributed.deepspeed_config=ds.json"
    finish(
        start(
            config_file,
            *("--out", str(tmp_path / "found.pt"), "--cut", cut, "--dtype", "float32"),
            launcher="deepspeed",
            script=str(ROOT / "tests/support/parity.py"),
        )
    )
    found = torch.load(tmp_path / "found.pt")["float32", cut]["rows"]
    expected = parity.numbers(load_config(str(config_file)), CPU)["rows"]
    for name in ("loss_recon", "grad_norm", "entropy_frac"):
        assert [r[name] for r in found] == pytest.approx([r[name] for r in expected], rel=5e-4)
