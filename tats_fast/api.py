"""The public functions of ``tats_fast``; docs/api.md shows them in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tats_fast.config.reading import build_model_config
from tats_fast.interchange import build_classifier, build_encoder, read_weights
from tats_fast.models import MaskedAutoencoder
from tats_fast.models.classifier import VideoClassifier
from tats_fast.models.encoder import VideoEncoder


def load_encoder(
    path: str | Path, device: torch.device | str = "cpu", *, ema: bool = False, **overrides: Any
) -> VideoEncoder:
    """The encoder at ``path`` in evaluation mode; ``forward_features(video)`` takes video
    (B, 3, T, H, W), float and normalised with ImageNet's mean and deviation, to (B, N, C). Its
    ``sampling`` is the training's ``stride`` or ``fps``: how the T frames should be taken.

    Args:
        path: run folder (then its newest checkpoint), checkpoint folder or its
            ``model.safetensors``, file of ``tats-fast import``, folder of Transformers' VideoMAE
            or its name on the Hugging Face hub (``org/name``), or a ``.pth`` of VideoMAE, VideoMAE
            V2 or AdaMAE; of a classifier, its encoder.
        ema: take the moving average of the weights, where pretraining kept one
            (``train.ema_decay``).
        overrides: ``image_size``, ``num_frames``, ``attention`` (default ``auto``, whatever the
            training used); for a ``.pth``, which does not say it, also ``heads``.

    Raises:
        tats_fast.config.ConfigError: nothing there or not such a model; one line.
        ValueError: an attention backend that does not run on ``device``.
    """
    weights = read_weights(path, {"attention": "auto", **overrides}, key="load_encoder", ema=ema)
    return build_encoder(weights, device)


def load_classifier(
    path: str | Path, device: torch.device | str = "cpu", **overrides: Any
) -> VideoClassifier:
    """The classifier at ``path`` in evaluation mode; it takes video (B, 3, T, H, W), float and
    normalised with ImageNet's mean and deviation, to logits (B, K) of its ``classes``. How the T
    frames should be taken is in ``encoder.sampling``, as for ``load_encoder``.

    Args:
        path: fine-tuned run folder (then its newest checkpoint), checkpoint folder or its
            ``model.safetensors``, file of ``tats-fast import``, folder of Transformers' VideoMAE
            for classification with mean pooling, or a fine-tuned ``.pth`` of VideoMAE or VideoMAE
            V2.
        overrides: as for ``load_encoder``.

    Raises:
        tats_fast.config.ConfigError: nothing there, not such a model, or no classifier in it; one
            line.
        ValueError: an attention backend that does not run on ``device``.
    """
    weights = read_weights(path, {"attention": "auto", **overrides}, key="load_classifier")
    return build_classifier(weights, device, where=f"load_classifier={path}")


def create_model(
    preset: str = "vit_base", device: torch.device | str = "cpu", **overrides: Any
) -> MaskedAutoencoder:
    """A masked autoencoder with fresh weights.

    Args:
        preset: ``vit_tiny``, ``vit_small``, ``vit_base``, ``vit_large``, ``vit_huge`` or
            ``vit_giant``.
        overrides: fields of ``model`` in the configuration, such as ``num_frames=32``.

    Raises:
        tats_fast.config.ConfigError: unknown field or impossible value; one line.
    """
    model = build_model_config({"preset": preset, **overrides})
    device = torch.device(device)
    return MaskedAutoencoder(model, device.type).to(device)
