"""Building blocks shared by autoencoder and sampler. Legend: B clips, N tokens, C width,
h heads of d channels, F token-frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from tats_fast import kernels
from tats_fast.models.attention import attention_fused
from tats_fast.models.split import Packing

NORM_EPS = 1e-6
INIT_STD = 0.02


def sincos_positions(num_tokens: int, width: int) -> Tensor:
    """Fixed positions (N, C) fp32: sin on even and cos on odd channels of the flat token index.

    channel 2j: sin(i / 10000^(2j/C)), channel 2j+1: cos of the same angle (Vaswani et al. 2017,
    section 3.5, over the flattened space-time index as in VideoMAE).
    """
    index = torch.arange(num_tokens, dtype=torch.float64)[:, None]
    even = torch.arange(width, dtype=torch.float64) // 2 * 2
    angle = index / 10000 ** (even / width)
    is_even = torch.arange(width) % 2 == 0
    return torch.where(is_even, angle.sin(), angle.cos()).float()


def space_time_positions(frames: int, side: int, width: int) -> Tensor:
    """Fixed positions (N, C) fp32 with a part of the channels each for time, row and column.

    Tokens at one place in different frames then differ in the time part only, which makes copying
    through time easy to learn. Row and column take C/3 channels each (rounded down to even).
    """
    part = width // 3 // 2 * 2
    index = torch.arange(frames * side * side)
    time = sincos_positions(frames, width - 2 * part)[index // side**2]
    along = sincos_positions(side, part)
    return torch.cat([time, along[index // side % side], along[index % side]], dim=1)


class QKV(nn.Module):
    """Fused projection to queries, keys and values; biases on q and v only, as in VideoMAE.

    A key bias adds one number to all of a query's logits and leaves the softmax as it is.
    """

    autocasts = True  # engine/zero3.py

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.empty(3 * width, width))
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> q, k and v in one tensor (..., 3, h, d)."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return linear(x, self.weight, bias).unflatten(-1, (3, self.heads, -1))


class SelfAttention(nn.Module):
    """Joint space-time attention over all tokens it is given."""

    def __init__(self, width: int, heads: int, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.qkv = QKV(width, heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C), or packed (T, C) -> (T, C)."""
        return self.proj(attention_fused(self.qkv(x), self.backend, packing).flatten(-2))


class TrajectoryAttention(nn.Module):
    """Trajectory attention over all N = F*P tokens of a clip (Patrick et al. 2021, section 3.2).

    Args:
        temporal_value: ``projected``, the paper's equation, or ``identity``, where the value of
            the temporal stage is the trajectory token itself.
    """

    def __init__(self, width: int, heads: int, frames: int, temporal_value: str) -> None:
        super().__init__()
        self.heads = heads
        self.frames = frames
        self.qkv = QKV(width, heads)
        self.query2 = nn.Linear(width, width)
        self.key2 = nn.Linear(width, width, bias=False)
        self.value2 = nn.Linear(width, width) if temporal_value == "projected" else None
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C); needs every token of a clip, so never packed."""
        assert packing is None
        y, own = kernels.trajectory_attention(self.qkv(x), self.frames)  # (B, N, F, C), (B, N, C)
        scale = (x.shape[-1] // self.heads) ** -0.5
        q2 = (self.query2(own) * scale).unflatten(-1, (self.heads, -1))
        value = self.value2
        weight_v, bias_v = (None, None) if value is None else (value.weight, value.bias)
        return self.proj(kernels.trajectory_temporal(q2, y, self.key2.weight, weight_v, bias_v))


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(torch.nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block around any attention module.

    With ``recompute`` set, only the block's input is kept for the backward pass.
    """

    recompute = False
    drops = False
    """Whether fine-tuning leaves out a branch for some clips (``skip_branch``)."""
    unit = True  # engine/zero3.py

    def __init__(
        self, width: int, mlp_ratio: float, attention: nn.Module, norm_eps: float = NORM_EPS
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attention = attention
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, mlp_ratio)

    def set_drop_path(self, probability: float) -> None:
        """Leave out each branch for a clip with ``probability``.

        It lies in a tensor: a compiled graph holds for one number, and the blocks share theirs.
        """
        self.drops = probability > 0
        self.register_buffer("keeps", torch.tensor(1 - probability), persistent=False)

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C), or packed (T, C) -> (T, C)."""
        if self.recompute and torch.is_grad_enabled():
            # Without drop path nothing in a block is random: no generator's state need be kept.
            return checkpoint(
                self._forward,
                x,
                packing,
                use_reentrant=False,
                preserve_rng_state=self.drops,
            )
        return self._forward(x, packing)

    def _forward(self, x: Tensor, packing: Packing | None) -> Tensor:
        if not self.drops or not self.training:
            x = x + self.attention(self.norm1(x), packing)
            return x + self.mlp(self.norm2(x))
        assert packing is None, "drop path works per clip, and packed clips share a dimension"
        x = x + skip_branch(self.attention(self.norm1(x)), self.keeps)
        return x + skip_branch(self.mlp(self.norm2(x)), self.keeps)


def skip_branch(branch: Tensor, keeps: Tensor) -> Tensor:
    """Stochastic depth: ``branch`` (B, N, C) is divided by the probability ``keeps`` (0-d, fp32)
    for a clip with that probability, which keeps its expectation, and else zero (Huang et al. 2016,
    "Deep Networks with Stochastic Depth", section 3, which rescales when testing instead).

    It draws from the device's default generator, as dropout does.
    """
    shape = (len(branch), *[1] * (branch.ndim - 1))
    # Drawn in fp32: 16 bits would round the probability.
    survives = torch.bernoulli(keeps.expand(shape))
    return branch * (survives / keeps.clamp_min(torch.finfo(keeps.dtype).tiny)).to(branch.dtype)


def tie_queries_and_keys(module: nn.Module) -> None:
    """Start every attention with W_k = W_q, drawn with deviation C^-1/2 (Trockman and Kolter 2023,
    "Mimetic Initialization of Self-Attention Layers").

    <q_i, k_j> then grows with <x_i, x_j>. Positions outweigh content in the first tokens, so
    attention begins at the same and neighbouring places, other frames included.
    """
    for part in module.modules():
        if isinstance(part, QKV):
            query, key, _ = part.weight.data.chunk(3)
            nn.init.trunc_normal_(query, std=query.shape[1] ** -0.5)
            key.copy_(query)


def initialize(module: nn.Module) -> None:
    """Truncated-normal matrices of deviation 0.02, zero biases, unit norms.

    Close to the Xavier range of VideoMAE's published code at ViT-B's width (0.036 and 0.023), and
    far smaller at small widths, where Xavier held small models on the plateau of loss 1 several
    times longer (docs/method.md, "Initialisation").
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=INIT_STD)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, QKV):
            nn.init.trunc_normal_(part.weight, std=INIT_STD)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
