"""Triton token gather: interpreter tier, and on a GPU the GPU tier."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE, DTYPES, check, example, interpreted

from tats_fast import kernels

pytestmark = [pytest.mark.interpret, pytest.mark.gpu, interpreted]

# (B, N, C, M): one token, one visible, widths that no power of two divides, all tokens, ViT-B.
SHAPES = [
    (1, 1, 1, 1),
    (2, 5, 3, 1),
    (3, 7, 33, 7),
    (2, 48, 64, 11),
    (1, 130, 96, 65),
    (4, 16, 130, 5),
    (2, 36, 384, 4),
    (1, 1568, 768, 78),
]


def case(shape, dtype, packed=False):
    sizes = dict(zip(("batch", "places", "dim", "visible"), shape, strict=True))
    return example("token_gather", **sizes, dtype=dtype, packed=packed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape, dtype):
    check(kernels.token_gather, case(shape, dtype), dtype)


def test_without_positions_packed_and_strided():
    _, index, positions = case((3, 20, 24, 6), torch.float32)
    _, rows, _ = case((3, 20, 24, 6), torch.float32, packed=True)
    strided = torch.randn(20, 3, 48, device=DEVICE).transpose(0, 1)[..., 24:].requires_grad_()
    for index_ in (index, rows):
        check(kernels.token_gather, [strided, index_, None], torch.float32)
        check(kernels.token_gather, [strided, index_, positions], torch.float32)


def test_registration():
    from tats_fast.kernels.fused.token_gather import token_gather_bwd, token_gather_fwd

    x, index, positions = case((2, 9, 12, 4), torch.float32)
    rows = kernels.batch_rows(index, 9).flatten()
    torch.library.opcheck(token_gather_fwd, (x, rows, positions))
    torch.library.opcheck(token_gather_fwd, (x, rows, None))
    torch.library.opcheck(token_gather_bwd, (torch.randn(8, 12, device=DEVICE), rows, 2, 9))
