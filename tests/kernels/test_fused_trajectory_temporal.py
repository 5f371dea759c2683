"""Triton temporal stage: interpreter tier, and on a GPU the GPU tier."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE, DOT_DTYPES, check, every_candidate, example, interpreted

from tats_fast import kernels

pytestmark = [pytest.mark.interpret, pytest.mark.gpu, interpreted]

# (B, F, P, h, d): one token; one frame; frames, tokens, channels and heads that no tile divides,
# among them more frames than a tensor core's tile and more heads than a program holds.
SHAPES = [
    (1, 1, 1, 1, 4),
    (2, 1, 35, 1, 24),
    (1, 3, 11, 5, 24),
    (2, 8, 5, 3, 32),
    (1, 8, 3, 1, 80),
    (1, 8, 3, 2, 88),
    (1, 17, 2, 1, 64),
    (3, 4, 9, 2, 16),
    (1, 2, 10, 9, 16),
]
VIT_B = (2, 8, 196, 12, 64)


def case(shape, dtype):
    sizes = dict(zip(("batch", "frames", "places", "heads", "dim"), shape, strict=True))
    return example("trajectory_temporal", **sizes, dtype=dtype)


def module():
    from tats_fast.kernels.fused import trajectory_temporal

    return trajectory_temporal


@pytest.fixture
def kernels_only(monkeypatch):
    """The composed op is not there to fall back to."""
    monkeypatch.setattr(module(), "trajectory_temporal_torch", None)


@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize("dtype", DOT_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES + [VIT_B] * (DEVICE == "cuda"), ids=str)
def test_equals_reference(shape, dtype):
    check(kernels.trajectory_temporal, case(shape, dtype), dtype)


@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize("part", ["scores", "project", "grad_tokens", "grad_weights"])
def test_every_configuration(part):
    inputs = case((2, 3, 13, 2, 16), torch.float16)
    for _ in every_candidate(f"trajectory_temporal_{part}"):
        check(kernels.trajectory_temporal, inputs, torch.float16)


@pytest.mark.usefixtures("kernels_only")
def test_strided_and_without_bias():
    q2, y, weight_k, weight_v, _ = case((2, 3, 5, 2, 8), torch.float32)
    cut = torch.randn(2, 15, 3, 2, 8, device=DEVICE)[:, :, 1].requires_grad_()
    swapped = torch.randn(15, 2, 2, 8, device=DEVICE).transpose(0, 1).requires_grad_()
    y_cut = torch.randn(2, 15, 3, 32, device=DEVICE)[..., 16:].requires_grad_()
    w_cut = torch.randn(16, 48, device=DEVICE)[:, 16:32].requires_grad_()
    for inputs in (
        (cut, y, weight_k, weight_v, None),
        (swapped, y_cut, weight_k, weight_v, None),
        (q2, y, w_cut, w_cut.detach().T.requires_grad_(), None),
    ):
        check(kernels.trajectory_temporal, inputs, torch.float32)


@pytest.mark.usefixtures("kernels_only")
def test_large_logits():
    q2, *others = case((1, 8, 4, 2, 16), torch.float32)
    inputs = [(300 * q2.detach()).requires_grad_(), *others]
    # The kernel sums logits in another order than the reference, and the softmax passes on rounding
    # in proportion to their size, some hundreds. Which of the two sums then has the largest error
    # depends on the processor's way to multiply: 2.0 times the reference's was seen.
    check(kernels.trajectory_temporal, inputs, torch.float32, rounding=20.0)


@pytest.mark.usefixtures("kernels_only")
def test_same_bits_every_time():
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        # 600 tokens: the weight gradients are sums over several programs.
        inputs = case((1, 2, 300, 1, 16), torch.float32)
        with kernels.use("triton"):
            out = kernels.trajectory_temporal(*inputs)
            found.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("kind", ["identity", "wide head", "fp64", "many frames"])
def test_falls_back(kind, monkeypatch):
    """What the kernels do not take goes to the composed op."""
    calls = []
    composed = module().trajectory_temporal_torch
    monkeypatch.setattr(
        module(), "trajectory_temporal_torch", lambda *args: calls.append(1) or composed(*args)
    )
    shape = {"wide head": (1, 2, 3, 1, 136), "many frames": (1, 33, 1, 1, 8)}.get(kind)
    dtype = torch.float64 if kind == "fp64" else torch.float32
    inputs = case(shape or (1, 2, 3, 2, 8), dtype)
    if kind == "identity":
        inputs[3:] = None, None
    # In fp64 the reference is the truth itself and has no error: what is left are the roundings of
    # another order of sums, 2.3 of the largest entry on an Intel processor.
    check(kernels.trajectory_temporal, inputs, dtype, rounding=8.0 if kind == "fp64" else 2.0)
    assert calls


def test_autocast():
    q2, y, *weights = case((1, 2, 3, 2, 16), torch.float32)
    with kernels.use("triton"), torch.autocast(DEVICE, dtype=torch.float16):
        out = kernels.trajectory_temporal(q2, y, *weights)
    assert out.dtype == torch.float16
    grads = torch.autograd.grad(out.float().square().sum(), [q2, y, *weights])
    assert all(grad.dtype == torch.float32 for grad in grads)


def test_opcheck():
    inputs = case((1, 2, 3, 2, 8), torch.float32)
    op, backward = module().trajectory_temporal_fwd, module().trajectory_temporal_bwd
    torch.library.opcheck(op, tuple(inputs))
    torch.library.opcheck(op, (*inputs[:4], None))
    with torch.no_grad():
        out, a = op(*inputs)
    given = [x.detach() for x in inputs[:4]]
    torch.library.opcheck(backward, (out, given[0], given[1], a, *given[2:]))


def test_compiles_whole():
    inputs = case((1, 2, 5, 2, 8), torch.float32)

    def run(*args):
        return kernels.trajectory_temporal(*args).square().sum()

    with kernels.use("triton"):
        expected = torch.autograd.grad(run(*inputs), inputs)
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        found = torch.autograd.grad(compiled(*inputs), inputs)
    for ours, eager in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, eager)
