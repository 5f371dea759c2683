"""What several commands share: how they are declared, and their overrides."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tats_fast.config import ConfigError, parse_overrides
from tats_fast.config.options import Options, option

MODEL_OVERRIDE = "model.image_size=112"


class Command(NamedTuple):
    """A subcommand of ``tats-fast``."""

    name: str
    help: str
    run: Callable[[argparse.Namespace], int]
    """Does the work and returns the exit code."""
    options: tuple[type[Options], ...] = ()
    """Classes whose fields are its options."""
    override: str | None = None
    """An example of the ``key=value`` overrides that it takes; none = it takes none."""


@dataclass(frozen=True, kw_only=True)
class Device(Options):
    """The option of commands that compute, but take no configuration."""

    device: str = option("auto", "where to compute", choices=("auto", "cpu", "cuda"))


def model_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """``["model.heads=6"]`` -> ``{"heads": 6}``."""
    parsed = parse_overrides(overrides)
    for key, value in parsed.items():
        if not key.startswith("model."):
            raise ConfigError(f"{key}={value}: only model.* has a meaning here")
    return {key.removeprefix("model."): value for key, value in parsed.items()}
