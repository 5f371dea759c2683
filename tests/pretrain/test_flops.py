"""FLOP of a whole pretraining step, against the cost table of docs/method.md."""

from __future__ import annotations

import pytest

from tats_fast.config import load_config
from tats_fast.config.reading import build_config
from tats_fast.models import flops
from tats_fast.pretrain.flops import training_step


@pytest.mark.parametrize(
    ("settings", "gigaflops"),
    [
        (["ppo.epochs=1"], 276),
        (["ppo.epochs=1", "sampler.learn_every=4"], 222),
        (["masking.strategy=adamae", "sampler.attention=joint"], 258),
        (["masking.strategy=random"], 169),
    ],
)
def test_step_at_vit_base(settings, gigaflops):
    config = load_config(overrides=["masking.ratio=0.95", *settings])
    assert round(training_step(config) / 1e9) == gigaflops


@pytest.mark.parametrize(
    ("preset", "step", "wide"), [("vit_large", 882, 284), ("vit_huge", 1379, 513)]
)
def test_what_fp8_could_take(preset, step, wide):
    """Linear maps as wide as the encoder: docs/benchmarks.md, "Predicted, not measured"."""
    config = load_config(overrides=[f"model.preset={preset}", "masking.ratio=0.95"])
    model = config.model
    square, visible = model.width**2, 78
    embedding = flops.mae(model, visible).embedding
    maps = 24 * visible * square * model.depth + 26 * model.num_tokens * square + embedding
    assert round(3 * maps / 1e9) == wide
    assert round(training_step(config) / 1e9) == step


def test_an_inner_epoch_costs_the_sampler_alone():
    once, twice = (training_step(build_config({"ppo": {"epochs": k}})) for k in (1, 2))
    assert twice - once == 3 * flops.sampler(load_config().model, absorbed=True)
