"""The encoder: patch embedding and transformer blocks, over all tokens of a clip or chosen ones.

Pretraining, probes, fine-tuning and export share it. Legend: B clips, T frames, N tokens, N_v
visible tokens, D numbers per patch, C width.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import linear

from tats_fast import kernels
from tats_fast.config import ModelConfig
from tats_fast.models.attention import choose_backend
from tats_fast.models.layers import (
    NORM_EPS,
    Block,
    SelfAttention,
    sincos_positions,
    space_time_positions,
)
from tats_fast.models.patchify import IMAGENET_MEAN, IMAGENET_STD
from tats_fast.models.split import TokenSplit


class PatchEmbedding(nn.Module):
    """Linear embedding of patches; equals VideoMAE's strided Conv3d on normalised pixels.

    The patches come unnormalised (they are the targets too), so the normalisation is folded into
    the weights: W ((x - mean) / std) + b = (W / std) x + (b - W (mean / std)).
    """

    regions = ("forward",)
    reads = ("proj.weight", "proj.bias")  # engine/zero3.py

    def __init__(self, patch_dim: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(patch_dim, width)
        pixels = patch_dim // 3
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).repeat(pixels), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).repeat(pixels), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, N, D), uint8 or float in [0, 1] -> (B, N, C)."""
        scale = 255.0 if patches.dtype == torch.uint8 else 1.0
        # Both folds in fp32 (fp64), whatever autocast does to the large matmul; under ZeRO-3 the
        # parameters may have been gathered in bf16.
        weight, bias = self.proj.weight.to(self.mean.dtype), self.proj.bias.to(self.mean.dtype)
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


class VideoEncoder(nn.Module):
    """Patch embedding, fixed positions, pre-norm blocks and a final LayerNorm.

    Its weights are not initialised: whoever builds a model calls ``initialize`` on the whole of it,
    or loads a state. ``sampling`` says how the training took its clips' frames: ``stride``, or
    ``fps`` per second; both None = not known.

    Args:
        device_type: ``cpu`` or ``cuda``, which decides the attention backend.
        final_norm: False for classifiers that norm the mean over the tokens instead, as
            VideoMAE's fine-tuned checkpoints do; the encoder then ends with its last block.
        norm_eps: epsilon of every LayerNorm. Ours and VideoMAE's own code use 1e-6, but models in
            Transformers often say 1e-12.

    Raises:
        ValueError: ``config.attention`` does not run on ``device_type``.
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
        self.norm_eps = norm_eps
        self.sampling: dict[str, float | None] = {"stride": None, "fps": None}
        backend, width = choose_backend(config.attention, device_type), config.width
        self.embed = PatchEmbedding(config.patch_dim, width)
        self.blocks = nn.ModuleList(
            Block(width, config.mlp_ratio, SelfAttention(width, config.heads, backend), norm_eps)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=norm_eps) if final_norm else nn.Identity()
        self.register_buffer("positions", fixed_positions(config, width), persistent=False)

    def encode(self, tokens: Tensor, split: TokenSplit | None = None) -> Tensor:
        """Positions, blocks and norm.

        Args:
            tokens: (B, N, C), embedded patches of all tokens, before positions.
            split: whose visible tokens to encode, of M draws per clip in one batch; None = all
                tokens.

        Returns:
            (B M, N_v, C), packed (T, C) where ``split`` is packed; (B, N, C) of all tokens.
        """
        if split is None:
            x, packing = tokens + self.positions.to(tokens.dtype), None
        else:
            x, packing = self._visible(tokens, split), split.packing
        for block in self.blocks:
            x = block(x, packing)
        return self.norm(x)

    def _visible(self, tokens: Tensor, split: TokenSplit) -> Tensor:
        """The encoder's input. Draws are gathered one by one: a token that several of them show
        gets the sum of their gradients, and the gather's own scatter does not add."""
        if split.draws == 1:
            return kernels.token_gather(tokens, split.visible, self.positions)
        draws = split.visible.unflatten(0, (-1, split.draws)).unbind(1)
        parts = [kernels.token_gather(tokens, draw, self.positions) for draw in draws]
        return torch.stack(parts, dim=1).flatten(0, 1)

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
        return self.encode(self.embed.proj(patches))

    def forward(self, video: Tensor) -> Tensor:
        """``forward_features``."""
        return self.forward_features(video)


PREFIX = "encoder."
"""Of the encoder's parameters in an autoencoder and in a classifier."""


def encoder_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ``VideoEncoder``'s state dict from that of an autoencoder or a classifier."""
    return {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}
