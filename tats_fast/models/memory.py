"""Every memory formula of the project: what a forward pass keeps for its backward pass, per clip.

Counted are the tensors that autograd saves on the path a training takes: attention that keeps no
scores, the fused kernels on a GPU and their compositions on a CPU. Row statistics, indices and the
policy's vectors are left out (below 1%). Legend as in ``flops.py``: N tokens, n of a sequence, C
width, r MLP ratio, F token-frames, D numbers per patch.
"""

from __future__ import annotations

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


def block(tokens: int, width: int, mlp_ratio: float, kept: Numbers) -> int:
    """Bytes of a transformer block: its input, two norms' outputs, q, k and v, what attention
    gives, the sum after it, and both sides of the activation: (8 + 2 r) n C numbers."""
    return round(tokens * width * ((8 + 2 * mlp_ratio) * kept.size + 2 * kept.wider))


def blocks(
    depth: int, tokens: int, width: int, mlp_ratio: float, kept: Numbers, recompute: bool
) -> int:
    """Bytes of ``depth`` blocks; with ``recompute`` only their inputs."""
    if recompute:
        return depth * tokens * width * kept.size
    return depth * block(tokens, width, mlp_ratio, kept)


def mae(model: ModelConfig, visible: int, length: int, kept: Numbers, recompute: bool) -> int:
    """Bytes of the autoencoder with N_v ``visible`` tokens in the encoder and ``length`` in the
    decoder: blocks, patches in the compute dtype, tokens, both final norms, prediction.

    With ``recompute``, one block at a time is there in full.
    """
    tokens, ratio = model.num_tokens, model.mlp_ratio
    shapes = (
        (model.depth, visible, model.width),
        (model.decoder_depth, length, model.decoder_width),
    )
    total = sum(blocks(*shape, ratio, kept, recompute) for shape in shapes)
    if recompute:
        total += max(block(count, width, ratio, kept) for _, count, width in shapes)
    masked = length - visible
    ends = visible * model.width + masked * model.decoder_width
    rest = tokens * (model.patch_dim + model.width) + masked * model.patch_dim + 2 * ends
    return total + rest * kept.size + ends * kept.wider


def pixels(model: ModelConfig) -> int:
    """Bytes of a clip, and of its patches, as they come: one a number."""
    return 2 * model.num_tokens * model.patch_dim


def sampler(model: ModelConfig, kind: str, kept: Numbers, fused: bool, recompute: bool) -> int:
    """Bytes of the sampler: its block, final norm and what actor and critic see.

    Trajectory attention keeps F trajectory tokens per token, own and second queries and its output
    besides, (12 + F + 2 r) N C numbers with the ends; the composition keeps F more.
    """
    tokens, width, frames = model.num_tokens, model.width, model.token_frames
    one = tokens * width
    ends = one * (2 * kept.size + kept.wider)
    whole = block(tokens, width, model.mlp_ratio, kept)
    if kind == "trajectory":
        whole += one * (2 + frames * (1 if fused else 2)) * kept.size
    return ends + whole + (one * kept.size if recompute else 0)
