"""Triton error of the predicted change: interpreter tier, and on a GPU the GPU tier."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE, DTYPES, check, example, interpreted

from tats_fast import kernels

pytestmark = [pytest.mark.interpret, pytest.mark.gpu, interpreted]

# (B, N, D, M, tubelet): one pixel a frame, all tokens, three and four frames, pixel counts that are
# no power of two, ViT-B's patch.
SHAPES = [
    (1, 1, 6, 1, 2),
    (2, 5, 12, 5, 4),
    (3, 7, 48, 1, 2),
    (2, 9, 54, 4, 3),
    (2, 30, 384, 7, 2),
    (1, 40, 1536, 6, 2),
    (1, 3, 8190, 2, 2),
]
PIXELS = ["uint8", torch.float32, torch.float16]


def change_error(prediction, patches, index, tubelet):
    """The op; doubles get the patches in doubles too."""
    if prediction.dtype == torch.float64 and patches.dtype == torch.uint8:
        patches = patches.double() / 255
    return kernels.change_error(prediction, patches, index, tubelet)


def case(shape, dtype, pixels, packed=False):
    batch, tokens, dim, count, tubelet = shape
    sizes = {"batch": batch, "places": tokens, "patch_dim": dim, "visible": tokens - count}
    prediction, patches, index, _ = example("change_error", **sizes, dtype=dtype, packed=packed)
    patches = patches if pixels == "uint8" else (patches / 255).to(pixels)
    return [prediction, patches, index, tubelet]


@pytest.mark.parametrize("pixels", PIXELS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape, dtype, pixels):
    check(change_error, case(shape, dtype, pixels), dtype)


@pytest.mark.parametrize("pixels", PIXELS, ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:5], ids=str)
def test_packed(shape, pixels):
    check(change_error, case(shape, torch.float16, pixels, packed=True), torch.float16)


def test_strided():
    _, patches, index, tubelet = case((3, 11, 48, 5, 2), torch.float32, "uint8")
    prediction = torch.randn(5, 3, 96, device=DEVICE).transpose(0, 1)[..., 48:]
    order = torch.cat([index, index], dim=1)[:, 5:]
    check(change_error, [prediction, patches.mT.contiguous().mT, order, tubelet], torch.float32)


def test_what_stands_still_has_an_exact_zero():
    _, patches, index, tubelet = case((1, 6, 1536, 6, 2), torch.float32, "uint8")
    patches[..., 768:] = patches[..., :768]
    frame = torch.randn(1, 6, 768, device=DEVICE)
    with kernels.use("triton"):
        error = kernels.change_error(torch.cat([frame, frame], -1), patches, index, tubelet)
    assert not error.any()


def test_it_asks_for_no_gradient():
    prediction, *rest = case((1, 4, 48, 2, 2), torch.float32, "uint8")
    with kernels.use("triton"):
        assert not kernels.change_error(prediction.requires_grad_(), *rest).requires_grad
