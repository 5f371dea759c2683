"""A file of DeepSpeed settings is checked before DeepSpeed sees it, one sentence for each fault."""

from __future__ import annotations

import json

import pytest
import torch

from tats_fast.config import ConfigError, load_config
from tats_fast.engine.deepspeed_json import TOP, ZERO, ZERO_1_AND_2, ZERO_3, read_deepspeed_json
from tats_fast.engine.distributed import World
from tats_fast.engine.runner import DeepSpeedRunner

FAULTS = {
    "null group": ({"zero_optimization": None}, "zero_optimization=null: must be a group of keys"),
    "misspelt": (
        {"zero_optimisation": {}},
        "zero_optimisation: unknown .* did you mean zero_optimization",
    ),
    "misspelt inside": (
        {"zero_optimization": {"reduce_bucket_sise": 1}},
        r"did you mean zero_optimization\.reduce_bucket_size\?",
    ),
    "precision": ({"amp": {"enabled": True}}, "remove 'amp'"),
    "elasticity": ({"elasticity": {"enabled": True}}, "remove 'elasticity'"),
    "stage": ({"zero_optimization": {"stage": 3}}, r"set distributed\.zero_stage instead"),
    "kind": ({"zero_optimization": {"overlap_comm": "yes"}}, 'overlap_comm="yes": must be true or'),
    "true as a number": ({"steps_per_print": True}, "steps_per_print=true: must be a number"),
    "offload nvme": (
        {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
        "offload_optimizer.device=nvme: must be cpu or none",
    ),
    "offload of weights in stage 2": (
        {"zero_optimization": {"offload_param": {"device": "cpu"}}},
        r"offload_param: of no effect with distributed\.zero_stage=2",
    ),
    "offload of weights to nvme": (
        {"zero_optimization": {"offload_param": {"device": "nvme"}}},
        "offload_param.device=nvme: must be cpu or none",
    ),
    "a key of stages 1 and 2 in stage 3": (
        {"zero_optimization": {"allgather_bucket_size": 1}},
        r"allgather_bucket_size: of no effect with distributed\.zero_stage=3",
    ),
    "vectors split": (
        {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
        "threshold=0: must be at least 2048",
    ),
    "offload null": (
        {"zero_optimization": {"offload_optimizer": None}},
        "offload_optimizer=null: must be a group of keys",
    ),
}
STAGE = dict.fromkeys(
    ("offload of weights to nvme", "a key of stages 1 and 2 in stage 3", "vectors split"), 3
)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence(tmp_path, fault):
    settings, message = FAULTS[fault]
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=message) as raised:
        read_deepspeed_json(str(path), STAGE.get(fault, 2))
    text = str(raised.value)
    assert "\n" not in text and text.startswith(f"distributed.deepspeed_config={path}: ")


def test_the_table_has_no_key_that_deepspeed_lacks():
    zero = pytest.importorskip("deepspeed.runtime.zero.config").DeepSpeedZeroConfig
    names = {field.alias or name for name, field in zero.model_fields.items()}
    assert {*ZERO, *ZERO_1_AND_2, *ZERO_3} <= names
    assert "zero_optimization" in TOP


def test_gradients_are_exchanged_in_the_precision_they_have():
    """DeepSpeed's default halves those of linear maps on the way; DDP does not."""
    world = World(0, 1, torch.device("cpu"))
    settings = DeepSpeedRunner.settings(load_config(None, []), world, bf16=True)
    assert settings["torch_autocast"]["lower_precision_safe_modules"] == []
