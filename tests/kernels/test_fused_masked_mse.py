"""Triton reconstruction error: interpreter tier, and on a GPU the GPU tier."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE, DTYPES, check, example, interpreted

from tats_fast import kernels

pytestmark = [pytest.mark.interpret, pytest.mark.gpu, interpreted]

# (B, N, D, M): two pixels, all tokens, one token, pixel counts that are no power of two, several
# warps per token, ViT-B's patch, the largest patch the kernel is meant for.
SHAPES = [
    (1, 1, 6, 1),
    (2, 5, 12, 5),
    (3, 7, 48, 1),
    (2, 9, 75, 4),
    (4, 6, 192, 3),
    (2, 30, 384, 7),
    (1, 40, 1536, 6),
    (1, 3, 8190, 2),
]
PIXELS = ["uint8", torch.float32, torch.float16, torch.bfloat16]


def masked_mse(prediction, patches, index):
    """The op; doubles get the patches in doubles too, so that the truth is not an fp32 target."""
    if prediction.dtype == torch.float64 and patches.dtype == torch.uint8:
        patches = patches.double() / 255
    return kernels.masked_mse(prediction, patches, index)


def case(shape, dtype, pixels, packed=False):
    batch, tokens, dim, count = shape
    sizes = {"batch": batch, "places": tokens, "patch_dim": dim, "visible": tokens - count}
    prediction, patches, index = example("masked_mse", **sizes, dtype=dtype, packed=packed)
    return [prediction, patches if pixels == "uint8" else (patches / 255).to(pixels), index]


@pytest.mark.parametrize("pixels", PIXELS[:2], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape, dtype, pixels):
    check(masked_mse, case(shape, dtype, pixels), dtype)


@pytest.mark.parametrize("pixels", PIXELS, ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:5], ids=str)
def test_packed(shape, pixels):
    check(masked_mse, case(shape, torch.float16, pixels, packed=True), torch.float16)


@pytest.mark.parametrize("pixels", PIXELS[:2], ids=str)
def test_strided(pixels):
    prediction, patches, index = case((3, 11, 48, 5), torch.float32, pixels)
    prediction = torch.randn(5, 3, 96, device=DEVICE).transpose(0, 1)[..., 48:].requires_grad_()
    for view in (
        torch.cat([patches, patches], dim=2)[..., 48:],
        patches.transpose(0, 1).contiguous().transpose(0, 1),
        patches.mT.contiguous().mT,
    ):
        order = torch.cat([index, index], dim=1)[:, 5:]
        check(masked_mse, [prediction, view, order], torch.float32)


@pytest.mark.parametrize("pixels", PIXELS[:2], ids=str)
@pytest.mark.parametrize("dim", [12, 75, 1536])
def test_one_colour_has_an_exact_zero_target(pixels, dim):
    prediction, patches, index = case((1, 6, dim, 6), torch.float32, pixels)
    for token, colour in enumerate([(0, 0, 0), (255, 255, 255), (7, 255, 49), (1, 85, 170)]):
        flat = torch.tensor(colour, device=DEVICE).repeat(dim // 3)
        patches[0, token] = flat if pixels == "uint8" else flat / 255
    with kernels.use("triton"):
        error = kernels.masked_mse(prediction, patches, index)
    (gradient,) = torch.autograd.grad(error.sum(), prediction)
    flat = index[0] < 4
    expected = prediction.detach()[0, flat]
    torch.testing.assert_close(error[0, flat], expected.square().mean(-1))
    torch.testing.assert_close(gradient[0, flat], expected * (2 / dim))


@pytest.mark.parametrize("pixels", PIXELS[:2], ids=str)
def test_nearly_one_colour(pixels):
    """One pixel off by one level: E[x^2] - E[x]^2 in fp32 would be noise."""
    prediction, patches, index = case((1, 3, 1536, 3), torch.float32, pixels)
    patches[:] = 250 if pixels == "uint8" else 250 / 255
    patches[0, 0, 5] = 251 if pixels == "uint8" else 251 / 255
    exact = [prediction.detach().double(), patches.double() / (255 if pixels == "uint8" else 1)]
    with kernels.use("triton"):
        error = kernels.masked_mse(prediction, patches, index)
    with kernels.use("reference"):
        expected = kernels.masked_mse(*exact, index)
    torch.testing.assert_close(error.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:var")
def test_one_pixel_has_no_deviation():
    prediction, patches, index = case((1, 2, 3, 2), torch.float32, "uint8")
    for level in ("reference", "triton"):
        with kernels.use(level):
            assert kernels.masked_mse(prediction, patches, index).isnan().all()


@pytest.mark.parametrize("wide", [0, 1], ids=["predictions", "patches"])
def test_doubles_take_the_composed_op(wide):
    inputs = case((2, 5, 12, 3), torch.float32, torch.float32)
    inputs[wide] = inputs[wide].detach().double().requires_grad_(wide == 0)
    with kernels.use("triton"):
        assert kernels.masked_mse(*inputs).dtype == torch.float64


def test_expanded_gradient_and_repeated_runs():
    """The gradient of a mean is one number for all: strides of zero."""
    inputs = case((2, 9, 75, 4), torch.bfloat16, "uint8")
    found = []
    for level in ("triton", "triton", "reference"):
        with kernels.use(level):
            error = kernels.masked_mse(*inputs)
        found.append((error, *torch.autograd.grad(error.mean(), inputs[0])))
    assert all(torch.equal(a, b) for a, b in zip(*found[:2], strict=True))
    torch.testing.assert_close(found[0][1], found[2][1])


@pytest.mark.parametrize("packed", [False, True], ids=["fixed", "packed"])
def test_registered_and_compiles(packed):
    from tats_fast.kernels.fused import masked_mse as fused

    inputs = case((2, 5, 12, 3), torch.float32, "uint8", packed)
    batched = [inputs[0][None], inputs[1], inputs[2][None]] if packed else inputs
    torch.library.opcheck(fused.masked_mse_fwd, batched)
    error, statistics = fused.masked_mse_fwd(*batched)
    assert error.requires_grad and not statistics.requires_grad
    grad = torch.randn_like(error)
    torch.library.opcheck(
        fused.masked_mse_bwd, (grad, batched[0].detach(), *batched[1:], statistics)
    )
    compiled = torch.compile(fused.masked_mse, fullgraph=True, backend="aot_eager")
    ours, plain = compiled(*inputs), fused.masked_mse(*inputs)
    assert torch.equal(ours, plain)
    seed = torch.randn_like(plain)
    (found,), (expected,) = (torch.autograd.grad(out, inputs[0], seed) for out in (ours, plain))
    assert torch.equal(found, expected)
