"""What a run's folder holds and where, for whoever writes or reads one."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

from tats_fast.config import ConfigError

MODEL_FILE = "model.pt"
CONFIG_FILE = "config.yaml"
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
    if (folder / MODEL_FILE).is_file():
        return folder
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise ConfigError(
            f"{key}={path}: neither a checkpoint folder (it would hold {MODEL_FILE}) nor a run "
            "folder with one"
        )
    return checkpoints[-1]


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict:
    """The dictionary in a file written by ``torch.save``, read without executing anything in it.

    Raises:
        ConfigError: missing, damaged, no dictionary, or holding more than tensors and plain values.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"checkpoint file {path}: missing") from None
    except pickle.UnpicklingError:
        raise ConfigError(
            f"checkpoint file {path}: refused: it holds something else than tensors and plain "
            "values, and reading such a file can run code hidden in it"
        ) from None
    except Exception as error:  # torch.load raises a different type for each kind of damage
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise ConfigError(f"checkpoint file {path}: cannot be read ({reason})") from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"checkpoint file {path}: holds a {type(content).__name__}, no dictionary"
        )
    return content
