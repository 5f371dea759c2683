"""The demo's control, and what it says about a run."""

from __future__ import annotations

import json

import run as demo
import torch
from motion_clips import FRAMES, SIDE

from tats_fast.config import load_config, save_config
from tats_fast.engine.distributed import join_world
from tats_fast.interchange import read_weights
from tats_fast.pretrain.learner import make_learner


def test_the_videos_suit_the_model_that_is_probed():
    model = load_config(demo.ROOT / "configs/quickstart.yaml").model
    assert (model.num_frames, model.image_size) == (FRAMES, SIDE)


def test_the_control_has_the_weights_that_the_run_started_from(tiny_config, tmp_path):
    config = tiny_config(seed=7)
    save_config(config, tmp_path / "config.yaml")
    started = make_learner(config, join_world("cpu")).mae.state_dict()
    for _ in range(2):  # a second demo replaces the file of the first
        weights = read_weights(demo.untrained(tmp_path))
        assert weights.model == config.model and weights.state.keys() == started.keys()
        assert all(torch.equal(weights.state[name], started[name]) for name in started)


def write_probes(folder, shares):
    folder.mkdir()
    results = [{"kind": k, "top1": s} for k, s in zip(demo.PROBES, shares, strict=True)]
    (folder / "probe.json").write_text(json.dumps({"results": results}))


def test_the_demo_says_what_it_reached_beside_the_record(tiny_config, tmp_path):
    rows = [
        {"step": 0, "loss_recon_random": 1.02, "true_motion_lift_sampler": 1.0},
        {"step": 9, "loss_recon_random": 0.61, "true_motion_lift_sampler": 1.83},
    ]
    (tmp_path / "eval.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    write_probes(tmp_path / "probe", (0.9, 0.8, 0.7))
    write_probes(tmp_path / "probe_untrained", (0.2, 0.3, 0.15))
    reached = demo.result(tmp_path, tiny_config(seed=5))
    assert (reached["seed"], reached["steps"], reached["strategy"]) == (5, 9, "tats")
    controls = [
        {"loss": loss, "probes": dict.fromkeys(demo.PROBES, share)}
        for loss, share in ((0.6, 0.93), (0.58, 0.91))
    ]
    cells = [line.split() for line in demo.summary(reached, controls)]
    assert cells[1][-6:] == ["90%", "20%", "25%", "91%", "to", "93%"]
    assert cells[3][-6:] == ["70%", "15%", "25%", "91%", "to", "93%"]
    assert cells[4][-6:] == ["0.610", "1.020", "1", "0.580", "to", "0.600"]
    assert cells[5][-4:] == ["1.83", "1", "1", "1"]
    reached["true_motion_lift_sampler"] = None  # of random masks
    assert len(demo.summary(reached, controls)) == 5


def test_the_record_is_of_three_seeds_that_ended_well():
    """What the first page of the project says of it."""
    rows = json.loads(demo.RECORD.read_text())
    for strategy in ("tats", "random"):
        assert [row["seed"] for row in rows if row["strategy"] == strategy] == [0, 1, 2]
    for row in (row for row in rows if row["strategy"] == "tats"):
        for kind in demo.PROBES:
            assert row["probes"][kind] >= max(0.25 + 0.4, row["probes_before"][kind] + 0.3)
        assert row["true_motion_lift_sampler"] > 1.5
        assert row["loss"] < row["loss_before"]
