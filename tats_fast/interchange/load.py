"""Weights from any path: our runs, checkpoints and imported files, and other projects' formats."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tats_fast.config import ConfigError
from tats_fast.interchange.foreign import foreign_weights
from tats_fast.interchange.hub import fetch, is_hub_name
from tats_fast.interchange.huggingface import CONFIG_JSON, read_hugging_face
from tats_fast.interchange.weights import Weights, is_ours, own_weights, resize
from tats_fast.run_folder import MODEL_FILE, find_checkpoint, read_tensors, require_sound
from tats_fast.weights_file import read_state


def read_weights(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    key: str = "checkpoint",
    ema: bool = False,
) -> Weights:
    """The model at ``path``, which is a run (then its newest checkpoint) of pretraining or
    fine-tuning, a checkpoint folder or its ``model.safetensors``, a file of ``tats-fast import``, a
    folder of Transformers or its name on the Hugging Face hub (``org/name``), or a ``.pth`` of
    VideoMAE, VideoMAE V2 or AdaMAE. Nothing in a file is executed.

    Args:
        overrides: model fields such as ``image_size``; positions are computed for the new size.
        key: what messages call ``path``.
        ema: read the moving average that pretraining kept with ``train.ema_decay``.

    Raises:
        ConfigError: nothing there, another model, an override that the weights contradict, or no
            average.
    """
    if is_hub_name(str(path)):
        path = fetch(str(path), key)
    path, overrides = Path(path), dict(overrides or {})
    if (path / CONFIG_JSON).is_file() and not ema:
        return resize(read_hugging_face(path), overrides)
    if not path.is_file():
        path = find_checkpoint(path, key=key) / MODEL_FILE
    content = read_state(path) if path.suffix == ".safetensors" else read_plain(path)
    require_sound(path)
    if is_ours(content) or ema:
        try:
            return resize(own_weights(content, path, ema), overrides)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ConfigError(
                f"{path}: does not hold a model ({type(error).__name__}: {reason})"
            ) from None
    return foreign_weights(content, path, overrides)


def read_plain(path: Path) -> dict[str, Any]:
    """What ``torch.save`` wrote, if that is a dictionary of tensors and plain values.

    Raises:
        ConfigError: damaged, or holding anything that would have to be executed.
    """
    # VideoMAE saves its command line beside the weights: a Namespace only holds attributes.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return read_tensors(path)
