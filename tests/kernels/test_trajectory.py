"""Trajectory attention: the torch implementation equals the equations, forward and backward."""

from __future__ import annotations

import pytest
import torch

from tats_fast import kernels
from tats_fast.kernels.composed import CPU_CHUNK
from tats_fast.models.layers import TrajectoryAttention, initialize

# (B, F, P, heads, head width): odd sizes, one frame, one place, one head, several chunks.
SHAPES = [
    (1, 1, 1, 1, 4),
    (2, 3, 5, 2, 4),
    (1, 8, 49, 3, 8),
    (3, 2, 7, 1, 16),
    (1, 5, 1, 2, 6),
    (2, 1, 9, 4, 3),
    (1, 4, CPU_CHUNK // 3, 2, 5),
    (1, 7, 13, 5, 2),
]


def module_for(shape, temporal_value, dtype=torch.float64):
    batch, frames, places, heads, dim = shape
    module = TrajectoryAttention(heads * dim, heads, frames, temporal_value).to(dtype)
    initialize(module)
    for parameter in module.parameters():  # biases too must matter
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.randn(batch, frames * places, heads * dim, dtype=dtype)
    return module, x


def run(module, x, cotangent, level):
    x = x.clone().requires_grad_()
    module.zero_grad()
    with kernels.use(level):
        out = module(x)
        (out * cotangent).sum().backward()
    return out.detach(), [x.grad, *(p.grad.clone() for p in module.parameters())]


@pytest.mark.parametrize("temporal_value", ["projected", "identity"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_torch_equals_reference(shape, temporal_value):
    module, x = module_for(shape, temporal_value)
    cotangent = torch.randn_like(x)
    expected, expected_grads = run(module, x, cotangent, "reference")
    actual, grads = run(module, x, cotangent, "torch")
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    names = ["x", *(name for name, _ in module.named_parameters())]
    for name, grad, expected_grad in zip(names, grads, expected_grads, strict=True):
        torch.testing.assert_close(
            grad, expected_grad, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("temporal_value", ["projected", "identity"])
def test_naive_module_written_out(temporal_value):
    """The reference itself, token by token in plain loops from the paper's equations."""
    batch, frames, places, heads, dim = 2, 3, 2, 2, 3
    module, x = module_for((batch, frames, places, heads, dim), temporal_value)
    q, k, v = module.qkv(x).detach().unbind(2)
    expected = torch.zeros_like(x)
    with torch.no_grad():
        for b in range(batch):
            for i in range(frames * places):
                y = torch.zeros(frames, heads * dim, dtype=x.dtype)
                for f in range(frames):
                    rows = range(f * places, (f + 1) * places)
                    for h in range(heads):
                        scores = torch.stack([q[b, i, h] @ k[b, s, h] for s in rows]) / dim**0.5
                        weights = scores.exp() / scores.exp().sum()
                        y[f, h * dim : (h + 1) * dim] = sum(
                            w * v[b, s, h] for w, s in zip(weights, rows, strict=True)
                        )
                q2 = module.query2(y[i // places]) / dim**0.5
                k2 = module.key2(y)
                v2 = y if module.value2 is None else module.value2(y)
                for h in range(heads):
                    part = slice(h * dim, (h + 1) * dim)
                    a = (k2[:, part] @ q2[part]).softmax(0)
                    expected[b, i, part] = a @ v2[:, part]
        expected = module.proj(expected)
        with kernels.use("reference"):
            actual = module(x)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("temporal_value", ["projected", "identity"])
def test_temporal_gradcheck(temporal_value):
    tokens, frames, heads, dim = 3, 2, 2, 2
    width = heads * dim
    q2 = torch.randn(1, tokens, heads, dim, dtype=torch.float64, requires_grad=True)
    y = torch.randn(1, tokens, frames, width, dtype=torch.float64, requires_grad=True)
    w_k = torch.randn(width, width, dtype=torch.float64, requires_grad=True)
    w_v = torch.randn(width, width, dtype=torch.float64, requires_grad=True)
    b_v = torch.randn(width, dtype=torch.float64, requires_grad=True)
    value = (w_v, b_v) if temporal_value == "projected" else (None, None)

    def op(*inputs):
        with kernels.use("torch"):
            return kernels.trajectory_temporal(*inputs)

    assert torch.autograd.gradcheck(op, (q2, y, w_k, *value))


def test_own_frame_picks_the_diagonal_and_adds_its_gradient():
    qkv = torch.randn(2, 6, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    cotangents = torch.randn(2, 6, 3, 4, dtype=torch.float64), torch.randn(2, 6, 4).double()
    grads = []
    for level in ("reference", "torch"):
        with kernels.use(level):
            y, own = kernels.trajectory_attention(qkv, 3)
        assert all(torch.equal(own[:, i], y[:, i, i // 2]) for i in range(6))
        kept = cotangents[0].clone()
        grads.append(torch.autograd.grad((y, own), qkv, (kept, cotangents[1]))[0])
    torch.testing.assert_close(grads[1], grads[0])


def test_key_bias_would_cancel():
    """Why there is none: a key bias adds the same number to every logit of one query."""
    q2 = torch.randn(1, 4, 2, 3, dtype=torch.float64)
    y = torch.randn(1, 4, 5, 6, dtype=torch.float64)
    w_k = torch.randn(6, 6, dtype=torch.float64)
    bias = torch.randn(6, dtype=torch.float64)
    keys = (y @ w_k.T).unflatten(-1, (2, 3))
    with_bias = (y @ w_k.T + bias).unflatten(-1, (2, 3))
    plain, biased = (torch.einsum("bnhd,bnfhd->bnhf", q2, k).softmax(-1) for k in (keys, with_bias))
    torch.testing.assert_close(plain, biased)


def test_autocast_keeps_gradients_close():
    module, x = module_for((1, 4, 9, 2, 8), "projected", torch.float32)
    expected, expected_grads = run(module, x, torch.ones_like(x), "reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, grads = run(module, x, torch.ones_like(x), "torch")
    assert actual.dtype == torch.bfloat16
    assert (actual.float() - expected).norm() < 0.03 * expected.norm()
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == torch.float32
        assert (grad - expected_grad).norm() < 0.05 * expected_grad.norm() + 1e-3


@pytest.mark.parametrize("level", ["auto", "reference", "torch", "triton"])
def test_switch_reaches_every_level(level, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TATS_KERNELS", level)
    on_gpu = kernels.resolved_level("trajectory_temporal", "cuda")
    assert on_gpu == ("triton" if level == "auto" else level)
    if level != "triton":
        on_cpu = kernels.resolved_level("trajectory_temporal", "cpu")
        assert on_cpu == ("torch" if level == "auto" else level)


def test_triton_on_the_cpu_is_refused_outside_the_interpreter(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TATS_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="TATS_KERNELS=triton: runs on CUDA only"):
        kernels.trajectory_attention(torch.zeros(1, 2, 3, 1, 4), 1)


def test_unknown_level_is_refused(monkeypatch):
    monkeypatch.setenv("TATS_KERNELS", "fastest")
    with pytest.raises(ValueError, match="TATS_KERNELS=fastest: must be one of auto"):
        kernels.requested_level()


def test_bf16_on_the_cpu():
    """Plain products there; held to the rounding of bf16."""
    qkv = torch.randn(2, 40, 3, 3, 16)
    with kernels.use("reference"):
        expected, _ = kernels.trajectory_attention(qkv, 5)
    with kernels.use("torch"):
        actual, _ = kernels.trajectory_attention(qkv.bfloat16(), 5)
    assert (actual.float() - expected).norm() < 0.01 * expected.norm()
