"""Every FLOP formula of the project: 2 FLOP per multiply-add, per clip, forward, in FLOP.

Only matrix products count; norms, softmaxes, activations and the optimizer are left out, as usual
for a model-FLOP utilisation. Legend: N = F*P tokens, n tokens of a sequence, N_v visible and N_m
masked tokens, C width, C_d decoder width, h heads, D numbers per patch, r MLP ratio.
``docs/method.md``, "Cost", holds the resulting table at ViT-B.
"""

from __future__ import annotations

from typing import NamedTuple

from tats_fast.config import ModelConfig

TRAINING_FACTOR = 3
"""Forward and backward over forward: the backward of a product is two products of its size. The
patch embedding needs no gradient of its input; the convention counts it all the same."""


class MAEFlops(NamedTuple):
    """Forward of the masked autoencoder, FLOP per clip."""

    embedding: int
    encoder: int
    decoder: int
    heads: int

    @property
    def total(self) -> int:
        """All parts."""
        return sum(self)


def attention(tokens: int, width: int) -> int:
    """Scores and weighted sum of joint attention: 4 n^2 C."""
    return 4 * tokens**2 * width


def block(tokens: int, width: int, mlp_ratio: float) -> int:
    """Transformer block: qkv 6 n C^2, output 2 n C^2, MLP 4 r n C^2, and ``attention``."""
    return round((8 + 4 * mlp_ratio) * tokens * width**2) + attention(tokens, width)


def mae(model: ModelConfig, visible: int, length: int | None = None) -> MAEFlops:
    """The autoencoder with ``visible`` = N_v tokens in the encoder and ``length`` = L, by default
    all N, in the decoder."""
    tokens, width, narrow = model.num_tokens, model.width, model.decoder_width
    length = tokens if length is None else length
    return MAEFlops(
        embedding=2 * tokens * model.patch_dim * width,
        encoder=model.depth * block(visible, width, model.mlp_ratio),
        decoder=model.decoder_depth * block(length, narrow, model.mlp_ratio),
        heads=2 * visible * width * narrow + 2 * (length - visible) * narrow * model.patch_dim,
    )


def classifier(model: ModelConfig, classes: int) -> int:
    """Patch embedding, encoder on all tokens, and the linear head on their mean."""
    tokens, width = model.num_tokens, model.width
    encoder = model.depth * block(tokens, width, model.mlp_ratio)
    return 2 * tokens * model.patch_dim * width + encoder + 2 * width * classes


def temporal_stage(
    tokens: int, frames: int, width: int, heads: int, value: str, absorbed: bool
) -> int:
    """Second stage of trajectory attention, without the query projection.

    Naive: k2 and v2 of N*F trajectory tokens (2 N F C^2 each), attention over F (4 N F C).
    Absorbed: W_k^T q2 and W_v z (2 N C^2 each), attention in C channels per head (4 N h F C).
    ``identity`` drops the value's projection, whose sum then runs over d channels a head.
    """
    projections = 2 if value == "projected" else 1
    if not absorbed:
        return tokens * frames * (2 * projections * width**2 + 4 * width)
    per_frame = 4 * heads * width if value == "projected" else 2 * heads * width + 2 * width
    return tokens * (2 * projections * width**2 + frames * per_frame)


def trajectory_attention(
    tokens: int, frames: int, width: int, heads: int, value: str, absorbed: bool
) -> int:
    """The module: qkv 6 N C^2, second query 2 N C^2, output 2 N C^2, the spatial stage (as much as
    joint attention, 4 N^2 C) and ``temporal_stage``."""
    linear = 10 * tokens * width**2
    temporal = temporal_stage(tokens, frames, width, heads, value, absorbed)
    return linear + attention(tokens, width) + temporal


def sampler(
    model: ModelConfig,
    kind: str = "trajectory",
    heads: int | None = None,
    value: str = "projected",
    absorbed: bool = True,
) -> int:
    """The sampler: its block over all tokens, actor (2 N C) and critic (2 C^2 + 2 C).

    Args:
        kind: "joint" (AdaMAE's block) or "trajectory".
        heads: h; None = the encoder's.
        value: ``sampler.temporal_value``.
        absorbed: with the exact rewrite of the temporal stage, or as written in the paper.
    """
    tokens, width = model.num_tokens, model.width
    ends = 2 * tokens * width + 2 * width**2 + 2 * width
    if kind == "joint":
        return block(tokens, width, model.mlp_ratio) + ends
    mlp = round(4 * model.mlp_ratio * tokens * width**2)
    mixer = trajectory_attention(
        tokens, model.token_frames, width, heads or model.heads, value, absorbed
    )
    return mixer + mlp + ends
