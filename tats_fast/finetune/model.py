"""The classifier that a fine-tuning run starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tats_fast.config import ConfigError
from tats_fast.config.finetune import ClassifierConfig
from tats_fast.config.reading import build_model_config
from tats_fast.interchange import read_weights
from tats_fast.models.classifier import VideoClassifier
from tats_fast.models.encoder import encoder_state
from tats_fast.models.layers import NORM_EPS


def make_classifier(
    config: ClassifierConfig,
    classes: tuple[str, ...],
    source: str | Path | None,
    device: torch.device,
) -> tuple[VideoClassifier, list[str]]:
    """The encoder of ``source`` with a new head, and a sentence on each thing left out.

    Args:
        source: whatever ``read_weights`` reads; None = a fresh encoder of ``config.preset``.

    Raises:
        ConfigError: nothing there, or an impossible size or attention backend; one line.
    """
    sizes: dict[str, Any] = {
        name: value
        for name in ("image_size", "num_frames")
        if (value := getattr(config, name)) is not None
    }
    sizes["attention"] = config.attention
    notes: list[str] = []
    weights = None
    if source is not None:
        weights = read_weights(source, sizes, key="init_from")
        model, eps = weights.model, weights.norm_eps
        notes += weights.notes
    elif config.preset is not None:
        model, eps = build_model_config({"preset": config.preset, **sizes}), NORM_EPS
        notes.append("the encoder starts from fresh weights (no init_from)")
    else:
        raise ConfigError(
            "init_from=None: give a pretrained run or checkpoint, or model.preset=vit_base to "
            "start from nothing"
        )
    try:
        classifier = VideoClassifier(
            model,
            len(classes),
            device.type,
            drop_path=config.drop_path,
            head_dropout=config.head_dropout,
            norm_eps=eps,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    classifier.classes = classes
    if weights is not None:
        if classifier.load_encoder(encoder_state(weights.state)):
            notes.append("its final norm was left out: fc_norm norms the mean instead")
        if weights.head is not None:
            notes.append(f"its head of {len(weights.classes)} classes was left out")
    return classifier.to(device), notes
