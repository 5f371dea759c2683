"""The masked autoencoder for video; VideoMAE's structure (Tong et al. 2022), so that weights can be
exchanged. Legend: B clips, N tokens, N_v visible, N_m masked, D numbers per patch, C width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tats_fast import kernels
from tats_fast.config import ModelConfig
from tats_fast.models.attention import choose_backend
from tats_fast.models.layers import (
    NORM_EPS,
    Block,
    SelfAttention,
    initialize,
    sincos_positions,
    space_time_positions,
    tie_queries_and_keys,
)
from tats_fast.models.patchify import IMAGENET_MEAN, IMAGENET_STD
from tats_fast.models.split import TokenSplit


class Reconstruction(NamedTuple):
    """Output of ``MaskedAutoencoder``: ``prediction`` (B, N_m, D), packed (T, D), of the normalised
    masked patches, the ``split`` it was made for, and the patch ``tokens`` (B, N, C) before
    positions."""

    prediction: Tensor
    split: TokenSplit
    tokens: Tensor


class PatchEmbedding(nn.Module):
    """Linear embedding of patches; equals VideoMAE's strided Conv3d on normalised pixels.

    The patches come unnormalised (they are the targets too), so the normalisation is folded into
    the weights: W ((x - mean) / std) + b = (W / std) x + (b - W (mean / std)).
    """

    def __init__(self, patch_dim: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(patch_dim, width)
        pixels = patch_dim // 3
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).repeat(pixels), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).repeat(pixels), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, N, D), uint8 or float in [0, 1] -> (B, N, C)."""
        scale = 255.0 if patches.dtype == torch.uint8 else 1.0
        weight, bias = self.proj.weight, self.proj.bias
        # Both folds in the parameters' precision, whatever autocast does to the large matmul.
        with torch.autocast(weight.device.type, enabled=False):
            folded = weight / (self.std * scale)
            shift = bias - linear(self.mean / self.std, weight)
        # Straight to what the product runs in (bytes are exact in bf16 too), not by way of fp32.
        device = patches.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        return linear(patches.to(dtype), folded, shift)


def fixed_positions(config: ModelConfig, width: int) -> Tensor:
    """The position table (N, width) that ``config.positions`` names."""
    if config.positions == "flat":
        return sincos_positions(config.num_tokens, width)
    side = config.image_size // config.patch_size
    return space_time_positions(config.token_frames, side, width)


class MaskedAutoencoder(nn.Module):
    """Encoder on visible tokens only, light decoder on all, linear head on the masked ones."""

    def __init__(self, config: ModelConfig, device_type: str = "cpu") -> None:
        super().__init__()
        self.config = config
        self.backend = choose_backend(config.attention, device_type)
        width, decoder_width = config.width, config.decoder_width
        self.embed = PatchEmbedding(config.patch_dim, width)
        self.encoder = nn.ModuleList(
            Block(width, config.mlp_ratio, SelfAttention(width, config.heads, self.backend))
            for _ in range(config.depth)
        )
        self.encoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.to_decoder = nn.Linear(width, decoder_width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(decoder_width))
        self.decoder = nn.ModuleList(
            Block(
                decoder_width,
                config.mlp_ratio,
                SelfAttention(decoder_width, config.decoder_heads, self.backend),
            )
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=NORM_EPS)
        self.head = nn.Linear(decoder_width, config.patch_dim)
        for name, size in (("positions", width), ("decoder_positions", decoder_width)):
            self.register_buffer(name, fixed_positions(config, size), persistent=False)
        initialize(self)
        if config.query_key_init == "tied":
            tie_queries_and_keys(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self, patches: Tensor, choose: Callable[[Tensor, Tensor], TokenSplit]
    ) -> Reconstruction:
        """Embed, let ``choose`` split the tokens, reconstruct the masked ones.

        The choice happens inside the forward so that a wrapper (DDP, DeepSpeed) sees one forward
        that touches every parameter.

        Args:
            patches: (B, N, D), uint8 or float in [0, 1].
            choose: from tokens (B, N, C) and patches to a ``TokenSplit``.
        """
        tokens = self.embed(patches)
        split = choose(tokens, patches)
        latent = self.encode(tokens, split)
        return Reconstruction(self.decode(latent, split), split, tokens)

    def encode(self, tokens: Tensor, split: TokenSplit) -> Tensor:
        """Tokens (B, N, C) -> normed latents of the visible ones (B, N_v, C), packed (T, C)."""
        x = kernels.token_gather(tokens, split.visible, self.positions)
        for block in self.encoder:
            x = block(x, split.packing)
        return self.encoder_norm(x)

    def decode(self, latent: Tensor, split: TokenSplit) -> Tensor:
        """Latents (B, N_v, C) -> predicted normalised patches of the masked tokens (B, N_m, D);
        packed (T, C) -> (T', D)."""
        x = kernels.decoder_assemble(
            self.to_decoder(latent),
            self.mask_token,
            self.decoder_positions,
            split.sequence,
            None if split.packing is None else split.packing.offsets,
        )
        for block in self.decoder:
            x = block(x)
        if split.packing is None:
            masked = x[:, split.count :]
        else:
            masked = kernels.token_gather(x, split.masked_slots)
        return self.head(self.decoder_norm(masked))
