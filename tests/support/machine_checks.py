"""The machine tier: the rule of the interpreter tier for kernels compiled for sm_90 and executed on
the host, with copies at once and as late as their waits allow."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from kernel_checks import check
from parts.machine import run as machine

from tats_fast import kernels
from tats_fast.kernels.example_inputs import MAKERS, Shape

on_the_machine = [
    pytest.mark.machine,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter replaces the compiler"
    ),
    pytest.mark.skipif(machine.problem() is not None, reason=str(machine.problem())),
]
"""Marks of a file of machine tests."""
ROUNDING = {"policy_logprob": 4.0, "policy_sample": 4.0}
"""As in the op's own tests."""


def example(op: str, **sizes: Any) -> list[Any]:
    """Arguments of ``op`` on the CPU; ViT-B at ratio .95, but for ``sizes``."""
    return list(MAKERS[op](Shape(**{"batch": 1, **sizes})).values())


def function(op: str) -> Callable[..., Any]:
    """The op, without the order of a draw, which has a rule of its own."""
    if op == "policy_sample":
        return lambda *arguments: kernels.policy_sample(*arguments)[:2]
    return getattr(kernels, op)


def check_on_machine(
    op: str,
    inputs: Sequence[Any],
    dtype: torch.dtype,
    rounding: float | None = None,
    change: Callable[[str], str] = str,
) -> None:
    """``kernel_checks.check`` at both paces; ``change`` breaks the PTX."""
    rounding = ROUNDING.get(op, 2.0) if rounding is None else rounding
    for late in (False, True):
        with machine.on_host(partial(machine.run, late=late, change=change)):
            check(function(op), inputs, dtype, rounding)
