"""One switch for every hot op: ``TATS_KERNELS=auto|reference|torch|triton``.

An op registers implementations by level. ``reference`` is the clearest PyTorch and the truth the
others are tested against; ``torch`` is the best composition without custom kernels; ``triton`` is
hand-written. A level that an op lacks falls back to the next simpler one, so that an op whose
plain form is already the best composition has only a reference. The files with Triton kernels are
imported at the first call that needs them: nothing else needs Triton to be installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar

from torch.compiler import assume_constant_result

LEVELS = ("reference", "torch", "triton")
ENVIRONMENT = "TATS_KERNELS"
P, R = ParamSpec("P"), TypeVar("R")

TRITON_MODULES = (
    "decoder_assemble",
    "masked_mse",
    "policy",
    "token_gather",
    "trajectory_attention",
    "trajectory_temporal",
)
"""Files of ``fused/`` that register an op at level ``triton``."""

_registry: dict[str, dict[str, Callable[..., Any]]] = {}
_override: list[str] = []
_assumed_gpu: list[bool] = []
_imported: list[Any] = []


def register(op: str, level: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the function is ``op`` at ``level``."""
    assert level in LEVELS

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        _registry.setdefault(op, {})[level] = function
        return function

    return add


def dispatched(reference: Callable[P, R]) -> Callable[P, R]:
    """The op of that name and signature, run at the level that suits its first tensor's device."""
    op = reference.__name__

    @wraps(reference)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return resolve(op, args[0].device.type)(*args, **kwargs)

    return run


def requested_level() -> str:
    """The level that the innermost ``use`` or else the environment asks for, read at every call.

    Raises:
        ValueError: the name is unknown.
    """
    choice = _override[-1] if _override else os.environ.get(ENVIRONMENT, "auto")
    if choice not in ("auto", *LEVELS):
        raise ValueError(f"{ENVIRONMENT}={choice}: must be one of auto, {', '.join(LEVELS)}")
    return choice


def resolve(op: str, device_type: str) -> Callable[..., Any]:
    """The implementation of ``op`` to run on tensors of ``device_type`` ("cpu", "cuda")."""
    return _registry[op][resolved_level(op, device_type)]


def resolved_level(op: str, device_type: str) -> str:
    """The level that ``resolve`` takes.

    Raises:
        ValueError: Triton was asked for by name and cannot run.
    """
    choice = requested_level()
    if choice == "triton" and (problem := triton_problem(device_type)) is not None:
        raise ValueError(f"{ENVIRONMENT}=triton: {problem}")
    if choice == "auto":
        usable = device_type == "cuda" and triton_problem(device_type) is None
        choice = "triton" if usable else "torch"
    if choice == "triton":
        _import_triton_modules()
    candidates = LEVELS[: LEVELS.index(choice) + 1]
    return next(level for level in reversed(candidates) if level in _registry[op])


@assume_constant_result  # for a compiled model; the level itself is traced, and so guarded
def triton_problem(device_type: str) -> str | None:
    """Why Triton kernels cannot run on tensors of ``device_type``; None where they can."""
    if find_spec("triton") is None:
        return "Triton is not installed; pip install triton, or use TATS_KERNELS=torch"
    if device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1" and not _assumed_gpu:
        return "runs on CUDA only, or anywhere in its interpreter with TRITON_INTERPRET=1"
    return None


@contextmanager
def assume_gpu() -> Iterator[None]:
    """Let ops at level ``triton`` be called on CPU tensors, to record what they would launch
    (``launch.recording``)."""
    _assumed_gpu.append(True)
    try:
        yield
    finally:
        _assumed_gpu.pop()


@assume_constant_result
def _import_triton_modules() -> bool:
    if not _imported:
        _imported.extend(import_module(f".fused.{name}", __package__) for name in TRITON_MODULES)
    return True


def ops() -> tuple[str, ...]:
    """Names of all registered ops."""
    return tuple(_registry)


@contextmanager
def use(level: str) -> Iterator[None]:
    """Run the enclosed calls at ``level``, whatever the environment says."""
    _override.append(level)
    try:
        requested_level()
        yield
    finally:
        _override.pop()
