"""One switch for every hot op: ``TATS_KERNELS=auto|reference|torch|triton``.

An op registers implementations by level. ``reference`` is the clearest PyTorch and the truth the
others are tested against; ``torch`` is the best composition without custom kernels; ``triton`` is
hand-written. A level that an op lacks falls back to the next simpler one, so that an op whose
plain form is already the best composition has only a reference.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LEVELS = ("reference", "torch", "triton")
ENVIRONMENT = "TATS_KERNELS"

_registry: dict[str, dict[str, Callable[..., Any]]] = {}
_override: list[str] = []


def register(op: str, level: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the function is ``op`` at ``level``."""
    assert level in LEVELS

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        _registry.setdefault(op, {})[level] = function
        return function

    return add


def requested_level() -> str:
    """What the innermost ``use``, else the environment asks for; read per call, not at import.

    Raises:
        ValueError: an unknown name.
    """
    choice = _override[-1] if _override else os.environ.get(ENVIRONMENT, "auto")
    if choice not in ("auto", *LEVELS):
        raise ValueError(f"{ENVIRONMENT}={choice}: must be one of auto, {', '.join(LEVELS)}")
    return choice


def resolve(op: str, device_type: str) -> Callable[..., Any]:
    """The implementation of ``op`` to run on tensors of ``device_type`` ("cpu", "cuda")."""
    return _registry[op][resolved_level(op, device_type)]


def resolved_level(op: str, device_type: str) -> str:
    """Which level ``resolve`` takes."""
    choice = requested_level()
    if choice == "auto":
        choice = "triton" if device_type == "cuda" else "torch"
    candidates = LEVELS[: LEVELS.index(choice) + 1]
    return next(level for level in reversed(candidates) if level in _registry[op])


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
