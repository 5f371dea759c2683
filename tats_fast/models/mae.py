"""The masked autoencoder for video; VideoMAE's structure (Tong et al. 2022), so that weights can be
exchanged. Legend: B clips, N tokens, N_v visible, N_m masked, D numbers per patch, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tats_fast import kernels
from tats_fast.config import ModelConfig
from tats_fast.models.attention import choose_backend
from tats_fast.models.encoder import VideoEncoder, fixed_positions
from tats_fast.models.layers import (
    NORM_EPS,
    Block,
    SelfAttention,
    initialize,
    tie_queries_and_keys,
)
from tats_fast.models.split import TokenSplit


class MaskedAutoencoder(nn.Module):
    """Encoder on visible tokens only, light decoder on all, linear head on the masked ones."""

    regions = ("predict",)

    def __init__(self, config: ModelConfig, device_type: str = "cpu") -> None:
        super().__init__()
        self.config = config
        self.backend = choose_backend(config.attention, device_type)
        width = config.decoder_width
        self.encoder = VideoEncoder(config, device_type)
        self.to_decoder = nn.Linear(config.width, width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.decoder = nn.ModuleList(
            Block(width, config.mlp_ratio, SelfAttention(width, config.decoder_heads, self.backend))
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, config.patch_dim)
        self.register_buffer("decoder_positions", fixed_positions(config, width), persistent=False)
        initialize(self)
        if config.query_key_init == "tied":
            tie_queries_and_keys(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, patches: Tensor, split: TokenSplit) -> Tensor:
        """Patches (B, N, D), uint8 or float in [0, 1] -> predicted normalised patches of the masked
        tokens (B, N_m, D), packed (T, D) where ``split`` is packed."""
        return self.decode(self.encode(self.embed(patches), split), split)

    def embed(self, patches: Tensor) -> Tensor:
        """Patches (B, N, D) -> tokens (B, N, C), before positions."""
        return self.encoder.embed(patches)

    def encode(self, tokens: Tensor, split: TokenSplit) -> Tensor:
        """Tokens (B, N, C) -> normed latents of the visible ones (B, N_v, C), packed (T, C)."""
        return self.encoder.encode(tokens, split)

    def decode(self, latent: Tensor, split: TokenSplit) -> Tensor:
        """Latents (B, N_v, C) -> predicted normalised patches of the masked tokens (B, N_m, D);
        packed (T, C) -> (T', D)."""
        return self.predict(self.decode_tokens(latent, split))

    def decode_tokens(self, latent: Tensor, split: TokenSplit) -> Tensor:
        """Latents (B, N_v, C) -> the decoder's last tokens, of the masked ones (B, N_m, decoder
        width), before ``predict``; packed (T, C) -> (T', decoder width)."""
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
            return x[:, split.count :]
        return kernels.token_gather(x, split.masked_slots)

    def predict(self, x: Tensor) -> Tensor:
        """The decoder's last tokens (..., C) -> normalised patches (..., D)."""
        return self.head(self.decoder_norm(x))
