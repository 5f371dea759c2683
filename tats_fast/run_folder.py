"""What a run's folder holds and where, for whoever writes or reads one."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from pathlib import Path
from typing import Any

import torch

from tats_fast.config import ConfigError

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
TRAINER_FILE = "trainer.pt"
OPTIMIZER_FILE = "optimizer.pt"
MANIFEST_FILE = "manifest.json"
"""Size and SHA-256 of each other file of a checkpoint, by its path in there."""
SUPERSEDED = "superseded"
"""Folder, inside a run's, of what a run left behind when it went back to an earlier checkpoint."""
STEP_PREFIX = "step_"


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folders = (run_dir / "checkpoints").glob(f"{STEP_PREFIX}*")
    return sorted(
        (folder for folder in folders if folder.name[len(STEP_PREFIX) :].isdigit()),
        key=lambda folder: int(folder.name[len(STEP_PREFIX) :]),
    )


def find_checkpoint(path: str | Path, key: str = "checkpoint") -> Path:
    """The checkpoint folder meant by ``path``: itself, or a run folder's newest.

    Raises:
        ConfigError: there is none; one line.
    """
    folder = Path(path)
    if (folder / MODEL_FILE).is_file() or (folder / MANIFEST_FILE).is_file():
        return folder
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise ConfigError(
            f"{key}={path}: neither a checkpoint folder (it would hold {MODEL_FILE}) nor a run "
            "folder with one"
        )
    return checkpoints[-1]


def read_rows(path: Path, last_step: float = math.inf) -> list[dict[str, Any]]:
    """Rows of a run's .jsonl file up to ``last_step``; [] if it is missing. Lines without a step,
    or cut off when the run was killed, are left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and is_number(row.get("step")) and row["step"] <= last_step:
            rows.append(row)
    return rows


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number (a bool is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def fingerprint(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file, as a manifest has them. Raises ``OSError``."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def damage(folder: Path, names: tuple[str, ...] | None = None) -> str | None:
    """What is wrong with the files of a checkpoint, in a few words; None where nothing is.

    Args:
        names: files to look at; None = all that make up a checkpoint.
    """
    try:
        listed = json.loads((folder / MANIFEST_FILE).read_text())["files"]
    except FileNotFoundError:
        if names is None:
            return f"{MANIFEST_FILE if (folder / MODEL_FILE).is_file() else MODEL_FILE} is missing"
        listed = {}  # an import's folder has none
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST_FILE} cannot be read"
    for name in listed if names is None else names:
        try:
            found = fingerprint(folder / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        for what, value in listed.get(name, {}).items():
            if found[what] != value:
                how = "cut off or grown" if what == "bytes" else "changed since it was written"
                return f"{name} was {how} ({what} {found[what]}, written {value})"[:160]
    return None


def require_sound(path: Path) -> None:
    """Compare a file of a checkpoint with its checksum, where there is one.

    Raises:
        ConfigError: it differs; one line.
    """
    if (path.parent / MANIFEST_FILE).is_file():
        problem = damage(path.parent, (path.name,))
        if problem is not None:
            raise ConfigError(f"checkpoint {path.parent}: damaged, {problem}")


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict:
    """The dictionary in a file written by ``torch.save``, read without executing anything in it.

    Raises:
        ConfigError: missing, damaged, no dictionary, or holding more than tensors and plain values.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
        if start[:1] != b"\x80" and start != b"PK":  # neither a pickle nor a ZIP archive
            what = "no file of torch.save" if start else "empty"
            raise ConfigError(f"checkpoint file {path}: {what}")
        content = torch.load(path, map_location=device, weights_only=True)
    except ConfigError:
        raise
    except FileNotFoundError:
        raise ConfigError(f"checkpoint file {path}: missing") from None
    except pickle.UnpicklingError:
        raise ConfigError(
            f"checkpoint file {path}: refused: it holds something else than tensors and plain "
            "values, and reading such a file can run code hidden in it"
        ) from None
    except Exception as error:  # torch.load raises a different type for each kind of damage
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0][:120]
        raise ConfigError(f"checkpoint file {path}: damaged, cannot be read ({reason})") from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"checkpoint file {path}: holds a {type(content).__name__}, no dictionary"
        )
    return content
