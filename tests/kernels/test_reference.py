"""The plain ops against independent computations."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from tats_fast import kernels
from tats_fast.kernels import composed
from tats_fast.kernels.example_inputs import MAKERS, Shape
from tats_fast.kernels.reference import normalized_patches
from tats_fast.models.patchify import motion_energy, patchify, unpatchify


def targets_by_numpy(clip: np.ndarray, tubelet: int, patch: int) -> np.ndarray:
    """Normalised patches of one clip (T, H, W, 3) in [0, 1] by plain loops, float64."""
    frames, height, width, _ = clip.shape
    tokens = []
    for f in range(0, frames, tubelet):
        for y in range(0, height, patch):
            for x in range(0, width, patch):
                cube = clip[f : f + tubelet, y : y + patch, x : x + patch].astype(np.float64)
                pixels = cube.reshape(-1, 3)
                mean, std = pixels.mean(0), pixels.std(0, ddof=1)
                tokens.append(((pixels - mean) / (std + 1e-6)).reshape(-1))
    return np.stack(tokens)


@pytest.mark.parametrize(("tubelet", "patch", "size"), [(2, 8, 32), (1, 4, 12), (4, 16, 48)])
def test_targets_equal_numpy(tubelet, patch, size):
    clips = torch.randint(0, 256, (2, 4, size, size, 3), dtype=torch.uint8)
    clips[1, :, :patch, :patch] = torch.tensor([7, 255, 49])  # patches without variance
    actual = normalized_patches(patchify(clips, tubelet, patch))
    for clip, ours in zip(clips.numpy() / 255, actual, strict=True):
        expected = torch.from_numpy(targets_by_numpy(clip, tubelet, patch))
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-4)
    assert (actual[1, 0] == 0).all(), "a patch of one colour has nothing to predict"


def test_masked_mse_is_the_mean_over_masked_tokens_only():
    patches = torch.rand(2, 6, 12, dtype=torch.float64)
    masked = torch.tensor([[5, 0, 3], [1, 2, 4]])
    prediction = torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)
    error = kernels.masked_mse(prediction, patches, masked)
    target = normalized_patches(patches)
    for b in range(2):
        for m in range(3):
            expected = (prediction[b, m] - target[b, masked[b, m]]).square().mean()
            torch.testing.assert_close(error[b, m], expected)
    assert torch.autograd.gradcheck(lambda p: kernels.masked_mse(p, patches, masked), (prediction,))


def test_patchify_layout_and_inverse():
    clips = torch.randint(0, 256, (2, 4, 32, 48, 3), dtype=torch.uint8)
    patches = patchify(clips, 2, 16)
    assert patches.shape == (2, 2 * 2 * 3, 2 * 16 * 16 * 3)
    assert patches.dtype == torch.uint8
    expected = clips[0, 2:4, 16:32, 32:48].reshape(-1)  # frame 1, row 1, column 2
    assert torch.equal(patches[0, 6 + 3 + 2], expected)
    square = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(unpatchify(patchify(square, 2, 8), 2, 8, 32), square)
    with pytest.raises(ValueError, match="do not divide"):
        patchify(clips, 2, 15)


def test_motion_energy_counts_only_what_moves():
    clips = torch.zeros(1, 4, 16, 16, 3, dtype=torch.uint8)
    clips[0, 1, :8, :8] = 255  # frame 1 differs from frame 0 in token 0
    clips[0, 2:, 8:, :] = 100  # a change between tubelets is nobody's motion
    energy = motion_energy(patchify(clips, 2, 8), 2)
    assert energy.tolist() == [[1.0, 0, 0, 0, 0, 0, 0, 0]]


def test_gather_and_assemble_scatter_back():
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    positions = torch.randn(5, 3, dtype=torch.float64)
    index = torch.tensor([[4, 1], [0, 3]])
    out = kernels.token_gather(x, index, positions)
    torch.testing.assert_close(out[0, 0], x[0, 4] + positions[4])
    assert torch.autograd.gradcheck(lambda t: kernels.token_gather(t, index, positions), (x,))
    visible = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    token = torch.randn(3, dtype=torch.float64, requires_grad=True)
    order = torch.tensor([[4, 1, 0, 2, 3], [0, 3, 1, 2, 4]])
    full = kernels.decoder_assemble(visible, token, positions, order)
    torch.testing.assert_close(full[1, 0], visible[1, 0] + positions[0])
    torch.testing.assert_close(full[1, 4], token + positions[4])
    assert torch.autograd.gradcheck(
        lambda v, t: kernels.decoder_assemble(v, t, positions, order), (visible, token)
    )


def test_packed_rows_of_the_batch():
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    positions = torch.randn(5, 3, dtype=torch.float64)
    rows = torch.tensor([4, 5, 9, 7])  # token 4 of clip 0; tokens 0, 4 and 2 of clip 1
    out = kernels.token_gather(x, rows, positions)
    torch.testing.assert_close(out[3], x[1, 2] + positions[2])
    assert torch.autograd.gradcheck(lambda t: kernels.token_gather(t, rows, positions), (x,))
    order = torch.tensor([[4, 1, 0, 2, 3], [0, 4, 2, 1, 3]])
    offsets = torch.tensor([0, 1, 4], dtype=torch.int32)
    visible = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    token = torch.randn(3, dtype=torch.float64, requires_grad=True)
    full = kernels.decoder_assemble(visible, token, positions, order, offsets)
    torch.testing.assert_close(full[0, 0], visible[0] + positions[4])
    torch.testing.assert_close(full[0, 1], token + positions[1])
    torch.testing.assert_close(full[1, 2], visible[3] + positions[2])
    torch.testing.assert_close(full[1, 3], token + positions[1])
    assert torch.autograd.gradcheck(
        lambda v, t: kernels.decoder_assemble(v, t, positions, order, offsets), (visible, token)
    )


@pytest.mark.parametrize("floor", [0.0, 0.05, 1.0])
def test_policy_is_a_floored_distribution(floor):
    logits = 30 * torch.randn(4, 100)
    log_p, entropy = kernels.policy_logprob(logits, floor)
    p = log_p.exp()
    torch.testing.assert_close(p.sum(1), torch.ones(4))
    assert p.min() >= floor / 100 * (1 - 1e-5)
    expected = torch.special.entr(p).sum(1)
    torch.testing.assert_close(entropy, expected, rtol=1e-4, atol=1e-5)


def test_gumbel_topk_has_the_right_marginals():
    """Without replacement, and the first draw follows p; inclusion checked by exact enumeration."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    draws = 40_000
    uniform = torch.rand(draws, 4, generator=torch.Generator().manual_seed(1))
    _, _, order = kernels.policy_sample(p.log().expand(draws, 4), uniform, 0.0)
    assert torch.equal(order.sort(1).values, torch.arange(4).expand(draws, 4))
    drawn = order[:, :2]
    first = torch.bincount(drawn[:, 0], minlength=4) / draws
    torch.testing.assert_close(first, p, atol=0.01, rtol=0)
    inclusion = torch.zeros(4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            if i != j:
                chance = p[i] * p[j] / (1 - p[i])
                inclusion[i] += chance
                inclusion[j] += chance
    seen = torch.bincount(drawn.flatten(), minlength=4) / draws
    torch.testing.assert_close(seen.double(), inclusion, atol=0.01, rtol=0)


def test_draws_survive_extreme_uniforms():
    uniform = torch.tensor([[0.0, 1 - 2**-24, 0.5, 0.25]])
    _, _, order = kernels.policy_sample(torch.zeros(1, 4), uniform, 0.0)
    assert sorted(order[0].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 12), (2, 7, 24), (3, 20, 1536)])
def test_masked_mse_torch_equals_reference(dtype, shape, monkeypatch):
    monkeypatch.setattr(composed, "PIXEL_ROWS", 4)  # of 1, 6 and 30
    batch, tokens, dim = shape
    patches = torch.randint(0, 256, (batch, tokens, dim), dtype=torch.uint8)
    patches[0, 0] = 40  # flat
    if dtype != torch.uint8:
        patches = patches.to(dtype) / 255
    count = max(1, tokens // 2)
    masked = torch.stack([torch.randperm(tokens)[:count] for _ in range(batch)])
    prediction = torch.randn(batch, count, dim, requires_grad=True)
    cotangent = torch.randn(batch, count)
    results = []
    for level in ("reference", "torch"):
        with kernels.use(level):
            error = kernels.masked_mse(prediction, patches, masked)
        (grad,) = torch.autograd.grad((error * cotangent).sum(), prediction)
        results.append((error.detach(), grad))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("packed", [False, True], ids=["fixed", "packed"])
@pytest.mark.parametrize("op", kernels.ops())
def test_example_inputs_are_the_arguments_of_the_op(op, packed):
    sizes = {"batch": 3, "frames": 2, "places": 4, "heads": 2, "dim": 2, "visible": 3}
    shape = Shape(**sizes, decoder_width=4, patch_dim=12, dtype=torch.float32, packed=packed)
    inputs = MAKERS[op](shape)
    function = getattr(kernels, op)
    assert list(inputs) == list(inspect.signature(function).parameters)
    outputs = function(*inputs.values())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    leaves = [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    total = sum(out.sum() for out in outputs if out.requires_grad)
    grads = torch.autograd.grad(total, leaves) if leaves else ()
    assert all(x.isfinite().all() for x in (*outputs, *grads))


def test_packed_inputs_part_the_tokens():
    shape = Shape(batch=3, frames=1, places=4, heads=1, dim=1, patch_dim=3, visible=1, packed=True)
    visible = MAKERS["token_gather"](shape)["index"]
    masked = MAKERS["masked_mse"](shape)["index"]
    assert [int((visible // 4 == clip).sum()) for clip in range(3)] == [1, 0, 4]
    assert [int((masked // 4 == clip).sum()) for clip in range(3)] == [3, 4, 0]
    assert MAKERS["decoder_assemble"](shape)["offsets"].tolist() == [0, 1, 1, 5]
