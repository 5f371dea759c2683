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
    **dict.fromkeys(("reduce_bucket_size", "allgather_bucket_size", "sub_group_size"), _NUMBER),
    **dict.fromkeys(
        (
            *("allgather_partitions", "reduce_scatter", "overlap_comm", "contiguous_gradients"),
            *("round_robin_gradients", "ignore_unused_parameters", "elastic_checkpoint"),
            *("use_multi_rank_bucket_allreduce", "load_from_fp32_weights", "enable_sanity_checks"),
        ),
        _YES_NO,
    ),
    "offload_optimizer": _GROUP,
}
"""Those of ``zero_optimization`` that mean something in stages 1 and 2."""
OFFLOAD = {
    **dict.fromkeys(("device",), _TEXT),
    **dict.fromkeys(("pin_memory", "pipeline_read", "pipeline_write", "fast_init"), _YES_NO),
    **dict.fromkeys(("ratio", "buffer_count"), _NUMBER),
}


def read_deepspeed_json(path: str | None) -> dict[str, Any]:
    """The settings in a file; none without one.

    Raises:
        ConfigError: missing file, bad JSON, a key that the run's own configuration decides or that
            is not known, or a value of another kind; one line.
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
    _check(zero, ZERO, key, "zero_optimization.")
    offload = zero.get("offload_optimizer", {})
    _check(offload, OFFLOAD, key, "zero_optimization.offload_optimizer.")
    if offload.get("device", "cpu") not in ("cpu", "none"):
        raise ConfigError(
            f"{key}: zero_optimization.offload_optimizer.device={offload['device']}: must be cpu "
            "or none; nvme needs stage 3"
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
