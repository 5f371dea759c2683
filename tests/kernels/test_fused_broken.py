"""The interpreter tier can fail: each of these single changes to a kernel turns its check red."""

from __future__ import annotations

import pytest
import torch
from broken_kernels import broken, op_of
from kernel_checks import check, example, interpreted

from tats_fast import kernels

pytestmark = [pytest.mark.interpret, interpreted]

SIZES = {"batch": 2, "frames": 3, "places": 20, "heads": 2, "dim": 16, "visible": 7}
SIZES |= {"decoder_width": 8, "patch_dim": 24}
BREAKS = {
    "trajectory_attention": {
        "o_s[None, :] < places, b_s, float": "o_s[None, :] >= 0, b_s, float",
        "b_sum = b_sum * b_alpha + tl.sum(b_p, 1)": "b_sum = b_sum + tl.sum(b_p, 1)",
    },
    "trajectory_attention_backward": {
        "b_p * (b_dp - b_delta[None, :])": "b_p * b_dp",
        "b_dq * scale, m_m": "b_dq, m_m",
    },
    "trajectory_temporal": {
        "b_s - tl.sum(b_a * b_s, axis=2)[:, :, None]": "b_s",
        "m_own, b_s, 0.0": "b_s == b_s, b_s, 0.0",
    },
    "trajectory_temporal_backward": {
        "b_l[f][:, None] * b_hat": "b_a[f][:, None] * b_hat",
        "(o_h % 2 == 0)[:, None, None], g": "(o_h >= 0)[:, None, None], g",
    },
    "token_gather": {
        "positions + i_n * stride_p": "positions + i_b * stride_p",
        "grad_x + i_row * width": "grad_x + i_t * width",
    },
    "decoder_assemble": {
        "b_out += b_position": "b_out -= b_position",
        "tl.where(m_visible, 0.0, b_grad": "tl.where(m_visible, b_grad, b_grad",
    },
    "masked_mse": {
        "/ (PIXELS - 1)": "/ PIXELS",
        "total / (3 * PIXELS)": "total / (4 * PIXELS)",
    },
    "masked_mse:change_error": {
        "3 * (PIXELS - FRAME)": "3 * PIXELS",
        "(b_next - b_now) * b_deviation": "(b_next - b_now)",
    },
    "policy": {
        "keep * b_softmax + base": "keep * b_softmax",
        "entropy + i_b, -tl.sum": "entropy + i_b, tl.sum",
    },
}
CASES = [(name, *change) for name, changes in BREAKS.items() for change in changes.items()]


@pytest.mark.parametrize(
    ("name", "old", "new"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_a_broken_kernel_is_caught(name, old, new, tmp_path):
    op = getattr(kernels, op_of(name))
    inputs = example(op_of(name), **SIZES, dtype=torch.float32)
    check(op, inputs, torch.float32)  # as it stands it is right
    with broken(name, old, new, tmp_path), pytest.raises(AssertionError):
        check(op, inputs, torch.float32)
