"""TensorBoard, Weights & Biases offline and MLflow get what metrics.jsonl has, also on resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tats_fast.cli import main
from tats_fast.config import ConfigError, save_config
from tats_fast.engine import boards
from tats_fast.engine.logs import RunLog


def train(run_config, tmp_path: Path, logger: str, steps: int) -> list[dict]:
    """The rows of metrics.jsonl of a run that logs every step to ``logger``."""
    config = run_config("run", train={"log_every": 1, "steps": steps, "loggers": (logger,)})
    save_config(config, tmp_path / "run.yaml")
    assert main(["pretrain", "--config", str(tmp_path / "run.yaml")]) == 0
    return [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]


def test_tensorboard_has_numbers_and_settings(run_config, tmp_path):
    rows = train(run_config, tmp_path, "tensorboard", 2)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    found = [(e.step, pytest.approx(e.value)) for e in events.Scalars("train/loss_recon")]
    assert [(row["step"], row["loss_recon"]) for row in rows] == found
    assert "config/text_summary" in events.Tags()["tensors"]


def test_mlflow_has_one_run_that_goes_on(run_config, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    train(run_config, tmp_path, "mlflow", 2)
    rows = train(run_config, tmp_path, "mlflow", 3)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/run/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name(boards.PROJECT).experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss_recon")
    assert {m.step: pytest.approx(m.value) for m in history} == {
        row["step"]: row["loss_recon"] for row in rows
    }
    assert run.data.params["masking.strategy"] == "tats" and run.info.status == "FINISHED"


def test_wandb_offline_keeps_its_number(run_config, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(run_config, tmp_path, "wandb", 2)
    number = (tmp_path / "run/wandb_run.txt").read_text()
    train(run_config, tmp_path, "wandb", 3)
    assert (tmp_path / "run/wandb_run.txt").read_text() == number
    kept = list((tmp_path / "run/wandb").glob(f"offline-run-*-{number}/run-{number}.wandb"))
    assert len(kept) == 2
    assert any(b"train/loss_recon" in file.read_bytes() for file in kept)


def test_a_logger_that_is_missing_is_one_sentence(run_config, monkeypatch):
    config = run_config("run", train={"loggers": ("wandb",)})
    monkeypatch.setattr(boards, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"train\.loggers=wandb: is not installed: pip install"):
        boards.require_loggers(config)


def test_a_service_that_is_away_costs_the_run_nothing(tmp_path, caplog):
    class Away:
        def scalars(self, values, step):
            raise ConnectionError("no route to host\nand more")

    log = RunLog(tmp_path, -1, 3, (), [Away()])
    for step in (1, 2):
        log.metrics({"step": step, "clips_per_s": 1.0})
    log.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert caplog.text.count("Away gets no more numbers") == 1 and "and more" not in caplog.text
