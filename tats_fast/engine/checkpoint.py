"""Checkpoints: complete or absent, never half written; enough in them to continue bit by bit.

A checkpoint is a folder ``checkpoints/step_000500`` with ``model.safetensors``, ``trainer.pt``
(step, data position, and what the learner adds), ``optimizer.pt``, ``config.yaml``, and
``manifest.json`` with the checksums of them all. Nothing in it belongs to one process: any number
of them may go on from it, under any engine. Random draws follow from the seed, the step and the
place in the batch. ``store.py`` has the order of writing.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tats_fast.config import ConfigError, Failure, TrainingConfig, save_config
from tats_fast.engine import store
from tats_fast.engine.best import best_checkpoint
from tats_fast.engine.changes import changed_settings, changed_videos
from tats_fast.engine.distributed import World
from tats_fast.engine.finite import require_finite
from tats_fast.engine.runner import Runner
from tats_fast.run_folder import (
    CONFIG_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    STEP_PREFIX,
    TRAINER_FILE,
    list_checkpoints,
    read_tensors,
)
from tats_fast.weights_file import read_state, write_state


class NotSaved(Failure):
    """A checkpoint could not be written, for a reason outside the run; earlier ones are intact."""


@dataclass(frozen=True)
class Position:
    """How far a run is: optimizer steps done, windows taken from the list, clips replaced, steps
    skipped."""

    step: int = 0
    windows: int = 0
    skipped_clips: int = 0
    skipped_steps: int = 0


class Savable(Protocol):
    """What a checkpoint is made from and restored into. All processes call each method; what the
    first one gets is whole."""

    world: World
    runner: Runner

    def model_state(self) -> dict[str, Any]:
        """What the model is: sections of tensors and plain values, as ``write_state`` takes it."""

    def trainer_state(self) -> dict[str, Any]:
        """What else continues the training; the runner saves its optimizer itself."""

    def load_state(self, model: dict[str, Any], trainer: dict[str, Any]) -> None:
        """Take over what the two gave."""


@dataclass(frozen=True)
class Contents:
    """A checkpoint in the host's memory, which the training that goes on does not touch."""

    position: Position
    config: TrainingConfig
    files: dict[str, dict[str, Any]]
    """What each file of tensors holds, by its name."""


def collect(
    run_dir: Path,
    learner: Savable,
    config: TrainingConfig,
    position: Position,
    videos: Mapping[str, Any] | None = None,
) -> Contents | None:
    """Copy all that a checkpoint holds to the host of the first process; None on the others. All
    processes call it.

    Args:
        videos: what to remember of the list (``videos.listing``).

    Raises:
        NonFiniteLoss: a weight is not finite.
    """
    world = learner.world
    model = learner.model_state()
    world.from_main(lambda: require_finite(run_dir, position.step, model))
    optimizer, more = learner.runner.optimizer_state(), learner.trainer_state()
    if not world.is_main:
        return None
    trainer = {
        **more,
        "position": vars(position),
        "videos": videos,
        "world_size": world.size,
    }
    files = {MODEL_FILE: model, TRAINER_FILE: trainer, OPTIMIZER_FILE: optimizer}
    copied = _on_host(files)
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return Contents(position, config, copied)


def write_checkpoint(run_dir: Path, contents: Contents, source: Path | None = None) -> Path:
    """Write ``run_dir/checkpoints/step_N`` and drop the oldest beyond ``train.keep_checkpoints``,
    but for the best where ``train.keep_best`` asks for it.

    An interruption at any instant leaves earlier checkpoints intact, one of the same step included.

    Args:
        source: the checkpoint that this run was told to start from, which is never dropped.

    Raises:
        NotSaved: the disk is full or fails. Nothing is left behind.
    """
    config = contents.config
    final = run_dir / "checkpoints" / f"{STEP_PREFIX}{contents.position.step:06d}"
    temporary = final.with_name(store.WRITING + final.name)
    try:
        store.begin(final)
        for name, tensors in contents.files.items():
            save = write_state if name == MODEL_FILE else _save_tensors
            save(tensors, temporary / name)
        save_config(config, temporary / CONFIG_FILE)
        store.seal(temporary)
        store.publish(temporary, final)
        best = best_checkpoint(run_dir) if config.train.keep_best else None
        kept = {path.resolve() for path in (source, best and best.checkpoint) if path is not None}
        for old in list_checkpoints(run_dir)[: -config.train.keep_checkpoints]:
            if old.resolve() not in kept:
                store.remove(old)
    except (OSError, RuntimeError) as error:
        problem = _writing_problem(error)
        if problem is None:
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        raise NotSaved(problem) from error
    return final


def _on_host(tree: Any) -> Any:
    """A copy with every tensor in the host's memory, once the device has caught up."""
    if isinstance(tree, Tensor):
        host = torch.empty(tree.shape, dtype=tree.dtype, pin_memory=tree.is_cuda)
        return host.copy_(tree.detach(), non_blocking=True)
    if isinstance(tree, Mapping):
        return {key: _on_host(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_on_host(value) for value in tree)
    return tree


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
        ConfigError: the checkpoint is of another model, does not have what this run needs, or has a
            setting that cannot be changed in the middle.
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
    model = read_state(folder / MODEL_FILE, world.device)
    trainer = read_tensors(folder / TRAINER_FILE)
    if trainer["world_size"] != world.size:
        changed.append(f"processes: {trainer['world_size']} -> {world.size}")
    if videos is not None:
        changed += changed_videos(trainer["videos"], videos)
    learner.load_state(model, trainer)
    learner.runner.load_optimizer_state(read_tensors(folder / OPTIMIZER_FILE))
    return Position(**trainer["position"]), changed
