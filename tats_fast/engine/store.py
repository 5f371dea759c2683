"""Folders of checkpoints: written, replaced, removed and set aside so that a stop at any instant
leaves a good one; ``sweep`` tidies up after such a stop.

A folder whose name begins with a dot is no checkpoint for any reader.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tats_fast.run_folder import MANIFEST_FILE, SUPERSEDED, fingerprint

LOGGER = logging.getLogger("tats_fast")
WRITING, REPLACED, REMOVING = ".writing_", ".replaced_", ".removing_"


def begin(final: Path) -> Path:
    """An empty folder to write the content of ``final`` into."""
    temporary = final.with_name(WRITING + final.name)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def seal(folder: Path) -> None:
    """Write the manifest and flush all of ``folder`` to the disk, which goes on beside hashing."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(max_workers=8) as pool:  # both release the GIL
        flushed = [pool.submit(_flush, path) for path in files]
        prints = list(pool.map(fingerprint, files))
        for flush in flushed:
            flush.result()
    names = [str(path.relative_to(folder)) for path in files]
    listed = dict(zip(names, prints, strict=True))
    manifest = folder / MANIFEST_FILE
    manifest.write_text(json.dumps({"files": listed}, indent=1) + "\n")
    _flush(manifest)
    for inner in folder.rglob("*/"):
        _flush(inner)
    _flush(folder)


def publish(temporary: Path, final: Path) -> None:
    """Give a sealed folder its name. One that has the name keeps its content until then: a stop in
    between leaves both, and ``sweep`` gives the old one its name back."""
    replaced = final.with_name(REPLACED + final.name)
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    temporary.rename(final)
    _flush(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def remove(folder: Path) -> None:
    """Delete a checkpoint, of which no half ever shows, and what an earlier call had to leave: what
    the file system keeps, as NFS does where somebody has a file open, is no error."""
    try:
        folder.rename(folder.with_name(REMOVING + folder.name))
    except OSError as error:
        LOGGER.warning("the old checkpoint %s cannot be removed: %s", folder, error.strerror)
    for hidden in folder.parent.glob(f"{REMOVING}*"):
        shutil.rmtree(hidden, ignore_errors=True)


def sweep(run_dir: Path) -> None:
    """Tidy up after a process that was stopped while it wrote, replaced or removed."""
    checkpoints = run_dir / "checkpoints"
    for replaced in checkpoints.glob(f"{REPLACED}*"):
        final = replaced.with_name(replaced.name[len(REPLACED) :])
        if not final.exists():
            replaced.rename(final)
    for prefix in (WRITING, REPLACED, REMOVING):
        for left in checkpoints.glob(f"{prefix}*"):
            shutil.rmtree(left, ignore_errors=True)


def set_aside(run_dir: Path, paths: Sequence[Path]) -> None:
    """Move checkpoints or files to ``superseded/`` of their run, the last first, so that a stop in
    between leaves no gap among checkpoints."""
    for path in reversed(paths):
        target = run_dir / SUPERSEDED / path.name
        number = 1
        while target.exists():
            number += 1
            target = target.with_name(f"{path.name}.{number}")
        target.parent.mkdir(exist_ok=True)
        path.rename(target)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
