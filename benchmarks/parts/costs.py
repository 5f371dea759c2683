"""Least bytes and FLOP of every hot op and of the whole step: the floor of any implementation.

Floor: every input read once, every output written once, weights once; intermediates of one op
never reach memory. FLOP are those of matrix products (2 per multiply-add), recomputation included
where it is cheaper than keeping the number in memory (marked "again" below). A composite (module,
block, step) is its ops one after another, with elementwise work fused into the products around it.
Exponentials, sorting and launches are not counted, so nothing reaches the floor exactly.

Legend: B clips, N = F*P tokens (F token-frames, P places), C = h*d width, N_v visible, M = N - N_v
masked, D numbers per patch, e bytes per number of the compute dtype; parameters and their
gradients have 4 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tats_fast.kernels.example_inputs import MAKERS, Shape
from tats_fast.models import flops

PARAMETER = 4
INDEX = 8
ADAMW_BYTES = 28
"""Per parameter and update: read weight, gradient and two momenta, write weight and momenta."""


class Ceilings(NamedTuple):
    """What a device can do at most, and how we know: bytes/s, FLOP/s."""

    bandwidth: float
    rate: float
    source: str


@dataclass(frozen=True)
class Cost:
    """Bytes through memory and FLOP of one op."""

    bytes: int
    flops: int = 0

    def seconds(self, ceilings: Ceilings) -> float:
        """The roofline: whichever of memory and matrix units takes longer."""
        return max(self.bytes / ceilings.bandwidth, self.flops / ceilings.rate)


@dataclass(frozen=True)
class Costs:
    """Forward and backward of an op as parts that run one after another."""

    forward: tuple[Cost, ...]
    backward: tuple[Cost, ...]

    def __add__(self, other: Costs) -> Costs:
        return Costs(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> Costs:
        return Costs(self.forward * times, self.backward * times)

    def seconds(self, ceilings: Ceilings) -> tuple[float, float]:
        """Floor of forward and backward."""
        return tuple(sum(c.seconds(ceilings) for c in p) for p in (self.forward, self.backward))

    @property
    def bytes(self) -> int:
        """Of both directions."""
        return sum(part.bytes for part in self.forward + self.backward)

    @property
    def flops(self) -> int:
        """Of both directions."""
        return sum(part.flops for part in self.forward + self.backward)


def op_costs(op: str, shape: Shape, mlp_ratio: float = 4.0) -> Costs:
    """Costs of one hot op, or of ``sampler_attention`` (the module) and ``sampler_block``."""
    return _COSTS[op](shape) if op in _COSTS else _composite(op, shape, mlp_ratio)


def _one(forward: Cost, backward: Cost) -> Costs:
    return Costs((forward,), (backward,))


def _sizes(shape: Shape) -> tuple[int, int, int, int]:
    """Rows B*N, width C, bytes e, tokens N."""
    return shape.batch * shape.tokens, shape.width, shape.dtype.itemsize, shape.tokens


def trajectory_attention(shape: Shape) -> Costs:
    """Spatial stage: 4 N^2 C per clip; backward four such products, and the scores again.

    qkv (3C) -> y (F C) and its own-frame entries (C); backward reads qkv and both gradients.
    """
    rows, width, e, tokens = _sizes(shape)
    product = shape.batch * flops.attention(tokens, width)
    qkv, out = 3 * rows * width * e, (shape.frames + 1) * rows * width * e
    return _one(Cost(qkv + out, product), Cost(qkv + out + qkv, 5 * product // 2))


def trajectory_temporal(shape: Shape) -> Costs:
    """Absorbed temporal stage: 4 N C^2 + 4 N h F C; backward twice that, q^ and z again."""
    rows, width, e, tokens = _sizes(shape)
    once = flops.temporal_stage(tokens, shape.frames, width, shape.heads, "projected", True)
    # W_k^T q2 is one of the four projections' halves, sum_f a y one of the two products over F.
    again = 2 * tokens * width**2 + 2 * tokens * shape.heads * shape.frames * width
    small, large = rows * width * e, rows * shape.frames * width * e
    weights = (2 * width**2 + width) * e
    return _one(
        Cost(small + large + weights + small, shape.batch * once),
        Cost(2 * small + large + weights + small + large + weights,
             shape.batch * (2 * once + again)),
    )  # fmt: skip


def token_gather(shape: Shape) -> Costs:
    """Backward writes all N rows, zeros included."""
    rows, width, e, tokens = _sizes(shape)
    picked = shape.batch * shape.visible
    moved, index = picked * width * e, picked * INDEX
    positions = min(picked, tokens) * width * PARAMETER
    return _one(Cost(2 * moved + index + positions), Cost(moved + index + rows * width * e))


def decoder_assemble(shape: Shape) -> Costs:
    """Backward reads every row: the mask token's gradient is the sum over masked ones."""
    rows, _, e, tokens = _sizes(shape)
    width = shape.decoder_width
    visible, out = shape.batch * shape.visible * width * e, rows * width * e
    tables = (tokens + 1) * width * PARAMETER + rows * INDEX
    return _one(
        Cost(visible + tables + out),
        Cost(out + rows * INDEX + visible + width * PARAMETER),
    )


def masked_mse(shape: Shape) -> Costs:
    """Backward reads prediction and pixels again: 3 bytes a number where the difference has 4."""
    masked = shape.batch * (shape.tokens - shape.visible)
    prediction = masked * shape.patch_dim * shape.dtype.itemsize
    pixels, index, error = masked * shape.patch_dim, masked * INDEX, masked * PARAMETER
    read = prediction + pixels + index
    return _one(Cost(read + error), Cost(read + error + prediction))


def change_error(shape: Shape) -> Costs:
    """What ``masked_mse`` reads and writes forward; there is no backward."""
    return _one(masked_mse(shape).forward[0], Cost(0))


def policy_logprob(shape: Shape) -> Costs:
    """Logits -> fp32 log-probabilities and entropy; nothing kept but the logits."""
    rows, _, e, _ = _sizes(shape)
    wide = (rows + shape.batch) * PARAMETER
    return _one(Cost(rows * e + wide), Cost(rows * e + wide + rows * e))


def policy_sample(shape: Shape) -> Costs:
    """``policy_logprob``, noise and the order (int64)."""
    rows, _, _, _ = _sizes(shape)
    base = policy_logprob(shape)
    extra = rows * (PARAMETER + INDEX)
    return _one(Cost(base.forward[0].bytes + extra), base.backward[0])


_COSTS = {op: globals()[op] for op in MAKERS}


def linear(rows: int, inner: int, outer: int, e: int, residual: bool = False) -> Costs:
    """rows x inner by inner x outer, with bias; backward makes both gradients. ``residual``: the
    block's input is added on the way out."""
    x, out, weight = rows * inner * e, rows * outer * e, (inner + 1) * outer * PARAMETER
    product = 2 * rows * inner * outer
    return _one(
        Cost(x + weight + out * (1 + residual), product),
        Cost(out + x + weight + x + weight, 2 * product),
    )


def norm(rows: int, width: int, e: int) -> Costs:
    """LayerNorm; its backward also adds the residual's gradient."""
    return _one(Cost(2 * rows * width * e), Cost(4 * rows * width * e))


def joint_attention(batch: int, tokens: int, width: int, e: int) -> Costs:
    """Softmax attention of all tokens; backward reads its output, makes the scores again."""
    row, product = batch * tokens * width * e, batch * flops.attention(tokens, width)
    return _one(Cost(4 * row, product), Cost(8 * row, 5 * product // 2))


def mlp(rows: int, width: int, ratio: float, e: int) -> Costs:
    """Two products; GELU is fused into the second, so only its input is stored."""
    hidden = int(width * ratio)
    return linear(rows, width, hidden, e) + linear(rows, hidden, width, e, residual=True)


def block(batch: int, tokens: int, width: int, ratio: float, e: int) -> Costs:
    """Pre-norm transformer block with joint attention."""
    rows = batch * tokens
    return (
        norm(rows, width, e)
        + linear(rows, width, 3 * width, e)
        + joint_attention(batch, tokens, width, e)
        + linear(rows, width, width, e, residual=True)
        + norm(rows, width, e)
        + mlp(rows, width, ratio, e)
    )


def _composite(op: str, shape: Shape, ratio: float) -> Costs:
    rows, width, e, _ = _sizes(shape)
    attention = (
        linear(rows, width, 3 * width, e)
        + trajectory_attention(shape)
        + linear(rows, width, width, e)
        + trajectory_temporal(shape)
        + linear(rows, width, width, e, residual=op == "sampler_block")
    )
    if op == "sampler_attention":
        return attention
    assert op == "sampler_block", op
    return norm(rows, width, e) + attention + norm(rows, width, e) + mlp(rows, width, ratio, e)


def parameters(parts: Iterable[tuple[int, int]]) -> int:
    """Weights and biases of matrices (inner, outer)."""
    return sum((inner + 1) * outer for inner, outer in parts)


class StepCosts(NamedTuple):
    """One training step in order: parts by name, the K sampler passes, and the updates' bytes."""

    parts: dict[str, Costs]
    updates: Cost

    def seconds(self, ceilings: Ceilings) -> float:
        """Floor of the step."""
        work = sum(sum(costs.seconds(ceilings)) for costs in self.parts.values())
        return work + self.updates.seconds(ceilings)


def step_costs(
    shape: Shape, depth: int, decoder_depth: int, epochs: int, ratio: float = 4.0
) -> StepCosts:
    """The whole step of ``shape.batch`` clips with K = ``epochs`` sampler passes."""
    rows, width, e, tokens = _sizes(shape)
    narrow, batch, visible = shape.decoder_width, shape.batch, shape.visible
    pixels = rows * shape.patch_dim
    product = 2 * rows * shape.patch_dim * width
    weight = (shape.patch_dim + 1) * width * PARAMETER
    # The patches need no gradient: one product in the backward pass, and pixels of one byte.
    embed = Cost(pixels + weight + rows * width * e, product)
    seen = batch * visible
    sampler = (
        op_costs("sampler_block", shape, ratio)
        + norm(rows, width, e)
        + linear(rows, width, 1, e)
        + policy_sample(shape)
    )
    parts = {
        "patchify": Costs((Cost(2 * pixels),), ()),
        "embed": _one(embed, embed),
        "sampler": sampler * epochs,
        "gather": token_gather(shape),
        "encoder": block(batch, visible, width, ratio, e) * depth + norm(seen, width, e),
        "to decoder": linear(seen, width, narrow, e) + decoder_assemble(shape),
        "decoder": block(batch, tokens, narrow, ratio, e) * decoder_depth,
        "head": norm(rows - seen, narrow, e) + linear(rows - seen, narrow, shape.patch_dim, e),
        "masked error": masked_mse(shape),
    }
    matrices = 8 + 4 * ratio
    autoencoder = (depth * width**2 + decoder_depth * narrow**2) * matrices / 2 + parameters(
        [(shape.patch_dim, width), (width, narrow), (narrow, shape.patch_dim)]
    )
    sampling = (8 + 2 * ratio) * width**2 + tokens * width  # block, critic, own positions
    return StepCosts(parts, Cost(int(ADAMW_BYTES * (autoencoder + epochs * sampling))))
