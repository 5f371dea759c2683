"""Which checkpoint a run continues from, and what becomes of those it leaves behind."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

from tats_fast.config import ConfigError, Failure
from tats_fast.engine import run_lock, store
from tats_fast.engine.boards import NUMBER_FILES
from tats_fast.engine.distributed import World
from tats_fast.engine.logs import LINES, drop_lines_after
from tats_fast.run_folder import (
    MANIFEST_FILE,
    MODEL_FILE,
    SUPERSEDED,
    damage,
    find_checkpoint,
    list_checkpoints,
)

LOGGER = logging.getLogger("tats_fast")


class DamagedCheckpoint(ConfigError, Failure):
    """The checkpoint to continue from is not what was written, and no other was found. Work that
    failed rather than wrong use: the exit code is that of a ``Failure``."""


def hold_to_train(run_dir: Path, resumed: Path | None) -> None:
    """Lock a run's folder, which is made if need be.

    Args:
        resumed: what ``checkpoint_to_resume`` found before there was a lock.

    Raises:
        ConfigError: another process has it, or trained in it since then.
    """
    run_lock.hold(run_dir)
    if resumed is None and list_checkpoints(run_dir):
        raise ConfigError(
            f"run folder {run_dir}: another start has trained here meanwhile; the same command "
            "continues it"
        )


def checkpoint_to_resume(run_dir: Path, resume: str, world: World) -> Path | None:
    """Where to continue from: None = start afresh. All processes call it and get the same.

    ``auto`` passes over damaged checkpoints to the newest good one, with a warning.

    Raises:
        ConfigError: ``resume`` names no checkpoint, is ``none`` though the run has some, or is one
            that a process does not see.
        DamagedCheckpoint: the one named, or all that there are.
    """
    chosen = world.from_main(lambda: _choose(run_dir, resume))
    if chosen is None:
        return None
    seen = (chosen / MODEL_FILE).is_file()
    for rank, (host, sees) in enumerate(world.gather((socket.gethostname(), seen), patient=True)):
        if not sees:
            raise ConfigError(
                f"train.resume={resume}: process {rank} on {host} does not see {chosen}; "
                "output_dir must be on a file system that all processes share"
            )
    return chosen


def _choose(run_dir: Path, resume: str) -> Path | None:
    store.sweep(run_dir)
    existing = list_checkpoints(run_dir)
    if resume == "none":
        if existing:
            raise ConfigError(
                f"train.resume=none: {run_dir} already holds checkpoints; "
                "choose another name=... or set train.resume=auto"
            )
        return None
    if resume != "auto":
        folder = find_checkpoint(resume, key="train.resume")
        # Without a manifest what is not there may never have been: _load says what it misses.
        listed = (folder / MANIFEST_FILE).is_file()
        problem = damage(folder, None if listed else ())
        if problem is not None:
            raise DamagedCheckpoint(f"train.resume={folder}: damaged, {problem}; name another")
        return folder
    damaged = []
    for folder in reversed(existing):
        problem = damage(folder)
        if problem is None:
            if damaged:
                LOGGER.warning("%s; continuing from %s instead", "; ".join(damaged), folder.name)
            return folder
        damaged.append(f"checkpoint {folder.name} is damaged ({problem})")
    if damaged:
        raise DamagedCheckpoint(
            f"train.resume=auto: no good checkpoint in {run_dir}: {'; '.join(damaged)}; name one "
            "elsewhere, or choose another name=... to start afresh"
        )
    return None


def leave_behind(run_dir: Path, source: Path, step: int) -> str | None:
    """Make ``source`` the newest checkpoint of its run: later ones, the lines of their steps and
    the run's numbers at logging services go to ``superseded/``. One process calls it.

    Args:
        source: what the run continues from. From outside ``run_dir/checkpoints`` it is the start
            of another history, and all that the run has so far goes.
        step: of ``source``.

    Returns:
        A sentence on what was moved; None where nothing was.
    """
    existing = list_checkpoints(run_dir)
    own = [folder for folder in existing if folder.resolve() == source.resolve()]
    later = existing[existing.index(own[0]) + 1 :] if own else existing
    if not later and own:
        return None
    # At services that cannot take back what they have been told, another history is another run.
    numbers = [run_dir / name for name in NUMBER_FILES if (run_dir / name).exists()]
    store.set_aside(run_dir, [*later, *numbers])  # from the end
    lines = sum(
        drop_lines_after(run_dir / name, step if own else -1, run_dir / SUPERSEDED / name)
        for name in LINES
    )
    names = [folder.name for folder in later] + ([f"{lines} logged line(s)"] if lines else [])
    if not names:
        return None
    return f"going on from {source}: {', '.join(names)} moved to {run_dir / SUPERSEDED}"
