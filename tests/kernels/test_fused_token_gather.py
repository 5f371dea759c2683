"""Triton token gather: interpreter tier, and on a GPU the GPU tier."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE, DTYPES, check, interpreted

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


def case(shape, dtype):
    batch, tokens, width, count = shape
    x = torch.randn(batch, tokens, width, device=DEVICE).to(dtype).requires_grad_()
    index = torch.stack([torch.randperm(tokens, device=DEVICE)[:count] for _ in range(batch)])
    positions = torch.randn(tokens, width, device=DEVICE)
    return x, index, positions


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape, dtype):
    x, index, positions = case(shape, dtype)
    check(kernels.token_gather, [x, index, positions], dtype)


def test_without_positions_packed_and_strided():
    _, index, positions = case((3, 20, 24, 6), torch.float32)
    rows = kernels.batch_rows(index, 20)[0].new_tensor([1, 19, 20, 33, 40, 41, 59])
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
