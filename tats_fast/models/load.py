"""Models from a checkpoint folder, for looking at them; training state is the engine's matter."""

from __future__ import annotations

from pathlib import Path

import torch

from tats_fast.config import ConfigError, RunConfig, load_config
from tats_fast.config.schema import LEARNED_STRATEGIES
from tats_fast.models.mae import MaskedAutoencoder
from tats_fast.models.sampler import TokenSampler

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


def find_checkpoint(path: str | Path, key: str = "--checkpoint") -> Path:
    """The checkpoint folder meant by ``path``: itself, or a run folder's newest.

    Raises:
        ConfigError: there is none; one line.
    """
    folder = Path(path)
    if (folder / MODEL_FILE).is_file():
        return folder
    found = list_checkpoints(folder)
    if not found:
        raise ConfigError(
            f"{key}={path}: neither a checkpoint folder (it would hold {MODEL_FILE}) nor a run "
            "folder with one"
        )
    return found[-1]


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict:
    """A file written by ``torch.save``, read without executing anything in it.

    Raises:
        ConfigError: missing, damaged, or holding more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"checkpoint file {path}: not there") from None
    except Exception as error:  # torch.load raises a different type for each kind of damage
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise ConfigError(f"checkpoint file {path}: cannot be read ({reason})") from None


def build_models(
    config: RunConfig, device_type: str, value_bias: float = 1.0
) -> tuple[MaskedAutoencoder, TokenSampler | None]:
    """The autoencoder, and the sampler where the masking strategy learns one; on the CPU."""
    mae = MaskedAutoencoder(config.model, device_type)
    if config.masking.strategy not in LEARNED_STRATEGIES:
        return mae, None
    return mae, TokenSampler(config.model, config.sampler, value_bias, device_type)


def load_models(
    checkpoint: str | Path, device: torch.device | str = "cpu"
) -> tuple[RunConfig, MaskedAutoencoder, TokenSampler | None]:
    """Configuration and models of a checkpoint, in evaluation mode on ``device``.

    Args:
        checkpoint: a checkpoint folder, or a run folder (then its newest checkpoint).

    Raises:
        ConfigError: no checkpoint there, one of a classifier, or one that cannot be read; one line.
    """
    folder = find_checkpoint(checkpoint)
    device = torch.device(device)
    state = read_tensors(folder / MODEL_FILE)
    if "classifier" in state:  # before its configuration, which is another one
        raise ConfigError(
            f"{folder}: fine-tuned, which leaves a classifier; this needs the autoencoder that "
            "pretraining leaves: name a pretraining run or checkpoint"
        )
    config = load_config(folder / CONFIG_FILE)
    mae, sampler = build_models(config, device.type)
    mae.load_state_dict(state["mae"])
    if sampler is not None:
        sampler.load_state_dict(state["sampler"])
        sampler = sampler.to(device).eval()
    return config, mae.to(device).eval(), sampler
