"""Triton policy and draw: interpreter tier, and on a GPU the GPU tier."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE, DTYPES, check, example, interpreted

from tats_fast import kernels

pytestmark = [pytest.mark.interpret, pytest.mark.gpu, interpreted]

# (B, N): one token, fewer than a warp, around powers of two, ViT-B.
SHAPES = [(1, 1), (3, 2), (2, 7), (4, 33), (2, 64), (3, 130), (2, 300), (4, 1568)]
FLOORS = [0.0, 0.05, 1.0]
TINY = torch.finfo(torch.float32).tiny


def case(shape, dtype):
    batch, tokens = shape
    return example("policy_sample", batch=batch, places=tokens, dtype=dtype)[:2]


# The rule compares the largest errors of two ways to add: the kernel, nearer to the truth than
# PyTorch on most draws, may miss twice the error of a lucky one.
ROUNDING = 4.0


def sampled_policy(logits, uniform, floor):
    """``policy_sample`` without the order, which has a rule of its own."""
    return kernels.policy_sample(logits, uniform, floor)[:2]


def assert_draw(logits, uniform, floor):
    """A permutation that sorts the keys, and the reference's wherever keys are not within rounding
    of each other."""
    with kernels.use("triton"):
        order = kernels.policy_sample(logits, uniform, floor)[2]
    with kernels.use("reference"):
        expected = kernels.policy_sample(logits, uniform, floor)[2]
        log_p, _ = kernels.policy_logprob(logits.detach().double(), floor)
    tokens = logits.shape[1]
    assert order.dtype == torch.int64 and order.shape == logits.shape
    assert torch.equal(order.sort(1).values, torch.arange(tokens, device=DEVICE).expand_as(order))
    keys = log_p - (-uniform.double().clamp_min(TINY).log()).log()
    slack = 1e-5 + 4 * torch.finfo(torch.float32).eps * keys.abs().amax(1, keepdim=True)
    ranked = keys.gather(1, order)
    assert (ranked.diff(dim=1) <= slack).all()
    differ = order != expected
    swapped = (ranked - keys.gather(1, expected)).abs() <= slack
    assert (~differ | swapped).all()
    assert differ.float().mean() < 0.1, "too few well-separated keys to judge by"


@pytest.mark.parametrize("floor", FLOORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logprob_equals_reference(shape, dtype, floor):
    check(kernels.policy_logprob, [case(shape, dtype)[0], floor], dtype, ROUNDING)


@pytest.mark.parametrize("floor", FLOORS[:2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sample_equals_reference(shape, dtype, floor):
    logits, uniform = case(shape, dtype)
    check(sampled_policy, [logits, uniform, floor], dtype, ROUNDING)
    assert_draw(logits, uniform, floor)


@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_strided(floor):
    logits = torch.randn(3, 80, device=DEVICE)[:, 40:].requires_grad_()
    uniform = torch.rand(3, 80, device=DEVICE)[:, :40]
    for view in (logits, torch.randn(40, 3, device=DEVICE).T.requires_grad_()):
        check(kernels.policy_logprob, [view, floor], torch.float32)
        check(sampled_policy, [view, uniform, floor], torch.float32)
        assert_draw(view, uniform, floor)
    assert_draw(torch.zeros(40, device=DEVICE).expand(3, 40), uniform, floor)


@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_far_apart_logits_stay_finite(floor):
    """The frame strategy: a frame's rank, times a thousand, outweighs any noise."""
    rank = torch.stack([torch.randperm(8, device=DEVICE) for _ in range(2)])
    logits = (1e3 * rank.float()).repeat_interleave(12, dim=1).requires_grad_()
    check(kernels.policy_logprob, [logits, floor], torch.float32)
    uniform = torch.rand(2, 96, device=DEVICE)
    check(sampled_policy, [logits, uniform, floor], torch.float32)
    assert_draw(logits, uniform, floor)


def test_ties_go_to_the_lower_index():
    uniform = torch.full((2, 50), 0.5, device=DEVICE)
    with kernels.use("triton"):
        order = kernels.policy_sample(torch.zeros(2, 50, device=DEVICE), uniform, 0.0)[2]
    assert order.tolist() == [list(range(50))] * 2


def test_uniform_number_of_zero_is_clamped():
    """rand() can return 0; a noise of -inf would rank even the likeliest token last."""
    logits = torch.zeros(1, 50, device=DEVICE)
    logits[0, 7] = 100.0
    uniform = torch.full((1, 50), 0.5, device=DEVICE)
    uniform[0, 7] = 0.0
    with kernels.use("triton"):
        assert kernels.policy_sample(logits, uniform, 0.0)[2][0, 0] == 7


def test_strided_and_expanded_gradients():
    """The gradient of a mean is one number for all: a stride of zero."""
    logits, _ = case((3, 33), torch.float32)
    one = torch.ones((), device=DEVICE)
    for grad in (torch.randn(3, 66, device=DEVICE)[:, 33:], one.expand(3, 33)):
        found = []
        for level in ("triton", "reference"):
            with kernels.use(level):
                outputs = kernels.policy_logprob(logits, 0.05)
            found.append(torch.autograd.grad(outputs, logits, (grad, (3 * one).expand(3)))[0])
        torch.testing.assert_close(*found)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("floor", [0.0, 0.05])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("nan"), -float("inf")])
def test_bad_logits_give_a_permutation_and_are_seen(bad, floor):
    logits, uniform = case((2, 45), torch.float32)
    with torch.no_grad():
        logits[0, 13] = bad
        logits[1] = bad
    with kernels.use("triton"):
        log_p, entropy, order = kernels.policy_sample(logits, uniform, floor)
    assert torch.equal(order.sort(1).values, torch.arange(45, device=DEVICE).expand(2, 45))
    with kernels.use("reference"):
        expected = kernels.policy_sample(logits, uniform, floor)
    for found, plain in ((log_p, expected[0]), (entropy, expected[1])):
        assert torch.equal(found.isfinite(), plain.isfinite())
    assert not log_p[1].isfinite().any()


def test_only_one_output_used_and_repeated_runs():
    logits, uniform = case((2, 33), torch.float32)
    for floor in FLOORS[:2]:
        for which in (0, 1):
            check(lambda *a, w=which: kernels.policy_logprob(*a)[w], [logits, floor], torch.float32)
        with kernels.use("triton"):
            runs = [kernels.policy_sample(logits, uniform, floor) for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
        assert not runs[0][2].requires_grad


def test_doubles_and_long_sequences_take_the_reference():
    logits, uniform = case((1, 9000), torch.float32)
    assert_draw(logits, uniform, 0.0)
    with kernels.use("triton"):
        assert kernels.policy_logprob(logits.double(), 0.0)[0].dtype == torch.float64
        assert kernels.policy_sample(logits.double(), uniform, 0.0)[0].dtype == torch.float64


@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_registered_and_compiles(floor):
    from tats_fast.kernels.fused import policy as fused

    logits, uniform = case((2, 9), torch.float32)
    torch.library.opcheck(fused.policy_fwd, (logits, None, floor))
    torch.library.opcheck(fused.policy_fwd, (logits, uniform, floor))
    grads = torch.randn(2, 9, device=DEVICE), torch.randn(2, device=DEVICE)
    torch.library.opcheck(fused.policy_bwd, (logits.detach(), *grads, floor))
    for op, inputs in ((fused.policy_logprob, ()), (fused.policy_sample, (uniform,))):
        compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
        ours, plain = compiled(logits, *inputs, floor), op(logits, *inputs, floor)
        assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
        found, expected = (torch.autograd.grad(o[:2], logits, grads)[0] for o in (ours, plain))
        assert torch.equal(found, expected)
