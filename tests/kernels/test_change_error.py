"""The op ``change_error``: what the model does not foresee of how a token changes."""

from __future__ import annotations

import pytest
import torch

from tats_fast import kernels
from tats_fast.kernels import change_error, composed

TUBELET, PATCH = 2, 4
D = TUBELET * PATCH * PATCH * 3


def moving_patches() -> torch.Tensor:
    """Two tokens of one clip: the first stands still, the second changes by .25 everywhere."""
    texture = torch.rand(1, D // TUBELET, generator=torch.Generator().manual_seed(0)) * 0.5
    still = torch.cat([texture, texture], dim=1)
    moved = torch.cat([texture, texture + 0.25], dim=1)
    return torch.stack([still, moved], dim=1)


INDEX = torch.tensor([[0, 1]])


def test_a_prediction_without_change_errs_by_the_change() -> None:
    patches = moving_patches()
    still = torch.zeros(1, 2, D)  # normalised: a constant patch
    error = change_error(still, patches, INDEX, TUBELET)
    assert error[0, 0] == pytest.approx(0, abs=1e-6)
    assert error[0, 1] == pytest.approx(0.25, rel=1e-5)


def test_a_change_that_is_foreseen_is_no_error() -> None:
    patches = moving_patches()
    error = change_error(kernels.normalized_patches(patches), patches, INDEX, TUBELET)
    assert error.abs().max() < 1e-4


def test_bytes_packed_rows_and_single_frames() -> None:
    patches = (moving_patches() * 255).round().to(torch.uint8)
    dense = change_error(torch.zeros(1, 2, D), patches, INDEX, TUBELET)
    packed = change_error(torch.zeros(2, D), patches, torch.tensor([0, 1]), TUBELET)
    assert dense[0, 1] == pytest.approx(0.25, abs=4e-3)
    assert torch.equal(dense[0], packed)
    assert not change_error(torch.zeros(1, 2, D), patches, INDEX, 1).any()


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("tubelet", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_torch_equals_reference(
    dtype: torch.dtype, tubelet: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composed, "PIXEL_ROWS", 3)  # of four
    patches = torch.randint(0, 256, (2, 6, 4 * 12), dtype=torch.uint8)
    patches[0, 0] = 40  # of one colour
    if dtype != torch.uint8:
        patches = patches.to(dtype) / 255
    index = torch.tensor([[0, 3], [5, 1]])
    index = kernels.batch_rows(index, 6).flatten() if packed else index
    prediction = torch.randn(*index.shape, 4 * 12)
    prediction = prediction if dtype == torch.uint8 else prediction.to(dtype)
    inputs = prediction, patches, index, tubelet
    results = []
    for level in ("reference", "torch"):
        with kernels.use(level):
            results.append(change_error(*inputs))
    assert results[1].shape == index.shape
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
