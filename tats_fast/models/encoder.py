"""The encoder alone, over every token of a clip: for features, probes and fine-tuning.

Legend: B clips, T frames, N tokens, C width.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from tats_fast.config import ModelConfig
from tats_fast.models.attention import choose_backend
from tats_fast.models.layers import NORM_EPS, Block, SelfAttention, initialize
from tats_fast.models.mae import PatchEmbedding, fixed_positions

ENCODER_PARTS = ("embed.", "encoder.", "encoder_norm.")


class VideoEncoder(nn.Module):
    """``MaskedAutoencoder``'s encoder without masking; parameters have the same names there.

    Args:
        device_type: ``cpu`` or ``cuda``, which attention backend to choose.
        final_norm: False for models whose last block's output is pooled before it is normed, as
            in VideoMAE's fine-tuned checkpoints; the encoder then ends with its last block.
        norm_eps: of every LayerNorm. Ours and VideoMAE's own code use 1e-6, but models in
            Transformers often say 1e-12.
    """

    def __init__(
        self,
        config: ModelConfig,
        device_type: str = "cpu",
        *,
        final_norm: bool = True,
        norm_eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        self.config = config
        backend = choose_backend(config.attention, device_type)
        width = config.width
        self.embed = PatchEmbedding(config.patch_dim, width)
        self.encoder = nn.ModuleList(
            Block(width, config.mlp_ratio, SelfAttention(width, config.heads, backend))
            for _ in range(config.depth)
        )
        self.encoder_norm = nn.LayerNorm(width) if final_norm else nn.Identity()
        self.register_buffer("positions", fixed_positions(config, width), persistent=False)
        initialize(self)
        for part in self.modules():
            if isinstance(part, nn.LayerNorm):
                part.eps = norm_eps

    def forward_features(self, video: Tensor) -> Tensor:
        """One feature per token, in the order (frame, row, column).

        Args:
            video: (B, 3, T, H, W) float, RGB, normalised with ImageNet's mean and deviation.

        Returns:
            (B, N, C), what ``VideoMAEModel`` of Transformers calls ``last_hidden_state``.

        Raises:
            ValueError: another shape than the model's; ``load_encoder`` takes another
                ``image_size`` and ``num_frames``.
        """
        config = self.config
        expected = (3, config.num_frames, config.image_size, config.image_size)
        if video.ndim != 5 or video.shape[1:] != expected:
            shape = ", ".join(map(str, expected))
            raise ValueError(f"video of shape {tuple(video.shape)}: expected (B, {shape})")
        patches = rearrange(
            video,
            "b c (f t) (i p) (j q) -> b (f i j) (t p q c)",
            t=config.tubelet_size,
            p=config.patch_size,
            q=config.patch_size,
        )
        # The linear map itself: the module around it would normalise the pixels once more.
        tokens = self.embed.proj(patches)
        x = tokens + self.positions.to(tokens.dtype)
        for block in self.encoder:
            x = block(x)
        return self.encoder_norm(x)

    def forward(self, video: Tensor) -> Tensor:
        """``forward_features``."""
        return self.forward_features(video)


def encoder_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The encoder's part of an autoencoder's state dict."""
    return {name: tensor for name, tensor in state.items() if name.startswith(ENCODER_PARTS)}
