"""A study as it is written down: one YAML file = strategies x ratios x seeds x data.

Legend: a cell is one training run of the study; a pack are cells that see the same clips.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from parts import ROOT
from tats_fast.config import ConfigError, RunConfig
from tats_fast.config.reading import build_config, flat
from tats_fast.pretrain.flops import training_step

PRESETS = ROOT / "benchmarks" / "studies"
UNTRAINED, SUPERVISED = "untrained", "supervised"
CONTROLS = (UNTRAINED, SUPERVISED)
"""Cells that are no pretraining: the starting weights, and a classifier trained with labels."""
ORACLE = "oracle"
BUDGETS = ("steps", "compute")
MEASURES = 2
"""Version of what is measured of a cell and how; another one's figures are not averaged with."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The content of a study's YAML file."""

    name: str
    model: dict[str, Any]
    """The ``model`` section of the trainer's configuration."""
    base: dict[str, Any] = field(default_factory=dict)
    """``section.key`` of the trainer's configuration, for every cell."""
    steps: int = 4000
    batch_size: int = 64
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    ratios: list[float] = field(default_factory=lambda: [0.9])
    budgets: list[str] = field(default_factory=lambda: ["steps"])
    """``steps``: as many as random masking; ``compute``: as much FLOP as random masking."""
    data: dict[str, dict[str, Any]]
    """By name: ``generated`` keys of the trainer, or ``train`` with a list of videos; where a name
    lists ``strategies``, it has these alone."""
    strategies: dict[str, dict[str, Any]]
    """By name: ``section.key`` of the trainer, or for an oracle ``oracle: k`` (a token that moves
    is k times as likely as one that does not); ``steps`` of its own."""
    probes: dict[str, dict[str, Any]]
    """By name: ``generated`` keys with ``train`` and ``test`` clips, or lists ``train`` and
    ``test`` of labelled videos; where a name lists ``kinds``, it has these."""
    kinds: list[str] = field(default_factory=lambda: ["linear_bn", "knn"])
    """Kinds of probes (``tats-fast probe``)."""
    shots: list[int] = field(default_factory=list)
    """Labelled clips per class that fine-tuning has; [] = no fine-tuning."""
    curve: int = 1
    """Evaluations over a run, evenly spaced; the last is after the last step."""

    def __post_init__(self) -> None:
        for part in ("data", "strategies", "probes"):
            for name, value in getattr(self, part).items():
                if not isinstance(value, dict):
                    raise ConfigError(f"{part}.{name}: expected a mapping, such as {{key: value}}")
        for name, probe in self.probes.items():
            if missing := {"train", "test"} - probe.keys():
                raise ConfigError(f"probes.{name}: {min(missing)} is missing")
        for budget in self.budgets:
            if budget not in BUDGETS:
                raise ConfigError(f"budgets: {budget}: must be one of {', '.join(BUDGETS)}")
        for name in self.data:
            for strategy in self.strategies_of(name):
                if strategy not in self.strategies:
                    raise ConfigError(f"data.{name}.strategies: no strategy {strategy!r}")
                if "train" in self.data[name] and self._needs_truth(strategy):
                    raise ConfigError(
                        f"data.{name}: {strategy} needs labels or the truth of what moves, which "
                        f"listed videos lack; name the others in data.{name}.strategies"
                    )

    def strategies_of(self, data: str) -> list[str]:
        """The strategies that are tried on ``data``."""
        return list(self.data[data].get("strategies", self.strategies))

    def packs(self) -> list[list[Cell]]:
        """All cells, those with the same data and seed together."""
        packs = []
        for seed, data in product(self.seeds, self.data):
            cells = []
            ratios = self.data[data].get("ratios", self.ratios)
            for ratio, strategy, budget in product(ratios, self.strategies_of(data), self.budgets):
                same = strategy in CONTROLS and ratio != ratios[0]
                if not same and not (budget == "compute" and not self._learns(strategy)):
                    cells.append(Cell(self, data, ratio, strategy, seed, budget))
            packs.append(cells)
        return packs

    def lists(self, data: str) -> list[str]:
        """The lists of videos that cells of ``data`` read."""
        entries = [self.data[data], *self.probes.values()]
        paths = [entry.get(part) for entry in entries for part in ("train", "test")]
        return [path for path in paths if isinstance(path, str)]

    def _needs_truth(self, strategy: str) -> bool:
        return strategy == SUPERVISED or ORACLE in self.strategies[strategy]

    def _learns(self, strategy: str) -> bool:
        return self.strategies[strategy].get("masking.strategy") in ("tats", "adamae")


@dataclass(frozen=True)
class Cell:
    """One training run of a study."""

    study: Study = field(repr=False)
    data: str
    ratio: float
    strategy: str
    seed: int
    budget: str = "steps"

    @property
    def key(self) -> str:
        """Name of its file."""
        budget = "" if self.budget == "steps" else f"_{self.budget}"
        return f"{self.data}_{self.strategy}_{self.ratio:g}_seed{self.seed}{budget}"

    @property
    def oracle(self) -> float | None:
        """How many times as likely a moving token is; None where the truth is not looked at."""
        return self.study.strategies[self.strategy].get(ORACLE)

    @property
    def config(self) -> RunConfig:
        """The trainer's configuration."""
        return self._config(self.study.strategies[self.strategy])

    @property
    def steps(self) -> int:
        """Optimizer steps: the study's, or as many as cost what random masking costs."""
        steps = self.study.strategies[self.strategy].get("steps", self.study.steps)
        if self.strategy == UNTRAINED:
            return 0
        if self.budget == "steps":
            return steps
        config, warmup = self.config, self.config.sampler.warmup_frac
        random = training_step(self._config({"masking.strategy": "random"}))
        own = training_step(config)
        resting = training_step(config, warmup=True)
        return round(steps * random / (warmup * resting + (1 - warmup) * own))

    def _config(self, overrides: dict[str, Any]) -> RunConfig:
        study = self.study
        settings = {"masking.strategy": "random", **study.base, **overrides}
        settings.pop("steps", None)
        if settings.pop(ORACLE, None) is not None:
            settings["masking.strategy"] = "motion"  # whose weights are then the truth
        settings |= {"masking.ratio": self.ratio, "train.batch_size": study.batch_size}
        tree: dict[str, Any] = {"model": dict(study.model), "seed": self.seed}
        for key, value in settings.items():
            section, _, name = key.partition(".")
            tree.setdefault(section, {})[name] = value
        return build_config(tree)

    def circumstances(self) -> dict[str, Any]:
        """What its result depends on and the study does not say: the trainer's settings, defaults
        among them, and by path a hash of each list's content, where the list is here."""
        lists = {path: list_content(path) for path in self.study.lists(self.data)}
        return flat(self.config) | {path: content for path, content in lists.items() if content}

    def is_of(self, record: dict[str, Any], earlier: bool = False) -> bool:
        """Whether a record is this cell's, as it is now. What only one of the two knows, as an
        option that is new, tells nothing.

        Args:
            earlier: whether it may be of an earlier version of the measures.
        """
        now, then = self.circumstances(), record.get("circumstances", {})
        same = all(now[key] == then[key] for key in now.keys() & then.keys())
        same &= earlier or record.get("measures") == MEASURES
        return same and record["fingerprint"] == self.fingerprint()

    def fingerprint(self) -> str:
        """Hash of what the study says of it, so that a changed study does not reuse its record."""
        study = dataclasses.asdict(self.study)
        for unrelated in ("name", "seeds", "ratios", "budgets", "data", "strategies"):
            study.pop(unrelated)
        own = {
            "data": self.study.data[self.data] | {"strategies": None, "ratios": None},
            "strategy": self.study.strategies[self.strategy],
            "steps": self.steps,
        }
        text = json.dumps([study, own, self.key], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def list_content(path: str) -> str:
    """Hash of a list's content; empty where it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError:
        return ""


def read_study(source: str, changes: list[str] = ()) -> Study:
    """A study from a YAML file or by the name of a preset.

    Args:
        changes: ``key=value``, replacing top-level entries of the file (``model.x``: of its model).

    Raises:
        ConfigError: not readable, or a key that a study does not have; one line.
    """
    preset = PRESETS / f"{source}.yaml"
    path = preset if preset.exists() else Path(source)
    try:
        tree = yaml.safe_load(path.read_text())
        for change in changes:
            key, equals, value = change.partition("=")
            if not equals:
                raise ConfigError(f"{change!r}: expected key=value")
            place, _, name = key.partition(".") if key.count(".") else ("", "", key)
            (tree[place] if place else tree)[name] = yaml.safe_load(value)
    except OSError as error:
        names = ", ".join(sorted(file.stem for file in PRESETS.glob("*.yaml")))
        raise ConfigError(f"{source}: {error.strerror}; presets are {names}") from None
    except (yaml.YAMLError, KeyError):
        raise ConfigError(f"{source}: not a readable study") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: expected a mapping")
    known = {item.name for item in dataclasses.fields(Study)}
    required = {"name", "model", "data", "strategies", "probes"}
    if problem := sorted(tree.keys() - known) or sorted(required - tree.keys()):
        word = "unknown" if problem[0] not in known else "missing"
        raise ConfigError(f"{source}: {problem[0]} is {word}")
    study = Study(**tree)
    for pack in study.packs():
        for cell in pack:
            _ = cell.config  # raises what is wrong with it
    return study
