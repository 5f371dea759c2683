"""One run folder, one run: a lock that the system releases when its process ends, however."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from pathlib import Path
from typing import IO

from tats_fast.config import ConfigError
from tats_fast.data.files import writing

LOGGER = logging.getLogger("tats_fast")
LOCK_FILE = ".lock"
_HELD: dict[str, IO[str]] = {}


def hold(folder: Path) -> None:
    """Lock the run folder, which is made if need be, for this process until ``release`` or its
    end. A process may hold it several times over.

    Raises:
        ConfigError: another process does, or the folder cannot be made; one line.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = str((folder / LOCK_FILE).resolve())
    if path in _HELD:
        return
    file = open(path, "a+")  # noqa: SIM115 - closing it gives the lock back
    try:
        # A record lock belongs to this process alone: forked workers do not keep it alive.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise ConfigError(
            f"run folder {folder}: in use by {holder}; stop that run or choose another name=..."
        ) from None
    except OSError as error:
        LOGGER.warning(
            "run folder %s cannot be locked (%s): nothing keeps a second run out of it",
            folder,
            error.strerror,
        )
    file.truncate(0)
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
    file.flush()
    _HELD[path] = file


def release(folder: Path) -> None:
    """Give the lock back, if this process holds it."""
    file = _HELD.pop(str((folder / LOCK_FILE).resolve()), None)
    if file is not None:
        file.close()
