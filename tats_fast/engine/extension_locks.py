"""Locks that a killed build of a PyTorch extension left, for which the next one waits for ever."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

LOGGER = logging.getLogger("tats_fast")
OLD = 600.0
"""Seconds: the build may be another host's, on a shared home, whose processes do not show here."""


def remove_stale_locks(root: Path | None = None) -> list[Path]:
    """Delete the locks of builds that nobody works on, and say so; a builder keeps its lock open.

    Args:
        root: folder of built extensions; None = PyTorch's.
    """
    if root is None:
        from torch.utils import cpp_extension

        found = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
        root = Path(found)
    locks = [path for pattern in ("*/lock", "*/*/lock") for path in root.glob(pattern)]
    stale = [path for path in locks if _age(path) > OLD and not _is_open(path)]
    for path in stale:
        path.unlink(missing_ok=True)
        LOGGER.warning("removed %s, which a build that was killed had left", path)
    return stale


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


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
