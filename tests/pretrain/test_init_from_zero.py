"""``train.init_from`` under DeepSpeed, which keeps a copy of the weights of its own."""

from __future__ import annotations

import pytest
import tats_fast
from models_exchanged import randomize, write_run
from project import TINY_MODEL
from records import read_lines
from run_processes import finish, start
from tats_fast.config import save_config


@pytest.mark.slow
def test_given_weights_last_under_zero(run_config, tmp_path):
    write_run(tmp_path / "source", randomize(tats_fast.create_model("vit_tiny", **TINY_MODEL)))
    losses = {}
    for engine in ("ddp", "deepspeed"):
        train = {"init_from": str(tmp_path / "source"), "steps": 3, "log_every": 1}
        config = run_config(engine, train=train, distributed={"engine": engine})
        save_config(config, tmp_path / f"{engine}.yaml")
        finish(start(tmp_path / f"{engine}.yaml"))
        losses[engine] = [
            row["loss_recon"] for row in read_lines(tmp_path / engine / "metrics.jsonl")
        ]
    assert losses["deepspeed"] == pytest.approx(losses["ddp"], rel=1e-4)
