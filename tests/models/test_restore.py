"""Checkpoints of earlier versions, whose parameters had other names, mean what they meant."""

from __future__ import annotations

import re

import pytest
import torch
from models_exchanged import randomize, write_run
from project import TINY_MODEL
from run_checks import assert_identical

import tats_fast
from tats_fast.interchange import read_weights
from tats_fast.models.classifier import VideoClassifier
from tats_fast.models.restore import current_names, load_models
from tats_fast.weights_file import read_state

OF_EARLIER_VERSIONS = {
    "embed.proj.weight": "encoder.embed.proj.weight",
    "encoder.0.norm1.bias": "encoder.blocks.0.norm1.bias",
    "encoder.11.attention.qkv.q_bias": "encoder.blocks.11.attention.qkv.q_bias",
    "encoder_norm.weight": "encoder.norm.weight",
    "to_decoder.weight": "to_decoder.weight",
    "decoder.0.norm1.bias": "decoder.0.norm1.bias",
    "decoder_norm.bias": "decoder_norm.bias",
    "head.weight": "head.weight",
    # Of a classifier:
    "encoder.embed.proj.bias": "encoder.embed.proj.bias",
    "encoder.encoder.3.mlp.fc1.weight": "encoder.blocks.3.mlp.fc1.weight",
    "fc_norm.weight": "fc_norm.weight",
}


def old_names(state):
    """Today's names -> those of earlier versions, written out once more and the other way round."""
    names = {}
    for name, tensor in state.items():
        if any(key.startswith("fc_norm") for key in state):
            name = name.replace("encoder.blocks.", "encoder.encoder.")
        else:
            name = re.sub(r"^encoder\.embed\.", "embed.", name)
            name = name.replace("encoder.blocks.", "encoder.").replace(
                "encoder.norm", "encoder_norm"
            )
        names[name] = tensor
    return names


@pytest.mark.parametrize(("old", "new"), OF_EARLIER_VERSIONS.items())
def test_each_old_name_has_one_new_one(old, new):
    tensor = torch.zeros(())
    assert current_names({old: tensor}) == {new: tensor}
    assert current_names({new: tensor}) == {new: tensor}  # and today's names stay


def test_a_checkpoint_of_an_earlier_version_loads(tmp_path):
    mae = randomize(tats_fast.create_model(**TINY_MODEL))
    expected = {name: tensor.clone() for name, tensor in mae.state_dict().items()}
    write_run(tmp_path, mae)
    file = tmp_path / "checkpoints" / "step_000003" / "model.safetensors"
    content = {"mae": old_names(read_state(file)["mae"]), "sampler": None}
    assert "encoder_norm.weight" in content["mae"] and "encoder.0.norm1.bias" in content["mae"]
    torch.save(content, file.with_name("model.pt"))
    file.unlink()
    assert_identical(dict(load_models(tmp_path)[1].state_dict()), expected)
    assert_identical(read_weights(tmp_path).state, expected)


def test_a_classifier_of_an_earlier_version_loads(tiny_config):
    classifier = randomize(VideoClassifier(tiny_config().model, 3))
    old = old_names(classifier.state_dict())
    assert "encoder.encoder.1.norm1.bias" in old
    assert_identical(current_names(old), dict(classifier.state_dict()))
