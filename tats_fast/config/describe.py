"""Every setting of a configuration: its value, its default, what it means and who set it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from tats_fast.config.presets import PRESETS
from tats_fast.config.reading import build_config, flat, leaves, parse_overrides, read_tree
from tats_fast.config.training import TrainingConfig


class Setting(NamedTuple):
    """One key of a resolved configuration."""

    key: str
    value: Any
    default: Any
    meaning: str
    source: str | None
    """The file, preset or command line that set it; None where nothing did."""


def describe(
    path: str | Path | None, overrides: Iterable[str], cls: type[TrainingConfig]
) -> list[Setting]:
    """The settings that ``load_config`` or ``load_finetune_config`` would give.

    Raises:
        ConfigError: as they do.
    """
    overrides = list(overrides)
    config = build_config(read_tree(path, overrides, cls), cls)
    defaults, texts = flat(build_config({}, cls)), meanings(cls)
    preset = getattr(config.model, "preset", None)
    sources = {f"model.{name}": f"model.preset={preset}" for name in PRESETS.get(preset, {})}
    sources |= {key: str(path) for key, _ in leaves(read_tree(path, [], cls))}
    sources |= dict.fromkeys(parse_overrides(overrides), "the command line")
    return [
        Setting(key, value, defaults[key], texts[key], sources.get(key))
        for key, value in flat(config).items()
    ]


@cache
def meanings(cls: type) -> dict[str, str]:
    """What each setting of a configuration class means, by dotted key: the docstrings below its
    fields, as one paragraph each."""
    found = {}
    for name, hint in get_type_hints(cls).items():
        if name not in cls.__dataclass_fields__:
            continue
        if dataclasses.is_dataclass(hint):
            found |= {f"{name}.{key}": text for key, text in meanings(hint).items()}
        else:
            found[name] = _docstrings(cls).get(name, "")
    return found


@cache
def _docstrings(cls: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for field, below in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                found[field.target.id] = " ".join(ast.literal_eval(below.value).split())
    return found


def lines(settings: Iterable[Setting], width: int = 80) -> Iterator[str]:
    """The settings as text: ``key: value`` and what it means below, a gap between sections."""
    section = None
    for setting in settings:
        if section not in (None, setting.key.rpartition(".")[0]):
            yield ""
        section = setting.key.rpartition(".")[0]
        yield f"{setting.key}: {_shown(setting.value)}"
        origin = "default" if setting.source is None else f"from {setting.source}"
        if setting.value != setting.default:
            origin += f", default {_shown(setting.default)}"
        text = f"{setting.meaning.replace('``', '')} ({origin})"
        yield from textwrap.wrap(
            text, width, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
        )


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
