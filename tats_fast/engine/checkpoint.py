"""Checkpoints: complete or absent, never half written; enough in them to continue bit by bit.

A checkpoint is a folder ``checkpoints/step_000500`` with ``model.pt``, ``trainer.pt`` (step, data
position, random states, and what the learner adds), ``config.yaml`` and the optimizer. It is
written under another name and renamed.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from tats_fast.config import ConfigError, TrainingConfig, read_saved, save_config
from tats_fast.engine.distributed import World
from tats_fast.engine.runner import Runner
from tats_fast.run_folder import (
    CONFIG_FILE,
    MODEL_FILE,
    STEP_PREFIX,
    find_checkpoint,
    list_checkpoints,
    read_tensors,
)

TRAINER_FILE = "trainer.pt"
TEMPORARY_PREFIX = ".writing_"


@dataclass(frozen=True)
class Position:
    """How far a run is: optimizer steps done, clips consumed, clips replaced, steps skipped."""

    step: int = 0
    samples: int = 0
    skipped_clips: int = 0
    skipped_steps: int = 0


class Savable(Protocol):
    """What a checkpoint is made from and restored into."""

    world: World
    runner: Runner

    def model_state(self) -> dict[str, Any]:
        """Content of ``model.pt``: what the model is."""

    def trainer_state(self) -> dict[str, Any]:
        """What else continues the training; the runner saves its optimizer itself."""

    def load_state(self, model: dict[str, Any], trainer: dict[str, Any]) -> None:
        """Take over what the two gave."""


def save_checkpoint(
    run_dir: Path, learner: Savable, config: TrainingConfig, position: Position
) -> Path:
    """Write ``run_dir/checkpoints/step_N`` and drop the oldest beyond ``train.keep_checkpoints``.

    All processes call it. An interruption at any instant leaves earlier checkpoints intact.
    """
    world = learner.world
    final = run_dir / "checkpoints" / f"{STEP_PREFIX}{position.step:06d}"
    temporary = final.with_name(TEMPORARY_PREFIX + final.name)
    if world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    world.barrier()
    learner.runner.save(temporary)
    random_states = world.gather(_random_state(world.device))
    if world.is_main:
        torch.save(learner.model_state(), temporary / MODEL_FILE)
        torch.save(
            {
                **learner.trainer_state(),
                "position": vars(position),
                "random_states": random_states,
                "engine": config.distributed.engine,
                "world_size": world.size,
            },
            temporary / TRAINER_FILE,
        )
        save_config(config, temporary / CONFIG_FILE)
    world.barrier()
    if world.is_main:
        _sync_files(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _sync_folder(final.parent)
        for old in list_checkpoints(run_dir)[: -config.train.keep_checkpoints]:
            shutil.rmtree(old)
    world.barrier()
    return final


def checkpoint_to_resume(run_dir: Path, resume: str) -> Path | None:
    """Where to continue from: None = start afresh.

    Raises:
        ConfigError: ``resume`` names no checkpoint, or is ``none`` though the run has some.
    """
    existing = list_checkpoints(run_dir)
    if resume == "auto":
        return existing[-1] if existing else None
    if resume == "none":
        if existing:
            raise ConfigError(
                f"train.resume=none: {run_dir} already holds checkpoints; "
                "choose another name=... or set train.resume=auto"
            )
        return None
    return find_checkpoint(resume, key="train.resume")


def load_checkpoint(folder: Path, learner: Savable, config: TrainingConfig) -> Position:
    """Restore ``learner`` in place and return how far the run was. All processes call it.

    Raises:
        ConfigError: the checkpoint is of another model, engine or number of processes, or damaged.
    """
    try:
        return _load(folder, learner, config)
    except (ConfigError, torch.OutOfMemoryError):
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise ConfigError(
            f"train.resume={folder}: does not hold what this run needs "
            f"({type(error).__name__}: {reason}); name another checkpoint"
        ) from error


def _load(folder: Path, learner: Savable, config: TrainingConfig) -> Position:
    world = learner.world
    _check_same_run(folder, config)
    model = read_tensors(folder / MODEL_FILE, world.device)
    trainer = read_tensors(folder / TRAINER_FILE)
    for key, here in (("engine", config.distributed.engine), ("world_size", world.size)):
        if trainer[key] != here:
            raise ConfigError(
                f"train.resume={folder}: was written with {key}={trainer[key]}, this run has {here}"
            )
    learner.load_state(model, trainer)
    learner.runner.load(folder)
    _set_random_state(trainer["random_states"][world.rank], world.device)
    return Position(**trainer["position"])


def _check_same_run(folder: Path, config: TrainingConfig) -> None:
    """What gives the weights their meaning may not change under them; the rest may."""
    try:
        there = read_saved(folder / CONFIG_FILE, type(config)).identity()
    except ConfigError:
        raise ConfigError(
            f"train.resume={folder}: no checkpoint of tats-fast {config.command}; choose another "
            "name=..."
        ) from None
    for key, here in config.identity().items():
        if here != there[key]:
            raise ConfigError(f"{key}={here}: the checkpoint {folder} has {there[key]}")


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _sync_files(folder: Path) -> None:
    """Flush file contents to disk before the rename makes them count (a power cut may reorder)."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
