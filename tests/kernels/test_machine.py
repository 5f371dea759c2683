"""Every kernel, forward and backward, as compiled for sm_90: right in bf16 and fp16, every access
in bounds and in line, every wait where it must be (benchmarks/parts/machine)."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import every_candidate
from machine_checks import check_on_machine, example, on_the_machine
from parts.machine import run as machine

from tats_fast import kernels
from tats_fast.kernels.example_inputs import MAKERS, RATIO_OPS

pytestmark = on_the_machine

HALVES = [torch.bfloat16, torch.float16]
OPS = tuple(MAKERS)
# Nothing that a tile divides: 2 frames of a full tile of keys and a tail, padded channels, more
# heads than divide into groups, a patch of 9 pixels, a width beside the column step.
ODD = {
    "batch": 2, "frames": 2, "places": 83, "heads": 3, "dim": 24, "decoder_width": 130,
    "patch_dim": 27, "visible": 7,
}  # fmt: skip
# (F, P, h, d) as in the interpreter tier, each with a reason there.
SPATIAL = [(1, 1, 1, 4), (5, 3, 2, 8), (2, 118, 1, 16), (1, 150, 2, 48), (2, 33, 1, 128)]
TEMPORAL = [(1, 1, 1, 4), (1, 35, 1, 24), (3, 11, 5, 24), (8, 3, 1, 80), (17, 2, 1, 64),
            (2, 10, 9, 16), (8, 33, 12, 64)]  # fmt: skip


@pytest.mark.parametrize("op", OPS)
def test_odd_shape(op):
    check_on_machine(op, example(op, **ODD), torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_odd_shape_in_other_dtypes(op, dtype):
    check_on_machine(op, example(op, **ODD, dtype=dtype), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_vit_base(op, dtype):
    """The configurations that run there, on one clip; in fp16 with two of the twelve heads."""
    heads = 12 if dtype == torch.bfloat16 else 2
    check_on_machine(op, example(op, heads=heads, dtype=dtype), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("op", RATIO_OPS)
def test_packed(op):
    """Three clips that differ in their number of visible tokens: 78, none, all."""
    inputs = example(op, batch=3, frames=2, patch_dim=384, packed=True)
    check_on_machine(op, inputs, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "shape"),
    [("trajectory_attention", s) for s in SPATIAL] + [("trajectory_temporal", s) for s in TEMPORAL],
    ids=str,
)
def test_shapes_that_no_tile_divides(op, shape):
    sizes = dict(zip(("frames", "places", "heads", "dim"), shape, strict=True))
    check_on_machine(op, example(op, batch=2, **sizes), torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["fwd", "dq", "dkv"])
def test_every_configuration_of_the_spatial_stage(part):
    inputs = example("trajectory_attention", frames=2, places=83, heads=1, dim=16)
    for _ in every_candidate(f"trajectory_attention_{part}"):
        check_on_machine("trajectory_attention", inputs, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["scores", "project", "grad_tokens", "grad_weights"])
def test_every_configuration_of_the_temporal_stage(part):
    inputs = example("trajectory_temporal", frames=8, places=9, heads=3, dim=64)
    for _ in every_candidate(f"trajectory_temporal_{part}"):
        check_on_machine("trajectory_temporal", inputs, torch.bfloat16)


@pytest.mark.slow
def test_strided_inputs():
    """Cut from a larger projection: nothing starts where 16 bytes do."""
    cut = torch.randn(2, 22, 4, 3, 24, dtype=torch.bfloat16)[:, 1:, 1:, 1:, 7:-1]
    check_on_machine("trajectory_attention", [cut.requires_grad_(), 3], torch.bfloat16)
    inputs = example("trajectory_temporal", frames=3, places=5, heads=2, dim=8)
    inputs[2] = torch.randn(16, 47, dtype=torch.bfloat16)[:, 15:31].requires_grad_()
    check_on_machine("trajectory_temporal", inputs, torch.bfloat16)


def test_order_of_a_draw():
    logits, uniform, floor = example("policy_sample", places=13)
    with kernels.use("reference"):
        expected = kernels.policy_sample(logits, uniform, floor)[2]
    with machine.on_host(), kernels.use("triton"):
        order = kernels.policy_sample(logits, uniform, floor)[2]
    assert torch.equal(order, expected)
