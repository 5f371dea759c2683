"""What a run's configuration has otherwise than that of the checkpoint it resumes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tats_fast.config import ConfigError, TrainingConfig, read_saved
from tats_fast.config.reading import flat
from tats_fast.run_folder import CONFIG_FILE

_NOT_TRAINING = ("name", "output_dir", "device", "train.resume")
"""Where and from what, which changes nothing that is computed."""
_START = ("init_from", "train.init_from", "model.preset")
"""What only a run without a checkpoint reads."""


def changed_settings(folder: Path, config: TrainingConfig) -> list[str]:
    """The settings of ``config`` that the checkpoint in ``folder`` was trained without, each as
    ``key: before -> now``; all of them apply from here on.

    Raises:
        ConfigError: the checkpoint is of another kind of training, or a setting cannot be changed
            in the middle; one line.
    """
    try:
        there = read_saved(folder / CONFIG_FILE, type(config))
    except ConfigError as error:
        raise ConfigError(
            f"train.resume={folder}: no checkpoint of tats-fast {config.command} ({error}); choose "
            "another name=..."
        ) from None
    before, now = flat(there), flat(config)
    changed = [key for key in now if now[key] != before[key] and key not in _NOT_TRAINING]
    fixed = [key for key in config.identity() if config.identity()[key] != there.identity()[key]]
    for key in [*fixed, *changed]:
        if key in fixed:
            kept = "null" if before[key] is None else before[key]
            raise ConfigError(
                f"{key}={now[key]}: the checkpoint {folder} has {before[key]}; set {key}={kept} to "
                "go on, or choose another name=... to start anew"
            )
        why = _cannot(key, config)
        if why is not None and now[key] is not None:
            raise ConfigError(
                f"{key}={now[key]}: the checkpoint {folder} has {before[key]}, and {why}"
            )
    return [
        f"{key}: {before[key]} -> {now[key]}" for key in changed if _cannot(key, config) is None
    ]


def changed_videos(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """The same for the list of videos, from what ``videos.listing`` returned then and now."""
    changed = [] if before is None else [key for key in before if before[key] != now[key]]
    if changed == ["labels"]:
        return ["labels: not those of before"]
    as_many = "as many others" if "videos" not in changed else now["videos"]
    return [f"videos: {before['videos']} -> {as_many}"] if changed else []


def _cannot(key: str, config: TrainingConfig) -> str | None:
    """Why this setting cannot be changed in the middle of a run, if so."""
    if key in _START:
        return "a resumed run has its weights from there; choose another name=... to start anew"
    if key == "data.repeats":
        return "the position in the list is counted in windows of so many clips"
    if key in ("train.batch_size", "generated.share") and config.train.steps is None:
        return (
            "how many steps its epochs have follows from it; keep it, or say with train.steps=... "
            "where the run ends"
        )
    return None
