"""From YAML text and ``key=value`` overrides to a checked configuration, and back."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tats_fast.config.checks import ConfigError
from tats_fast.config.finetune import FinetuneConfig
from tats_fast.config.model import ModelConfig
from tats_fast.config.presets import PRESETS
from tats_fast.config.recipes import find_config, recipes
from tats_fast.config.schema import RunConfig
from tats_fast.config.training import TrainingConfig

Config = typing.TypeVar("Config", bound=TrainingConfig)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (YAML's default keeps the last, silently)."""


def _unique_mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict:
    keys = [loader.construct_object(key, deep=deep) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{key}: given twice (line {node.start_mark.line + 1})")
    values = [loader.construct_object(value, deep=True) for _, value in node.value]
    return dict(zip(keys, values, strict=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def load_config(path: str | Path | None = None, overrides: Iterable[str] = ()) -> RunConfig:
    """The configuration of a pretraining run.

    Args:
        path: a YAML file, or the name of a recipe (``recipes``); its top-level keys are
            ``RunConfig``'s fields. None = all defaults.
        overrides: ``key=value`` strings with dotted keys, such as ``train.steps=100``.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type or impossible value; one line.
    """
    return build_config(read_tree(path, overrides, RunConfig))


def load_finetune_config(
    path: str | Path | None = None, overrides: Iterable[str] = ()
) -> FinetuneConfig:
    """The same for a fine-tuning run, whose keys are ``FinetuneConfig``'s fields."""
    return build_config(read_tree(path, overrides, FinetuneConfig), FinetuneConfig)


def build_config(tree: Mapping[str, Any], cls: type[Config] = RunConfig) -> Config:
    """A ``cls`` from nested plain values; in pretraining the preset fills what the model section
    omits."""
    tree = dict(tree)
    if cls is RunConfig and isinstance(tree.get("model") or {}, dict):
        tree["model"] = _with_preset(tree.get("model") or {})
    for other in (RunConfig, FinetuneConfig):
        # In the order of the file, which a set of keys would not keep.
        for key in (key for key in tree if key in _fields(other) and key not in _fields(cls)):
            raise ConfigError(
                f"{key}={_short(tree[key])}: a key of tats-fast {other.command} alone; use that "
                "command or remove the key"
            )
    return _build(cls, tree, prefix="")


def build_model_config(tree: Mapping[str, Any]) -> ModelConfig:
    """A ``ModelConfig`` from the plain values of a ``model`` section."""
    return _build(ModelConfig, _with_preset(tree), prefix="model.")


def _with_preset(model: Mapping[str, Any]) -> dict[str, Any]:
    return {**PRESETS.get(str(model.get("preset", "vit_base")), {}), **model}


def read_saved(path: Path, cls: type[Config]) -> Config:
    """The configuration of kind ``cls`` that ``save_config`` wrote.

    Raises:
        ConfigError: not readable, of another kind, or with a key that this release does not know;
            one line with the file's name.
    """
    tree = _read_yaml(path)
    try:
        return build_config(tree, cls)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_tree(
    path: str | Path | None, overrides: Iterable[str], cls: type[TrainingConfig]
) -> dict[str, Any]:
    """The plain values of a file or recipe (as ``load_config`` takes them) and of overrides."""
    tree = _read_yaml(find_config(path, cls.command)) if path is not None else {}
    for key, value in parse_overrides(overrides).items():
        _set_dotted(tree, key, value)
    return tree


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """``["train.steps=5"]`` -> ``{"train.steps": 5}``; values are read as YAML scalars or lists."""
    parsed = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{text!r}: an override is key=value, for example train.steps=100")
        try:
            parsed[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"{key.strip()}={value}: not a readable value") from None
    return parsed


def to_dict(config: TrainingConfig) -> dict[str, Any]:
    """Nested plain values (tuples as lists) that ``build_config`` turns into an equal config."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return plain(dataclasses.asdict(config))


def flat(config: TrainingConfig) -> dict[str, Any]:
    """The same by dotted key, as overrides name them: ``{"train.steps": 100, ...}``."""
    return dict(leaves(to_dict(config)))


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a tree, each with its dotted key."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def save_config(config: TrainingConfig, path: Path) -> None:
    """Write the resolved configuration as YAML; loading ``path`` gives it back."""
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))


def _read_yaml(path: str | Path) -> dict[str, Any]:
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        if isinstance(error, FileNotFoundError):
            reason += f", and no recipe has that name{_hint(path, recipes())}"
        raise ConfigError(f"config file {path}: {reason}") from None
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise ConfigError(f"config file {path}: not valid YAML near line {line}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"config file {path}: expected keys with values at the top level")
    return tree


def _set_dotted(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        child = node.get(parent)
        if child is not None and not isinstance(child, dict):
            raise ConfigError(f"{key}: {parent} holds a single value, not a group of keys")
        node[parent] = dict(child or {})
        node = node[parent]
    node[leaf] = value


def _fields(cls: type) -> dict[str, Any]:
    """Type of every field by name."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _keys(cls: type, prefix: str) -> Iterator[str]:
    """The dotted key of every value and group in a ``cls``."""
    for name, hint in _fields(cls).items():
        yield prefix + name
        if dataclasses.is_dataclass(hint):
            yield from _keys(hint, f"{prefix}{name}.")


def _build(cls: type, tree: Any, prefix: str, known: list[str] | None = None) -> Any:
    """A ``cls`` from plain values; ``known`` are the keys to suggest, by default those in it."""
    hints = _fields(cls)
    if tree is None:
        tree = {}
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')}={tree}: is a group of keys: {', '.join(hints)}")
    known = list(_keys(cls, prefix)) if known is None else known
    for key in tree:
        if key not in hints:
            hint = _key_hint(key, prefix, known)
            raise ConfigError(f"{prefix}{key}={_short(tree[key])}: unknown key{hint}")
    values = {
        key: _build(hints[key], value, f"{prefix}{key}.", known)
        if dataclasses.is_dataclass(hints[key])
        else _convert(hints[key], value, f"{prefix}{key}")
        for key, value in tree.items()
    }
    for field in dataclasses.fields(cls):
        if field.default is field.default_factory is dataclasses.MISSING and field.name not in tree:
            raise ConfigError(f"{prefix.rstrip('.')}={_short(dict(tree))}: needs {field.name}=...")
    return cls(**values)


def _convert(hint: Any, value: Any, key: str) -> Any:
    """``value`` as the annotated type, or a one-line ``ConfigError``; no silent coercion."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        # YAML reads a bare "none"-like or boolean word as another type; compare as text too.
        if value in choices:
            return value
        raise ConfigError(
            f"{key}={_short(value)}: must be one of {', '.join(map(str, choices))}"
            + _hint(str(value), choices)
        )
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        several = isinstance(value, list | tuple | dict)
        return _convert(inner[-1] if several else inner[0], value, key)
    if origin is tuple:
        element = typing.get_args(hint)[0]
        items = value if isinstance(value, list | tuple) else [value]
        if dataclasses.is_dataclass(element):
            return tuple(
                _build(element, item, f"{key}[{n}].", list(_keys(element, f"{key}[{n}].")))
                for n, item in enumerate(items)
            )
        return tuple(_convert(element, item, key) for item in items)
    if hint is float and isinstance(value, str):
        value = _float_or_text(value)  # YAML 1.1 reads 1e-4 (no dot) as text
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{key}={_short(value)}: must be {_TYPE_NAMES[hint]}")
    return value


_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text (quote it if it looks like a number)",
}


def _float_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def _key_hint(key: str, prefix: str, known: Iterable[str]) -> str:
    """The full name of the key that was meant: the same name elsewhere, one of which it is a word,
    or a similar one, here first."""
    same = [name for name in known if name.split(".")[-1] == key]
    if same:
        return f"; did you mean {' or '.join(same)}?"
    longer = [name for name in known if key in name.split(".")[-1].split("_")]
    if longer:
        longer.sort(key=lambda name: not name.endswith(f"_{key}"))
        return f"; did you mean {' or '.join(longer[:3])}?"
    here = [name for name in known if name.rpartition(".")[0] == prefix.rstrip(".")]
    return _hint(prefix + key, here, cutoff=0.6) or _hint(prefix + key, known, cutoff=0.6)


def _hint(word: object, choices: Iterable[Any], cutoff: float = 0.5) -> str:
    words = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(word), words, n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
