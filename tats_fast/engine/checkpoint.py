"""Checkpoints: complete or absent, never half written; enough in them to continue bit by bit.

A checkpoint is a folder ``checkpoints/step_000500`` with ``model.pt``, ``trainer.pt`` (step, data
position, random states, and what the learner adds), ``config.yaml``, the optimizer, and
``manifest.json`` with the checksums of them all. ``store.py`` has the order of writing.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from tats_fast.config import ConfigError, Failure, TrainingConfig, save_config
from tats_fast.engine import store
from tats_fast.engine.changes import changed_settings, changed_videos
from tats_fast.engine.distributed import World
from tats_fast.engine.finite import require_finite
from tats_fast.engine.runner import Runner
from tats_fast.run_folder import (
    CONFIG_FILE,
    MODEL_FILE,
    STEP_PREFIX,
    TRAINER_FILE,
    list_checkpoints,
    read_tensors,
)


class NotSaved(Failure):
    """A checkpoint could not be written, for a reason outside the run; earlier ones are intact."""


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
    run_dir: Path,
    learner: Savable,
    config: TrainingConfig,
    position: Position,
    source: Path | None = None,
    videos: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``run_dir/checkpoints/step_N`` and drop the oldest beyond ``train.keep_checkpoints``.

    All processes call it. An interruption at any instant leaves earlier checkpoints intact, one of
    the same step included.

    Args:
        source: the checkpoint that this run was told to start from, which is never dropped.
        videos: what to remember of the list (``TrainingLoop.listing``).

    Raises:
        NonFiniteLoss: a weight is not finite; nothing is written.
        NotSaved: the disk is full or fails, on any process; on all of them. Nothing is left behind.
    """
    world = learner.world
    final = run_dir / "checkpoints" / f"{STEP_PREFIX}{position.step:06d}"
    temporary = final.with_name(store.WRITING + final.name)
    random_states = world.gather(_random_state(world.device), patient=True)
    model = learner.model_state()
    world.from_main(lambda: require_finite(run_dir, position.step, model))

    def write() -> None:
        if not world.is_main:
            return
        _save_tensors(model, temporary / MODEL_FILE)
        trainer = {
            **learner.trainer_state(),
            "position": vars(position),
            "videos": videos,
            "random_states": random_states,
            "engine": config.distributed.engine,
            "world_size": world.size,
        }
        _save_tensors(trainer, temporary / TRAINER_FILE)
        save_config(config, temporary / CONFIG_FILE)

    def finish() -> None:
        if not world.is_main:
            return
        store.seal(temporary)
        store.publish(temporary, final)
        for old in list_checkpoints(run_dir)[: -config.train.keep_checkpoints]:
            if source is None or old.resolve() != source.resolve():
                store.remove(old)

    try:
        _all_write(world, lambda: store.begin(final) if world.is_main else None)
        _all_write(world, lambda: learner.runner.save(temporary))
        _all_write(world, write)
        _all_write(world, finish)
    except NotSaved:
        if world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def _all_write(world: World, work: Callable[[], Any]) -> None:
    """``work`` on every process; where writing fails on one, ``NotSaved`` on all."""
    problem = None
    try:
        work()
    except (OSError, RuntimeError) as error:
        problem = _writing_problem(error)
        if problem is None:
            raise
    problems = [problem for problem in world.gather(problem, patient=True) if problem is not None]
    if problems:
        raise NotSaved(problems[0])


def _writing_problem(error: BaseException | None) -> str | None:
    """Why a file could not be written, if that is what the error says."""
    text = str(error)
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        error = error.__cause__ or error.__context__
    # torch.save in C++ says only that the file is shorter than it should be.
    short = "inline_container" in text or "PytorchStreamWriter" in text
    return os.strerror(errno.ENOSPC) if short else None


def _save_tensors(content: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # opened here, so that an error carries its reason
        torch.save(content, file)


def load_checkpoint(
    folder: Path,
    learner: Savable,
    config: TrainingConfig,
    videos: Mapping[str, Any] | None = None,
) -> tuple[Position, list[str]]:
    """Restore ``learner`` in place. All processes call it.

    Returns:
        How far the run was, and what is otherwise from here on, as ``key: before -> now``.

    Raises:
        ConfigError: the checkpoint is of another model, engine or number of processes, does not
            have what this run needs, or has a setting that cannot be changed in the middle.
    """
    try:
        return _load(folder, learner, config, videos)
    except (ConfigError, torch.OutOfMemoryError):
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise ConfigError(
            f"train.resume={folder}: does not hold what this run needs "
            f"({type(error).__name__}: {reason}); name another checkpoint"
        ) from error


def _load(
    folder: Path, learner: Savable, config: TrainingConfig, videos: Mapping[str, Any] | None
) -> tuple[Position, list[str]]:
    world = learner.world
    changed = changed_settings(folder, config)
    model = read_tensors(folder / MODEL_FILE, world.device)
    trainer = read_tensors(folder / TRAINER_FILE)
    for key, here in (("engine", config.distributed.engine), ("world_size", world.size)):
        if trainer[key] != here:
            raise ConfigError(
                f"train.resume={folder}: was written with {key}={trainer[key]}, this run has {here}"
            )
    if videos is not None:
        changed += changed_videos(trainer.get("videos"), videos)
    learner.load_state(model, trainer)
    learner.runner.load(folder)
    _set_random_state(trainer["random_states"][world.rank], world.device)
    return Position(**trainer["position"]), changed


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
