"""``tats-fast prepare``, ``tats-fast make-benchmark`` and ``tats-fast verify``."""

from __future__ import annotations

import argparse
from dataclasses import replace

from tats_fast.commands.running import Command
from tats_fast.config import ConfigError
from tats_fast.config.options import chosen
from tats_fast.prepare.options import MakeBenchmarkOptions, PrepareOptions, Recipe, VerifyOptions


def _prepare(arguments: argparse.Namespace) -> int:
    from tats_fast.prepare.prepare import prepare

    options = chosen(PrepareOptions, arguments)
    if hasattr(arguments, "codec"):
        return prepare(replace(options, recipe=chosen(Recipe, arguments)))
    for name in ("short_side", "gop", "quality"):
        if hasattr(arguments, name):
            raise ConfigError(f"{name}: only with --transcode")
    return prepare(options)


def _make_benchmark(arguments: argparse.Namespace) -> int:
    from tats_fast.prepare.motion_benchmark import make_motion_benchmark

    options = chosen(MakeBenchmarkOptions, arguments)
    for path in make_motion_benchmark(options):
        print(f"wrote {path}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from tats_fast.prepare.verify import verify

    return 1 if verify(chosen(VerifyOptions, arguments)) else 0


PREPARE = Command(
    "prepare",
    "lists and small copies from official files",
    _prepare,
    options=(PrepareOptions, Recipe),
)
MAKE_BENCHMARK = Command(
    "make-benchmark",
    "labelled videos of things that move, with the truth of what does",
    _make_benchmark,
    options=(MakeBenchmarkOptions,),
)
VERIFY = Command(
    "verify", "find the files that cannot be trained on", _verify, options=(VerifyOptions,)
)
