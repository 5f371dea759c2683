"""What ``train.precision: auto`` means on which device."""

from __future__ import annotations

import pytest
import torch

from tats_fast.engine.precision import wants_bf16

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("instructions", "native"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx2": True, "avx512_bf16": True}, True),  # AMD
        ({"avx2": True, "amx_bf16": True}, True),
        ({"architecture": "aarch64", "bf16": True}, False),  # not measured there
    ],
)
def test_auto_on_a_cpu_follows_its_instructions(instructions, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    assert wants_bf16("auto", CPU) == native
    assert wants_bf16("auto", GPU)
    for device in (CPU, GPU):
        assert wants_bf16("bf16", device) and not wants_bf16("fp32", device)


def test_auto_is_fp32_where_pytorch_cannot_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not wants_bf16("auto", CPU)
