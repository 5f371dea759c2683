"""Reference curves: what healthy runs of a configuration looked like, as one small JSON file.

Legend: R runs, which differ in their seed.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tats_fast.config import ConfigError, FinetuneConfig, RunConfig
from tats_fast.config.reading import flat, read_saved
from tats_fast.data.files import write_bytes
from tats_fast.report.curves import Points, series, thin
from tats_fast.run_folder import CONFIG_FILE, read_rows
from tats_fast.version import __version__

POINTS = 60
"""Most points of a stored curve: what a picture can show."""


class Kind(NamedTuple):
    """A curve that runs are compared by."""

    title: str
    better: str
    """"lower", "higher", or "" where neither is."""


TRAINED = {
    "loss_recon": Kind("training loss", "lower"),
    "loss": Kind("training loss", "lower"),
    "train_top1": Kind("training accuracy", "higher"),
}
"""Columns of metrics.jsonl; the last two are those of fine-tuning."""
EVALUATED = {
    "loss_recon_random": Kind("held-out loss", "lower"),
    "probe_linear": Kind("linear probe", "higher"),
    "probe_linear_bn": Kind("linear probe, standardised", "higher"),
    "probe_knn": Kind("kNN probe", "higher"),
    "probe_attentive": Kind("attentive probe", "higher"),
    "motion_lift_sampler": Kind("motion lift", ""),
    "true_motion_lift_sampler": Kind("lift on true motion", ""),
    "entropy_frac": Kind("entropy of the sampler", ""),
    "top1": Kind("held-out accuracy", "higher"),
}
"""Columns of eval.jsonl; the last is that of fine-tuning."""
KINDS = {**TRAINED, **EVALUATED}
OF_THE_RUN = (
    *("name", "output_dir", "seed", "device", "distributed.engine", "data.workers", "train.resume"),
    *("train.checkpoint_every", "train.keep_checkpoints", "train.keep_best", "train.loggers"),
    *("train.log_every", "train.eval_every", "train.image_every", "train.eval_epochs"),
)
"""Settings that may differ between runs of one configuration: they change no number."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Curves of R runs, and where they come from."""

    command: str
    """What makes such a run."""
    hardware: str
    """What they ran on."""
    versions: dict[str, str]
    seeds: list[int]
    """(R,)"""
    config: dict[str, Any]
    """Settings by dotted key; of a path its last part."""
    curves: dict[str, list[Points]]
    """By name of ``KINDS``: the (step, value) points of every run."""


def read_runs(folders: Sequence[str | Path], command: str, hardware: str) -> Reference:
    """The curves of one or several runs of one configuration.

    Args:
        hardware: what they ran on; "" = this machine.

    Raises:
        ConfigError: no run, a run without logs, or runs that differ in more than their seed; one
            line.
    """
    configs = [_run_config(Path(folder)) for folder in folders]
    first = settings(configs[0])
    for folder, config in zip(folders, configs, strict=True):
        if changed := differences(settings(config), first):
            raise ConfigError(f"run={folder}: not the configuration of {folders[0]}: {changed}")
    seeds = [config.seed for config in configs]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"run={folders[-1]}: a seed given twice: {', '.join(map(str, seeds))}")
    curves = [_curves(Path(folder)) for folder in folders]
    shared = [name for name in KINDS if all(name in each for each in curves)]
    return Reference(
        command=command,
        hardware=hardware or _machine(),
        versions={"tats_fast": __version__, "torch": torch.__version__},
        seeds=seeds,
        config=first,
        curves={name: [each[name] for each in curves] for name in shared},
    )


def write_reference(reference: Reference, path: Path) -> None:
    """Write the JSON file that ``read_reference`` reads: a line per field, numbers of four
    digits."""
    record = asdict(reference)
    for name, runs in reference.curves.items():
        record["curves"][name] = [[[s, float(f"{v:.4g}")] for s, v in points] for points in runs]
    fields = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in record.items())
    write_bytes(path, ("{\n" + ",\n".join(fields) + "\n}\n").encode())


def read_reference(path: str | Path) -> Reference:
    """A reference file, or a run's folder as a reference of one run.

    Raises:
        ConfigError: neither of them, or damaged; one line.
    """
    path = Path(path)
    if path.is_dir():
        return read_runs([path], command="", hardware="")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        curves = {
            name: [[(float(step), float(value)) for step, value in points] for points in runs]
            for name, runs in record.pop("curves").items()
        }
        record["config"] = _with_newer_settings(record["config"])
        reference = Reference(**record, curves=curves)
        counts = {len(runs) for runs in curves.values()} | {len(reference.seeds)}
        if (
            len(counts) > 1
            or not all(map(all, curves.values()))
            or not curves.keys() <= KINDS.keys()
        ):
            raise ValueError
    except OSError as error:
        raise ConfigError(f"reference={path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(
            f"reference={path}: no reference curves; `tats-fast reference` writes such files"
        ) from None
    return reference


def _with_newer_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Settings that came after the file was written have their defaults, which change nothing."""
    kind = FinetuneConfig if "init_from" in config else RunConfig
    return {**settings(kind()), **config}


def settings(config: RunConfig | FinetuneConfig) -> dict[str, Any]:
    """Settings by dotted key, without those of the single run; of a path its last part."""
    return {k: _last_parts(v) for k, v in flat(config).items() if k not in OF_THE_RUN}


def _last_parts(value: Any) -> Any:
    """A setting with of each path in it the last part."""
    if isinstance(value, str):
        return Path(value).name if "/" in value else value
    if isinstance(value, Mapping):
        return {key: _last_parts(part) for key, part in value.items()}
    return [_last_parts(part) for part in value] if isinstance(value, list) else value


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """ "key=1 (0)" for every setting of ``one`` that is another in ``other``; "" = none."""
    keys = [*one, *(key for key in other if key not in one)]
    return ", ".join(
        f"{key}={one.get(key)} ({other.get(key)})" for key in keys if one.get(key) != other.get(key)
    )


def _run_config(folder: Path) -> RunConfig | FinetuneConfig:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(f"run={folder}: no folder of a run (it would hold {CONFIG_FILE})")
    try:
        return read_saved(path, RunConfig)
    except ConfigError:
        with suppress(ConfigError):
            return read_saved(path, FinetuneConfig)
        raise


def _curves(folder: Path) -> dict[str, Points]:
    metrics, evaluations = (read_rows(folder / name) for name in ("metrics.jsonl", "eval.jsonl"))
    found = {name: thin(series(metrics, name), POINTS) for name in TRAINED}
    found |= {name: thin(series(evaluations, name), POINTS) for name in EVALUATED}
    found = {name: points for name, points in found.items() if points}
    if not found:
        raise ConfigError(f"run={folder}: nothing logged yet")
    return found


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        if model := re.search(r"^model name\s*:(.*)", text, re.M):
            return f"{model[1].strip()}, {torch.get_num_threads()} threads"
    return platform.processor() or platform.machine()
