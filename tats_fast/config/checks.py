"""Checks shared by the configuration's dataclasses."""

from __future__ import annotations

from typing import Any


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line fit for a user."""


class Failure(RuntimeError):
    """Work that could not be done; the message is one line fit for a user."""


def require(ok: bool, key: str, value: Any, remedy: str) -> None:
    """Raise ``ConfigError("key=value: remedy")`` unless ``ok``."""
    if not ok:
        raise ConfigError(f"{key}={value}: {remedy}")


def nearest_multiple(value: int, step: int) -> int:
    """The positive multiple of ``step`` nearest to ``value``; (225, 16) -> 224."""
    return max(step, round(value / step) * step)
