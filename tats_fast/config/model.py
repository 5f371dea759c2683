"""The configuration of the masked autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tats_fast.config.checks import nearest_multiple, require
from tats_fast.config.options import Options, option
from tats_fast.config.training import Attention, Preset


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Options):
    """The masked autoencoder. ``preset`` fills the sizes; any field given beside it wins."""

    section: ClassVar[str] = "model."

    preset: Preset = "vit_base"
    """Encoder and decoder sizes; vit_tiny is for machines without a GPU."""
    image_size: int = option(224, at_least=1)
    """Side of the square input clip, pixels; a multiple of ``patch_size``."""
    num_frames: int = option(16, at_least=1)
    """Frames per clip; a multiple of ``tubelet_size``."""
    tubelet_size: int = option(2, at_least=1)
    """Frames per token."""
    patch_size: int = option(16, at_least=1)
    """Side of a token's square, pixels."""
    width: int = option(768, at_least=1)
    """Encoder width C; divisible by ``heads``."""
    depth: int = option(12, at_least=1)
    """Encoder blocks."""
    heads: int = option(12, at_least=1)
    """Encoder attention heads."""
    decoder_width: int = option(384, at_least=1)
    """Decoder width; divisible by ``decoder_heads``."""
    decoder_depth: int = option(4, at_least=1)
    """Decoder blocks."""
    decoder_heads: int = option(6, at_least=1)
    """Decoder attention heads."""
    mlp_ratio: float = option(4.0, above=0)
    """Hidden width of every MLP over its block's width."""
    positions: Literal["flat", "space_time"] = "flat"
    """Fixed positions of the autoencoder: VideoMAE's over the flat token index (needed to exchange
    weights), or separate parts for time, row and column, from which small models learn sooner."""
    query_key_init: Literal["independent", "tied"] = "independent"
    """Initial query and key matrices of the autoencoder: drawn apart, or equal, so that attention
    starts out favouring tokens that are alike, which shortens a small model's first plateau."""
    attention: Attention = "auto"
    """Attention backend; ``auto`` takes SDPA where that has cuDNN's kernel (Hopper and newer), else
    the first of flash4, flash2, sdpa that this machine runs; ``flash`` takes the first
    FlashAttention (4 or 2)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, divisor in (
            *(("image_size", "patch_size"), ("num_frames", "tubelet_size")),
            *(("width", "heads"), ("decoder_width", "decoder_heads")),
        ):
            value, step = getattr(self, name), getattr(self, divisor)
            example = nearest_multiple(value, step)
            remedy = f"must be a multiple of model.{divisor}={step}, for example {example}"
            require(value % step == 0, f"model.{name}", value, remedy)

    @property
    def token_frames(self) -> int:
        """F: token rows in time."""
        return self.num_frames // self.tubelet_size

    @property
    def tokens_per_frame(self) -> int:
        """P: tokens in one token frame."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        """N = F * P."""
        return self.token_frames * self.tokens_per_frame

    @property
    def patch_dim(self) -> int:
        """Numbers in one space-time patch: tubelet * patch * patch * 3."""
        return self.tubelet_size * self.patch_size**2 * 3
