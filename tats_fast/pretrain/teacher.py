"""``teacher.init_from``: the frozen encoder, its features as targets, and the head that predicts
them. Legend: B clips, M draws of each, N tokens, N_m masked tokens, C the teacher's width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from tats_fast import kernels
from tats_fast.config import ConfigError, RunConfig
from tats_fast.interchange import build_encoder, read_weights
from tats_fast.models import TokenSplit
from tats_fast.models.encoder import VideoEncoder
from tats_fast.models.layers import NORM_EPS, initialize


def load_teacher(config: RunConfig, device: torch.device) -> VideoEncoder | None:
    """The frozen encoder on ``device``, for clips of this run's size; None where there is none.

    Raises:
        ConfigError: nothing there, or tokens of another size; one line.
    """
    path, model = config.teacher.init_from, config.model
    if path is None:
        return None
    overrides = {name: getattr(model, name) for name in ("image_size", "num_frames", "attention")}
    weights = read_weights(path, overrides, key="teacher.init_from")
    for name in ("tubelet_size", "patch_size"):
        here, there = getattr(model, name), getattr(weights.model, name)
        if here != there:
            raise ConfigError(f"model.{name}={here}: teacher.init_from={path} has {there}")
    return build_encoder(weights, device).requires_grad_(False)


@torch.no_grad()
def teacher_features(teacher: VideoEncoder, patches: Tensor) -> Tensor:
    """Features of all tokens: patches (B, N, D) -> (B, N, C), in what autocast computes in."""
    return teacher.encode(teacher.embed(patches))


class FeatureHead(nn.Sequential):
    """The decoder's last tokens (..., width) -> features (..., C)."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__(nn.LayerNorm(width, eps=NORM_EPS), nn.Linear(width, features))
        initialize(self)


def feature_error(prediction: Tensor, features: Tensor, split: TokenSplit) -> Tensor:
    """Mean squared error of each masked token's features, of which every token's have mean 0 and
    deviation 1; predicting 0 costs 1.

    Args:
        prediction: (B M, N_m, C), packed (T, C).
        features: (B, N, C) of all tokens.

    Returns:
        (B M, N_m), packed (T,), fp32.
    """
    target = kernels.token_gather(features, split.by_clip(split.masked)).view(prediction.shape)
    target = layer_norm(target.float(), target.shape[-1:])
    return (prediction.float() - target).square().mean(dim=-1)
