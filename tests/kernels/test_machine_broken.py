"""The machine tier can fail: a bound, mask or stride of a kernel, a wait or barrier of its PTX."""

from __future__ import annotations

import re

import pytest
import torch
from broken_kernels import broken, op_of
from machine_checks import check_on_machine, example, on_the_machine
from parts.machine.run import Fault

pytestmark = on_the_machine

SIZES = {"frames": 2, "places": 83, "heads": 3, "dim": 16, "visible": 7}
SIZES |= {"decoder_width": 40, "patch_dim": 27}
BREAKS = {
    "trajectory_attention": {
        "b_q = load_block(rows_of(qkv, o_row,": "b_q = load_block(rows_of(qkv, o_m,",
        "o_s[None, :] < places, b_s, float": "o_s[None, :] >= 0, b_s, float",
    },
    "trajectory_attention_backward": {
        "rows_of(grad_qkv + width, o_key, 3 * width": "rows_of(grad_qkv + width, o_key, 4 * width",
        "o_row = tl.minimum(o_m, tokens - 1)[:, None]": "o_row = o_m[:, None]",
    },
    "trajectory_temporal": {
        "o_y = packed(last, BLOCK_M": "o_y = packed(BLOCK_M, BLOCK_M",
        "o_out += o_m[None, :, None] * (HEADS * DIM)": "o_out += o_m[None, :, None] * DIM",
    },
    "trajectory_temporal_backward": {
        "o_hf = o_a + (i_h * FRAMES + f) * SLAB": "o_hf = o_a + (i_h * FRAMES + f) * 2 * SLAB",
        "m_live = m_p & (o_first <= last)": "m_live = m_p",
    },
    "token_gather": {"m_c = o_c < width": "m_c = o_c >= 0"},
    "decoder_assemble": {"positions + ": "positions + 1 + "},
    "masked_mse": {"p_patch + o_d, mask=m_p, other=0)": "p_patch + o_d)"},
    "masked_mse:change_error": {
        "mask=m_next, other=0).to(tl.float32)": "mask=m_p, other=0).to(tl.float32)"
    },
    "policy": {'tl.load(logits + o_n, mask=m_n, other=-float("inf"))': "tl.load(logits + o_n)"},
}
CASES = [(name, *change) for name, changes in BREAKS.items() for change in changes.items()]


@pytest.mark.parametrize(
    ("name", "old", "new"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_a_broken_kernel_is_caught(name, old, new, tmp_path):
    op = op_of(name)
    inputs = example(op, **SIZES)
    check_on_machine(op, inputs, torch.bfloat16)  # as it stands it is right
    with broken(name, old, new, tmp_path), pytest.raises((AssertionError, Fault)):
        check_on_machine(op, inputs, torch.bfloat16)


@pytest.mark.parametrize(
    ("op", "lost", "kept"),
    [
        ("trajectory_attention", r"cp\.async\.wait_group[^;]*;", ""),
        ("trajectory_attention", r"wgmma\.wait_group[^;]*;", ""),
        ("trajectory_attention", r"bar\.sync[^;]*;", ""),
        ("trajectory_temporal", r"cp\.async\.wait_group[^;]*;", ""),
        ("trajectory_temporal", r"bar\.sync[^;]*;", ""),
        ("trajectory_temporal", r"(ldmatrix\S*)\.trans", r"\1"),
    ],
)
def test_broken_machine_code_is_caught(op, lost, kept):
    inputs = example(op, **SIZES)

    def change(ptx: str) -> str:
        return re.sub(lost, kept, ptx)

    with pytest.raises((AssertionError, Fault)):
        check_on_machine(op, inputs, torch.bfloat16, change=change)
