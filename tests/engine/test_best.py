"""The checkpoint with the best evaluation, found and kept."""

from __future__ import annotations

import json

import pytest
import torch

from tats_fast.config import ConfigError
from tats_fast.engine.best import best_checkpoint
from tats_fast.engine.distributed import World
from tats_fast.pretrain import trainer as pretraining
from tats_fast.run_folder import list_checkpoints

CPU = World(0, 1, torch.device("cpu"))
LOSSES = {0: 0.1, 2: 0.9, 4: 0.5, 6: 0.7, 8: 0.6, 10: 0.8}
"""Held-out loss by step; step 0 has no checkpoint."""


@pytest.fixture
def run(tmp_path):
    def make(rows, steps=(2, 4, 6)):
        for step in steps:
            (tmp_path / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / "eval.jsonl").write_text("\n".join(lines))
        return tmp_path

    return make


def loss(step, value):
    return {"step": step, "loss_recon_random": value}


def top1(step, value, views):
    return {"step": step, "top1": value, "views": views}


@pytest.mark.parametrize(
    "rows, step",
    [
        ([loss(2, 0.9), loss(4, 0.5), loss(6, 0.7)], 4),
        ([loss(2, 0.5), loss(4, 0.5)], 2),  # the earliest of equals
        ([loss(0, 0.1), loss(1, 0.2), loss(6, 0.7)], 6),  # the better ones have no checkpoint
        ([loss(2, 0.9), loss(4, float("nan")), '{"step": 6, "loss_re'], 2),
        ([top1(2, 0.6, 2), top1(4, 0.5, 2), top1(6, 0.9, 15)], 2),  # with more views than others
        ([top1(2, 0.4, 2), top1(4, 0.5, 2)], 4),
    ],
)
def test_the_best_is_found(run, rows, step):
    assert best_checkpoint(run(rows)).checkpoint.name == f"step_{step:06d}"


def test_without_an_evaluation_none_is_best(run, tmp_path):
    assert best_checkpoint(tmp_path) is None
    assert best_checkpoint(run([{"step": 2, "probe_linear": 0.5}, loss(1, 0.1)])) is None


def test_the_best_is_kept_beside_the_newest(run_config, tmp_path, demo_clips, monkeypatch, capsys):
    def measured(config, *_):
        return {pretraining.HELD_OUT: LOSSES[loop.position.step]}

    monkeypatch.setattr(pretraining, "held_out_metrics", measured)
    # Checkpoints at 4 and 8 alone, but for those of the evaluations.
    train = {"steps": 10, "checkpoint_every": 4, "eval_every": 2, "keep_checkpoints": 1}
    config = run_config(train={**train, "keep_best": True}, data={"eval": str(demo_clips)})
    loop = pretraining.Trainer(config, CPU)
    loop.run()
    kept = [folder.name for folder in list_checkpoints(tmp_path / "run")]
    assert kept == ["step_000004", "step_000010"]
    said = " ".join(capsys.readouterr().out.split())
    assert "best evaluation: loss_recon_random 0.5," in said and "step_000004" in said


def test_keeping_the_best_of_nothing_is_refused(run_config):
    with pytest.raises(ConfigError, match=r"^train.keep_best=True: needs evaluations"):
        run_config(train={"keep_best": True})
