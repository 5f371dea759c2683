"""The truth: every hot op as plain, differentiable PyTorch, written to be read.

Legend: B clips, N = F*P tokens (F token-frames of P tokens, token (f, s) at index f*P + s),
h heads of d channels, C = h*d, M masked or gathered tokens, D numbers in a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .dispatch import register


@register("trajectory_attention", "reference")
def trajectory_attention(qkv: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Spatial stage of trajectory attention: one softmax per key frame.

    A[i,f,s] = softmax_s(d^-1/2 <q_i, k_{f,s}>),  y[i,f] = sum_s A[i,f,s] v_{f,s}
    (Patrick et al. 2021, section 3, first stage; docs/method.md, "Trajectory attention").

    Args:
        qkv: (B, N, 3, h, d), the fused projection as it comes; any strides.
        frames: F; divides N.

    Returns:
        trajectory tokens y (B, N, F, h*d), and each token's entry for its own frame,
        y[b, i, f(i)] with f(i) = i // (N / F), (B, N, h*d).
    """
    q, k, v = qkv.unbind(2)
    batch, tokens, heads, dim = q.shape
    k_frames = k.unflatten(1, (frames, tokens // frames))
    v_frames = v.unflatten(1, (frames, tokens // frames))
    scores = torch.einsum("bnhd,bfshd->bhnfs", q, k_frames) * dim**-0.5
    attention = scores.softmax(dim=-1)
    y = torch.einsum("bhnfs,bfshd->bnfhd", attention, v_frames).reshape(
        batch, tokens, frames, heads * dim
    )
    return y, own_frame(y)


def own_frame(y: Tensor) -> Tensor:
    """y[b, i, f(i)] of trajectory tokens y (B, N, F, C): (B, N, C)."""
    own = y.unflatten(1, (y.shape[2], -1)).diagonal(dim1=1, dim2=3)  # (B, P, C, F)
    return own.permute(0, 3, 1, 2).flatten(1, 2)


@register("trajectory_temporal", "reference")
def trajectory_temporal(
    q2: Tensor, y: Tensor, weight_k: Tensor, weight_v: Tensor | None, bias_v: Tensor | None
) -> Tensor:
    """Temporal stage: attention of each token along its own trajectory.

    k2 = W_k y,  v2 = W_v y + b_v,  a[i,f] = softmax_f <q2_i, k2_{i,f}>,
    out_i = sum_f a[i,f] v2_{i,f}  (Patrick et al. 2021, section 3, second stage). A key bias
    would add the same number to every logit of a softmax, so there is none.

    Args:
        q2: (B, N, h, d), already scaled by d^-1/2.
        y: trajectory tokens (B, N, F, C).
        weight_k: (h*d, C).
        weight_v, bias_v: (h*d, C), (h*d,); both None = the value is y itself ("identity").

    Returns:
        (B, N, h*d).
    """
    batch, tokens, heads, dim = q2.shape
    keys = (y @ weight_k.T).unflatten(-1, (heads, dim))
    values = y if weight_v is None else torch.nn.functional.linear(y, weight_v, bias_v)
    values = values.unflatten(-1, (heads, -1))
    attention = torch.einsum("bnhd,bnfhd->bnhf", q2, keys).softmax(dim=-1)
    return torch.einsum("bnhf,bnfhd->bnhd", attention, values).reshape(batch, tokens, -1)


def batch_rows(index: Tensor, tokens: int) -> Tensor:
    """Token indices as rows b*N + i of the whole batch.

    Args:
        index: (B, M), the same number of tokens of every clip, or (T,), rows already: a *packed*
            batch whose clips contribute different numbers of tokens.
        tokens: N. With N = 10, [[3], [7]] becomes [[3], [17]].
    """
    if index.ndim == 1:
        return index
    return index + torch.arange(index.shape[0], device=index.device)[:, None] * tokens


@register("token_gather", "reference")
def token_gather(x: Tensor, index: Tensor, positions: Tensor | None = None) -> Tensor:
    """Pick tokens and add their positions: out[b, m] = x[b, index[b, m]] + positions[index[b, m]].

    With x of 4 tokens and index [[2, 0]], row 0 of the result is token 2 plus position 2.

    Args:
        x: (B, N, C); index: (B, M) or packed (T,), int64, see ``batch_rows``;
        positions: (N, C) or None.

    Returns:
        (B, M, C) or (T, C) in x's dtype. Its gradient scatters back; unpicked tokens get zero.
    """
    tokens, width = x.shape[1:]
    rows = batch_rows(index, tokens)
    picked = x.reshape(-1, width)[rows]
    return picked if positions is None else picked + positions[rows % tokens].to(picked.dtype)


@register("decoder_assemble", "reference")
def decoder_assemble(
    visible: Tensor,
    mask_token: Tensor,
    positions: Tensor,
    order: Tensor,
    offsets: Tensor | None = None,
) -> Tensor:
    """The decoder's input, per clip [visible + position ; mask token + position].

    Args:
        visible: projected encoder output, (B, N_v, C), or packed (T, C) with ``offsets``.
        mask_token: (C,); positions: (N, C).
        order: (B, L) int64, the tokens of each clip's sequence, its visible ones first.
        offsets: (B + 1,) int32, clip b's visible tokens are rows offsets[b] to offsets[b + 1].

    Returns:
        (B, L, C) in visible's dtype, rows in ``order``.
    """
    dtype = visible.dtype
    hidden = mask_token.to(dtype).expand(*order.shape, -1)
    place = torch.arange(order.shape[1], device=order.device)
    if offsets is None:
        tokens = torch.cat([visible, hidden[:, visible.shape[1] :]], dim=1)
    else:
        start, end = offsets[:-1, None].long(), offsets[1:, None].long()
        row = (start + place).clamp_max(visible.shape[0] - 1)
        tokens = torch.where((start + place < end)[..., None], visible[row], hidden)
    return tokens + positions[order].to(dtype)


def normalized_patches(patches: Tensor) -> Tensor:
    """VideoMAE's regression target: each channel of a patch to zero mean and unit deviation.

    (x - mean) / (sqrt(unbiased variance) + 1e-6) over the patch's pixels in [0, 1], per channel.

    Args:
        patches: (..., D) with D laid out (time, height, width, 3); uint8, or float in [0, 1].

    Returns:
        (..., D), fp32 or wider.
    """
    # The ratio does not change with the pixels' unit, but the 1e-6 does. Whole numbers keep the
    # mean of a constant patch exact; in [0, 1] its rounding, over 1e-6, would be a noisy target.
    eps = 255e-6 if patches.dtype == torch.uint8 else 1e-6
    pixels = patches.to(torch.promote_types(patches.dtype, torch.float32)).unflatten(-1, (-1, 3))
    deviation = pixels.var(dim=-2, keepdim=True).sqrt()
    return ((pixels - pixels.mean(dim=-2, keepdim=True)) / (deviation + eps)).flatten(-2)


@register("masked_mse", "reference")
def masked_mse(prediction: Tensor, patches: Tensor, index: Tensor) -> Tensor:
    """Error of predicted tokens against their normalised pixels (docs/method.md, "Target").

    Args:
        prediction: (B, M, D) or packed (T, D); patches: all patches (B, N, D), uint8 or float in
        [0, 1]; index: (B, M) or packed (T,), see ``batch_rows``.

    Returns:
        mean squared error over D, of index's shape, fp32 or wider; its gradient goes to
        ``prediction`` only.
    """
    with torch.no_grad():
        target = token_gather(normalized_patches(patches), index)
    wide = torch.promote_types(prediction.dtype, target.dtype)
    return (prediction.to(wide) - target).square().mean(dim=-1)


@register("change_error", "reference")
def change_error(prediction: Tensor, patches: Tensor, index: Tensor, tubelet_size: int) -> Tensor:
    """How far the predicted change between the frames of a token is from the true one
    (docs/method.md, "Reward"); no gradient.

    Root of the mean square of (x^_{t+1} - x^_t) - (x_{t+1} - x_t) over the token's pixels, where
    x^ is the prediction put back into the pixels' scale. What stands still changes by nothing and
    that is soon predicted, whatever its texture; a movement that the model can follow fades from
    it as well, which a frame difference does not.

    Args:
        prediction: normalised patches (B, M, D) or packed (T, D), see ``masked_mse``.
        patches: (B, N, D), uint8 or float in [0, 1]; index: (B, M) or packed (T,).

    Returns:
        of index's shape, fp32 or wider, white = 1; zeros for a tubelet of one frame.
    """
    wide = torch.promote_types(prediction.dtype, torch.float32)
    if tubelet_size == 1:
        return torch.zeros(index.shape, dtype=wide, device=index.device)
    rows = batch_rows(index, patches.shape[1]).flatten()
    pixels = patches.flatten(0, 1)[rows].to(wide).unflatten(-1, (-1, 3))
    if patches.dtype == torch.uint8:
        pixels = pixels / 255
    deviation = pixels.std(dim=-2, keepdim=True)
    guess = prediction.detach().to(wide).reshape(pixels.shape) * deviation
    wrong = (guess - pixels).unflatten(-2, (tubelet_size, -1)).diff(dim=-3)
    return wrong.square().mean(dim=(-3, -2, -1)).sqrt().view(index.shape)


@register("policy_logprob", "reference")
def policy_logprob(logits: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropy of the floored softmax policy.

    p = (1 - floor) softmax(l) + floor / N,  H = - sum_i p_i log p_i, in fp32 or wider.

    Args:
        logits: (B, N); floor: alpha in [0, 1].

    Returns:
        log p (B, N) and H (B,), in nats.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if floor == 0:  # stays finite where a probability underflows
        log_p = wide.log_softmax(dim=-1)
    else:
        log_p = ((1 - floor) * wide.softmax(dim=-1) + floor / logits.shape[-1]).log()
    return log_p, -(log_p.exp() * log_p).sum(dim=-1)


@register("policy_sample", "reference")
def policy_sample(logits: Tensor, uniform: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """The floored policy, and all tokens in the order of a draw without replacement from it.

    Adding independent Gumbel noise -log(-log u) to log p and sorting gives the order in which
    tokens would be drawn one after another, each in proportion to p among those left
    (Plackett-Luce; Yellott 1977). A draw of N_v tokens is the order's first N_v.

    Args:
        logits: (B, N); uniform: (B, N) fp32 in [0, 1); floor: alpha in [0, 1].

    Returns:
        log p (B, N) and H (B,) as ``policy_logprob``, differentiable, and the order (B, N) int64.
    """
    log_p, entropy = policy_logprob(logits, floor)
    # rand() can return 0, and -log(0) = inf would rank that token last for sure.
    gumbel = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(uniform.dtype).tiny)))
    order = (log_p.detach() + gumbel).argsort(dim=-1, descending=True, stable=True)
    return log_p, entropy, order
