"""A file of DeepSpeed settings is checked before DeepSpeed sees it, one sentence for each fault."""

from __future__ import annotations

import json

import pytest
from records import read_lines
from run_processes import finish, start

from tats_fast.config import ConfigError, save_config
from tats_fast.engine.deepspeed_json import TOP, ZERO, read_deepspeed_json

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
        "device=nvme: must be cpu or none",
    ),
    "offload null": (
        {"zero_optimization": {"offload_optimizer": None}},
        "offload_optimizer=null: must be a group of keys",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence(tmp_path, fault):
    settings, message = FAULTS[fault]
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=message) as raised:
        read_deepspeed_json(str(path))
    text = str(raised.value)
    assert "\n" not in text and text.startswith(f"distributed.deepspeed_config={path}: ")


def test_the_table_has_no_key_that_deepspeed_lacks():
    zero = pytest.importorskip("deepspeed.runtime.zero.config").DeepSpeedZeroConfig
    assert set(ZERO) <= set(zero.model_fields)
    assert "zero_optimization" in TOP


@pytest.mark.slow
def test_the_optimizer_can_be_offloaded(run_config, tmp_path):
    """What the schema promises: the same steps, with the moments in host memory."""
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}))
    losses = {}
    for name, extra in (("plain", []), ("offloaded", [f"distributed.deepspeed_config={path}"])):
        save_config(run_config(name), tmp_path / f"{name}.yaml")
        finish(start(tmp_path / f"{name}.yaml", "distributed.engine=deepspeed", *extra))
        rows = read_lines(tmp_path / name / "metrics.jsonl")
        losses[name] = [row["loss_recon"] for row in rows]
    assert losses["offloaded"] == pytest.approx(losses["plain"], rel=1e-4)
    assert losses["plain"][0] > losses["plain"][-1]
