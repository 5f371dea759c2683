"""Speed and utilisation as they are logged."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch

from tats_fast.engine import peak
from tats_fast.engine.distributed import World
from tats_fast.engine.meter import Meter
from tats_fast.models import flops
from tats_fast.pretrain.flops import training_step
from tats_fast.pretrain.trainer import Trainer

CPU = World(0, 1, torch.device("cpu"))


def test_utilisation_is_model_flop_over_the_data_sheets_rate(monkeypatch):
    monkeypatch.setattr("tats_fast.engine.meter.peak_tflops", lambda device, precision: 2.0)
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr("tats_fast.engine.meter.time", clock)
    two = Meter(World(0, 2, torch.device("cpu")), bf16=True)
    now[0] += 3
    with two.waiting():
        now[0] += 1
    with two.paused():
        now[0] += 100
    row = two.report(clips=10, flop_per_clip=3.2e12)
    # Ten clips in 4 s, shared out among two processes; the pause does not count.
    assert (row["clips_per_s"], row["data_wait_frac"]) == (2.5, 0.25)
    assert row["tflops"] == pytest.approx(4) and row["mfu"] == pytest.approx(2)
    now[0] += 2
    assert two.report(1, 1.0)["clips_per_s"] == 0.5  # counted from the last report


def test_no_utilisation_where_the_peak_is_not_known():
    assert math.isnan(Meter(CPU, bf16=False).report(1, 1e9)["mfu"])


@pytest.mark.parametrize(
    ("name", "chip"),
    [("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H200", "H200"), ("GeForce", None)],
)
def test_chips_are_found_by_name(monkeypatch, name, chip):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    rate = peak.peak_tflops(torch.device("cuda", 0), "bf16")
    assert rate == (None if chip is None else peak.PEAK_TFLOPS[chip]["bf16"])


def test_what_a_run_logs(run_config, tmp_path):
    """Norms and rates of both networks once the sampler learns; the FLOP of the step it was."""
    config = run_config(sampler={"warmup_frac": 0.5}, ppo={"lr_scale": 3.0})
    Trainer(config, CPU).run()
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert "grad_norm_sampler" not in rows[0]  # steps 1 and 2 of 3 in warm-up
    assert rows[-1]["grad_norm_sampler"] > 0 and all(row["grad_norm"] > 0 for row in rows)
    assert all(row["lr_sampler"] == pytest.approx(3 * row["lr"]) for row in rows)
    assert all(row["mfu"] is None for row in rows)
    for row, warmup in ((rows[0], True), (rows[-1], False)):
        expected = row["clips_per_s"] * training_step(config, warmup=warmup) / 1e12
        assert row["tflops"] == pytest.approx(expected)
    resting = training_step(config, warmup=True)
    passes = config.ppo.epochs * flops.sampler(config.model)
    assert training_step(config) == resting + flops.TRAINING_FACTOR * passes
