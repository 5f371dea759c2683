"""TensorBoard, Weights & Biases offline and MLflow get what metrics.jsonl has, also on resuming."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tats_fast.cli import main
from tats_fast.config import ConfigError, save_config
from tats_fast.engine import boards
from tats_fast.engine.logs import RunLog


def train(
    run_config, tmp_path: Path, logger: str, steps: int, data: dict | None = None, **settings
) -> list[dict]:
    """The rows of metrics.jsonl of a run that logs every step to ``logger``."""
    train = {"log_every": 1, "steps": steps, "loggers": (logger,), **settings}
    save_config(run_config("run", train=train, data=data or {}), tmp_path / "run.yaml")
    assert main(["pretrain", "--config", str(tmp_path / "run.yaml")]) == 0
    return [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def mlflow_runs(tmp_path, monkeypatch):
    """Loss by step of each MLflow run of the run folder, the oldest first."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def read() -> list[dict[int, list[float]]]:
        client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/run/mlflow.db")
        where = client.get_experiment_by_name(boards.PROJECT).experiment_id
        found = []
        for run in client.search_runs([where], order_by=["attributes.start_time ASC"]):
            assert run.data.tags["group"] == "run"
            by_step: dict[int, list[float]] = {}
            for m in client.get_metric_history(run.info.run_id, "train/loss_recon"):
                by_step.setdefault(m.step, []).append(m.value)
            found.append(by_step)
        return found

    return read


def test_tensorboard_has_numbers_settings_and_strips(run_config, tmp_path, demo_clips):
    held_out = {"eval": str(demo_clips)}
    rows = train(run_config, tmp_path, "tensorboard", 2, held_out, image_every=1)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    found = [(e.step, pytest.approx(e.value)) for e in events.Scalars("train/loss_recon")]
    assert [(row["step"], row["loss_recon"]) for row in rows] == found
    assert "config/text_summary" in events.Tags()["tensors"]
    start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"masking.ratio" in start and b"train.steps" in start
    assert not [path for path in (tmp_path / "run/tensorboard").iterdir() if path.is_dir()]
    assert "train/grad_norm" in events.Tags()["scalars"]
    strips = [f"sampled_masks/clip_{clip}" for clip in range(4)]
    assert sorted(events.Tags()["images"]) == strips


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


def test_steps_that_a_kill_makes_run_again_are_sent_once(run_config, tmp_path, mlflow_runs):
    train(run_config, tmp_path, "mlflow", 5, checkpoint_every=2)
    # As if killed after step 5: the last checkpoint never came to be.
    shutil.rmtree(tmp_path / "run/checkpoints/step_000005")
    rows = train(run_config, tmp_path, "mlflow", 6, checkpoint_every=2)
    (run,) = mlflow_runs()
    assert sorted(run) == [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(len(values) == 1 for values in run.values())


def test_a_start_without_a_checkpoint_is_told_whole(run_config, tmp_path, mlflow_runs):
    """Killed before its first one, a run starts afresh, and so does its run at the service."""
    train(run_config, tmp_path, "mlflow", 4, checkpoint_every=4)
    shutil.rmtree(tmp_path / "run/checkpoints")
    train(run_config, tmp_path, "mlflow", 5)
    assert [sorted(run) for run in mlflow_runs()] == [[1, 2, 3, 4], [1, 2, 3, 4, 5]]


def test_tensorboard_hides_a_life_that_left_no_checkpoint(run_config, tmp_path):
    train(run_config, tmp_path, "tensorboard", 4)
    shutil.rmtree(tmp_path / "run/checkpoints")
    time.sleep(1.1)  # the names of its files count seconds
    train(run_config, tmp_path, "tensorboard", 2)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss_recon")] == [1, 2]
    assert "config/text_summary" in events.Tags()["tensors"]


def test_going_back_is_another_run_of_the_group(run_config, tmp_path, mlflow_runs):
    train(run_config, tmp_path, "mlflow", 4, checkpoint_every=2)
    train(run_config, tmp_path, "mlflow", 5, resume=str(tmp_path / "run/checkpoints/step_000002"))
    first, second = mlflow_runs()
    assert sorted(first) == [1, 2, 3, 4] and sorted(second) == [3, 4, 5]
    assert (tmp_path / "run/superseded/mlflow_run.txt").exists()


def test_wandb_going_back_has_a_new_number(run_config, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(run_config, tmp_path, "wandb", 4, checkpoint_every=2)
    number = (tmp_path / "run/wandb_run.txt").read_text()
    train(run_config, tmp_path, "wandb", 4, resume=str(tmp_path / "run/checkpoints/step_000002"))
    assert (tmp_path / "run/wandb_run.txt").read_text() != number
    assert (tmp_path / "run/superseded/wandb_run.txt").read_text() == number


def in_a_process(run_config, tmp_path: Path, logger: str, **variables: str):
    """The command in a process of its own: clients read their variables once."""
    config = run_config("run", train={"steps": 1, "log_every": 1, "loggers": (logger,)})
    save_config(config, tmp_path / "run.yaml")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MLFLOW_"))}
    return subprocess.run(
        [sys.executable, "-m", "tats_fast", "pretrain", "--config", str(tmp_path / "run.yaml")],
        env={**inherited, "HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), **variables},
        capture_output=True,
        text=True,
    )


def test_wandb_without_a_login_stops_before_any_work(run_config, tmp_path):
    pytest.importorskip("wandb")
    ended = in_a_process(run_config, tmp_path, "wandb")
    assert ended.returncode == 2
    words = "train.loggers=wandb: no login on this machine; run wandb login, or set WANDB_API_KEY"
    assert words in ended.stderr.splitlines()[-1] and "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("service", ["mlflow", "wandb"])
def test_a_service_that_is_away_at_the_start(run_config, tmp_path, service):
    pytest.importorskip(service)
    away = "http://127.0.0.1:9"
    variables = {"MLFLOW_TRACKING_URI": away, "WANDB_BASE_URL": away, "WANDB_API_KEY": "a" * 40}
    ended = in_a_process(run_config, tmp_path, service, WANDB_INIT_TIMEOUT="2", **variables)
    assert ended.returncode == 0, ended.stderr
    said = [line for line in ended.stderr.splitlines() if "train.loggers" in line]
    assert len(said) == 1 and f"train.loggers={service}: goes without it" in said[0]
    assert "Traceback" not in ended.stderr
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 1
