"""The interpreter tier can fail: each of these single changes to a kernel turns its check red."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from kernel_checks import DEVICE, check, interpreted

from tats_fast import kernels
from tats_fast.kernels import dispatch

pytestmark = [pytest.mark.interpret, interpreted]

FUSED = Path(dispatch.__file__).parent / "fused"


def randn(*size):
    return torch.randn(size, device=DEVICE, requires_grad=True)


def spatial():
    return kernels.trajectory_attention, [randn(1, 2 * 20, 3, 2, 16)], (2,)


def temporal():
    inputs = [randn(1, 9, 2, 16), randn(1, 9, 3, 32), randn(32, 32), randn(32, 32), randn(32)]
    return kernels.trajectory_temporal, inputs, ()


def gather():
    index = torch.tensor([[5, 0], [1, 3]], device=DEVICE)
    return kernels.token_gather, [randn(2, 6, 8), index, randn(6, 8).detach()], ()


def assemble():
    order = torch.stack([torch.randperm(6, device=DEVICE) for _ in range(2)])
    inputs = [randn(2, 2, 8), randn(8), randn(6, 8).detach(), order]
    return kernels.decoder_assemble, inputs, ()


def error():
    patches = torch.randint(0, 256, (2, 5, 24), dtype=torch.uint8, device=DEVICE)
    index = torch.tensor([[4, 1], [0, 2]], device=DEVICE)
    return kernels.masked_mse, [randn(2, 2, 24), patches, index], ()


def logprob():
    return kernels.policy_logprob, [randn(3, 11)], (0.05,)


BROKEN = [
    (
        "trajectory_attention",
        spatial,
        "o_s[None, :] < places, b_s, float",
        "o_s[None, :] >= 0, b_s, float",
    ),
    (
        "trajectory_attention",
        spatial,
        "b_sum = b_sum * b_alpha + tl.sum(b_p, 1)",
        "b_sum = b_sum + tl.sum(b_p, 1)",
    ),
    ("trajectory_attention_backward", spatial, "b_p * (b_dp - b_delta[None, :])", "b_p * b_dp"),
    ("trajectory_attention_backward", spatial, "b_dq * scale, m_m", "b_dq, m_m"),
    ("trajectory_temporal", temporal, "b_s - tl.sum(b_a * b_s, axis=2)[:, :, None]", "b_s"),
    ("trajectory_temporal", temporal, "m_own, b_s, 0.0", "b_s == b_s, b_s, 0.0"),
    (
        "trajectory_temporal_backward",
        temporal,
        "b_l[f][:, None] * b_hat",
        "b_a[f][:, None] * b_hat",
    ),
    (
        "trajectory_temporal_backward",
        temporal,
        "(o_h % 2 == 0)[:, None, None], g",
        "(o_h >= 0)[:, None, None], g",
    ),
    ("token_gather", gather, "positions + i_n * stride_p", "positions + i_b * stride_p"),
    ("token_gather", gather, "grad_x + i_row * width", "grad_x + i_t * width"),
    ("decoder_assemble", assemble, "b_out += b_position", "b_out -= b_position"),
    (
        "decoder_assemble",
        assemble,
        "tl.where(m_visible, 0.0, b_grad",
        "tl.where(m_visible, b_grad, b_grad",
    ),
    ("masked_mse", error, "/ (PIXELS - 1)", "/ PIXELS"),
    ("masked_mse", error, "total / (3 * PIXELS)", "total / (4 * PIXELS)"),
    ("policy", logprob, "keep * b_softmax + base", "keep * b_softmax"),
    ("policy", logprob, "entropy + i_b, -tl.sum", "entropy + i_b, tl.sum"),
]


@pytest.mark.parametrize(
    ("name", "case", "old", "new"), BROKEN, ids=[f"{b[0]}-{i}" for i, b in enumerate(BROKEN)]
)
def test_a_broken_kernel_is_caught(name, case, old, new, tmp_path, monkeypatch):
    op, inputs, arguments = case()
    check(op, inputs, torch.float32, *arguments)  # as it stands it is right
    source = (FUSED / f"{name}.py").read_text()
    assert old in source, "the kernel has changed: choose another break"
    broken = source.replace(old, new).replace('"tats_fast::', f'"tats_fast_{tmp_path.name}::')
    path = tmp_path / f"{name}.py"
    path.write_text(broken)
    registered = {op: dict(levels) for op, levels in dispatch._registry.items()}
    module = f"tats_fast.kernels.fused.broken_{tmp_path.name}"
    spec = importlib.util.spec_from_file_location(module, path)
    try:
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])  # registers itself over the right one,
        if name.endswith("_backward"):  # or is used by the file that does
            user = sys.modules[f"tats_fast.kernels.fused.{name.removesuffix('_backward')}"]
            for part in ("trajectory_attention_bwd", "grad_tokens", "grad_weights"):
                if hasattr(sys.modules[module], part):
                    monkeypatch.setattr(user, part, getattr(sys.modules[module], part))
        with pytest.raises(AssertionError):
            check(op, inputs, torch.float32, *arguments)
    finally:
        dispatch._registry.update(registered)
        del sys.modules[module]
