"""Models from checkpoints; how training continues is the engine's matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from tats_fast.config import ConfigError, RunConfig, read_saved
from tats_fast.config.schema import LEARNED_STRATEGIES
from tats_fast.models.mae import MaskedAutoencoder
from tats_fast.models.sampler import TokenSampler
from tats_fast.run_folder import CONFIG_FILE, MODEL_FILE, find_checkpoint, require_sound
from tats_fast.weights_file import read_state

EMA = "ema"
"""Among a checkpoint's weights: average of the autoencoder's parameters, if training kept one."""


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
    path = folder / MODEL_FILE
    state = read_state(path)
    require_sound(path)
    if "classifier" in state:  # before its configuration, which is another one
        raise ConfigError(
            f"{folder}: holds a fine-tuned classifier, and this needs an autoencoder; name a "
            "pretraining run or checkpoint"
        )
    if "mae" not in state:
        raise ConfigError(
            f"{path}: does not hold this model or another of ours; tats-fast import reads those of "
            "other projects"
        )
    config = read_saved(folder / CONFIG_FILE, RunConfig)
    # The one it was trained with may want another machine.
    config = replace(config, model=replace(config.model, attention="auto"))
    mae, sampler = build_models(config, device.type)
    try:
        mae.load_state_dict(state["mae"])
        if sampler is not None:
            sampler.load_state_dict(state["sampler"])
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path}: does not hold this model ({type(error).__name__}: {reason})"
        ) from None
    if sampler is not None:
        sampler = sampler.to(device).eval()
    return config, mae.to(device).eval(), sampler
