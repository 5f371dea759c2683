"""What kernels execute: counted exactly where a formula can say it, and held against a chip."""

from __future__ import annotations

from dataclasses import replace

import predict
import pytest
import torch
from kernel_resources import kernel_name, launches
from machine_checks import on_the_machine
from parts.machine.bounded import bounded
from parts.machine.bounds import Chip, resident, seconds
from parts.machine.compiling import compile_launch
from parts.machine.count import Work, work
from parts.machine.run import execute, run
from project import ROOT

from tats_fast.kernels.example_inputs import MAKERS, Shape

pytestmark = on_the_machine

SHAPE = Shape(batch=1, frames=2, places=64, heads=2, dim=64)
NOTHING = Work(issued=0, wgmma=0, mma=0, special=0, shared=0, conflicts=0, l2=0, memory=0)


def executed(op, shape, kernel=0):
    launch = list(launches(op, shape, 90))[kernel]
    return work(run(launch, counting=True), compile_launch(launch, 90)[0])


def test_spatial_stage_by_its_formulas():
    """Frames of a whole tile: 4 N^2 C FLOP, an exponential per score and, in each of the four lanes
    that share a row, two per row and frame; q, k and v are read once, the outputs written."""
    found = executed("trajectory_attention", SHAPE)
    tokens, width = SHAPE.tokens, SHAPE.width
    assert (found.wgmma, found.mma) == (4 * tokens**2 * width, 0)
    scores = tokens**2 * SHAPE.heads
    assert found.special == scores + 8 * tokens * SHAPE.heads * SHAPE.frames
    out = 2 * (SHAPE.frames + 1) * tokens * width + 4 * SHAPE.heads * SHAPE.frames * tokens
    assert found.memory == 3 * 2 * tokens * width + out
    assert found.l2 >= found.memory


def test_gather_moves_its_rows_and_positions_once():
    shape = replace(SHAPE, visible=8)
    found = executed("token_gather", shape)
    row = shape.visible * shape.width
    sectors_of_index = 8 * shape.visible
    assert found.memory == 2 * 2 * row + 4 * row + sectors_of_index


def test_conflicts_of_banks_and_scattered_sectors_are_counted():
    """Threads 4 bytes apart take one cycle and four sectors, 128 apart 32 of each."""
    entry = """
.visible .entry kernel(
	.param .u64 kernel_param_0
)
{{
	.reg .b32 	%r<4>;
	.reg .b64 	%rd<4>;
	ld.param.b64 	%rd1, [kernel_param_0];
	mov.u32 	%r1, %tid.x;
	mul.lo.s32 	%r2, %r1, {stride};
	mul.wide.u32 	%rd2, %r1, {stride};
	add.s64 	%rd3, %rd1, %rd2;
	st.shared.b32 	[%r2], %r1;
	st.global.b32 	[%rd3], %r1;
	ret;
}}
"""
    for stride, cycles, sectors in ((4, 1, 4), (8, 2, 8), (128, 32, 32)):
        out = torch.zeros(32 * 32, dtype=torch.int32)
        found = execute(entry.format(stride=stride), [out], (1,), 1, shared=4096, counting=True)
        names = [instruction.name for instruction in found.program.instructions]
        units = dict(zip(names, found.counts[:, 2].tolist(), strict=True))
        assert (units["st.shared.b32"], units["st.global.b32"]) == (cycles, sectors)


def test_programs_on_a_multiprocessor():
    assert resident(warps=8, registers=128, shared=80 * 1024) == 2
    assert resident(warps=8, registers=129, shared=0) == 1
    assert resident(warps=4, registers=32, shared=0) == 16
    assert resident(warps=1, registers=16, shared=0) == 32


def test_seconds_of_units():
    chip = Chip(memory=1e12, multiprocessors=10, clock=1e9, l2=2e12)
    full = seconds(replace(NOTHING, wgmma=4096 * 10, memory=3e6), chip, 40, 2)
    assert full.tensor == pytest.approx(1e-9)
    assert full.busiest == ("memory", pytest.approx(3e-6))
    # 21 programs on 20 places take two waves, as long as 40 would.
    half = seconds(replace(NOTHING, issued=400), chip, 21, 2)
    assert half.issue == pytest.approx(400 / 4 / 10 / 1e9 * 40 / 21)


def test_a_sum_over_splits_is_not_scaled_from_one_clip(monkeypatch):
    """grad_weights has a fixed number of programs: the batch shares its partial sums."""
    from tats_fast.kernels.fused import trajectory_temporal_backward as backward

    monkeypatch.setattr(backward, "PROGRAMS", 4)
    shapes = [replace(SHAPE, places=256, batch=clips) for clips in (1, 2, 3)]
    weights = [list(launches("trajectory_temporal", shape, 90))[-1] for shape in shapes]
    small, large = (bounded(lambda clips: weights[clips - 1], batch) for batch in (2, 64))
    sums = 2 * 2 * SHAPE.width**2 * 4  # two splits, two sides, fp32
    assert small.work.memory - large.work.memory == sums / 2 - sums / 64
    assert large.work.mma == small.work.mma > 0


def test_table_has_every_kernel_of_an_op():
    names = [row[0] for row in predict.kernel_rows(["token_gather"], 64, False)]
    assert names == ["token_gather_fwd", "token_gather_bwd"]


def test_the_table_in_the_docs_names_every_kernel():
    text = (ROOT / "docs" / "kernels.md").read_text().split("kernel_costs -->")[1]
    for op in MAKERS:
        for launch in launches(op, Shape(batch=1), 90):
            assert f"| {kernel_name(launch)}" in text
