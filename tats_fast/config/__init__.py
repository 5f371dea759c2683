"""Typed, strict configuration: dataclasses, presets, YAML files and ``key=value`` overrides."""

from tats_fast.config.checks import ConfigError
from tats_fast.config.load import load_config, parse_overrides, save_config
from tats_fast.config.schema import (
    DataConfig,
    DistributedConfig,
    MaskingConfig,
    ModelConfig,
    OptimConfig,
    PPOConfig,
    RunConfig,
    SamplerConfig,
    TrainConfig,
)

__all__ = [
    "ConfigError",
    "DataConfig",
    "DistributedConfig",
    "MaskingConfig",
    "ModelConfig",
    "OptimConfig",
    "PPOConfig",
    "RunConfig",
    "SamplerConfig",
    "TrainConfig",
    "load_config",
    "parse_overrides",
    "save_config",
]
