"""Checks shared by the configuration's dataclasses."""

from __future__ import annotations

import math
from typing import Any


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line fit for a user."""


def require(ok: bool, key: str, value: Any, remedy: str) -> None:
    """Raise ``ConfigError("key=value: remedy")`` unless ``ok``."""
    if not ok:
        raise ConfigError(f"{key}={value}: {remedy}")


def require_positive(prefix: str, config: Any, *names: str) -> None:
    """Require every named field of ``config`` to be at least 1 (integers) or above 0 (floats)."""
    for name in names:
        value = getattr(config, name)
        bound = "must be at least 1" if isinstance(value, int) else "must be above 0"
        require(math.isfinite(value) and value > 0, f"{prefix}.{name}", value, bound)


def require_fraction(prefix: str, config: Any, *names: str) -> None:
    """Require every named field of ``config`` to lie in [0, 1]."""
    for name in names:
        value = getattr(config, name)
        require(0 <= value <= 1, f"{prefix}.{name}", value, "must be between 0 and 1")


def nearest_multiple(value: int, step: int) -> int:
    """The positive multiple of ``step`` nearest to ``value``; (225, 16) -> 224."""
    return max(step, round(value / step) * step)
