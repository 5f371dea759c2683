"""Layer-wise learning-rate decay against a table computed by hand."""

from __future__ import annotations

import pytest
import torch

from tats_fast.engine.optim import set_lr
from tats_fast.finetune.layer_decay import layer_id, parameter_groups
from tats_fast.models.classifier import VideoClassifier

# 0.75^13 ... 0.75^0 for the 14 layers of ViT-B's depth, head last.
TABLE = [
    *(0.0237573, 0.0316764, 0.0422351, 0.0563135, 0.0750847, 0.1001129, 0.1334839),
    *(0.1779785, 0.2373047, 0.3164063, 0.421875, 0.5625, 0.75, 1.0),
]


@pytest.fixture
def classifier(tiny_config):
    return VideoClassifier(tiny_config(model={"depth": 12}).model, 4)


def test_rates_equal_the_table(classifier):
    groups = parameter_groups(classifier, 0.05, 0.75)
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    set_lr(optimizer, 2e-3)
    rate = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    own = [classifier.encoder.embed, *classifier.encoder.blocks, classifier.head]
    assert len(own) == len(TABLE)
    for module, scale in zip(own, TABLE, strict=True):
        for parameter in module.parameters():
            assert rate[id(parameter)] == pytest.approx(2e-3 * scale, rel=2e-6)
    assert {rate[id(p)] for p in classifier.fc_norm.parameters()} == {2e-3}


def test_every_parameter_is_in_one_group(classifier):
    groups = parameter_groups(classifier, 0.05, 0.75)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(map(id, classifier.parameters()))
    assert len(groups) == 2 * 14


def test_only_matrices_decay(classifier):
    groups = parameter_groups(classifier, 0.05, 0.75)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in classifier.named_parameters():
        plain = "norm" in name or "bias" in name
        assert decay[id(parameter)] == (0.0 if plain else 0.05), name


def test_frozen_parameters_are_in_no_group(classifier):
    classifier.encoder.requires_grad_(False)
    found = [id(p) for group in parameter_groups(classifier, 0.05, 0.75) for p in group["params"]]
    own = [*classifier.fc_norm.parameters(), *classifier.head.parameters()]
    assert sorted(found) == sorted(map(id, own))


def test_decay_of_one_is_one_rate(classifier):
    assert {group["lr_scale"] for group in parameter_groups(classifier, 0.05, 1.0)} == {1.0}


def test_layer_ids():
    assert layer_id("encoder.positions", 12) == 0
    assert layer_id("encoder.blocks.0.norm1.bias", 12) == 1
    assert layer_id("encoder.blocks.11.mlp.fc1.weight", 12) == 12
    assert layer_id("head.weight", 12) == 13
    for name in ("encoder.blocks.12.norm1.bias", "module.head.weight", "decoder.0.norm1.bias"):
        with pytest.raises(ValueError, match="not a parameter of a classifier"):
            layer_id(name, 12)


@pytest.mark.parametrize("decay", [0.0, 1.1])
def test_decay_is_checked(classifier, decay):
    with pytest.raises(ValueError, match="layer_decay"):
        parameter_groups(classifier, 0.05, decay)
