"""The machine of the machine tier: what it computes, and that it sees each kind of fault."""

from __future__ import annotations

import pytest
import torch
from machine_checks import on_the_machine
from parts.machine.ptx import parse
from parts.machine.run import Fault, execute
from parts.machine.translate import Unknown

pytestmark = on_the_machine

ENTRY = """
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u64 .ptr .global .align 1 kernel_param_1,
	.param .u32 kernel_param_2
)
{
	.reg .pred 	%p<4>;
	.reg .b32 	%r<16>;
	.reg .b64 	%rd<8>;
	.file	1 "/somewhere/kernel.py"
	.loc	1 7 0
	ld.param.b64 	%rd1, [kernel_param_0];
	ld.param.b64 	%rd2, [kernel_param_1];
	ld.param.s32 	%rd3, [kernel_param_2];
	ld.param.b32 	%r9, [kernel_param_2];
	mov.u32 	%r1, %tid.x;
	shl.b32 	%r2, %r1, 2;
	mul.wide.u32 	%rd4, %r1, 4;
	add.s64 	%rd5, %rd1, %rd4;
	add.s64 	%rd6, %rd2, %rd4;
"""
STORE = "st.global.b32 [%rd6], %r3;\n"


def run(body, number=0, warps=1, late=False, words=None, **options):
    """The second tensor after ``body``, in which %rd5 is the address of word t of the first."""
    given = torch.arange(32 * warps, dtype=torch.int32) if words is None else words
    out = torch.full((32 * warps,), -1, dtype=torch.int32)
    options = {"shared": 1024, **options}
    execute(f"{ENTRY}{body}\nret;\n}}\n", [given, out, number], (1,), warps, late=late, **options)
    return out


def test_lanes_part_and_meet_again():
    """Thread t counts to t; where all have met, each takes the neighbour's count."""
    out = run(f"""
        mov.b32 %r3, 0;
        $L_loop:
        setp.ge.s32 %p1, %r3, %r1;
        @%p1 bra $L_end;
        add.s32 %r3, %r3, 1;
        bra.uni $L_loop;
        $L_end:
        shfl.sync.bfly.b32 %r3, %r3, 1, 31, -1;
        {STORE}""")
    assert out.tolist() == [t ^ 1 for t in range(32)]


def test_registers_wider_than_what_is_loaded():
    out = run(f"""
        mov.b64 %rd7, -1;
        ld.global.b32 %rd7, [%rd5];
        shr.u64 %rd7, %rd7, 1;
        cvt.u32.u64 %r3, %rd7;
        {STORE}""")
    assert out.tolist() == [t // 2 for t in range(32)]


def test_signed_parameters_are_extended():
    out = run(f"shr.u64 %rd7, %rd3, 32; cvt.u32.u64 %r3, %rd7; {STORE}", number=-5)
    assert out.tolist() == [-1] * 32


def test_halves_are_rounded_to_even():
    numbers = torch.randn(32)
    body = f"""
        ld.global.b32 %r4, [%rd5];
        mov.b32 %r5, 0f00000000;
        cvt.rn.bf16x2.f32 %r3, %r4, %r5;
        {STORE}"""
    out = run(body, words=numbers)
    assert torch.equal(out.view(torch.float32), numbers.bfloat16().float())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("ld.global.b32 %r3, [%rd5+4];", "outside"),
        ("@%p1 ld.global.b32 %r3, [%rd5+400];", "outside"),
        ("ld.global.b32 %r3, [%rd5+2];", "not aligned"),
        ("ld.global.v4.b32 {%r3,%r4,%r5,%r6}, [%rd5];", "not aligned"),
        ("st.shared.b32 [%r2+1000], %r1;", "outside"),
        ("cp.async.ca.shared.global [%r2], [%rd5+128], 4;", "outside"),
        ("setp.lt.s32 %p2, %r1, 3; @%p2 bra $L_end; bar.sync 0; $L_end:", "do not take part"),
    ],
    ids=["past the end", "guarded", "odd address", "vector", "shared", "copy", "divergent barrier"],
)
def test_faults_name_what_and_where(body, message):
    with pytest.raises(Fault, match=rf"kernel\.py:7.*{message}"):
        run(f"setp.eq.s32 %p1, %r1, %r1;\n{body}")


def test_what_is_guarded_off_or_reads_nothing_is_no_fault():
    run("""
        setp.ne.s32 %p1, %r1, %r1;
        @%p1 ld.global.b32 %r3, [%rd5+400];
        cp.async.ca.shared.global [%r2], [%rd5+400], 4, 0;
        """)


EXCHANGE = f"""
    st.shared.b32 [%r2], %r1;
    bar.sync 0;
    mov.b32 %r4, 63;
    sub.s32 %r4, %r4, %r1;
    shl.b32 %r4, %r4, 2;
    ld.shared.b32 %r3, [%r4];
    {STORE}"""
COPY = f"""
    cp.async.ca.shared.global [%r2], [%rd5], 4;
    cp.async.commit_group;
    cp.async.wait_group 0;
    ld.shared.b32 %r3, [%r2];
    {STORE}"""


@pytest.mark.parametrize("late", [False, True])
def test_a_missing_barrier_or_wait_shows(late):
    backwards, forwards = list(range(63, -1, -1)), list(range(64))
    assert run(EXCHANGE, warps=2, late=late).tolist() == backwards
    assert run(COPY, warps=2, late=late).tolist() == forwards
    assert run(EXCHANGE.replace("bar.sync 0;", ""), warps=2, late=late).tolist() != backwards
    without = run(COPY.replace("cp.async.wait_group 0;", ""), warps=2, late=late).tolist()
    assert (without == forwards) is not late


def test_a_barrier_that_a_warp_never_reaches():
    body = """
        setp.lt.s32 %p2, %r1, 32;
        @%p2 bra $L_first;
        bar.sync 0;
        bra.uni $L_end;
        $L_first:
        bar.sync 0;
        $L_end:"""
    with pytest.raises(Fault, match="never reach"):
        run(body, warps=2)


def test_unknown_instructions_are_named():
    with pytest.raises(Unknown, match="frobnicate"):
        run("frobnicate.b32 %r3, %r1;")


def test_parser():
    kernel = parse(f"{ENTRY}@!%p1 st.shared.v2.b32 [%r2 + 8], {{ %r3, %r4 }}; ret;\n}}\n")
    store = kernel.instructions[-2]
    assert (store.guard, store.negated, store.source) == ("%p1", True, "kernel.py:7")
    assert store.operands == ("[%r2 + 8]", ("%r3", "%r4"))
    assert kernel.type_of("%rd12") == "b64" and kernel.type_of("%r12") == "b32"
    assert kernel.parameters == [f"kernel_param_{i}" for i in range(3)]
