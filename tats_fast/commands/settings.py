"""``tats-fast config``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from tats_fast.commands.running import Command
from tats_fast.config import FinetuneConfig, RunConfig
from tats_fast.config.describe import describe, lines
from tats_fast.config.options import Options, chosen, option
from tats_fast.config.reading import read_tree
from tats_fast.config.recipes import find_config

_KINDS = {cls.command: cls for cls in (RunConfig, FinetuneConfig)}
_OF_FINETUNING = FinetuneConfig.__dataclass_fields__.keys() - RunConfig.__dataclass_fields__.keys()


@dataclass(frozen=True, kw_only=True)
class ConfigOptions(Options):
    """``tats-fast config``."""

    source: str = option(
        help="recipe, such as quickstart or finetune/ucf101_vit_base, or YAML file",
        flag="source",
        metavar="NAME|FILE",
    )
    kind: str | None = option(
        None, "the command that is to read it (default: seen from its keys)", flag="--for",
        choices=tuple(_KINDS),
    )  # fmt: skip


def _config(arguments: argparse.Namespace) -> int:
    options = chosen(ConfigOptions, arguments)
    kind = options.kind or _kind(options.source)
    text = "\n".join(lines(describe(options.source, arguments.overrides, _KINDS[kind])))
    print(f"# {options.source} as tats-fast {kind} reads it\n\n{text}")
    return 0


def _kind(source: str) -> str:
    """The command that a file is for: the one that alone has some of its keys or is its folder."""
    tree = read_tree(source, [], RunConfig)
    named = find_config(source, RunConfig.command).parent.name == FinetuneConfig.command
    own = named or tree.keys() & _OF_FINETUNING
    return (FinetuneConfig if own else RunConfig).command


CONFIG = Command(
    "config",
    "every setting of a recipe or file: value, default, meaning, source",
    _config,
    options=(ConfigOptions,),
    override="train.steps=100",
)
