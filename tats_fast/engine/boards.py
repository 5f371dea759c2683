"""Where a run's numbers can be watched: TensorBoard, Weights & Biases, MLflow (train.loggers)."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Mapping
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tats_fast.config.checks import require
from tats_fast.config.reading import flat
from tats_fast.config.training import LOGGERS, TrainingConfig
from tats_fast.data.files import write_bytes

PROJECT = "tats-fast"
"""Of Weights & Biases, or MLflow's experiment, unless their own variables name another."""
PACKAGES = dict(zip(LOGGERS, ("tensorboard", "wandb", "mlflow"), strict=True))


NUMBER_FILES = ("wandb_run.txt", "mlflow_run.txt")
"""Where a run's folder has its numbers at the services."""
# Seconds that a service has to answer at the start, and that it may hold up training later.
_PATIENCE = 30
LOGGER = logging.getLogger("tats_fast")


class Board(Protocol):
    """Takes numbers and pictures by step."""

    purges: bool
    """Whether it hides what an interrupted run logged beyond its checkpoint, so that the steps
    which are run again can be logged again."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name, such as ``train/loss_recon``."""

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """A uint8 (H, W, 3) picture."""

    def close(self) -> None:
        """Hand over all that is left."""


def require_loggers(config: TrainingConfig) -> None:
    """Before any work, in the process that will log.

    Raises:
        ConfigError: a logger whose package is not installed, or W&B without a login; one line.
    """
    for name in config.train.loggers:
        hint = "is not installed: pip install 'tats-fast[loggers]'"
        require(find_spec(PACKAGES[name]) is not None, "train.loggers", name, hint)
    if "wandb" in config.train.loggers:
        hint = (
            "no login on this machine; run wandb login, or set WANDB_API_KEY or WANDB_MODE=offline"
        )
        require(_logged_in(), "train.loggers", "wandb", hint)


def _logged_in() -> bool:
    """Whether W&B needs no login here or has one; asks neither the user nor the service."""
    import wandb

    if wandb.setup().settings.mode not in ("online", "shared", None):
        return True
    if "prompt" in signature(wandb.login).parameters:
        try:
            return bool(wandb.login(prompt=False, verify=False))
        except Exception:  # some login, which the service does not confirm: opening it will say
            return True
    return bool(wandb.api.api_key)  # releases before


def open_boards(config: TrainingConfig, folder: Path, resumed_step: int) -> list[Board]:
    """Those of ``train.loggers``, on the first process of a run.

    Args:
        folder: the run's, where all of them keep what they keep.
        resumed_step: the last of the run that is to stay; below 0 = a new run.

    A service that does not answer is named in one warning and done without.
    """
    kinds = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
    boards: list[Board] = []
    for name in config.train.loggers:
        try:
            boards.append(kinds[name](config, folder, resumed_step))
        except Exception as error:
            LOGGER.warning(
                "train.loggers=%s: goes without it, as it cannot be opened (%s); metrics.jsonl has "
                "all numbers",
                name,
                reason_of(error),
            )
    return boards


def reason_of(error: Exception) -> str:
    """An exception of a service's client in its first line."""
    text = f"{type(error).__name__}: {error}".strip().split("\n")[0]
    return text if len(text) <= 200 else text[:197] + "..."


class TensorBoard:
    """Event files in ``tensorboard/``."""

    purges = True

    def __init__(self, config: TrainingConfig, folder: Path, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        # purge_step hides what an interrupted run logged beyond the checkpoint, or without any.
        purge = max(0, resumed_step + 1)
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
        if resumed_step < 0:
            settings = flat(config)
            rows = (f"| {key} | {value} |" for key, value in settings.items())
            self._writer.add_text("config", "\n".join(("| key | value |", "|---|---|", *rows)), 0)
            # Not add_hparams, which opens a run of its own beside this one.
            plain = {
                k: v if isinstance(v, bool | int | float) else str(v) for k, v in settings.items()
            }
            for summary in hparams(plain, {}):
                self._writer.file_writer.add_summary(summary)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandB:
    """One run of Weights & Biases, which a resumed run goes on with, in a group of the run's name;
    ``WANDB_MODE=offline`` keeps it in ``wandb/`` of the run's folder."""

    purges = False

    def __init__(self, config: TrainingConfig, folder: Path, resumed_step: int) -> None:
        import wandb

        number = _number(folder / "wandb_run.txt", resumed_step, lambda: uuid.uuid4().hex[:12])
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        settings = wandb.Settings(console="off", silent=True)
        if "WANDB_INIT_TIMEOUT" not in os.environ:
            settings.init_timeout = _PATIENCE
        self._run = wandb.init(
            project=project, name=config.name, id=number, resume="allow", dir=str(folder),
            group=os.environ.get("WANDB_RUN_GROUP", config.name), config=flat(config),
            settings=settings,
        )  # fmt: skip
        # Its own steps only ever rise; a run that goes back has lower ones.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        import wandb

        self._run.log({name: wandb.Image(picture), "step": step})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """One run of MLflow, which a resumed run goes on with, with its name as the tag ``group``;
    ``MLFLOW_TRACKING_URI`` says where, or else ``mlflow.db`` in the run's folder."""

    purges = False

    def __init__(self, config: TrainingConfig, folder: Path, resumed_step: int) -> None:
        import mlflow

        # Its own patience is minutes per call, and training waits meanwhile.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(_PATIENCE))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve()}/mlflow.db"
        self._client = mlflow.MlflowClient(uri)
        self._run = _number(
            folder / "mlflow_run.txt", resumed_step, lambda: self._new(config, folder)
        )

    def _new(self, config: TrainingConfig, folder: Path) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        where = known.experiment_id if known else self._client.create_experiment(name)
        tags = {"group": config.name}
        number = self._client.create_run(where, run_name=config.name, tags=tags).info.run_id
        params = [Param(key, str(value)[:500]) for key, value in flat(config).items()]
        self._client.log_batch(number, params=params)
        return number

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        rows = [Metric(name, float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=rows)

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """None: MLflow wants an artifact store for pictures."""

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _number(file: Path, resumed_step: int, new: Any) -> str:
    """The run's number at a service: that of the run which goes on, or a new one."""
    if resumed_step < 0 or not file.exists():
        write_bytes(file, new().encode())
    return file.read_text()
