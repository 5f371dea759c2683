"""Every memory formula of the project: what a forward pass keeps for its backward pass, per clip.

Counted are the tensors that autograd saves on the path a training takes: attention that keeps no
scores, the fused kernels on a GPU and their compositions on a CPU. Row statistics, indices and the
policy's vectors are left out (below 1%). Legend as in ``flops.py``: N tokens, n of a sequence, C
width, r MLP ratio, F token-frames, D numbers per patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tats_fast.config import ModelConfig


class Numbers(NamedTuple):
    """How large a kept number is: ``size`` bytes, and ``wider`` bytes more where it is a norm's
    input. Eager autocast gives norms an fp32 copy; compiled blocks and fp32 do not."""

    size: int
    wider: int = 0


def numbers(bf16: bool, compiled: bool) -> Numbers:
    """Those of a step in bf16 autocast or fp32."""
    if not bf16:
        return Numbers(4)
    return Numbers(2) if compiled else Numbers(2, wider=2)


class Stack(NamedTuple):
    """Transformer blocks of one kind: how many, and the bytes of one and of its input."""

    depth: int
    block: int
    entry: int

    def times(self, clips: int) -> Stack:
        """That of so many clips at once."""
        return Stack(self.depth, clips * self.block, clips * self.entry)


def stack(depth: int, tokens: int, width: int, mlp_ratio: float, kept: Numbers) -> Stack:
    """Blocks over n tokens. Each keeps its input, two norms' outputs, q, k and v, what attention
    gives, the sum after it, and both sides of the activation: (8 + 2 r) n C numbers."""
    per_token = (8 + 2 * mlp_ratio) * kept.size + 2 * kept.wider
    return Stack(depth, round(tokens * width * per_token), tokens * width * kept.size)


def blocks(stacks: Sequence[Stack], recompute: bool) -> int:
    """Bytes of all blocks; with ``recompute`` those of their inputs, and of one block at a time."""
    if not recompute:
        return sum(part.depth * part.block for part in stacks)
    return sum(part.depth * part.entry for part in stacks) + max(part.block for part in stacks)


def mae_stacks(model: ModelConfig, visible: int, length: int, kept: Numbers) -> list[Stack]:
    """Encoder over N_v ``visible`` tokens and decoder over ``length``."""
    ratio = model.mlp_ratio
    return [
        stack(model.depth, visible, model.width, ratio, kept),
        stack(model.decoder_depth, length, model.decoder_width, ratio, kept),
    ]


def mae_entry(model: ModelConfig, kept: Numbers) -> int:
    """Bytes that the autoencoder keeps before its blocks: patches in the compute dtype, tokens."""
    return model.num_tokens * (model.patch_dim + model.width) * kept.size


def mae_ends(model: ModelConfig, visible: int, length: int, kept: Numbers) -> int:
    """Bytes that it keeps besides: both final norms, and the prediction."""
    masked = length - visible
    norms = visible * model.width + masked * model.decoder_width
    return (masked * model.patch_dim + 2 * norms) * kept.size + norms * kept.wider


def pixels(model: ModelConfig) -> int:
    """Bytes of a clip, and of its patches, as they come: one a number."""
    return 2 * model.num_tokens * model.patch_dim


def sampler_stack(model: ModelConfig, kind: str, kept: Numbers, fused: bool) -> Stack:
    """The sampler's block. Trajectory attention keeps F trajectory tokens per token besides, its
    own and the second query; the composition keeps F more."""
    plain = stack(1, model.num_tokens, model.width, model.mlp_ratio, kept)
    if kind == "joint":
        return plain
    more = 2 + model.token_frames * (1 if fused else 2)
    return plain._replace(block=plain.block + more * plain.entry)


def sampler_ends(model: ModelConfig, kept: Numbers) -> int:
    """Bytes of the sampler's final norm, and of what actor and critic see."""
    return model.num_tokens * model.width * (2 * kept.size + kept.wider)
