"""Triton spatial stage of trajectory attention: interpreter tier, and on a GPU the GPU tier."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE, DOT_DTYPES, check, every_candidate, example, interpreted

from tats_fast import kernels

pytestmark = [pytest.mark.interpret, pytest.mark.gpu, interpreted]

# (B, F, P, h, d). Key tiles of a frame: one partial; exact; several with a tail of 16, 32, 64.
# Queries: less than a block, exact blocks, a block of several frames, blocks that frames cross.
SHAPES = [
    (1, 1, 1, 1, 4),
    (2, 5, 3, 2, 8),
    (1, 2, 16, 3, 32),
    (1, 3, 21, 2, 48),
    (2, 2, 64, 1, 32),
    (1, 2, 118, 1, 16),
    (1, 1, 150, 2, 24),
    (1, 2, 33, 1, 128),
    (1, 2, 17, 2, 88),
    (1, 2, 196, 1, 64),
]
VIT_B = (2, 8, 196, 12, 64)
SMALL = (1, 2, 83, 1, 16)


def case(shape, dtype):
    sizes = dict(zip(("batch", "frames", "places", "heads", "dim"), shape, strict=True))
    return example("trajectory_attention", **sizes, dtype=dtype)


def module():
    from tats_fast.kernels.fused import trajectory_attention

    return trajectory_attention


@pytest.fixture
def kernels_only(monkeypatch):
    """The composed op is not there to fall back to."""
    monkeypatch.setattr(module(), "trajectory_attention_torch", None)


@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize("dtype", DOT_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES + [VIT_B] * (DEVICE == "cuda"), ids=str)
def test_equals_reference(shape, dtype):
    check(kernels.trajectory_attention, case(shape, dtype), dtype)


@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize("part", ["fwd", "dq", "dkv"])
def test_every_configuration(part):
    for _ in every_candidate(f"trajectory_attention_{part}"):
        check(kernels.trajectory_attention, case(SMALL, torch.float16), torch.float16)


@pytest.mark.usefixtures("kernels_only")
def test_strided():
    """Cut from a larger projection, tokens before clips, channels not adjacent."""
    cut = torch.randn(2, 22, 4, 3, 24, device=DEVICE)[:, 1:, 1:, 1:, 8:].requires_grad_()
    swapped = torch.randn(21, 2, 3, 2, 16, device=DEVICE).transpose(0, 1).requires_grad_()
    spread = torch.randn(2, 21, 3, 16, 2, device=DEVICE).mT.requires_grad_()
    for qkv in (cut, swapped, spread):
        check(kernels.trajectory_attention, [qkv, 3], torch.float32)


@pytest.mark.usefixtures("kernels_only")
def test_large_scores():
    """Maxima hundreds apart from frame to frame and from tile to tile."""
    qkv, frames = case(SMALL, torch.float32)
    inputs = [(16 * qkv.detach()).requires_grad_(), frames]
    # The backward pass makes p from the saved log-sum-exp, whose last digit counts for more the
    # larger the scores: 2.4e-5 of the largest entry was seen on an H100, 200 roundings.
    check(kernels.trajectory_attention, inputs, torch.float32, rounding=300.0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN in the interpreter's numpy
@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize("part", [1, 2], ids=["k", "v"])
def test_frames_do_not_leak(part):
    """What is not finite in one frame's keys or values stays in that frame's outputs."""
    qkv = case((1, 3, 21, 1, 16), torch.float32)[0].detach()
    with kernels.use("triton"):
        expected, _ = kernels.trajectory_attention(qkv, 3)
        qkv[:, 21:42, part] = torch.nan
        y, _ = kernels.trajectory_attention(qkv, 3)
    assert y[:, :, 1].isnan().all()
    assert torch.equal(y[:, :, ::2], expected[:, :, ::2])


@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize("output", [0, 1], ids=["y", "own"])
def test_gradient_of_one_output(output):
    inputs = case((1, 3, 7, 2, 8), torch.float32)
    check(lambda *args: kernels.trajectory_attention(*args)[output], inputs, torch.float32)


@pytest.mark.usefixtures("kernels_only")
def test_same_bits_every_time():
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        qkv, _ = case(SMALL, torch.float16)
        with kernels.use("triton"):
            y, own = kernels.trajectory_attention(qkv, 2)
            found.append([y, *torch.autograd.grad(y.square().sum() + own.sum(), qkv)])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("kind", ["wide head", "fp64"])
def test_falls_back(kind, monkeypatch):
    """What the kernels do not take goes to the composed op."""
    calls = []
    composed = module().trajectory_attention_torch
    monkeypatch.setattr(
        module(), "trajectory_attention_torch", lambda *args: calls.append(1) or composed(*args)
    )
    dtype = torch.float64 if kind == "fp64" else torch.float32
    inputs = case((1, 2, 3, 1, 136 if kind == "wide head" else 8), dtype)
    # In fp64 the truth is the reference itself, whose own error is then zero.
    check(kernels.trajectory_attention, inputs, dtype, rounding=8.0)
    assert calls


def test_autocast():
    qkv, _ = case((1, 2, 5, 1, 16), torch.float32)
    with kernels.use("triton"), torch.autocast(DEVICE, dtype=torch.float16):
        y, own = kernels.trajectory_attention(qkv, 2)
    assert y.dtype == own.dtype == torch.float16
    (grad,) = torch.autograd.grad(y.float().square().sum() + own.float().sum(), qkv)
    assert grad.dtype == torch.float32


def test_opcheck():
    op, backward = module().trajectory_attention_fwd, module().trajectory_attention_bwd
    qkv, _ = case((2, 2, 5, 2, 8), torch.float32)
    torch.library.opcheck(op, (qkv, 2))
    with torch.no_grad():
        y, own, lse = op(qkv, 2)
    torch.library.opcheck(backward, (y, own, qkv.detach(), y, lse))


def test_compiles_whole():
    qkv, _ = case((1, 2, 5, 2, 8), torch.float32)

    def run(x):
        y, own = kernels.trajectory_attention(x, 2)
        return y.square().sum() + own.sum()

    with kernels.use("triton"):
        (expected,) = torch.autograd.grad(run(qkv), qkv)
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        (found,) = torch.autograd.grad(compiled(qkv), qkv)
    torch.testing.assert_close(found, expected)
