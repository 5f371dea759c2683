"""Builds of PyTorch extensions: locks that killed ones left, for which the next waits for ever, and
a word where one is about to begin."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

LOGGER = logging.getLogger("tats_fast")
OLD = 600.0
"""Seconds: the build may be another host's, on a shared home, whose processes do not show here."""
POLL = 0.5
"""Seconds between two looks at a lock."""


def settle_locks(root: Path | None = None, patience: float = OLD) -> list[Path]:
    """Delete the locks of builds that nobody works on, and say so; a builder keeps its lock open.

    A lock younger than ``patience`` that nobody on this host holds is waited for until it is gone
    or that old: PyTorch itself would wait for ever, and load what is not there if it were deleted
    under its eyes.

    Args:
        root: folder of built extensions; None = PyTorch's.
        patience: seconds; 0 where no other host builds in ``root``.

    Returns:
        what was deleted.
    """
    root = root or _default_root()
    locks = [path for pattern in ("*/lock", "*/*/lock") for path in root.glob(pattern)]
    return [path for path in locks if _settle(path, patience)]


def _settle(path: Path, patience: float) -> bool:
    """Whether the lock was deleted."""
    told = False
    while (age := _age(path)) is not None and not _is_open(path):
        if age >= patience:
            path.unlink(missing_ok=True)
            LOGGER.warning("removed %s, which a build that was killed had left", path)
            return True
        if not told:
            LOGGER.warning(
                "waiting for %s: another host may be building; in %.0f s it counts as left behind "
                "(delete it to go on now)",
                path,
                patience - age,
            )
            told = True
        time.sleep(POLL)
    return False


def announce_first_build(root: Path | None = None) -> None:
    """Say so where DeepSpeed has built nothing yet: while it does, it says nothing for long."""
    root = root or _default_root()
    if not any(path for pattern in ("*/*.so", "*/*/*.so") for path in root.glob(pattern)):
        LOGGER.info("DeepSpeed compiles an op at its first start on a machine: a minute or two")


def _default_root() -> Path:
    from torch.utils import cpp_extension

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())


def _age(path: Path) -> float | None:
    """Seconds; None if there is no such file."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None


def _is_open(path: Path) -> bool:
    """Whether a process of this host has the file open; unknown counts as yes."""
    if not Path("/proc/self/fd").is_dir():
        return True
    real = os.path.realpath(path)
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == real:
                return True
        except OSError:  # it ended, or is another user's
            continue
    return False
