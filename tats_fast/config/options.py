"""Options of a command or of a library call, each written down once.

A dataclass field made by ``option`` holds default, help text and bounds. ``Options`` checks the
bounds, ``add_arguments`` makes the command line from the fields, and ``chosen`` reads it back.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from operator import ge, gt, le, lt
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from tats_fast.config.checks import require

Chosen = TypeVar("Chosen")
BOUNDS = {"at_least": ge, "above": gt, "at_most": le, "below": lt}
_OURS = ("flag", "unset", "instead_of", *BOUNDS)
_TYPES = {"int": int, "float": float, "str": str}


def option(default: Any = MISSING, help: str = "", **settings: Any) -> Any:
    """A field of an ``Options`` class.

    Args:
        default: a value, or a function that makes one; none = the option is required.
        settings: bounds (``at_least``, ``above``, ``at_most``, ``below``) or ``choices`` for the
            value or each part of a tuple; ``flag``, what the command line calls it, if not
            ``--name-of-the-field`` (without dashes: a positional argument); ``unset``, the default
            in words; ``instead_of``, a field that ``chosen`` drops where this one is given. Others
            are for ``argparse``, where a ``metavar`` of DIR, FILE or PATH also
            marks a path.
    """
    kind = "default_factory" if callable(default) else "default"
    return field(**{kind: default}, metadata={"help": help, **settings})


def follow(cls: type, name: str, source: str) -> Any:
    """The option ``name`` of ``cls`` where it may stay open: None means what ``source`` says."""
    item = cls.__dataclass_fields__[name]
    otherwise = item.metadata.get("unset", item.default)
    unset = source if otherwise is None else f"{source}, or {otherwise}"
    return field(default=None, metadata={**item.metadata, "unset": unset})


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base class of dataclasses whose fields are options.

    Raises:
        ConfigError: a value out of bounds; one line.
    """

    section: ClassVar[str] = ""
    """What messages put before a field's name."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None:
                _check(self.section + item.name, value, item.metadata)


def _check(key: str, value: Any, settings: Mapping[str, Any]) -> None:
    parts = value if isinstance(value, tuple) else (value,)
    bounds = {name: limit for name, limit in settings.items() if name in BOUNDS}
    words = " and ".join(f"{name.replace('_', ' ')} {limit}" for name, limit in bounds.items())
    for part in parts if bounds else ():
        inside = all(BOUNDS[name](part, limit) for name, limit in bounds.items())
        finite = "finite and " if inside else ""  # then an infinity is all that is refused
        require(inside and math.isfinite(part), key, part, f"must be {finite}{words}")
    if choices := settings.get("choices"):
        for part in parts or ("",):
            require(part in choices, key, part, f"must be one of {', '.join(choices)}")


def add_arguments(parser: argparse.ArgumentParser, cls: type) -> None:
    """Add the options of ``cls`` to a command line, the required ones first.

    What is not given is not there afterwards; ``chosen`` puts the default in its place. The
    parser's default ``flags`` has what the command line calls each field, by name.
    """
    flags = dict(parser.get_default("flags") or {})
    hints = get_type_hints(cls)
    options = [item for item in fields(cls) if item.metadata]
    required = [item for item in options if item.default is item.default_factory is MISSING]
    for item in required + [item for item in options if item not in required]:
        flag = item.metadata.get("flag") or f"--{item.name.replace('_', '-')}"
        settings = _settings(item)
        if get_origin(hints[item.name]) is Literal:
            settings |= {"type": str, "choices": get_args(hints[item.name])}
        if flag.startswith("-"):
            settings |= {"dest": item.name, "required": item in required}
            flags[item.name] = flag
        elif settings.get("nargs") == "?" and "choices" in settings:
            # argparse would hold one that is left out to them, too; ``chosen`` compares what is.
            settings["metavar"] = f"{{{','.join(settings.pop('choices'))}}}"
        parser.add_argument(flag, default=argparse.SUPPRESS, **settings)
    parser.set_defaults(flags=flags)


def _settings(item: Field) -> dict[str, Any]:
    """Arguments of ``add_argument``."""
    settings = {name: value for name, value in item.metadata.items() if name not in _OURS}
    kind, default = item.type.removesuffix(" | None"), item.metadata.get("unset")
    if kind == "bool":
        return {**settings, "action": "store_true"}
    if default is None and item.default not in (MISSING, None):
        default = f"{item.default:g}" if kind == "float" else item.default
    if default is not None:
        settings["help"] += f" (default: {default})"
    if kind == "int":
        settings.setdefault("metavar", "N")
    if kind not in _TYPES:  # a tuple, whose parts argparse would not compare
        settings.pop("choices", None)
    is_path = settings.get("metavar") in ("DIR", "FILE", "NAME|FILE", "PATH")
    return {**settings, "type": os.path.expanduser if is_path else _TYPES.get(kind, _parts)}


def _parts(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def chosen(cls: type[Chosen], *sources: object) -> Chosen:
    """A ``cls`` with each field from the first source that has a value for it, or else its default.

    Args:
        cls: a dataclass.
        sources: any objects, the parsed command line among them; None counts as no value.

    Raises:
        ConfigError: a value out of bounds; one line.
    """
    values: dict[str, Any] = {}
    for source in reversed(sources):
        own = {item.name: getattr(source, item.name, None) for item in fields(cls)}
        own = {name: value for name, value in own.items() if value is not None}
        replaced = {cls.__dataclass_fields__[name].metadata.get("instead_of") for name in own}
        values = {name: value for name, value in values.items() if name not in replaced} | own
    return cls(**values)


def cores() -> int:
    """Cores for each of a launcher's processes on this machine."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // processes)


@dataclass(frozen=True, kw_only=True)
class FromCheckpoint(Options):
    """Options of every command that reads a model."""

    checkpoint: str = option(help="run, checkpoint folder or file", metavar="PATH")
