"""FLOP formulas of the models, against the cost table of docs/method.md."""

from __future__ import annotations

import pytest

from tats_fast.config import load_config
from tats_fast.models import flops


# The table at ViT-B, 16 x 224 x 224, GFLOP per clip, forward.
@pytest.mark.parametrize(
    ("visible", "parts", "total"),
    [
        (235, (3.7, 42.0, 37.3, 1.7), 84.7),
        (156, (3.7, 27.4, 37.3, 1.8), 70.2),
        (78, (3.7, 13.5, 37.3, 1.8), 56.3),
    ],
)
def test_autoencoder(visible, parts, total):
    count = flops.mae(load_config().model, visible)
    assert tuple(round(part / 1e9, 1) for part in count) == parts
    assert round(count.total / 1e9, 1) == total


def test_sampler():
    model = load_config().model
    joint = flops.sampler(model, "joint")
    naive, absorbed = (flops.sampler(model, absorbed=absorbed) for absorbed in (False, True))
    assert [round(x / 1e9, 1) for x in (joint, naive, absorbed)] == [29.8, 61.2, 35.8]
    attention = model.decoder_depth * flops.attention(1568, model.decoder_width)
    assert round(attention / 1e9, 1) == 15.1
    stages = [flops.temporal_stage(1568, 8, 768, 12, "projected", a) for a in (False, True)]
    assert [round(x / 1e9, 1) for x in stages] == [29.6, 4.2]
    assert round(3 * (flops.mae(model, 78).total + naive) / 1e9) == 353
