"""A user's file of DeepSpeed settings, checked key by key before DeepSpeed sees it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tats_fast.config import ConfigError

OWNED = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
    *("optimizer", "scheduler", "gradient_clipping", "bf16", "fp16", "amp", "torch_autocast"),
    *("elasticity", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
)
"""Settings that follow from the run's configuration; a file may not contradict them."""
_NUMBER, _YES_NO, _TEXT, _GROUP = (int, float), bool, str, dict
_KINDS = {_NUMBER: "a number", _YES_NO: "true or false", _TEXT: "text", _GROUP: "a group of keys"}
TOP = {
    **dict.fromkeys(("steps_per_print", "gradient_predivide_factor"), _NUMBER),
    **dict.fromkeys(
        (
            *("prescale_gradients", "disable_allgather", "dump_state", "wall_clock_breakdown"),
            *("memory_breakdown", "disable_python_gc"),
        ),
        _YES_NO,
    ),
    **dict.fromkeys(("communication_data_type", "gradient_allreduce_op", "log_level"), _TEXT),
    **dict.fromkeys(
        (
            *("zero_optimization", "comms_logger", "flops_profiler", "tensorboard", "csv_monitor"),
            *("wandb", "aio", "checkpoint", "data_types"),
        ),
        _GROUP,
    ),
}
"""Top-level keys that are passed on, and what their values are."""
ZERO = {
    "reduce_bucket_size": _NUMBER,
    **dict.fromkeys(
        ("reduce_scatter", "overlap_comm", "contiguous_gradients", "enable_sanity_checks"), _YES_NO
    ),
    "offload_optimizer": _GROUP,
}
"""Those of ``zero_optimization`` that mean something in every stage ..."""
ZERO_1_AND_2 = {
    "allgather_bucket_size": _NUMBER,
    **dict.fromkeys(
        (
            *("allgather_partitions", "round_robin_gradients", "ignore_unused_parameters"),
            "use_multi_rank_bucket_allreduce",
        ),
        _YES_NO,
    ),
}
"""... in stages 1 and 2 alone ..."""
ZERO_3 = {
    **dict.fromkeys(
        (
            *("sub_group_size", "stage3_prefetch_bucket_size", "stage3_max_live_parameters"),
            *("stage3_max_reuse_distance", "stage3_param_persistence_threshold"),
        ),
        _NUMBER,
    ),
    "stage3_allgather_sequential": _YES_NO,
    "offload_param": _GROUP,
}
"""... and in stage 3 alone."""
OFFLOAD = {"device": _TEXT, "pin_memory": _YES_NO}
"""Of ``offload_optimizer`` and ``offload_param``. What else DeepSpeed has there is for nvme, or for
an optimizer of its own (``ratio``)."""
VECTORS = 2048
"""Least ``stage3_param_persistence_threshold``: biases and the mask token are read outside the
modules that hold them, and so stay whole everywhere."""


def read_deepspeed_json(path: str | None, stage: int) -> dict[str, Any]:
    """The settings in a file for a run of this ZeRO stage; none without one.

    Raises:
        ConfigError: missing file, bad JSON, a key that the run's own configuration decides or that
            is not known or means nothing in this stage, or a value of another kind; one line.
    """
    if path is None:
        return {}
    key = f"distributed.deepspeed_config={path}"
    try:
        settings = json.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{key}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{key}: not valid JSON") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{key}: expected one JSON object")
    for name in OWNED:
        if name in settings:
            raise ConfigError(f"{key}: remove {name!r}, it follows from the run's own config")
    _check(settings, TOP, key, "")
    zero = settings.get("zero_optimization", {})
    if "stage" in zero:
        raise ConfigError(f"{key}: remove 'stage' and set distributed.zero_stage instead")
    here, elsewhere = (ZERO_3, ZERO_1_AND_2) if stage == 3 else (ZERO_1_AND_2, ZERO_3)
    for name in elsewhere:
        if name in zero:
            raise ConfigError(
                f"{key}: zero_optimization.{name}: of no effect with distributed.zero_stage={stage}"
            )
    _check(zero, {**ZERO, **here}, key, "zero_optimization.")
    threshold = zero.get("stage3_param_persistence_threshold", VECTORS)
    if threshold < VECTORS:
        raise ConfigError(
            f"{key}: zero_optimization.stage3_param_persistence_threshold={threshold}: must be at "
            f"least {VECTORS}; smaller parameters stay whole on every process"
        )
    for group in ("offload_optimizer", "offload_param"):
        offload = zero.get(group, {})
        _check(offload, OFFLOAD, key, f"zero_optimization.{group}.")
        if offload.get("device", "cpu") not in ("cpu", "none"):
            raise ConfigError(
                f"{key}: zero_optimization.{group}.device={offload['device']}: must be cpu or none"
            )
    return settings


def _check(settings: Mapping[str, Any], known: Mapping[str, Any], key: str, prefix: str) -> None:
    for name, value in settings.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else ""
            raise ConfigError(f"{key}: {prefix}{name}: unknown or of no effect here{hint}")
        kind = known[name]
        is_bool = isinstance(value, bool)
        if not isinstance(value, kind) or (is_bool and kind is not _YES_NO):
            raise ConfigError(
                f"{key}: {prefix}{name}={json.dumps(value)[:40]}: must be {_KINDS[kind]}"
            )
