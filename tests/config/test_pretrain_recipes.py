"""Every shipped recipe, resolved, against the numbers that were published."""

from __future__ import annotations

from pathlib import Path

import pytest

from tats_fast.config import load_config
from tats_fast.engine.optim import lr_at
from tats_fast.masking import visible_tokens

PRETRAIN = Path(__file__).resolve().parent.parent.parent / "configs" / "pretrain"

# dataset: stride, ratio, visible tokens, base lr, global batch, epochs, peak and last rate.
# Rates are base x batch / 256: 1.5e-4 x 8 and 3e-4 x 0.75; the last ones 1e-5 x 8 and x 0.75.
RECIPES = {
    "ssv2": (2, 0.95, 78, 1.5e-4, 2048, 800, 1.2e-3, 8e-5),
    "kinetics400": (4, 0.95, 78, 1.5e-4, 2048, 800, 1.2e-3, 8e-5),
    "ucf101": (4, 0.9, 156, 3e-4, 192, 3200, 2.25e-4, 7.5e-6),
    "hmdb51": (4, 0.9, 156, 3e-4, 192, 4800, 2.25e-4, 7.5e-6),
}
ONE_GPU = {"ssv2": 32, "kinetics400": 32, "ucf101": 3, "hmdb51": 3}


@pytest.mark.parametrize("dataset", RECIPES)
def test_pretraining_recipe(dataset):
    stride, ratio, visible, base_lr, batch, epochs, peak, last = RECIPES[dataset]
    config = load_config(PRETRAIN / f"{dataset}_vit_base.yaml")
    model, optim = config.model, config.optim
    assert (model.preset, model.num_frames, model.image_size) == ("vit_base", 16, 224)
    assert (model.width, model.depth, model.decoder_depth) == (768, 12, 4)
    assert config.data.stride == stride
    assert config.data.scales == (1.0, 0.875, 0.75, 0.66)
    assert not config.data.flip
    assert config.masking.strategy == "tats"
    assert config.masking.ratio == ratio
    assert visible_tokens("tats", model, ratio) == visible
    assert (config.train.batch_size, config.train.epochs) == (batch, epochs)
    assert optim.base_lr == base_lr
    assert (optim.betas, optim.weight_decay, optim.grad_clip) == ((0.9, 0.95), 0.05, 0.0)
    assert optim.warmup_frac * epochs == pytest.approx(40, rel=1e-3)
    steps = 1_000_000  # fine enough to meet the peak
    warm = round(optim.warmup_frac * steps)
    rates = [lr_at(optim, step, steps, batch) for step in (0, warm, steps - 1)]
    assert rates[0] == pytest.approx(1e-6 * batch / 256)
    assert rates[1] == pytest.approx(peak, rel=1e-3)
    assert rates[2] == pytest.approx(last, rel=1e-3)


@pytest.mark.parametrize("dataset", RECIPES)
def test_one_gpu_and_eight_have_the_same_batch(dataset):
    """The file is for eight GPUs; its comment names the accumulation for one."""
    path = PRETRAIN / f"{dataset}_vit_base.yaml"
    eight = load_config(path)
    one = load_config(path, [f"train.accumulation={ONE_GPU[dataset]}"])
    assert f"train.accumulation={ONE_GPU[dataset]}" in path.read_text()
    eight.check_world_size(8)
    one.check_world_size(1)
    assert eight.train.batch_size == one.train.batch_size
    per_gpu = one.train.batch_size // one.train.accumulation
    assert per_gpu == 64


@pytest.mark.parametrize("dataset", RECIPES)
@pytest.mark.parametrize("strategy", ["random", "tube", "frame", "motion", "adamae"])
def test_every_other_strategy_by_override(dataset, strategy):
    path = PRETRAIN / f"{dataset}_vit_base.yaml"
    config = load_config(path, [f"masking.strategy={strategy}", "masking.ratio=0.75"])
    assert config.masking.strategy == strategy


@pytest.mark.parametrize("dataset", RECIPES)
def test_every_number_names_its_source(dataset):
    lines = (PRETRAIN / f"{dataset}_vit_base.yaml").read_text().splitlines()
    for line in lines:
        if line.startswith("  "):
            assert any(mark in line for mark in ("# [V]", "# [A]", "# [T]", "# [D]")), line
