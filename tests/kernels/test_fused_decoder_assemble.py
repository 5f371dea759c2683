"""Triton decoder assembly: interpreter tier, and on a GPU the GPU tier."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE, DTYPES, check, example, interpreted

from tats_fast import kernels

pytestmark = [pytest.mark.interpret, pytest.mark.gpu, interpreted]

BF16 = torch.bfloat16
# (B, N, L, C, N_v): one token, all visible, one visible, a sequence that leaves tokens out, widths
# around the column step, more rows than one partial sum takes.
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 5, 5, 3, 5),
    (3, 7, 7, 33, 1),
    (2, 40, 23, 128, 9),
    (4, 17, 17, 130, 3),
    (2, 131, 131, 16, 64),
    (1, 300, 300, 24, 129),
    (2, 40, 40, 384, 4),
]


def case(shape, dtype, packed):
    batch, tokens, length, width, visible = shape
    sizes = {"batch": batch, "places": tokens, "decoder_width": width, "visible": visible}
    inputs = example("decoder_assemble", **sizes, dtype=dtype, packed=packed)
    inputs[3] = inputs[3][:, :length]
    return inputs


@pytest.mark.parametrize("packed", [False, True], ids=["fixed", "packed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape, dtype, packed):
    check(kernels.decoder_assemble, case(shape, dtype, packed), dtype)


def test_whole_clip():
    check(kernels.decoder_assemble, case((1, 1568, 1568, 384, 78), BF16, False), BF16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided(dtype):
    _, token, positions, _, _ = case((3, 20, 20, 24, 6), dtype, False)
    visible = torch.randn(6, 3, 48, device=DEVICE).to(dtype).transpose(0, 1)[..., 24:]
    order = torch.stack([torch.randperm(20, device=DEVICE) for _ in range(3)], dim=1).T
    positions = torch.cat([positions, positions], dim=1)[:, 24:]
    check(kernels.decoder_assemble, [visible.requires_grad_(), token, positions, order], dtype)
    columns = torch.randn(24, 20, device=DEVICE).to(dtype).T  # no unit stride: copied
    offsets = torch.tensor([0, 9, 9, 20], dtype=torch.int32, device=DEVICE)
    inputs = [columns.requires_grad_(), token, columns.detach().float(), order[:, :15], offsets]
    check(kernels.decoder_assemble, inputs, dtype)


def test_strided_and_expanded_gradients():
    inputs = case((3, 20, 20, 24, 6), torch.float32, False)
    with kernels.use("triton"):
        out = kernels.decoder_assemble(*inputs)
    wide = torch.randn(20, 3, 48, device=DEVICE).transpose(0, 1)[..., 24:]
    for grad in (wide, torch.ones((), device=DEVICE).expand(out.shape)):
        found = torch.autograd.grad(out, inputs[:2], grad, retain_graph=True)
        assert torch.equal(found[0], grad[:, :6])
        torch.testing.assert_close(found[1], grad[:, 6:].sum((0, 1)))


def test_sum_is_rounded_once():
    """1 + 2^-8 and its negative: rounding either to bf16 first would lose the difference."""
    token, visible = torch.tensor([1 + 2**-8]), torch.zeros(1, 0, 1, dtype=BF16)
    positions = torch.full((1, 1), -1.0)
    inputs = [x.to(DEVICE) for x in (visible, token, positions, torch.zeros(1, 1).long())]
    with kernels.use("triton"):
        assert kernels.decoder_assemble(*inputs).item() == 2**-8


def test_nothing_visible():
    _, token, positions, order, _ = case((2, 9, 9, 8, 4), torch.float32, False)
    offsets = torch.zeros(3, dtype=torch.int32, device=DEVICE)
    for visible, where in ((torch.zeros(2, 0, 8), None), (torch.zeros(0, 8), offsets)):
        visible = visible.to(DEVICE).requires_grad_()
        with kernels.use("triton"):
            out = kernels.decoder_assemble(visible, token, positions, order, where)
        assert torch.equal(out, token + positions[order])
        grads = torch.autograd.grad(out, (visible, token), torch.ones_like(out))
        assert grads[0].shape == visible.shape
        assert torch.equal(grads[1], torch.full_like(token, 18))


@pytest.mark.parametrize("wanted", [0, 1])
def test_one_gradient_alone(wanted):
    inputs = case((2, 9, 9, 8, 4), torch.float32, False)
    inputs[1 - wanted].requires_grad_(False)
    check(kernels.decoder_assemble, inputs, torch.float32)


def test_learned_positions_and_doubles_take_the_reference():
    inputs = case((2, 9, 9, 8, 4), torch.float32, False)
    inputs[2].requires_grad_()
    check(kernels.decoder_assemble, inputs, torch.float32)
    wide = [x.double() if x is not None and x.is_floating_point() else x for x in inputs]
    with kernels.use("triton"):
        assert kernels.decoder_assemble(*wide).dtype == torch.float64


def test_runs_repeat_bit_by_bit():
    inputs = case((2, 300, 300, 24, 9), BF16, False)

    def gradients():
        with kernels.use("triton"):
            out = kernels.decoder_assemble(*inputs)
        return torch.autograd.grad(out, inputs[:2], torch.cos(out.detach().float()).to(out.dtype))

    for first, second in zip(gradients(), gradients(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("packed", [False, True], ids=["fixed", "packed"])
def test_registered_and_compiles(packed):
    from tats_fast.kernels.fused import decoder_assemble as fused

    inputs = case((3, 9, 9, 8, 4), torch.float32, packed)
    torch.library.opcheck(fused.decoder_assemble_fwd, inputs)
    grad = torch.randn(3, 9, 8, device=DEVICE)
    torch.library.opcheck(fused.decoder_assemble_bwd, (grad, inputs[4], inputs[0].shape[-2]))
    compiled = torch.compile(fused.decoder_assemble, fullgraph=True, backend="aot_eager")
    ours, plain = compiled(*inputs), fused.decoder_assemble(*inputs)
    assert torch.equal(ours, plain)
    for found, expected in zip(
        *(torch.autograd.grad(out, inputs[:2], grad) for out in (ours, plain)), strict=True
    ):
        assert torch.equal(found, expected)
